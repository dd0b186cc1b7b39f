import re

import pytest

from puzzlebench.benching.suite import BENCHMARKS, GROUPS, Benchmark, choose, matching, missing
from puzzlebench.measuring.device import cpu_device

pytest.importorskip("torch")
CPU = cpu_device()
HERE = [one for one in BENCHMARKS if missing(one, CPU) is None]


def test_names_are_stable_keys():
    names = [one.name for one in BENCHMARKS]
    assert len(set(names)) == len(names)
    assert {one.group for one in BENCHMARKS} == set(GROUPS)
    assert all(re.fullmatch(r"[a-z]+/[\w.-]+", name) for name in names)


def test_every_group_has_benchmarks_for_a_cpu_and_the_references_are_called_so():
    assert {one.group for one in HERE} == set(GROUPS)
    assert all("torch_reference" in one.name for one in HERE if one.group == "kernel")


@pytest.mark.parametrize("benchmark_", HERE, ids=lambda one: one.name)
def test_every_benchmark_runs_again_and_again(benchmark_):
    work = benchmark_.prepare(CPU)
    assert work.copies >= 1
    for copy in (0, work.copies - 1, 0):
        work.run(copy)


def test_choosing_by_pattern_and_by_part_of_a_name():
    assert choose([]) == BENCHMARKS
    assert {one.group for one in choose(["search/*", "pack"])} == {"search", "pipeline"}
    names = ["block/a.n1", "block/a.n1.hot", "search/b"]
    assert matching("block/a.n1", names) == ["block/a.n1"]  # and not the one whose name it begins
    assert matching("a.n1", names) == names[:2]
    with pytest.raises(ValueError, match=r"no benchmark matches 'serch/b'; did you mean search/b\?"):
        matching("serch/b", names)


def test_what_cannot_run_here_says_why():
    def needing(**changes):
        return missing(Benchmark(name="kernel/x", about="", prepare=lambda _device: None, **changes), CPU)

    assert needing() is None
    assert needing(on="cuda") == "is for GPUs"
    assert needing(on="cpu") is None


def test_a_module_that_is_not_there_is_named_with_what_brings_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    kernel = next(one for one in BENCHMARKS if one.needs == ("triton",) and one.on == "cpu")
    assert missing(kernel, CPU) == "needs triton: pip install triton"


@pytest.mark.parametrize("name", ["nothing", "other/x", "block/", "block/a b"])
def test_a_name_is_group_and_what(name):
    with pytest.raises(ValueError, match="GROUP/what without spaces"):
        Benchmark(name=name, about="", prepare=lambda _device: None)
