from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from puzzlebench.child.blockwise import open_blockwise
from puzzlebench.child.halves import load_half, new_sub_block, part_state
from puzzlebench.child.modeling_heterogeneous import take_half
from puzzlebench.library import distil
from puzzlebench.library.activations import open_inputs
from puzzlebench.library.distil import LayerRun, Variant, distil_layer, normalised_mse, split_rows
from puzzlebench.library.recipe import Recipe, Training
from puzzlebench.model.blocks import GQA, GatedMLP, Linear, NoOp, sub_block_name
from puzzlebench.model.hf_config import from_hf_config

LENGTH = 12
LAYER = 1
GQA_1, GQA_2, MLP_8 = GQA(num_key_value_heads=1), GQA(num_key_value_heads=2), GatedMLP(intermediate_size=8)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 64, (20, LENGTH)).astype(np.int32)


@pytest.fixture
def many_tokens():
    """So many that what is learned holds for held-out sequences too."""
    return np.random.default_rng(0).integers(0, 64, (160, LENGTH)).astype(np.int32)


def _recipe(precision="fp32", **training):
    settings = {"steps": 12, "batch_size": 4, "evaluations": 4, "patience": 0, "warmup": 2, "lr": 0.01, **training}
    return Recipe(training=Training(**settings), data="x", sequences=20, length=LENGTH, precision=precision)


def _run(model, tokens, folder, precision="fp32"):
    blockwise = open_blockwise(model, LENGTH)
    inputs = open_inputs(blockwise, tokens, storage="memory", memory_limit=1 << 30, folder=folder)
    inputs.advance()
    layer = model.model.layers[LAYER]
    return LayerRun(
        blockwise=blockwise,
        layer=LAYER,
        attention=take_half(layer, "attention"),
        ffn=take_half(layer, "ffn"),
        inputs=inputs,
        precision=precision,
    )


def _variant(model, **subs):
    """A variant of fresh random halves, the same at every call; the parent's other half beside an attention."""
    layer = model.model.layers[LAYER]
    _, architecture = from_hf_config(model.config.to_dict(), name="tiny")
    window, halves = architecture.blocks[LAYER].attention.sliding_window, {}
    for part, sub in subs.items():
        if isinstance(sub, GQA):
            sub = replace(sub, sliding_window=window)
        torch.manual_seed(3)
        halves[part] = new_sub_block(layer, model.config, LAYER, part, sub).float().requires_grad_()
    trained = tuple(part for part, sub in subs.items() if not isinstance(sub, NoOp))
    name = "+".join(f"{part}.{sub_block_name(sub)}" for part, sub in subs.items())
    if "ffn" not in subs:
        halves["ffn"] = take_half(layer, "ffn")
    return Variant(name=name, halves=halves, trained=trained)


def _variants(model):
    return [
        _variant(model, attention=GQA_1),
        _variant(model, attention=GQA_2),
        _variant(model, attention=Linear()),
        _variant(model, ffn=MLP_8),
        _variant(model, ffn=Linear()),
        _variant(model, attention=GQA_1, ffn=MLP_8),
        _variant(model, attention=NoOp(), ffn=MLP_8),
        _variant(model, attention=GQA_1, ffn=NoOp()),
    ]


def _few(model):
    return [
        _variant(model, attention=GQA_1),
        _variant(model, ffn=MLP_8),
        _variant(model, attention=GQA_1, ffn=MLP_8),
    ]


def _weights(variant):
    return {name: parameter.detach().clone() for name, parameter in variant.parameters().items()}


def _assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def _held_out_loss(run, attention, ffn, rows):
    """Of these halves, without the code under test."""
    inputs = run.inputs.read(rows)
    with torch.no_grad():
        target = run.blockwise.run(LAYER, run.blockwise.layers[LAYER], inputs)
        output = run.blockwise.run(LAYER, ffn, run.blockwise.run(LAYER, attention, inputs))
    return ((output - target) ** 2).sum().item() / (target**2).sum().item()


@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2"])
def test_the_loss_before_training_is_that_of_the_layer_with_the_variants_halves(build, tokens, tmp_path, family):
    model = build(family)
    run, variants = _run(model, tokens, tmp_path), _variants(model)
    distil_layer(run, variants, _recipe(steps=0, batch_size=2))
    stock = {part: take_half(model.model.layers[LAYER], part) for part in ("attention", "ffn")}
    for variant in variants:
        halves = stock | variant.halves
        expected = _held_out_loss(run, halves["attention"], halves["ffn"], torch.tensor([18, 19]))
        assert variant.losses == pytest.approx([expected, expected], rel=1e-5), variant.name
        assert expected > 1e-3


def test_nothing_at_all_loses_what_the_layer_adds(build, tokens, tmp_path):
    run = _run(build("llama"), tokens, tmp_path)
    nothing = Variant(
        name="nothing",
        halves={
            part: new_sub_block(run.blockwise.layers[LAYER], run.blockwise.model.config, LAYER, part, NoOp())
            for part in ("attention", "ffn")
        },
        trained=(),
    )
    distil_layer(run, [nothing], _recipe(steps=0))
    inputs, _, target = run.teacher(torch.tensor([18, 19]))
    assert nothing.losses[0] == pytest.approx(((inputs - target).square().sum() / target.square().sum()).item())


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_what_equals_the_parent_has_no_loss_and_stays(build, tokens, tmp_path, family):
    model = build(family)
    layer = model.model.layers[LAYER]
    own = {"attention": GQA(num_key_value_heads=4), "ffn": GatedMLP(intermediate_size=24)}
    variant = _variant(model, **own)
    for part in own:
        load_half(variant.halves[part], part, part_state(layer, part))
    before = _weights(variant)
    moved = []
    distil_layer(
        _run(model, tokens, tmp_path),
        [variant],
        _recipe(),
        progress=lambda _: moved.append(
            max((value - before[name]).abs().max().item() for name, value in _weights(variant).items())
        ),
    )
    assert variant.losses == pytest.approx([0] * 6, abs=1e-12)
    assert moved == [0] * 12
    _assert_equal(_weights(variant), before)


def test_the_held_out_loss_of_every_variant_falls(build, family, many_tokens, tmp_path):
    model = build(family)
    variants = _variants(model)
    distil_layer(_run(model, many_tokens, tmp_path), variants, _recipe(steps=20, batch_size=8, lr=0.03, evaluations=1))
    for variant in variants:
        assert variant.losses[-1] < 0.97 * variant.losses[0], (variant.name, variant.losses)
        assert len(variant.losses) == 2


def test_what_is_reported_is_the_loss_of_the_weights_that_are_kept(build, tokens, tmp_path):
    model = build("qwen3")
    run, variants = _run(model, tokens, tmp_path), _variants(model)
    distil_layer(run, variants, _recipe())
    stock = {part: take_half(model.model.layers[LAYER], part) for part in ("attention", "ffn")}
    for variant in variants:
        halves = stock | variant.halves
        expected = _held_out_loss(run, halves["attention"], halves["ffn"], torch.tensor([18, 19]))
        assert variant.losses[-1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_training_together_is_training_each_alone(build, tokens, tmp_path, optimiser):
    model = build("llama")
    run, together = _run(model, tokens, tmp_path), _variants(model)
    distil_layer(run, together, _recipe(optimiser=optimiser))
    for variant, one in zip(_variants(model), together, strict=True):
        distil_layer(run, [variant], _recipe(optimiser=optimiser))
        assert variant.losses == pytest.approx(one.losses, rel=1e-4)
        for name, value in _weights(variant).items():  # matrices of one shape are orthogonalised in one batch
            torch.testing.assert_close(value, _weights(one)[name], rtol=1e-3, atol=1e-4)


def test_the_parent_learns_nothing(build, tokens, tmp_path):
    model = build("phi3")
    before = copy.deepcopy(model.state_dict())
    distil_layer(_run(model, tokens, tmp_path), _variants(model), _recipe())
    _assert_equal(model.state_dict(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())


def test_held_out_sequences_are_never_trained_on(build, tokens, tmp_path):
    model = build("llama")
    changed = tokens.copy()
    changed[-2:] = (changed[-2:] + 7) % 64
    results = []
    for some in (tokens, changed):
        variant = _variant(model, ffn=MLP_8)
        distil_layer(_run(model, some, tmp_path), [variant], _recipe())
        results.append(variant)
    _assert_equal(_weights(results[0]), _weights(results[1]))
    assert results[0].losses[-1] != results[1].losses[-1]


def test_a_variant_that_has_stopped_stays_and_the_others_go_on(build, tokens, tmp_path, monkeypatch):
    model = build("llama")
    run = _run(model, tokens, tmp_path)
    alone = _variant(model, ffn=MLP_8)
    distil_layer(run, [alone], _recipe())
    stops, goes_on = _variant(model, attention=GQA_1), _variant(model, ffn=MLP_8)
    monkeypatch.setattr(distil, "_plateau", lambda losses, _: losses is stops.losses and len(losses) == 3)
    kept = []
    distil_layer(run, [stops, goes_on], _recipe(), progress=lambda _: kept.append(_weights(stops)))
    assert (stops.stopped, stops.steps, len(stops.losses)) == (True, 6, 3)
    assert (goes_on.stopped, goes_on.steps, len(goes_on.losses)) == (False, 12, 5)
    _assert_equal(_weights(stops), kept[5])
    assert any(not torch.equal(value, kept[4][name]) for name, value in kept[5].items())
    torch.testing.assert_close(_weights(goes_on), _weights(alone), rtol=1e-4, atol=1e-5)


def test_training_ends_when_all_have_stopped(build, tokens, tmp_path):
    model = build("llama")
    variants = [_variant(model, ffn=MLP_8), _variant(model, attention=GQA_1)]
    steps = []
    distil_layer(
        _run(model, tokens, tmp_path),
        variants,
        _recipe(patience=1, least_gain=0.99),
        progress=steps.append,
    )
    assert len(steps) == 3
    assert [variant.steps for variant in variants] == [3, 3]


@pytest.mark.parametrize(
    ("losses", "patience", "expected"),
    [
        ([1.0, 0.999, 0.998, 0.997], 3, True),
        ([1.0, 0.999, 0.9, 0.899], 3, False),
        ([1.0, 0.999, 0.998], 3, False),
        ([1.0, 1.1, 1.2, 1.3], 3, True),
        ([1.0, 0.5, 0.499, 0.498], 2, True),
        ([1.0, 1.0, 1.0, 1.0], 0, False),
    ],
)
def test_a_plateau_is_gain_after_gain_that_is_too_small(losses, patience, expected):
    assert distil._plateau(losses, Training(patience=patience, least_gain=0.005)) is expected


@pytest.mark.parametrize("stop", [1, 3, 7, 12])
@pytest.mark.parametrize("optimiser", ["muon", "adamw"])
def test_training_goes_on_where_it_stopped(build, tokens, tmp_path, monkeypatch, stop, optimiser):
    model, recipe = build("llama"), _recipe(optimiser=optimiser)
    run, whole = _run(model, tokens, tmp_path), _few(model)
    distil_layer(run, whole, _recipe(steps=0))
    first = whole[0].losses[0]
    monkeypatch.setattr(distil, "_plateau", lambda losses, _: losses[0] == first and len(losses) == 2)
    whole = _few(model)
    distil_layer(run, whole, recipe)
    assert [variant.steps for variant in whole] == [3, 12, 12]

    def interrupt(share):
        if round(share * 12) == stop:
            raise KeyboardInterrupt

    file = tmp_path / "training.safetensors"
    with pytest.raises(KeyboardInterrupt):
        distil_layer(run, _few(model), recipe, checkpoint=file, save_now=lambda: True, progress=interrupt)
    again, shares = _few(model), []
    distil_layer(run, again, recipe, checkpoint=file, progress=shares.append)
    assert len(shares) == 12 - stop
    for one, other in zip(again, whole, strict=True):
        assert (one.losses, one.steps, one.stopped) == (other.losses, other.steps, other.stopped)
        _assert_equal(_weights(one), _weights(other))


def test_without_being_asked_no_checkpoint_is_written(build, tokens, tmp_path):
    model = build("llama")
    file = tmp_path / "training.safetensors"
    distil_layer(_run(model, tokens, tmp_path), [_variant(model, ffn=MLP_8)], _recipe(steps=2), checkpoint=file)
    assert not file.exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_training_makes_worse_keeps_its_initial_weights(build, tokens, tmp_path, interrupted):
    model = build("llama")
    variant = _variant(model, ffn=GatedMLP(intermediate_size=24))
    load_half(variant.halves["ffn"], "ffn", part_state(model.model.layers[LAYER], "ffn"))
    with torch.no_grad():
        variant.halves["ffn"].mlp.down_proj.weight[0, 0] += 1e-3  # so near that a rough step can only harm
    before, moved = _weights(variant), []
    recipe = _recipe(lr=0.9, other_lr=0.9)
    file = tmp_path / "training.safetensors"
    run = _run(model, tokens, tmp_path)
    if interrupted:
        with pytest.raises(ZeroDivisionError):
            distil_layer(run, [variant], recipe, checkpoint=file, save_now=lambda: True, progress=lambda _: 1 / 0)
        for name, parameter in variant.parameters().items():
            parameter.data.copy_(before[name])
        variant.losses = []
    distil_layer(run, [variant], recipe, checkpoint=file, progress=lambda _: moved.append(_weights(variant)))
    assert variant.losses[-2] > variant.losses[0]
    assert variant.losses[-1] == variant.losses[0]
    _assert_equal(_weights(variant), before)
    assert any(not torch.equal(value, before[name]) for name, value in moved[-1].items())


def test_a_loss_that_is_no_number_keeps_the_initial_weights(build, tokens, tmp_path):
    model = build("llama")
    variant = _variant(model, ffn=MLP_8)
    before = _weights(variant)

    def break_it(_share):
        with torch.no_grad():
            variant.halves["ffn"].mlp.down_proj.weight.fill_(torch.nan)

    distil_layer(_run(model, tokens, tmp_path), [variant], _recipe(), progress=break_it)
    assert np.isnan(variant.losses[-2])
    assert variant.losses[-1] == variant.losses[0]
    _assert_equal(_weights(variant), before)


def test_halves_trained_together_fit_at_least_as_well_as_halves_trained_apart(build, many_tokens, tmp_path):
    model, recipe = build("llama"), _recipe(steps=40, batch_size=8, lr=0.02)
    run = _run(model, many_tokens, tmp_path)
    apart = [_variant(model, attention=GQA_1), _variant(model, ffn=MLP_8)]
    together = _variant(model, attention=GQA_1, ffn=MLP_8)
    before = _weights(together)
    distil_layer(run, [*apart, together], recipe)
    composed = _held_out_loss(run, apart[0].halves["attention"], apart[1].halves["ffn"], torch.arange(144, 160))
    assert together.losses[-1] <= composed
    after = _weights(together)
    assert {name.partition("/")[0] for name in after} == {"attention", "ffn"}
    assert all(not torch.equal(value, before[name]) for name, value in after.items())


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_bf16_learns_over_weights_in_fp32(build, family, many_tokens, tmp_path):
    model = build(family).bfloat16()
    run, variants = _run(model, many_tokens, tmp_path, "bf16"), _variants(model)
    distil_layer(run, variants, _recipe("bf16", steps=20, batch_size=8, lr=0.03, evaluations=1))
    for variant in variants:
        assert variant.losses[-1] < 0.97 * variant.losses[0], (variant.name, variant.losses)
        assert {parameter.dtype for parameter in variant.parameters().values()} == {torch.float32}
        # 8 bits are not what the updates were rounded to
        assert any(
            not torch.equal(value, value.bfloat16().float())
            for value in variant.parameters().values()
            if value.ndim > 1
        )


def test_every_sequence_is_trained_on_once_before_any_is_again():
    rows = torch.arange(100, 118)
    order = distil._Order(rows, Training(batch_size=4, seed=5))
    seen = torch.cat([order.rows(step) for step in range(18)])
    passes = seen.view(4, 18)
    assert all(torch.equal(one.sort().values, rows) for one in passes)
    assert not torch.equal(passes[0], passes[1])
    other = distil._Order(rows, Training(batch_size=4, seed=6))
    assert not torch.equal(torch.cat([other.rows(step) for step in range(4)]), seen[:16])


@pytest.mark.parametrize(("sequences", "held_out"), [(2, 1), (9, 1), (10, 1), (20, 2), (256, 26)])
def test_the_last_tenth_is_held_out(sequences, held_out):
    train, rest = split_rows(sequences)
    assert len(rest) == held_out
    assert torch.equal(torch.cat([train, rest]), torch.arange(sequences))


def test_one_sequence_cannot_be_split():
    with pytest.raises(ValueError, match=r"1 sequence\(s\) cannot be split .*; give at least 2"):
        split_rows(1)


def test_the_loss_is_relative_to_that_of_zero():
    target = torch.randn(2, 3, 4)
    assert normalised_mse(torch.zeros_like(target), target) == 1
    assert normalised_mse(target, target) == 0
    torch.testing.assert_close(normalised_mse(target * 0.5, target), torch.tensor(0.25))
    assert normalised_mse(target.bfloat16(), target.bfloat16()).dtype == torch.float32
