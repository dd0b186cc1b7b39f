"""Costs at an operating point: what they add up to is what the served model has there, for any architecture."""

from dataclasses import replace

import numpy as np
import pytest

from puzzlebench.model.blocks import Architecture, Block, NoOp
from puzzlebench.profiling.modelled_kernels import ModelledKernels
from puzzlebench.profiling.profile import Grid
from puzzlebench.scenario import Precision
from puzzlebench.searching.costs import load_costs
from puzzlebench.searching.scenarios import parse_scenario
from puzzlebench.searching.search import count_again
from puzzlebench.searching.serving_costs import ServedSpace, kernels_of
from puzzlebench.serving import estimating
from puzzlebench.serving.workload import Scheduler

from .conftest import edited, make_world, random_architectures, shortened

pytestmark = pytest.mark.usefixtures("overheads")

SMALL = Scheduler(max_num_tokens=2048, max_batch_size=64)  # fewer sizes to cost
SCHEDULERS = {
    "whole prompts": SMALL,
    "held back": replace(SMALL, wait_iterations=20, wait_share=0.5),
    "parts of prompts": Scheduler(chunked=True, max_num_tokens=200, max_batch_size=64, reserves=False),
    "decoding pauses": replace(SMALL, mixes=False, reserves=False, tokens_per_block=16),
}


def space_of(world, text="512+128", *, tensor_parallel=1, scheduler=SMALL):
    return ServedSpace(world.table, parse_scenario(text), tensor_parallel=tensor_parallel, scheduler=scheduler)


def values(world, space, point, architecture):
    """What the search adds up."""
    table = space.table([point])
    costs = load_costs(table, world.scores, [space.scenario], tokens_per_block=space.scheduler.tokens_per_block)
    return count_again(costs, table, architecture, point.concurrency).values


@pytest.mark.parametrize("users", [1, 24])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_parent_has_its_steady_state(llama, name, users):
    space = space_of(llama, scheduler=SCHEDULERS[name])
    (point,) = space.points(llama.parent, [users])
    found, estimate = values(llama, space, point, llama.parent), point.estimate
    assert found["tpot"] == pytest.approx(estimate.state.tpot_ms / 1e3, rel=1e-6)
    assert found["ttft"] == pytest.approx(estimate.state.ttft_ms / 1e3, rel=1e-6)
    assert found["throughput"] == pytest.approx(estimate.generated_tokens_per_s.value, rel=1e-6)
    assert found["latency"] == pytest.approx(users * 128 / estimate.generated_tokens_per_s.value, rel=1e-6)


@pytest.mark.parametrize("launch_us", [400.0, 1400.0])
def test_iterations_that_wait_for_their_launches(llama, overheads, monkeypatch, launch_us):
    """The first of three parts of a prompt and all of them; the last attends to the most and so takes longest."""
    slow = replace(overheads, overheads=replace(overheads.overheads, launch_us=launch_us))
    monkeypatch.setattr(estimating, "find_calibration", lambda engine, *, gpu, model: slow)
    space = space_of(llama, "1500+64", scheduler=Scheduler(chunked=True, max_num_tokens=600, max_batch_size=64))
    (point,) = space.points(llama.parent, [16])
    state = point.estimate.state
    assert state.chunks == 3
    assert point.launched.any()
    if launch_us == 1400:
        assert point.launched.all()
        assert state.mixed_iteration_ms == pytest.approx(8 * 1.4)
    found = values(llama, space, point, llama.parent)
    assert found["tpot"] == pytest.approx(state.tpot_ms / 1e3, rel=1e-6)
    assert found["ttft"] == pytest.approx(state.ttft_ms / 1e3, rel=1e-6)
    fewer = Architecture(blocks=(Block(attention=NoOp(), ffn=NoOp()), *llama.parent.blocks[1:]))
    costs = space.served(fewer).costs
    if point.launched.all():
        share = point.tpot @ [costs.iteration_ms(state.decoding, state.context), 6 * launch_us / 1e3]
        assert values(llama, space, point, fewer)["tpot"] == pytest.approx(share / 1e3, rel=1e-9)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_user_alone_sees_no_prompts_of_others(llama, name):
    """However short the answers are."""
    space = space_of(llama, "512+4", scheduler=SCHEDULERS[name])
    (point,) = space.points(llama.parent, [1])
    state = point.estimate.state
    assert state.mixed_share > 0.01
    assert point.tpot.tolist() == [1, 0]
    assert values(llama, space, point, llama.parent)["tpot"] == pytest.approx(state.decode_iteration_ms / 1e3)


def test_windows_and_two_gpus_too(gemma):
    space = space_of(gemma, "1024+64", tensor_parallel=2)
    (point,) = space.points(gemma.parent, [16])
    found = values(gemma, space, point, gemma.parent)
    assert found["tpot"] == pytest.approx(point.estimate.state.tpot_ms / 1e3, rel=1e-6)
    assert found["ttft"] == pytest.approx(point.estimate.state.ttft_ms / 1e3, rel=1e-6)


@pytest.mark.parametrize("name", ["whole prompts", "parts of prompts"])
def test_any_architecture_has_its_own_iterations_there(llama, name):
    """The weights of the point, times the iterations of the architecture as a whole."""
    space = space_of(llama, scheduler=SCHEDULERS[name])
    (point,) = space.points(llama.parent, [24])
    state = point.estimate.state
    for architecture in random_architectures(llama, 6):
        costs = space.served(architecture).costs
        part = 512 / state.chunks
        mixed = [
            costs.mixed_ms(state.decoding * 23 / 24, state.context, state.prompts, 512)
            if state.chunks == 1
            else costs.iteration_ms(state.decoding * 23 / 24, state.context, [(place * part, part)])
            for place in range(state.chunks)
        ]
        iterations = np.array([costs.iteration_ms(state.decoding, state.context), np.mean(mixed)])
        found = values(llama, space, point, architecture)
        assert found["tpot"] == pytest.approx(point.tpot @ iterations / 1e3, rel=1e-9)
        assert found["ttft"] == pytest.approx((point.fixed_ttft_ms + point.ttft @ iterations) / 1e3, rel=1e-9)


def test_faster_blocks_make_everything_faster(llama):
    space = space_of(llama)
    (point,) = space.points(llama.parent, [24])
    small = Architecture(blocks=(Block(attention=NoOp(), ffn=NoOp()), *llama.parent.blocks[1:]))
    parent, child = (values(llama, space, point, one) for one in (llama.parent, small))
    assert child["ttft"] < parent["ttft"]
    assert child["tpot"] < parent["tpot"]
    assert child["throughput"] > parent["throughput"]
    assert child["memory"] < parent["memory"]


def test_memory_holds_whole_answers_where_the_engine_reserves_them(llama):
    """Else what a sequence has on average."""
    found = {}
    for reserves in (True, False):
        space = space_of(llama, scheduler=replace(SMALL, reserves=reserves))
        (point,) = space.points(llama.parent, [40])
        found[reserves] = values(llama, space, point, llama.parent)["memory"]
    per_token = 4 * 2 * 8 * 128 * 2  # layers, keys and values, heads, head size, bytes
    pages = {reserves: 32 * -(-tokens // 32) for reserves, tokens in ((True, 640), (False, 512 + 64))}
    assert found[True] - found[False] == 40 * per_token * (pages[True] - pages[False])


def test_intervals_are_those_of_the_estimate(llama):
    space = space_of(llama)
    (point,) = space.points(llama.parent, [8])
    frame = space.table([point]).frame
    for phase, interval in (("prefill", point.estimate.ttft_ms), ("decode", point.estimate.tpot_ms)):
        cells = frame[frame["phase"] == phase]
        high = np.log(cells["latency_high_us"] / cells["latency_us"])
        assert high.to_numpy() == pytest.approx(np.log(interval.high / interval.value) * 1.96 / 1.645)
        assert (cells["latency_low_us"] > 0).all()


@pytest.fixture
def tiny(h100_kernels, h100):
    grid = Grid(batch_sizes=(1,), prefill_lens=(128,), context_lens=(128,))
    return make_world(h100_kernels, h100, shortened("llama-3.1-8b", 1), Precision(), grid=grid)


def test_a_users_own_gpu(tiny, h100):
    mine = replace(h100, name="mine", memory_bandwidth=h100.memory_bandwidth / 2)
    metadata = tiny.table.metadata["gpu"] | {"name": "mine", "memory_bandwidth": mine.memory_bandwidth}
    table = edited(tiny.table, lambda frame: frame.assign(gpu="mine"), gpu=metadata)
    sheet, kernels = kernels_of(table)
    assert sheet == mine
    assert isinstance(kernels, ModelledKernels)
    slow = ServedSpace(table, parse_scenario("128+64"), tensor_parallel=1).points(tiny.parent, [1])[0]
    fast = space_of(tiny, "128+64").points(tiny.parent, [1])[0]
    assert slow.estimate.tpot_ms.value > 1.3 * fast.estimate.tpot_ms.value


@pytest.mark.parametrize(
    ("edit", "metadata", "message"),
    [
        (lambda frame: frame.assign(engine="torch"), {}, r"measured live \(torch\); profile with --source kernels"),
        (lambda frame: None, {"fingerprint": {}}, r"measured live \(trtllm\)"),
        (lambda frame: frame.assign(gpu="mine"), {"gpu": None}, "does not hold the datasheet of mine"),
        (lambda frame: frame.assign(gpu="mine"), {"gpu": {"name": "mine"}}, "does not hold the datasheet of mine"),
    ],
)
def test_tables_without_kernels_are_refused(tiny, edit, metadata, message):
    table = edited(tiny.table, edit, **metadata)
    with pytest.raises(ValueError, match=message):
        ServedSpace(table, parse_scenario("128+64"), tensor_parallel=1)


def test_what_cannot_be_served(tiny):
    with pytest.raises(ValueError, match="answers of one token have no time per output token"):
        space_of(tiny, "128+1")
    with pytest.raises(ValueError, match="9 are more than the engine's 8 sequences"):
        space_of(tiny, "128+8", scheduler=Scheduler(max_batch_size=8)).points(tiny.parent, [8, 9])
    whole = space_of(tiny, "128+8", scheduler=Scheduler(max_num_tokens=135))
    assert whole.most_users == 8  # sequences beside a prompt
    with pytest.raises(ValueError, match=r"9 are more than the engine's 8 sequences; .*raise --max-num-tokens"):
        whole.points(tiny.parent, [8, 9])
    with pytest.raises(ValueError, match="all-reduce over 3 GPUs was not measured"):
        space_of(tiny, "128+8", tensor_parallel=3).points(tiny.parent, [1])
