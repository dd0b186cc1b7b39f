"""Published figures as read, the limits that the benchmark sets itself, and the benchmark predicted."""

from dataclasses import replace

import pytest

from puzzlebench.serving.iterations import Overheads
from puzzlebench.serving.published import bench_scheduler, predict_published, published_runs


def test_figures_are_read_with_their_benchmark():
    runs = published_runs()
    assert len(runs) == len({(run.model, run.gpu, run.prefill_len, run.decode_len) for run in runs}) == 40
    assert {run.engine_version for run in runs} == {"1.0"}
    assert all(run.generated_tokens_per_s > 0 for run in runs)
    first = runs[0]
    assert first.workload.concurrency == first.requests  # all at once
    assert first.precision.weight_dtype == first.precision.kv_dtype == "fp8"


@pytest.mark.parametrize(
    ("room", "prefill", "decode", "batch", "tokens"),
    [
        (10.2, 128, 128, 64, 2048),  # never below these
        (200.5, 500, 500, 224, 2048),
        (300, 128, 2048, 384, 2048),
        (300, 2048, 2048, 384, 2432),  # a whole prompt beside a full batch
        (1500, 2048, 128, 1536, 25600),
        (9000, 128, 128, 4096, 8192),
    ],
)
def test_the_benchmark_s_own_limits(room, prefill, decode, batch, tokens):
    found = bench_scheduler(room, prefill, decode)
    assert (found.max_batch_size, found.max_num_tokens) == (batch, tokens)
    assert found.free_memory


def test_a_benchmark_is_predicted_and_overheads_slow_it_down():
    run = next(run for run in published_runs() if run.model == "llama-3.1-8b" and run.gpu == "h100_sxm")
    short = replace(run, requests=300)
    bare = predict_published(short, Overheads())
    assert 0.3 * run.generated_tokens_per_s < bare < 1.5 * run.generated_tokens_per_s
    assert predict_published(short, Overheads(sequence_us=20.0)) < 0.95 * bare
