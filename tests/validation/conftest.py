"""Runs that were never made, as predicted by nobody."""

import dataclasses

import pytest

from puzzlebench.scenario import Precision
from puzzlebench.serving.calibration import Predicted, closed_loop_rate
from puzzlebench.serving.runs import ServingRun
from puzzlebench.validation.serving import PredictedRun

WIDTHS = {"tpot": 0.1, "ttft": 0.1, "throughput": 0.1}


def made_run(**changes):
    precision = Precision(weight_dtype="fp8", kv_dtype="fp8", tensor_parallel=changes.pop("tensor_parallel", 1))
    run = ServingRun(
        id="one",
        benchmark="aic_gap",
        gpu="h100_sxm",
        engine="trtllm",
        engine_version="1.0.0rc3",
        model="qwen3-32b",
        precision=precision,
        prefill_len=1024,
        decode_len=128,
        concurrency=16,
        ttft_ms=100.0,
        tpot_ms=10.0,
        split="develop",
    )
    return dataclasses.replace(run, **changes)


def made_prediction(run, *, tpot=1.0, ttft=1.0, steady=1.0, in_flight=True):
    """Times that are wrong by these factors; `steady` more in the steady state."""
    found = []
    for more in (1.0, steady):
        times = {"tpot_ms": run.tpot_ms * tpot * more, "ttft_ms": run.ttft_ms * ttft * more}
        found.append(Predicted(**times, tokens_per_s=closed_loop_rate(run, **times)))
    return PredictedRun(
        run=run, replay=found[0], steady=found[1], settled_ttft_ms=0.5 * run.ttft_ms, widths=WIDTHS, in_flight=in_flight
    )


@pytest.fixture
def predictions():
    """Two halves, two GPUs, two engines: times too long by 2, 4, 6, ... percent."""
    runs = [
        made_run(id=f"{split} {gpu} {users}", split=split, gpu=gpu, concurrency=users, tensor_parallel=tp)
        for split in ("develop", "report")
        for gpu in ("h100_sxm", "h200_sxm")
        for users, tp in ((8, 1), (16, 2))
    ]
    return [
        made_prediction(run, tpot=1 + 0.02 * (place + 1), ttft=0.9, steady=1.1, in_flight=run.concurrency == 8)
        for place, run in enumerate(runs)
    ]
