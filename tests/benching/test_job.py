import json
import sys
from pathlib import Path

import pytest

from puzzlebench.benching import job
from puzzlebench.benching.job import Bench, Program, keep_stated, merge_reasons, merge_sessions, run_bench, run_fresh
from puzzlebench.benching.session import Request
from puzzlebench.comparing.measured import read_measurements

pytest.importorskip("torch")


def stated(session=0, **changes):
    cell = {
        "unit": "us",
        "median": 10.0 + session,
        "low": 9.0,
        "high": 20.0,
        "samples": 3,
        "taken": 4,
        "visits": [[10.0]],
    }
    facts = {"session": session, "started": "2026-01-01T00:00:00+00:00", "seconds": 1.0}
    facts |= {
        "others_share": 0.1 * session,
        "set_aside_share": 0.2,
        "throttled_share": 0.0,
        "cells": {"search/x": cell},
    }
    return {
        "schema_version": 1,
        "puzzlebench_version": "0",
        "fingerprint": {"device": "made_up", "git_commit": "abc"},
        "skipped": {"kernel/y": "is for GPUs"},
        "slowed": {},
        "session": facts,
        **changes,
    }


def writes(program, request, file, *, threads, tell):
    tell({"stage": "timing", "done": 1, "total": 1})
    file.write_text(json.dumps(stated(request.session)))
    return {}


def test_a_real_session_runs_in_a_fresh_process(tmp_path):
    stages = []
    result = run_bench(
        Bench(only=("pack_text",), sessions=1, seconds=0.05, device="cpu"),
        tmp_path / "bench.json",
        progress=lambda share, stage: stages.append((share, stage)),
    )
    assert result == json.loads((tmp_path / "bench.json").read_text())
    assert list(result["sessions"][0]["cells"]) == ["pipeline/pack_text"]
    assert "visits" not in result["sessions"][0]["cells"]["pipeline/pack_text"]
    assert result["fingerprint"]["threads"] == 1
    assert stages[-1] == (1.0, "session 1 of 1: timing")
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
    assert read_measurements(tmp_path / "bench.json").cells == ("pipeline/pack_text",)


def test_a_killed_measurement_goes_on_and_another_is_refused(tmp_path, monkeypatch):
    ran = []

    def dies(program, request, file, **rest):
        ran.append(request.session)
        if ran == [0, 1]:
            raise KeyboardInterrupt
        return writes(program, request, file, **rest)

    monkeypatch.setattr(job, "run_fresh", dies)
    bench = Bench(only=("pack_text",), sessions=3, seconds=6)
    with pytest.raises(KeyboardInterrupt):
        run_bench(bench, tmp_path / "bench.json")
    with pytest.raises(ValueError, match="another job"):
        run_bench(Bench(only=("pack_text",), sessions=4, seconds=6), tmp_path / "bench.json")
    result = run_bench(bench, tmp_path / "bench.json")
    assert ran == [0, 1, 1, 2]
    assert [one["cells"]["search/x"]["median"] for one in result["sessions"]] == [10.0, 11.0, 12.0]
    assert not (tmp_path / "bench.sessions").exists()
    run_bench(bench, tmp_path / "bench.json")  # a finished one is measured anew
    assert ran == [0, 1, 1, 2, 0, 1, 2]


def test_sessions_are_merged_to_a_result_without_raw_samples(tmp_path):
    files = [tmp_path / f"{number}.json" for number in range(2)]
    for number, file in enumerate(files):
        file.write_text(json.dumps(stated(session=7 - number)))
    result = merge_sessions(files)
    assert [one["session"] for one in result["sessions"]] == [0, 1]
    assert result["revision"] == "abc"
    assert merge_sessions(files, revision="def")["revision"] == "def"
    assert result["disturbed"] == {"others_share": pytest.approx(0.7), "set_aside_share": 0.2, "throttled_share": 0.0}
    assert result["skipped"] == {"kernel/y": "is for GPUs"}
    assert "visits" not in result["sessions"][0]["cells"]["search/x"]
    for changes in ({"code": "edited"}, {"fingerprint": {"device": "another"}}):
        files[1].write_text(json.dumps(stated(session=6, **changes)))
        with pytest.raises(ValueError, match="was measured with another"):
            merge_sessions(files)
    files[1].write_text(json.dumps(stated(session=6, fingerprint={"device": "made_up", "git_commit": "d", "date": 1})))
    assert len(merge_sessions(files)["sessions"]) == 2
    files[0].write_text(json.dumps(stated(schema_version=9)))
    with pytest.raises(ValueError, match="has schema 9; this version reads 1"):
        merge_sessions(files)
    files[0].write_text("{")
    with pytest.raises(ValueError, match="is no session that can be read"):
        merge_sessions(files)


def test_what_was_skipped_is_of_all_sessions():
    reasons = [{"a/x": "is for GPUs"}, {"a/x": "is for GPUs", "a/y": "failed: ValueError: no"}]
    assert merge_reasons(reasons) == {"a/x": "is for GPUs", "a/y": "failed in 1 of 2 sessions: ValueError: no"}


@pytest.fixture
def tree(tmp_path):
    """A tree whose session does what its code says."""
    root = tmp_path / "tree"
    (root / "puzzlebench/benching").mkdir(parents=True)
    (root / "kernels").mkdir()
    for name in ("puzzlebench", "puzzlebench/benching"):
        (root / name / "__init__.py").write_text("")

    def write(code, origin=root):
        said = json.dumps({"from": str(origin)})
        text = f"import json, os, sys\nprint('hello')\nprint('{said}', flush=True)\n{code}\n"
        (root / "puzzlebench/benching/session.py").write_text(text)
        return Program(tree=root)

    return write


def test_a_session_of_a_tree_runs_its_packages_in_an_environment_of_its_own(tree, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "ours/puzzlebench_kernels").mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'ours'}:{elsewhere}")
    names = ("PYTHONPATH", "OMP_NUM_THREADS", "PYTHONHASHSEED", "PUZZLEBENCH_BENCH_SLOW")
    facts = f"{{name: os.environ.get(name) for name in {names}}}"
    program = tree(f"json.dump({{'schema_version': 1, 'facts': {facts}}}, open(sys.argv[1], 'w'))")
    found = run_fresh(program, Request(session=4), tmp_path / "out.json", threads=2, slow="search=1.05")
    assert found["facts"] == {
        "PYTHONPATH": f"{program.tree}:{program.tree / 'kernels'}:{elsewhere}",
        "OMP_NUM_THREADS": "2",
        "PYTHONHASHSEED": "4",
        "PUZZLEBENCH_BENCH_SLOW": "search=1.05",
    }
    assert not (tmp_path / "out.log").exists()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print(json.dumps({'error': 'no such device'})); sys.exit(2)", "^no such device$"),
        ("sys.exit('ran into a wall')", "a session died with exit code 1: ran into a wall"),
        ("os.kill(os.getpid(), 9)", "a session died with exit code -9"),
        ("pass", "is no session that can be read"),
    ],
)
def test_how_a_session_ends_badly(tree, tmp_path, code, words):
    with pytest.raises(ValueError, match=words):
        run_fresh(tree(code), Request(), tmp_path / "out.json", threads=1)


def test_an_interrupted_session_and_one_of_other_packages(tree, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_fresh(tree("sys.exit(130)"), Request(), tmp_path / "out.json", threads=1)
    with pytest.raises(ValueError, match="ran the packages of /somewhere/else"):
        run_fresh(tree("pass", origin=Path("/somewhere/else")), Request(), tmp_path / "out.json", threads=1)


def test_a_session_does_not_outlive_an_error_of_its_parent(tree, tmp_path):
    program = tree("print(json.dumps({'stage': 's', 'pid': os.getpid()}), flush=True)\nimport time; time.sleep(60)")
    pids = []

    def stop(message):
        pids.append(message["pid"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fresh(program, Request(), tmp_path / "out.json", threads=1, tell=stop)
    assert not Path(f"/proc/{pids[0]}").exists() or sys.platform != "linux"


def test_a_folder_says_what_it_is_of(tmp_path):
    keep_stated(tmp_path, {"seconds": 1, "only": ("a",)})
    keep_stated(tmp_path, {"seconds": 1, "only": ["a"]})
    with pytest.raises(ValueError, match="another seconds \\(1, now 2\\); finish that one"):
        keep_stated(tmp_path, {"seconds": 2, "only": ["a"]})


@pytest.mark.parametrize("changes", [{"sessions": 0}, {"seconds": 0}, {"threads": 0}, {"only": ("nothing like it",)}])
def test_values_that_are_not_possible(changes):
    with pytest.raises(ValueError, match=r"must be|no benchmark matches"):
        Bench(**changes)
