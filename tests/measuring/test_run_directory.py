"""The folder of a measurement: one process at a time, whole files, and the same plan as before."""

import contextlib
import json
import math
import multiprocessing
from dataclasses import replace

import pandas as pd
import pytest

from puzzlebench.measuring.plan import Effort, plan_to_json
from puzzlebench.measuring.run_directory import (
    SAMPLE_COLUMNS,
    WORKLOAD_COLUMNS,
    RunDirectory,
    open_run,
    workload_columns,
    workload_from_key,
)
from puzzlebench.scenario import Precision

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def plan(make_plan, work):
    return make_plan([work("head", "head", "decode", 4, 1), work("attention", "gqa_2", "decode", 4, 16)])


@pytest.fixture
def rows(work):
    def make(session, number, latencies=(10.0, 11.0)):
        columns = workload_columns(work("head", "head", "decode", 4, 1))
        sensors = dict.fromkeys(("sm_clock_mhz", "memory_clock_mhz", "temperature_c", "power_w"), math.nan)
        visit = {**columns, "session": session, "round": number, "seconds": 0.1 * number, **sensors}
        return [{**visit, "cache": "cold", "latency_us": us, "throttle_reasons": ""} for us in latencies]

    return make


def hold(path, plan, told):
    with open_run(path, plan):
        told.set()
        multiprocessing.Event().wait()


@pytest.fixture
def holder(tmp_path, plan):
    """Another process that measures in the folder."""
    told = FORK.Event()
    process = FORK.Process(target=hold, args=(tmp_path / "run", plan, told))
    process.start()
    assert told.wait(30)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, plan, holder):
    path = tmp_path / "run"
    with pytest.raises(ValueError, match=r"run is in use: another process is measuring there"), open_run(path, plan):
        pass
    assert holder.is_alive()
    assert (path / "plan.json").exists(), "who is refused leaves the folder alone"
    holder.kill()  # SIGKILL: nothing is tidied up
    holder.join()
    with open_run(path, plan) as run:
        assert run.plan == plan


def test_the_lock_ends_with_the_block(tmp_path, plan):
    for _ in range(2):
        with open_run(tmp_path / "run", plan):
            pass


@pytest.mark.parametrize("torn", ['{"event": "prep', '{"event": "finished"', "\0\0\0", '"'])
def test_a_torn_last_line_is_passed_over_and_costs_no_other(tmp_path, torn):
    run = RunDirectory(tmp_path)
    run.append_event(0, {"event": "attempt", "n": 1})
    with (tmp_path / "events.0.jsonl").open("a") as file:
        file.write(torn)
    assert run.events(0) == [{"event": "attempt", "n": 1}]
    run.append_event(0, {"event": "miss", "n": 2})
    assert run.events(0) == [{"event": "attempt", "n": 1}, {"event": "miss", "n": 2}]


def test_sessions_have_their_own_events(tmp_path):
    run = RunDirectory(tmp_path)
    run.append_event(1, {"event": "finished"})
    assert run.events(0) == []
    assert run.events(1) == [{"event": "finished"}]
    assert run.events(11) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: replace(plan, device="cuda:0"), r"another device \('cpu', now 'cuda:0'\)"),
        (lambda plan: replace(plan, engine="triton"), r"another engine \('torch', now 'triton'\)"),
        (lambda plan: replace(plan, workloads=plan.workloads[:1]), r"another workloads"),
        (lambda plan: replace(plan, effort=Effort(sessions=7)), r"another effort.sessions \(1, now 7\)"),
        (lambda plan: replace(plan, precision=Precision()), r"another precision.weight_dtype \('fp32', now 'bf16'\)"),
        (lambda plan: replace(plan, spec=replace(plan.spec, vocab_size=7)), r"another spec.vocab_size \(96, now 7\)"),
        (
            lambda plan: replace(plan, fingerprint={**plan.fingerprint, "torch": "2.1"}),
            r"another fingerprint.torch \('2.0', now '2.1'\)",
        ),
    ],
)
def test_another_plan_is_refused_by_name(tmp_path, plan, change, words):
    path = tmp_path / "run"
    with open_run(path, plan):
        pass
    before = (path / "plan.json").read_bytes()
    with pytest.raises(ValueError, match=words) as error, open_run(path, change(plan)):
        pass
    assert "give another --run-dir, or remove that folder" in str(error.value)
    assert (path / "plan.json").read_bytes() == before


def test_small_facts_may_differ_and_the_first_are_kept(tmp_path, plan):
    with open_run(tmp_path / "run", plan):
        pass
    later = replace(plan, fingerprint={**plan.fingerprint, "date": "2027-01-01T00:00:00+00:00", "git_commit": "def"})
    later = replace(later, fingerprint={**later.fingerprint, "cpu": {"flags": []}, "gpu": {"driver": "1"}})
    with open_run(tmp_path / "run", later) as run:
        assert run.plan == plan


@pytest.mark.parametrize("content", ["{", "[1]", '{"schema": 0}'])
def test_a_plan_that_cannot_be_read(tmp_path, plan, content):
    (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ValueError, match="plan"), open_run(tmp_path, plan):
        pass


def test_a_folder_that_cannot_be(tmp_path, plan):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match=r"cannot write to .*file"), open_run(path, plan):
            pass
    assert (tmp_path / "file").read_text() == ""


def test_what_was_refused_before_it_began_leaves_nothing(tmp_path, plan):
    with pytest.raises(ValueError, match="no such engine"), open_run(tmp_path / "run", plan):
        raise ValueError("no such engine")
    assert list(tmp_path.iterdir()) == []


def test_what_failed_later_or_was_there_before_is_kept(tmp_path, plan, rows):
    def begin_and_die():
        with open_run(tmp_path / "a", plan) as run:
            run.append_event(0, {"event": "attempt"})
            raise ValueError("died")

    with pytest.raises(ValueError, match="died"):
        begin_and_die()
    assert RunDirectory(tmp_path / "a").events(0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="no such engine"), open_run(tmp_path / "b", plan):
        raise ValueError("no such engine")
    assert (tmp_path / "b" / "mine.txt").read_text() == "mine"


def test_samples_of_all_rounds_and_sessions(tmp_path, rows):
    run = RunDirectory(tmp_path)
    assert run.samples().empty
    assert tuple(run.samples().columns) == SAMPLE_COLUMNS
    for session, number in ((0, 0), (0, 1), (1, 0), (11, 0)):
        run.write_samples(session, number, rows(session, number, (session + 1.0, number + 2.0)))
    run.write_samples(0, 2, [])
    assert [run.rounds(session) for session in (0, 1, 11, 2)] == [2, 1, 1, 0]
    assert tuple(run.samples().columns) == SAMPLE_COLUMNS
    assert run.samples(0)["latency_us"].tolist() == [1, 2, 1, 3]
    assert run.samples(1)["latency_us"].tolist() == [2, 2]
    assert len(run.samples()) == 8


def test_samples_merge_into_one_file_with_every_row(tmp_path, rows):
    run = RunDirectory(tmp_path)
    for session, number in ((0, 0), (0, 1), (1, 0)):
        run.write_samples(session, number, rows(session, number))
    before, of_one = run.samples(), run.samples(1)
    run.merge_samples()
    assert [path.name for path in tmp_path.iterdir()] == ["samples.parquet"]
    pd.testing.assert_frame_equal(run.samples(), before)
    pd.testing.assert_frame_equal(run.samples(1), of_one)
    run.merge_samples()
    pd.testing.assert_frame_equal(run.samples(), before)


def test_a_merge_that_was_killed_half_way_doubles_nothing(tmp_path, rows):
    run = RunDirectory(tmp_path)
    for number in range(3):
        run.write_samples(0, number, rows(0, number))
    parts = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    before = run.samples()
    run.merge_samples()
    name = "samples.0.00001.parquet"  # the others were removed, then the kill came
    (tmp_path / name).write_bytes(parts[name])
    pd.testing.assert_frame_equal(run.samples(), before)
    run.merge_samples()
    pd.testing.assert_frame_equal(run.samples(), before)
    assert not (tmp_path / name).exists()


def test_a_part_is_whole_or_absent(tmp_path, rows, monkeypatch):
    run = RunDirectory(tmp_path)
    run.write_samples(0, 0, rows(0, 0))

    def half(self, path, **options):
        path.write_bytes(b"PAR1 and no more")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pd.DataFrame, "to_parquet", half)
        with contextlib.suppress(KeyboardInterrupt):
            run.write_samples(0, 1, rows(0, 1))
    assert run.rounds(0) == 1
    assert len(run.samples()) == 2
    run.write_samples(0, 1, rows(0, 1))
    assert run.rounds(0) == 2
    assert len(run.samples(0)) == 4


def test_a_plan_is_whole_or_absent(tmp_path, plan):
    (tmp_path / "plan.part").write_text(json.dumps(plan_to_json(plan))[:50])  # what a kill leaves
    with open_run(tmp_path, plan) as run:
        assert run.plan == plan


def test_workloads_as_columns_and_back(work):
    one = work("attention", "gqa_2_w8", "prefill", 2, 8)
    frame = pd.DataFrame([workload_columns(one)])
    assert tuple(frame.columns) == WORKLOAD_COLUMNS
    (key, _), *_ = frame.groupby(list(WORKLOAD_COLUMNS))
    assert workload_from_key(key) == one
    assert type(workload_from_key(key).batch_size) is int
