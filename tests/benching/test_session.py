import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from puzzlebench.benching import session
from puzzlebench.benching.cells import calm_cells
from puzzlebench.benching.session import Request, main, parse_slow, read_request, run_session
from puzzlebench.benching.suite import BENCHMARKS, Benchmark
from puzzlebench.benching.workloads import Ready

pytest.importorskip("torch")
TWO = ("pack_text", "kernel/torch_reference.swiglu*")


def messages(request, **options):
    said = []
    return run_session(request, said.append, **options), said


def test_a_session_has_a_median_with_its_interval_for_every_benchmark():
    found, said = messages(Request(only=TWO, seconds=0.05, session=3, device="cpu"))
    assert found["schema_version"] == 1
    assert found["session"]["session"] == 3
    cells = found["session"]["cells"]
    assert set(cells) == {"pipeline/pack_text", "kernel/torch_reference.swiglu.t256.w1024"}
    for cell in cells.values():
        assert cell["unit"] == "us"
        assert cell["median"] > 0
        if cell["samples"] >= 3:
            assert cell["low"] <= cell["median"] <= cell["high"]
        else:
            assert (cell["low"], cell["high"]) == (None, None)
        assert cell["samples"] <= cell["taken"] == sum(map(len, cell["visits"]))
        assert len(cell["visits"]) >= 2
    assert 0 <= found["session"]["set_aside_share"] < 1
    assert 0 <= found["session"]["others_share"] <= 1
    assert {one["stage"] for one in said} == {"preparing", "timing"}
    assert {"torch", "threads", "affinity", "governor", "scipy", "cpu"} <= set(found["fingerprint"])
    assert found["code"] == session.code_digest()
    assert len(found["fingerprint"]["suite"]) == 12
    json.dumps(found, allow_nan=False)


def test_no_seconds_put_everything_in_place_and_time_nothing():
    found, said = messages(Request(only=TWO, seconds=0, device="cpu"))
    assert found["session"]["cells"] == {}
    assert {one["stage"] for one in said} == {"preparing"}


def test_what_cannot_run_or_fails_is_skipped_with_its_reason(monkeypatch):
    def fails(_device):
        raise RuntimeError("no luck\nat all")

    broken = Benchmark(name="search/broken", about="", prepare=fails)
    elsewhere = Benchmark(name="search/gpu", about="", on="cuda", prepare=fails)
    works = Benchmark(
        name="search/works", about="", prepare=lambda _device: Ready(launch=lambda _copy: sum(range(20_000)))
    )
    monkeypatch.setattr(session, "choose", lambda _only: (broken, elsewhere, works))
    found, _ = messages(Request(seconds=0.01, device="cpu"))
    assert found["skipped"] == {"search/broken": "failed: RuntimeError: no luck", "search/gpu": "is for GPUs"}
    assert set(found["session"]["cells"]) == {"search/works"}
    monkeypatch.setattr(session, "choose", lambda _only: (elsewhere,))
    with pytest.raises(ValueError, match="nothing can be measured on cpu; search/gpu is for GPUs"):
        messages(Request(device="cpu"))


def test_rounds_are_in_an_order_of_the_sessions_own_and_long_runs_take_turns(monkeypatch):
    ran = []

    def ready(name, long):
        def launch(_copy):
            ran.append(name)
            if long:
                clock[0] += 20_000_000
            clock[0] += 600_000

        return Ready(launch=launch)

    clock = [0]
    for module in ("puzzlebench.measuring.stopwatch", "puzzlebench.measuring.rounds", "puzzlebench.benching.session"):
        monkeypatch.setattr(
            f"{module}.time", SimpleNamespace(perf_counter_ns=lambda: clock[0], perf_counter=lambda: clock[0] / 1e9)
        )
    suite = [
        Benchmark(name=f"search/{name}", about="", prepare=lambda _d, name=name: ready(name, name == "long"))
        for name in "abcd"
    ]
    suite.append(Benchmark(name="search/long", about="", prepare=lambda _device: ready("long", True)))
    monkeypatch.setattr(session, "choose", lambda _only: tuple(suite))
    found, _ = messages(Request(seconds=0.5, device="cpu"))
    cells = found["session"]["cells"]
    assert cells["search/a"]["median"] == pytest.approx(600)
    assert cells["search/long"]["median"] == pytest.approx(20_600)
    assert len(cells["search/a"]["visits"]) == pytest.approx(4 * len(cells["search/long"]["visits"]), abs=4)
    assert {len(visit) for visit in cells["search/long"]["visits"]} == {1}
    rounds = [one for one, _ in itertools.groupby(name for name in ran if name != "long")]
    orders = {tuple(rounds[start : start + 4]) for start in range(4, len(rounds) - 4, 4)}
    assert len(orders) > 3


def test_slowed_work_takes_its_time_times_the_factor(monkeypatch):
    clock = [0]

    def tick():
        clock[0] += 10
        return clock[0]

    def launch(_copy):
        clock[0] += 1_000_000

    monkeypatch.setattr(session.time, "perf_counter_ns", tick)
    slowed = session._Slowed(work=Ready(launch=launch), factor=1.05, copies=1, static_bytes=0)
    slowed.run(0)
    assert clock[0] == pytest.approx(1_050_000, rel=1e-4)


def test_only_the_named_cells_are_slowed(monkeypatch):
    seen = {}
    monkeypatch.setattr(session, "_stopwatch", lambda one, _device, factor: seen.setdefault(one.name, factor))
    session._put_in_place(
        BENCHMARKS, SimpleNamespace(kind="cpu"), {"*.hot": 1.05, "pack_text": 1.1}, lambda _said: None
    )
    assert {name: factor for name, factor in seen.items() if factor != 1} == {
        **{name: 1.05 for name in seen if name.endswith(".hot")},
        "pipeline/pack_text": 1.1,
    }
    assert len([name for name in seen if name.endswith(".hot")]) == 2


def test_disturbed_samples_are_set_aside():
    calm = [100.0, 101.0, 102.0, 103.0]
    [(_, cell)] = calm_cells({"search/x": [calm, [120.0, 300.0]]})
    assert (cell["median"], cell["samples"], cell["taken"]) == (101.5, 4, 6)
    assert dict(calm_cells({"search/x": []})) == {}


def test_nothing_is_set_aside_on_a_gpu_and_throttled_samples_serve_for_want_of_others():
    samples = {"block/a": [[100.0, 120.0, 300.0]], "block/b": []}
    cells = dict(calm_cells(samples, {"block/a": [[900.0]], "block/b": [[200.0], [210.0]]}, {"block/a", "block/b"}))
    assert (cells["block/a"]["median"], cells["block/a"]["samples"]) == (120.0, 3)
    assert "throttled" not in cells["block/a"]
    assert (cells["block/b"]["median"], cells["block/b"]["throttled"]) == (205.0, True)
    assert (cells["block/b"]["low"], cells["block/b"]["high"]) == (None, None)


def test_packages_from_elsewhere_are_barred(tmp_path, monkeypatch):
    inside = str(Path(session.puzzlebench.__file__).parents[1] / "kernels/puzzlebench_kernels/__init__.py")
    origins = {"puzzlebench_kernels": inside, "puzzlebench_search": str(tmp_path / "puzzlebench_search/__init__.py")}
    monkeypatch.setattr(
        session.importlib.util,
        "find_spec",
        lambda name: SimpleNamespace(origin=origins[name]) if name in origins else None,
    )
    modules = {}
    monkeypatch.setattr(session.sys, "modules", modules)
    session._bar_packages_from_elsewhere()
    assert modules == {"puzzlebench_search": None}


def test_slow_is_patterns_and_factors():
    assert parse_slow("") == {}
    assert parse_slow("search/*=1.05,decode=2") == {"search/*": 1.05, "decode": 2.0}
    for text in ("search", "search=fast", "=1.1", "search=0.9", "search=inf"):
        with pytest.raises(ValueError, match="PUZZLEBENCH_BENCH_SLOW"):
            parse_slow(text)


def test_a_request_is_read_as_it_was_written():
    request = Request(only=("a", "b"), seconds=1.5, session=2, device="cpu")
    assert read_request(request.to_json()) == request
    with pytest.raises(ValueError, match="does not know 'colour'"):
        read_request('{"colour": "red"}')
    with pytest.raises(ValueError, match="seconds must be 0 or more"):
        Request(seconds=-1)


def test_the_command_writes_its_file_or_says_why_not(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PUZZLEBENCH_BENCH_SLOW", "pack=1.05")
    file = tmp_path / "session.json"
    assert main([str(file), Request(only=("pack_text",), seconds=0.02, device="cpu").to_json()]) == 0
    assert json.loads(file.read_text())["slowed"] == {"pack": 1.05}
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "from" in lines[0]
    assert main([str(tmp_path / "other.json"), '{"only": ["nothing like it"]}']) == 2
    assert "no benchmark matches" in json.loads(capsys.readouterr().out.splitlines()[-1])["error"]
    assert not (tmp_path / "other.json").exists()
    monkeypatch.setattr(session, "run_session", interrupt)
    assert main([str(tmp_path / "other.json"), "{}"]) == 130


def interrupt(*_, **__):
    raise KeyboardInterrupt
