"""A measurement from job to speed.json: in this process where a fresh one proves nothing."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pandas as pd
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from puzzlebench.files import locked  # noqa: E402
from puzzlebench.measuring.run_directory import RunDirectory  # noqa: E402
from puzzlebench.model.memory import kv_cache_bytes, model_weight_bytes  # noqa: E402
from puzzlebench.model.space import space_around  # noqa: E402
from puzzlebench.parent.fingerprint import checkpoint_fingerprint  # noqa: E402
from puzzlebench.parent.open import find_parent, load_tokenizer  # noqa: E402
from puzzlebench.profiling.cost_table import write_cost_table  # noqa: E402
from puzzlebench.profiling.profile import Grid, build_cost_table  # noqa: E402
from puzzlebench.scenario import Precision  # noqa: E402
from puzzlebench.speed import job as jobs  # noqa: E402
from puzzlebench.speed import session as sessions  # noqa: E402
from puzzlebench.speed.job import SpeedJob, make_prompts, measure_speed, precision_of  # noqa: E402
from puzzlebench.speed.predict import predict  # noqa: E402

PHASES = ("prefill", "decode", "generate")


@pytest.fixture
def job(pair, tmp_path):
    return SpeedJob(
        models=(("parent", pair.parent), ("child", pair.child)),
        batch_size=2,
        prefill_len=9,
        decode_len=6,
        device="cpu",
        sessions=2,
        seconds=0.01,
        folder=tmp_path / "speed",
        data=pair.text,
    )


@pytest.fixture
def in_process(monkeypatch):
    """Sessions without processes of their own; `died` makes one die after so many rounds."""
    calls = []

    def run(module, directory, session, tell):
        assert module == "puzzlebench.speed.session"
        calls.append(session)
        sessions.run_session(directory, session, tell)
        return 0

    monkeypatch.setattr(jobs, "run_process", run)
    return calls


@pytest.fixture
def costs(pair, tmp_path, h100_kernels, h100):
    """A table that reaches the job's scenario."""
    parent, child = find_parent(str(pair.parent)), find_parent(str(pair.child))
    grid = Grid(batch_sizes=(2,), prefill_lens=(9,), context_lens=(8, 20))
    space = space_around(parent.architecture, [child.architecture])
    table = build_cost_table(h100_kernels, h100, parent.spec, space, Precision(), grid)
    write_cost_table(table, tmp_path / "costs.parquet")
    return tmp_path / "costs.parquet", table


def test_the_whole_in_a_fresh_process(job):
    told = []
    result = measure_speed(replace(job, sessions=1), progress=lambda share, stage: told.append((share, stage)))
    assert json.loads((job.folder / "speed.json").read_text()) == result
    assert result["tokens_agree"] == {"parent": 1.0, "child": 1.0}
    assert [one["model"] for one in result["models"]] == ["parent", "child"]
    assert [one["model"] for one in result["speed_ups"]] == ["child"]
    assert result["predictions"] is None and result["costs"] is None  # noqa: PT018
    assert result["threads"] == torch.get_num_threads()
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert {"session 1 of 1: timing", "session 1 of 1: loading"} <= {stage for _, stage in told}


def test_what_is_in_the_result(job, in_process):
    result = measure_speed(job)
    assert in_process == [0, 1]
    frame = pd.read_parquet(job.folder / "run" / "samples.parquet")
    assert set(frame["sub_block"]) == {"parent", "child"}
    assert set(frame["phase"]) == set(PHASES)
    assert frame.groupby("session")["round"].nunique().tolist() == [3, 3]
    runs = frame.pivot_table(index=["session", "round", "sub_block"], columns="phase", values="latency_us")
    assert (runs["prefill"] + runs["decode"]).tolist() == pytest.approx(runs["generate"].tolist())
    for one in result["models"]:
        for name in ("prefill_ms", "tpot_ms", "generate_ms", "generated_tokens_per_s"):
            assert 0 < one[name]["low"] <= one[name]["value"] <= one[name]["high"]
        assert one["generated_tokens_per_s"]["value"] == pytest.approx(2 * 6 / one["generate_ms"]["value"] * 1e3)
    for one, (_, folder) in zip(result["models"], job.models, strict=True):
        assert one["fingerprint"] == checkpoint_fingerprint(folder)
    assert set(result["speed_ups"][0]) == {"model", *PHASES}
    assert result["scenario"] == {"batch_size": 2, "prefill_len": 9, "decode_len": 6}
    assert result["rounds"] == 6
    parent, child = (one["bytes_per_step"] for one in result["models"])
    files = find_parent(str(job.models[0][1]))
    weights = model_weight_bytes(files.spec, files.architecture, weight_dtype="fp32")
    assert parent == weights + kv_cache_bytes(
        files.spec, files.architecture, batch_size=2, context_len=9 + 6, kv_dtype="fp32"
    )
    assert child < parent
    assert result["last_level_cache_bytes"] > 0


@pytest.mark.parametrize("short_prefill_ms", [0.0, 1e9])
def test_all_models_are_warmed_alike_in_all_sessions(job, in_process, monkeypatch, short_prefill_ms):
    """Once the first session has decided it."""
    warmed, real = [], sessions.open_runner

    def open_runner(*args):
        runner, number = real(*args), len(warmed)
        warmed.append(0)

        class Counting:
            generate = runner.generate

            def prefill(self):
                warmed[number] += 1
                runner.prefill()

        return Counting()

    monkeypatch.setattr(sessions, "open_runner", open_runner)
    monkeypatch.setattr(sessions, "_SHORT_PREFILL_MS", short_prefill_ms)
    real_finish = RunDirectory.append_event

    def finish(self, session, event):
        real_finish(self, session, event)
        if event["event"] == "finished":  # a later session would decide otherwise
            monkeypatch.setattr(sessions, "_SHORT_PREFILL_MS", 1e9 - short_prefill_ms)

    monkeypatch.setattr(RunDirectory, "append_event", finish)
    measure_speed(job)
    assert warmed == [3 if short_prefill_ms else 0] * 4


def test_one_short_prefill_warms_all(tmp_path):
    class Fixed:
        def __init__(self, prefill_ms):
            self.generate = lambda: SimpleNamespace(prefill_ms=prefill_ms)

    for number, (times, expected) in enumerate([((19.0, 21.0), True), ((21.0, 19.0), True), ((21.0, 22.0), False)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        with locked(folder / "lock", "tests") as lock:
            run = RunDirectory(folder, lock)
            runners = dict(zip(("parent", "child"), map(Fixed, times), strict=True))
            assert sessions._warms_up(run, 0, runners) is expected
            assert sessions._warms_up(run, 1, {"parent": Fixed(1.0 if not expected else 99.0)}) is expected


def test_text_that_is_short_is_taken_again(job, pair):
    files = find_parent(str(pair.parent))
    tokenizer = load_tokenizer(files)
    once = [*tokenizer.encode(pair.text.read_text(), add_special_tokens=False), tokenizer.eos_token_id]
    scenario = replace(job.scenario, batch_size=64, prefill_len=100)
    prompts = make_prompts(files, pair.text, scenario)
    assert prompts.shape == (64, 100)
    assert len(once) < prompts.size
    times = -(-prompts.size // len(once))
    assert prompts.flatten().tolist() == (once * times)[: prompts.size]


@pytest.mark.parametrize(
    ("weights", "device", "expected"),
    [
        (None, "cpu", "fp32"),
        ("fp32", "cpu", "fp32"),
        ("bf16", "cpu", "bf16"),
        ("fp8", "cpu", "bf16"),
    ],
)
def test_the_format_is_the_cost_tables(costs, tmp_path, weights, device, expected):
    file = None
    if weights is not None:
        file = tmp_path / "other.parquet"
        table = costs[1]
        write_cost_table(replace(table, frame=table.frame.assign(weight_dtype=weights)), file)
    assert precision_of(file, device) == expected


def test_without_a_table_a_gpu_runs_bf16(monkeypatch):
    monkeypatch.setattr(jobs, "local_device", lambda name: SimpleNamespace(kind={"cuda": "cuda"}[name]))
    assert precision_of(None, "cuda") == "bf16"


def test_predictions_stand_beside_it(job, in_process, costs):
    path, table = costs
    result = measure_speed(replace(job, costs=path))
    files = [find_parent(str(folder)) for _, folder in job.models]
    expected = [predict(table, files[0].spec, one.architecture, job.scenario) for one in files]
    assert [{"model": name, **asdict(one)} for name, one in zip(("parent", "child"), expected, strict=True)] == result[
        "predictions"
    ]
    (row,) = result["predicted_speed_ups"]
    assert row["decode"] == pytest.approx(expected[0].tpot_ms.value / expected[1].tpot_ms.value)
    measured = result["speed_ups"][0]
    for phase in PHASES:
        assert row["error"][phase] == pytest.approx(row[phase] / measured[phase]["value"] - 1)
    assert result["costs"] == {
        "from": str(path),
        "source": table.metadata["source"],
        "gpu": "h100_sxm",
        "engine": "trtllm",
        "weight_dtype": "bf16",
        "same_device": False,
        "same_precision": False,
    }


def test_it_goes_on_where_it_stopped(job, in_process, monkeypatch):
    write, stop = RunDirectory.write_samples, [2]

    def fail(self, session, number, rows):
        if session == 1 and number == stop[0]:
            raise KeyboardInterrupt
        write(self, session, number, rows)

    monkeypatch.setattr(RunDirectory, "write_samples", fail)
    with pytest.raises(KeyboardInterrupt):
        measure_speed(job)
    assert not (job.folder / "speed.json").exists()
    kept = sorted(file.name for file in (job.folder / "run").glob("samples.*.parquet"))
    assert kept == [
        *(f"samples.0.{n:05d}.parquet" for n in range(3)),
        "samples.1.00000.parquet",
        "samples.1.00001.parquet",
    ]
    stop[0] = -1
    result = measure_speed(job)
    assert in_process == [0, 1, 1], "the first session is not run again"
    assert result["rounds"] == 6
    assert result["tokens_agree"] == {"parent": 1.0, "child": 1.0}
    assert measure_speed(job)["models"] == result["models"]
    assert in_process == [0, 1, 1], "nothing is left to do"


def test_another_measurement_in_the_folder_is_refused(job, in_process):
    measure_speed(job)
    with pytest.raises(ValueError, match=r"holds a measurement with another scenario .* give another folder"):
        measure_speed(replace(job, decode_len=7))
    with pytest.raises(ValueError, match="with another models"):
        measure_speed(replace(job, models=job.models[:1]))


def test_a_session_that_dies(job, monkeypatch):
    monkeypatch.setattr(jobs, "run_process", lambda *_: -9)
    with pytest.raises(ValueError, match=r"session 1 died of signal 9; .*session\.0\.log has what it said"):
        measure_speed(job)
    assert not (job.folder / "run").exists()


def test_one_model_alone(job, in_process):
    result = measure_speed(replace(job, models=job.models[:1], sessions=1))
    assert result["speed_ups"] == []


def test_what_is_refused_before_anything_is_started(job, in_process, costs, pair):
    with pytest.raises(ValueError, match="parent has 128 positions; 100 prompt tokens and 29 generated ones need 129"):
        measure_speed(replace(job, prefill_len=100, decode_len=29))
    with pytest.raises(ValueError, match="no batch size 3"):
        measure_speed(replace(job, batch_size=3, costs=costs[0]))
    empty = pair.text.parent / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(ValueError, match=r"too little .*empty\.txt"):
        measure_speed(replace(job, data=empty))
    assert in_process == []
    assert not job.folder.exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"engine": "vllm"}, "engine 'vllm' cannot run checkpoints; use torch or transformers"),
        ({"precision": "fp8"}, "precision 'fp8' is not known; use fp32 or bf16"),
        ({"sessions": 0}, "sessions must be a whole number"),
        ({"seconds": 0.0}, "seconds must be above 0"),
        ({"decode_len": 1}, "decode_len must be a whole number of at least 2"),
        ({"models": ()}, "no model"),
    ],
)
def test_jobs_that_are_not_possible(job, changes, what):
    with pytest.raises(ValueError, match=what):
        replace(job, **changes)


def test_labels_are_different(job):
    with pytest.raises(ValueError, match="two models are called 'parent'"):
        replace(job, models=(job.models[0], job.models[0]))
