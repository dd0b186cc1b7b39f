"""Iterations from tables against the kernels asked directly."""

import numpy as np
import pytest

from puzzlebench.model.catalog import load_model
from puzzlebench.profiling.block_costs import Steps
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision
from puzzlebench.serving.iterations import Overheads
from puzzlebench.serving.served_model import ServedModel
from puzzlebench.serving.workload import Scheduler


def served(model="llama-3.1-8b", *, tp=1, overheads=None, scheduler=None):
    spec, architecture = load_model(model)
    gpu, kernels = open_kernels("h100_sxm")
    return ServedModel(
        kernels=kernels,
        gpu=gpu,
        spec=spec,
        architecture=architecture,
        precision=Precision(weight_dtype="fp8", kv_dtype="fp8", tensor_parallel=tp),
        scheduler=scheduler or Scheduler(max_batch_size=256),
        longest=(8192, 2048),
        overheads=overheads or Overheads(),
    )


@pytest.fixture(scope="module")
def llama():
    return served(tp=2)


@pytest.mark.parametrize(
    ("decodes", "context", "prompts", "length"),
    [(1, 100, 0, 1), (7, 900, 0, 1), (64, 3000, 0, 1), (200, 1500, 0, 1), (0, 1, 1, 1024), (40, 1300, 3, 700)],
)
def test_tables_say_what_the_kernels_say(llama, decodes, context, prompts, length):
    asked = llama.costs.kernels(Steps.of(decodes=decodes, contexts=context, prompts=prompts, lengths=length))
    found = llama.costs.iteration_ms(decodes, context, [(0, length)] * prompts)
    assert found == pytest.approx(sum(part.latency_us[0] for part in asked) / 1e3, rel=0.015)
    if prompts:
        assert llama.costs.mixed_ms(decodes, context, prompts, length) == pytest.approx(found)


def test_parts_of_a_prompt_cost_more_than_the_whole_and_less_than_as_many_prompts(llama):
    whole = llama.costs.iteration_ms(0, 1, [(0, 8192)])
    parts = [llama.costs.iteration_ms(0, 1, [(before, 2048)]) for before in range(0, 8192, 2048)]
    assert llama.costs.prompt_ms(0, 1, 1, 8192, 4) == parts
    assert whole < sum(parts)
    assert parts[0] < 0.97 * parts[-1]  # later ones attend to more
    assert sum(parts) < 1.3 * whole


def test_overheads_are_added_for_what_is_there():
    bare = served(tp=2)
    loaded = Overheads(sub_block_us=2.0, all_reduce_us=5.0, sequence_us=3.0)
    difference = bare.changed(overheads=loaded, scheduler=bare.scheduler).costs.iteration_ms(
        8, 500
    ) - bare.costs.iteration_ms(8, 500)
    assert difference == pytest.approx((64 * 2.0 + 65 * 5.0 + 8 * 3.0) / 1e3)
    alone = served(tp=1)
    reduces = Overheads(all_reduce_us=5.0)
    one_gpu = alone.changed(overheads=reduces, scheduler=alone.scheduler).costs.iteration_ms(8, 500)
    assert one_gpu == alone.costs.iteration_ms(8, 500)


def test_a_decode_iteration_of_measured_kernels_says_where_its_time_comes_from(llama):
    from puzzlebench.serving.workload import Lengths, Workload

    state = llama.steady(Workload(prefill=Lengths(1024, 1024), decode=Lengths(512, 512), concurrency=16))
    kernels = llama.decode_kernels(state)
    assert sum(kernels.provenance.values()) == pytest.approx(1.0)
    assert 0 < kernels.spread < 0.3


def test_the_cache_holds_what_memory_leaves():
    found = served("llama-3.1-8b").cache
    per_token = 2 * 8 * 128 * 32  # keys and values, heads, head size, layers; a byte each
    assert float(found.bytes(32)) == 32 * per_token
    assert float(found.bytes(33)) == 64 * per_token  # whole pages
    assert found.bytes([1, 33]).tolist() == [32 * per_token, 64 * per_token]
    assert np.floor(found.sequences(1024)) == found.capacity_bytes // (1024 * per_token)


def test_a_model_that_does_not_fit_is_refused_in_one_line():
    with pytest.raises(ValueError, match="does not fit: weights take") as caught:
        _ = served("llama-3.1-70b", scheduler=Scheduler(max_num_tokens=100_000)).cache
    assert "\n" not in str(caught.value)
