"""A plan carried out by real processes that die, print and go on; the engine runs nothing and dies where told to."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

pytest.importorskip("torch", reason="needs torch")

from puzzlebench.measuring import measure as module
from puzzlebench.measuring.measure import measure
from puzzlebench.measuring.plan import Effort, plan_to_json
from puzzlebench.measuring.run_directory import RunDirectory, open_run, workload_columns

# Python imports a module of this name from its path when it starts: it adds an engine to the session's list of them.
SITE = """
import os, sys
if "puzzlebench.measuring.session" in " ".join(sys.orig_argv):
    from puzzlebench.measuring.engines import ENGINES
    ENGINES["deadly"] = "deadly_engine:open_deadly"
"""
ENGINE = """
import os, random, signal, sys, time

class Prepared:
    static_bytes = 1
    def __init__(self, workload, copies):
        self.copies, self.mean_s = copies, 4e-4 if "64" in workload.sub_block else 6e-4
    def run(self, copy):
        end = time.perf_counter() + self.mean_s * random.uniform(0.8, 1.2)
        while time.perf_counter() < end:
            pass

class Deadly:
    name, version = "deadly", "1"
    def __init__(self, device):
        self.device = device
    def prepare(self, workload, *, copies):
        print("a library that greets on stdout", flush=True)
        if workload.sub_block == "mlp_48":
            os.kill(os.getpid(), signal.SIGKILL)
        if workload.sub_block == "mlp_32":
            raise RuntimeError("can't allocate memory")
        return Prepared(workload, copies)
    def close(self):
        pass

def open_deadly(*, spec, precision, device, max_batch_size, max_len):
    return Deadly(device)
"""


@pytest.fixture
def deadly(tmp_path, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SITE)
    (folder / "deadly_engine.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(folder))


def kinds(run, session=0):
    return [event["event"] for event in run.events(session)]


def test_a_session_that_is_killed_again_and_again(deadly, tmp_path, make_plan, work, monkeypatch):
    """Once by its own workload, once from outside while it times; the third process finishes what is left."""
    parts = [work("ffn", f"mlp_{width}", "decode", 4, 1) for width in (64, 48, 32, 16)]
    plan = make_plan(parts, engine="deadly", effort=Effort(sessions=1, seconds=0.8, target_width=1e-9))
    folder = tmp_path / "run"
    told = []

    def kill_in_round(share, stage):
        told.append((share, stage))
        if "timing" in stage and RunDirectory(folder).rounds(0) >= 3:
            (session,) = psutil.Process().children()
            session.send_signal(signal.SIGKILL)

    with pytest.raises(ValueError, match=r"session 1 died of signal 9; .*session.0.log has what it said") as error:
        measure(folder, plan, kill_in_round)
    assert "\n" not in str(error.value)
    run = RunDirectory(folder)
    died = next(event for event in run.events(0) if event["event"] == "miss" and "died" in event["reason"])
    assert died["workload"] == workload_columns(parts[1])
    assert "the process died of signal 9 while it was put in place" in died["reason"]
    assert "finished" not in kinds(run)
    assert kinds(run).count("miss") == 2
    before = run.samples()
    assert set(before["sub_block"]) == {"mlp_64", "mlp_16"}

    results = measure(folder, plan, lambda share, stage: told.append((share, stage)))
    after = run.samples()
    assert after.iloc[: len(before)].equals(before)
    assert len(after) > len(before)
    assert set(results.measured) == {parts[0], parts[3]}
    assert results.misses.keys() == {parts[1], parts[2]}
    assert results.misses[parts[2]].startswith("out of memory: can't allocate")
    assert kinds(run)[-1] == "finished"
    assert sorted(path.name for path in folder.iterdir()) == [
        "events.0.jsonl",
        "lock",
        "plan.json",
        "samples.parquet",
        "session.0.log",
    ]
    assert all(0 <= share <= 1 for share, _ in told)
    assert {stage for _, stage in told} == {"session 1 of 1: preparing", "session 1 of 1: timing"}

    def no_process(*arguments, **options):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    again = measure(folder, plan, lambda share, stage: None)
    assert again.measured == results.measured
    assert again.misses == results.misses


def test_the_folder_stays_locked_while_a_killed_parents_session_lives(deadly, tmp_path, make_plan, work):
    """The session is told by nobody that its parent is gone: nobody else may measure until it has noticed."""
    plan = make_plan(
        [work("ffn", "mlp_64", "decode", 4, 1)],
        engine="deadly",
        effort=Effort(sessions=1, seconds=1.5, target_width=1e-9),
    )
    folder, ready = tmp_path / "run", tmp_path / "ready"
    code = f"""
import signal
from pathlib import Path
from puzzlebench.measuring.measure import measure
from puzzlebench.measuring.plan import read_plan
def report(share, stage):
    if "timing" in stage:
        Path({str(ready)!r}).touch()
measure(Path({str(folder)!r}), read_plan(Path({str(tmp_path / "wanted.json")!r})), report)
"""
    (tmp_path / "wanted.json").write_text(json.dumps(plan_to_json(plan)))
    paths = module.python_path()
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths})
    try:
        wait_for(ready.exists)
        (session,) = psutil.Process(parent.pid).children()
        session.suspend()  # deaf for as long as the test needs
        parent.kill()
        parent.wait()
        assert session.is_running()
        with pytest.raises(ValueError, match="is in use: another process is measuring there"):
            measure(folder, plan, lambda share, stage: None)
        session.resume()
        gone, _ = psutil.wait_procs([session], timeout=20)
        assert gone, "a session without a parent ends by itself"
    finally:
        for process in [*psutil.Process().children(recursive=True)]:
            process.kill()
        parent.wait()
    assert "finished" not in kinds(RunDirectory(folder))
    with open_run(folder, plan) as run:
        assert run.rounds(0) > 0


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Process:
    """Stands in for a session: says lines, does something to the run directory, and ends with a code."""

    def __init__(self, lines, code, act=None):
        self.lines, self.returncode, self.act = lines, code, act

    def __call__(self, command, **options):
        self.command, self.environment = command, options["env"]
        if self.act:
            self.act(RunDirectory(Path(command[-2])))
        self.stdout = iter(self.lines)
        return self

    def __enter__(self):
        return self

    def __exit__(self, *reason):
        pass


@pytest.fixture
def plan(make_plan, work):
    return make_plan([work("ffn", "mlp_64", "decode", 4, 1), work("ffn", "mlp_48", "decode", 4, 1)])


def quiet(share, stage):
    pass


def attempt(run, plan):
    run.append_event(0, {"event": "attempt", "workload": workload_columns(plan.workloads[0].workload)})


def test_what_a_session_refuses_is_said_in_its_words_and_leaves_no_folder(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Process(['{"error": "no such engine"}\n'], 2))
    with pytest.raises(ValueError, match=r"^no such engine$"):
        measure(tmp_path / "run", plan, quiet)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [1, -11, -9])
def test_a_death_that_is_no_workloads_fault(tmp_path, plan, monkeypatch, code):
    monkeypatch.setattr(subprocess, "Popen", Process([], code))
    how = "exit code 1" if code == 1 else f"signal {-code}"
    with pytest.raises(ValueError, match=f"session 1 died of {how}; .*The same command goes on from there"):
        measure(tmp_path / "run", plan, quiet)


def test_a_python_error_while_preparing_is_not_a_miss(tmp_path, plan, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Process([], 1, lambda run: attempt(run, plan)))
    with pytest.raises(ValueError, match="session 1 died of exit code 1"):
        measure(tmp_path / "run", plan, quiet)
    assert kinds(RunDirectory(tmp_path / "run")) == ["attempt"]


@pytest.mark.parametrize("code", [130, -2])
def test_an_interrupted_session_is_an_interrupt(tmp_path, plan, monkeypatch, code):
    monkeypatch.setattr(subprocess, "Popen", Process([], code, lambda run: attempt(run, plan)))
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path / "run", plan, quiet)
    assert kinds(RunDirectory(tmp_path / "run")) == ["attempt"], "nobody is blamed"


def test_nothing_measured_names_the_first_reason(tmp_path, plan, monkeypatch):
    def fail(run):
        for planned in plan.workloads:
            event = {"event": "miss", "workload": workload_columns(planned.workload), "reason": "out of memory: 9 GiB"}
            run.append_event(0, event)
        run.append_event(0, {"event": "finished"})

    monkeypatch.setattr(subprocess, "Popen", Process([], 0, fail))
    with pytest.raises(ValueError, match=r"nothing could be measured; .* ffn mlp_64, decode, .*: out of memory: 9 GiB"):
        measure(tmp_path / "run", plan, quiet)


def test_progress_over_sessions(tmp_path, plan, monkeypatch):
    lines = [
        '{"stage": "preparing", "done": 0, "total": 2}\n',
        '{"stage": "preparing", "done": 1, "total": 2}\n',
        "not JSON\n",
        '"a string"\n',
        '{"stage": "timing", "done": 0.5, "total": 1}\n',
        '{"stage": "timing", "done": 1.3, "total": 1}\n',
        '{"stage": "energy", "done": 0, "total": 2}\n',
    ]
    sessions = iter((0, 1))

    def finish(run):
        run.append_event(next(sessions), {"event": "finished"})

    monkeypatch.setattr(subprocess, "Popen", Process(lines, 0, finish))
    told = []
    plan = replace(plan, effort=Effort(sessions=2, seconds=1.0))
    monkeypatch.setattr(module, "read_results", lambda run: type("R", (), {"measured": {1: 1}})())
    measure(tmp_path / "run", plan, lambda share, stage: told.append((share, stage)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert len(shares) == 10
    assert shares[0] == 0
    assert shares[4] == 0.5
    assert shares[-1] == 1
    assert told[0][1] == "session 1 of 2: preparing"
    assert told[-1][1] == "session 2 of 2: energy"


def test_a_session_finds_our_packages_and_keeps_its_memory(tmp_path, plan, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/somebody/elses")
    process = Process(['{"error": "stop here"}\n'], 2)
    monkeypatch.setattr(subprocess, "Popen", process)
    with pytest.raises(ValueError, match="stop here"):
        measure(tmp_path / "run", plan, quiet)
    assert process.command[1:3] == ["-m", "puzzlebench.measuring.session"]
    assert process.environment["MALLOC_TRIM_THRESHOLD_"] == str(2**36)
    paths = process.environment["PYTHONPATH"].split(os.pathsep)
    assert "/somebody/elses" in paths
    for package in ("puzzlebench", "puzzlebench_profiles", "puzzlebench_kernels"):
        assert any((Path(path) / package / "__init__.py").exists() for path in paths), package
