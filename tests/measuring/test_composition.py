"""Do blocks add up: which models are compared, and sums over results that are known."""

import pytest

pytest.importorskip("torch", reason="needs torch")

from puzzlebench.measuring import composition as module
from puzzlebench.measuring.composition import (
    cell_keys,
    check_composition,
    heterogeneous_children,
    median_error,
)
from puzzlebench.measuring.device import cpu_device
from puzzlebench.measuring.plan import Effort
from puzzlebench.measuring.results import Results
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.space import default_space
from puzzlebench.model.spec import check_architecture, parent_architecture
from puzzlebench.profiling.profile import Grid
from puzzlebench.render import print_composition
from puzzlebench.scenario import Precision

FP32 = Precision(weight_dtype="fp32", kv_dtype="fp32")
GRID = Grid(batch_sizes=(1, 3), prefill_lens=(8,), context_lens=(8, 16))
LATENCY = {"attention": 100.0, "ffn": 10.0, "embedding": 1.0, "head": 2.0}


def test_children_are_of_the_space_and_of_every_kind(make_spec):
    spec = make_spec(num_hidden_layers=8)
    space = default_space(spec)
    children = heterogeneous_children(space)
    assert list(children) == ["mixed-1", "mixed-2", "smallest", "dropped"]
    for child in children.values():
        check_architecture(spec, child)
        assert child != parent_architecture(spec)
        for block, layer in zip(child.blocks, space.layers, strict=True):
            assert block.attention in layer.attention
            assert block.ffn in layer.ffn
    assert children["mixed-1"] != children["mixed-2"]
    kinds = [type(sub) for child in children.values() for block in child.blocks for sub in (block.attention, block.ffn)]
    assert {GQA, GatedMLP, Linear, NoOp} == set(kinds)
    assert children == heterogeneous_children(space), "the same ones when resumed"
    for block in children["smallest"].blocks:
        assert block == Block(attention=GQA(num_key_value_heads=1), ffn=GatedMLP(intermediate_size=8))
    for place, block in enumerate(children["dropped"].blocks):
        assert isinstance(block.attention, NoOp) == (place % 2 == 0)
        assert isinstance(block.ffn, NoOp) == (place % 2 == 1)


def test_children_of_a_parent_that_has_layers_without_attention(make_spec):
    spec = make_spec(num_hidden_layers=3)
    ffn = GatedMLP(intermediate_size=64)
    parent = Architecture(
        blocks=(
            Block(attention=GQA(num_key_value_heads=2), ffn=ffn),
            Block(attention=NoOp(), ffn=ffn),
            Block(attention=Linear(), ffn=NoOp()),
        )
    )
    children = heterogeneous_children(default_space(spec, parent))
    for child in children.values():
        check_architecture(spec, child)
    assert [block.attention for block in children["smallest"].blocks[1:]] == [NoOp(), Linear()]


def test_a_model_is_each_of_its_layers_once(work):
    child = Architecture(
        blocks=(
            Block(attention=GQA(num_key_value_heads=2), ffn=Linear()),
            Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=16)),
        )
    )
    names = [("embedding", "embedding"), ("attention", "gqa_2"), ("ffn", "linear"), ("attention", "no_op")]
    names += [("ffn", "mlp_16"), ("head", "head")]
    assert cell_keys(child, "decode", 3, 9) == [work(*name, "decode", 3, 9) for name in names]


@pytest.fixture
def check(make_spec, make_measured, tmp_path, monkeypatch):
    """Composition over results in which every sub-block takes what LATENCY says, and whole models 1000 us."""

    def check(missing=lambda workload: False, layers=4):
        spec = make_spec(num_hidden_layers=layers)
        plans = []

        def measure(folder, plan, report):
            plans.append(plan)
            works = [planned.workload for planned in plan.workloads]
            measured = {
                one: make_measured(one, LATENCY.get(one.part, 1000.0), relative=0.01)
                for one in works
                if not missing(one)
            }
            misses = {one: "out of memory" for one in works if missing(one)}
            return Results(measured=measured, misses=misses, session_shift=(0.0,), engine_version="2.0")

        monkeypatch.setattr(module, "measure", measure)
        effort = Effort(sessions=1, seconds=1.0)
        space = default_space(spec)
        found, results = check_composition(
            spec,
            parent_architecture(spec),
            space,
            FP32,
            GRID,
            cpu_device(),
            "torch",
            effort,
            tmp_path / "run",
            lambda share, stage: None,
        )
        return found, results, plans[0]

    return check


def count(model, part):
    subs = [getattr(block, part) for block in model.blocks]
    return sum(not isinstance(sub, NoOp) for sub in subs)


def test_sums_use_each_layer_once(check):
    found, _, plan = check()
    sizes = [
        ("prefill", 1, 8),
        ("prefill", 3, 8),
        ("decode", 1, 8),
        ("decode", 1, 16),
        ("decode", 3, 8),
        ("decode", 3, 16),
    ]
    assert {(one.phase, one.batch_size, one.context_len) for one in found} == set(sizes)
    assert len(found) == 5 * len(sizes)
    for one in found:
        model = plan.models[one.model]
        expected = 3 + 100 * count(model, "attention") + 10 * count(model, "ffn")
        assert one.sum_us == pytest.approx(expected), one
        assert one.whole_us == 1000
        assert one.error == pytest.approx(expected / 1000 - 1)
        # The same measurement in every layer: its error is not averaged away.
        assert one.sum_low_us == pytest.approx(0.99 * expected)
        assert one.sum_high_us == pytest.approx(1.02 * expected)
        assert (one.whole_low_us, one.whole_high_us) == pytest.approx((990, 1020))
    parent = next(one for one in found if one.model == "parent")
    assert parent.sum_us == 3 + 4 * 110


def test_the_plan_holds_models_and_their_blocks(check):
    _, _, plan = check()
    models = [planned for planned in plan.workloads if planned.workload.part == "model"]
    assert len(models) == 5 * 6
    assert {planned.copies for planned in models} == {1}
    assert {planned.workload.sub_block for planned in models} == set(plan.models)
    works = [planned.workload for planned in plan.workloads]
    assert len(works) == len(set(works))
    assert not any(one.sub_block == "no_op" for one in works)


def test_a_miss_drops_the_comparisons_that_need_it(check):
    everything, _, plan = check()
    found, results, _ = check(lambda one: one.sub_block == "gqa_1" and one.phase == "decode")
    assert results.misses
    uses = {
        name
        for name, model in plan.models.items()
        if any(b.attention == GQA(num_key_value_heads=1) for b in model.blocks)
    }
    assert "smallest" in uses
    assert "parent" not in uses
    gone = {(one.model, one.phase) for one in everything} - {(one.model, one.phase) for one in found}
    assert gone == {(name, "decode") for name in uses}
    found, _, _ = check(lambda one: one.part == "model" and one.sub_block == "dropped")
    assert {one.model for one in everything} - {one.model for one in found} == {"dropped"}


def test_prompts_are_not_split(check):
    _, _, plan = check()
    prefill = {
        p.workload.batch_size
        for p in plan.workloads
        if p.workload.phase == "prefill" and p.workload.part == "attention"
    }
    assert prefill == {1, 3}


def test_the_median_error_is_absolute(check):
    found, _, _ = check()
    errors = sorted(abs(one.error) for one in found)
    assert median_error(found) == pytest.approx((errors[14] + errors[15]) / 2)
    assert median_error(found) > 0 > found[0].error


def test_what_is_printed(check, capsys):
    found, _, _ = check()
    print_composition("tiny on a CPU", found)
    out = capsys.readouterr().out
    assert "do blocks add up? tiny on a CPU" in out
    for name in ("parent", "mixed-1", "smallest", "dropped", "-55.7 %"):
        assert name in out
    assert out.count("median absolute error") == 2
