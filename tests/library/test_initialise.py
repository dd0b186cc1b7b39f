from __future__ import annotations

import pytest
import torch

from puzzlebench.child.blockwise import open_blockwise
from puzzlebench.child.halves import new_sub_block
from puzzlebench.child.modeling_heterogeneous import take_half
from puzzlebench.library.initialise import (
    InitRecipe,
    channel_order,
    initial_state,
    least_squares,
    needed_statistics,
)
from puzzlebench.library.projections import attention_projections, mlp_projections
from puzzlebench.library.statistics import LayerStatistics, NormalEquations, collect_statistics
from puzzlebench.model.blocks import GQA, GatedMLP, Linear, NoOp
from puzzlebench.model.hf_config import from_hf_config

LENGTH = 16
RECIPES = {
    "default": InitRecipe(),
    "puzzle": InitRecipe(linear="product"),
    "other": InitRecipe(attention="select", ffn="iterative", ridge=1e-6),
}


class Parent:
    """A tiny parent and what a test asks of it: halves started from it, and their errors on calibration tokens."""

    def __init__(self, model, layer_idx=0):
        self.model, self.layer_idx = model, layer_idx
        self.spec, self.architecture = from_hf_config(model.config.to_dict(), name="tiny")
        self.ids = torch.randint(0, 64, (6, LENGTH), generator=torch.Generator().manual_seed(1))
        self.layer = model.model.layers[layer_idx]

    def own(self, part):
        return getattr(self.architecture.blocks[self.layer_idx], part)

    def gqa(self, kv_heads):
        return GQA(num_key_value_heads=kv_heads, sliding_window=self.own("attention").sliding_window)

    def state(self, part, sub_block, recipe):
        needs = needed_statistics(recipe, part, self.own(part), sub_block)
        statistics = collect_statistics(self.model, [self.ids], {self.layer_idx: needs}) if needs else {}
        return initial_state(
            self.layer, self.spec, part, self.own(part), sub_block, recipe, statistics.get(self.layer_idx)
        )

    def start(self, part, sub_block, recipe):
        half = new_sub_block(self.layer, self.model.config, self.layer_idx, part, sub_block)
        half.load_state_dict(self.state(part, sub_block, recipe), strict=True)
        return half

    def outputs(self, part, *halves):
        """What the parent's half and these halves make of the calibration tokens."""
        blockwise = open_blockwise(self.model, LENGTH)
        with torch.no_grad():
            hidden = blockwise.embed(self.ids)
            for layer_idx in range(self.layer_idx):
                hidden = blockwise.run(layer_idx, blockwise.layers[layer_idx], hidden)
            if part == "ffn":
                hidden = blockwise.run(self.layer_idx, take_half(self.layer, "attention"), hidden)
            halves = (take_half(self.layer, part), *halves)
            return [blockwise.run(self.layer_idx, half, hidden) for half in halves]


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_state_loads_into_a_fresh_half_of_every_kind(build, family, recipe):
    parent = Parent(build(family))
    for part, sub_blocks in {
        "attention": (parent.gqa(4), parent.gqa(2), parent.gqa(1), Linear(), NoOp()),
        "ffn": (GatedMLP(intermediate_size=24), GatedMLP(intermediate_size=7), Linear(), NoOp()),
    }.items():
        for sub_block in sub_blocks:
            half = parent.start(part, sub_block, recipe)
            assert torch.isfinite(parent.outputs(part, half)[1]).all()


@pytest.mark.parametrize("part", ["attention", "ffn"])
def test_the_parents_own_sub_block_starts_as_it_is_and_apart_from_it(build, family, part):
    parent = Parent(build(family), layer_idx=1)
    half = parent.start(part, parent.own(part), InitRecipe())
    expected, found = parent.outputs(part, half)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    for tensor in parent.state(part, parent.own(part), InitRecipe()).values():
        tensor.zero_()
    torch.testing.assert_close(parent.outputs(part)[0], expected, rtol=0, atol=0)


@pytest.mark.parametrize("recipe", ["channel_contribution", "iterative"])
def test_removing_dead_channels_changes_nothing(build, family, recipe):
    parent = Parent(build(family), layer_idx=1)
    down = parent.layer.mlp.down_proj.weight
    dead = torch.randperm(24, generator=torch.Generator().manual_seed(4))[:16]
    down[:, dead] = 0
    half = parent.start("ffn", GatedMLP(intermediate_size=8), InitRecipe(ffn=recipe))
    expected, found = parent.outputs("ffn", half)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    alive = [channel for channel in range(24) if channel not in dead]
    torch.testing.assert_close(mlp_projections(half).up, mlp_projections(parent.layer).up[alive])  # in their order


@pytest.mark.parametrize("recipe", ["mean_pool", "select"])
def test_key_value_heads_that_are_equal_are_one(build, family, recipe):
    parent = Parent(build(family), layer_idx=1)
    own = attention_projections(parent.layer)
    for rows in (own.k, own.v, own.k_bias, own.v_bias, own.k_norm if own.k_norm_is_full else None):
        if rows is not None:  # views of the layer's own parameters
            heads = rows.view(2, 2, own.head_dim, -1)
            heads[:, 1] = heads[:, 0]
    half = parent.start("attention", parent.gqa(2), InitRecipe(attention=recipe))
    expected, found = parent.outputs("attention", half)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    other = parent.start("attention", parent.gqa(1), InitRecipe(attention=recipe))
    assert not torch.allclose(parent.outputs("attention", other)[1], expected, rtol=1e-3, atol=1e-3)


def test_pooled_heads_are_means_of_consecutive_ones(build):
    parent = Parent(build("qwen2"))
    own = attention_projections(parent.layer)
    found = attention_projections(parent.start("attention", parent.gqa(2), InitRecipe()))
    for before, after in ((own.k, found.k), (own.v, found.v), (own.k_bias, found.k_bias), (own.v_bias, found.v_bias)):
        torch.testing.assert_close(after[:4], (before[:4] + before[4:8]) / 2)
        torch.testing.assert_close(after[4:], (before[8:12] + before[12:]) / 2)
    torch.testing.assert_close(found.q, own.q, rtol=0, atol=0)
    torch.testing.assert_close(found.o, own.o, rtol=0, atol=0)


def test_select_takes_the_head_of_each_group_that_contributes_most(build):
    parent = Parent(build("llama"))
    own = attention_projections(parent.layer)
    own.v[:4] = 0  # of the first group the second head is left
    own.v[12:] *= 1e-3  # of the second group the first
    found = attention_projections(parent.start("attention", parent.gqa(2), InitRecipe(attention="select")))
    torch.testing.assert_close(found.k, torch.cat([own.k[4:8], own.k[8:12]]), rtol=0, atol=0)
    torch.testing.assert_close(found.v, torch.cat([own.v[4:8], own.v[8:12]]), rtol=0, atol=0)


@pytest.mark.parametrize("recipe", [InitRecipe(linear="product"), InitRecipe(ridge=1e-8)], ids=["product", "fitted"])
def test_attention_to_the_own_token_alone_is_a_matrix(build, recipe):
    parent = Parent(build("mistral", sliding_window=1))
    half = parent.start("attention", Linear(), recipe)
    expected, found = parent.outputs("attention", half)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    expected, found = Parent(build("mistral", sliding_window=2)).outputs("attention", half)
    assert not torch.allclose(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("recipe", [InitRecipe(linear="product"), InitRecipe(ridge=1e-8)], ids=["product", "fitted"])
def test_an_mlp_with_an_open_gate_is_a_matrix(build, recipe):
    parent = Parent(build("llama_biases"))
    mlp = parent.layer.mlp
    mlp.gate_proj.weight.zero_()
    mlp.gate_proj.bias.fill_(1.2784645)  # silu of it is 1
    mlp.up_proj.bias.zero_()
    mlp.down_proj.bias.zero_()
    half = parent.start("ffn", Linear(), recipe)
    expected, found = parent.outputs("ffn", half)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", ["attention", "ffn"])
def test_the_fitted_matrix_is_nearer_than_the_product_and_than_nothing(build, family, part):
    model = build(family)
    parent = Parent(model)
    module = {"attention": "self_attn", "ffn": "mlp"}[part]
    seen = []
    hook = parent.layer.get_submodule(module).register_forward_hook(
        lambda _module, args, kwargs, output: seen.append((args[0] if args else kwargs["hidden_states"], output)),
        with_kwargs=True,
    )
    model(parent.ids)
    hook.remove()
    ((x, y),) = seen
    y = y[0] if isinstance(y, tuple) else y
    errors = []
    for recipe in (InitRecipe(), InitRecipe(linear="product")):
        (weight,) = (tensor for name, tensor in parent.state(part, Linear(), recipe).items() if ".linear_" in name)
        errors.append((x @ weight.T - y).square().sum())
    assert errors[0] < errors[1]
    assert errors[0] < 0.9 * y.square().sum()


def test_least_squares_is_the_ridge_solution_of_the_stacked_system():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 5, generator=generator).double(), torch.randn(40, 3, generator=generator).double()
    ridge = 0.1
    weight = least_squares(NormalEquations(xtx=x.T @ x, xty=x.T @ y), ridge=ridge)
    penalty = (ridge * (x.T @ x).diagonal().mean()).sqrt() * torch.eye(5).double()
    stacked = torch.linalg.lstsq(torch.cat([x, penalty]), torch.cat([y, torch.zeros(5, 3).double()])).solution
    torch.testing.assert_close(weight, stacked.T)


def test_iterative_keeps_one_of_the_channels_that_say_the_same():
    x = torch.linalg.qr(torch.randn(50, 4, generator=torch.Generator().manual_seed(0))).Q
    x[:, 1] = x[:, 0]
    down = torch.tensor([[1.0, 1.0, 1.1, 1.1]])
    kept = channel_order(down, x.T @ x)[:2].tolist()
    assert len({0, 1} & set(kept)) == 1
    assert (x.norm(dim=0) * down.norm(dim=0)).topk(2).indices.sort().values.tolist() == [2, 3]  # what one-shot keeps


def test_iterative_removes_what_brute_force_removes():
    generator = torch.Generator().manual_seed(2)
    x, down = torch.randn(60, 9, generator=generator), torch.randn(4, 9, generator=generator)
    order = channel_order(down, x.T @ x).flip(0).tolist()
    removed: list[int] = []
    for channel in order:
        errors = {
            other: (x[:, [*removed, other]] @ down[:, [*removed, other]].T).square().sum().item()
            for other in range(9)
            if other not in removed
        }
        assert channel == min(errors, key=errors.__getitem__)
        removed.append(channel)


def test_iterative_is_nearer_than_one_shot_on_correlated_channels(build, family):
    parent = Parent(build(family), layer_idx=1)
    own = mlp_projections(parent.layer)
    own.gate[8:16] = own.gate[:8]  # pairs of channels that say nearly the same
    own.up[8:16] = own.up[:8]
    own.down[:, 8:16] = 0.9 * own.down[:, :8]
    for biases in (own.gate_bias, own.up_bias):
        if biases is not None:
            biases[8:16] = biases[:8]
    width = GatedMLP(intermediate_size=10)
    outputs = [
        parent.start("ffn", width, InitRecipe(ffn=recipe)).mlp for recipe in ("channel_contribution", "iterative")
    ]
    inputs = []
    hook = parent.layer.mlp.register_forward_pre_hook(lambda _module, args: inputs.append(args[0]))
    parent.model(parent.ids)
    hook.remove()
    with torch.no_grad():
        one_shot, iterative = ((mlp(inputs[0]) - parent.layer.mlp(inputs[0])).square().sum() for mlp in outputs)
    assert iterative < 0.95 * one_shot


def test_states_keep_the_dtype_of_the_parent(build):
    parent = Parent(build("llama").bfloat16())
    for part, sub_blocks in {
        "attention": (parent.gqa(2), Linear()),
        "ffn": (GatedMLP(intermediate_size=7), Linear()),
    }.items():
        for sub_block in sub_blocks:
            for recipe in RECIPES.values():
                assert {tensor.dtype for tensor in parent.state(part, sub_block, recipe).values()} == {torch.bfloat16}


def test_a_window_of_its_own_needs_no_statistics(build):
    parent = Parent(build("mistral"))
    narrow = GQA(num_key_value_heads=4, sliding_window=3)
    recipe = InitRecipe(attention="select")
    assert not needed_statistics(recipe, "attention", parent.own("attention"), narrow)
    state = parent.state("attention", narrow, recipe)
    own = parent.state("attention", parent.own("attention"), recipe)
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)


@pytest.mark.parametrize(
    ("part", "sub_block", "recipe", "need"),
    [
        ("attention", GQA(num_key_value_heads=2), InitRecipe(attention="select"), "kv_head_contribution"),
        ("attention", Linear(), InitRecipe(), "attention_equations"),
        ("ffn", GatedMLP(intermediate_size=8), InitRecipe(), "channel_contribution"),
        ("ffn", GatedMLP(intermediate_size=8), InitRecipe(ffn="iterative"), "channel_second_moment"),
        ("ffn", Linear(), InitRecipe(), "ffn_equations"),
    ],
)
def test_a_missing_statistic_is_named_and_is_the_one_said_beforehand(build, part, sub_block, recipe, need):
    parent = Parent(build("llama"))
    assert needed_statistics(recipe, part, parent.own(part), sub_block) == {need}
    for statistics in (None, LayerStatistics(tokens=1)):
        with pytest.raises(ValueError, match=f"the recipe needs {need} of the layer"):
            initial_state(parent.layer, parent.spec, part, parent.own(part), sub_block, recipe, statistics)


def test_what_is_not_smaller_is_refused(build):
    parent = Parent(build("llama"))
    recipe = InitRecipe(attention="mean_pool")
    with pytest.raises(ValueError, match=r"4 key-value heads cannot be put into 8 groups"):
        parent.state("attention", parent.gqa(8), recipe)
    with pytest.raises(ValueError, match=r"3 key-value heads do not divide the 8 attention heads"):
        parent.state("attention", parent.gqa(3), recipe)
    with pytest.raises(ValueError, match=r"an MLP of 24 channels cannot start one of 25"):
        parent.state("ffn", GatedMLP(intermediate_size=25), recipe)
    with pytest.raises(ValueError, match=r"gqa_2 cannot start from linear"):
        initial_state(parent.layer, parent.spec, "attention", Linear(), parent.gqa(2), recipe)
    with pytest.raises(ValueError, match=r"singular at ridge 0"):
        least_squares(NormalEquations(xtx=torch.zeros(2, 2), xty=torch.zeros(2, 2)), ridge=0)


def test_recipes_are_checked():
    with pytest.raises(ValueError, match=r"attention recipe 'meanpool' is not known; did you mean mean_pool\?"):
        InitRecipe(attention="meanpool")
    with pytest.raises(ValueError, match=r"ffn recipe 'zzz' is not known; did you mean channel_contribution or iterat"):
        InitRecipe(ffn="zzz")
    with pytest.raises(ValueError, match=r"linear recipe 'products' is not known; did you mean product\?"):
        InitRecipe(linear="products")
    for ridge in (-1e-3, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match=r"ridge must be a number of at least 0"):
            InitRecipe(ridge=ridge)
