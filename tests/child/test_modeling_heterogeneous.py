"""Heterogeneous models against their parents, their halves, themselves without a cache, and masks made by hand."""

from __future__ import annotations

import copy
import inspect

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch
import transformers

from puzzlebench.child.building import build_child
from puzzlebench.child.checkpoints import load_causal_lm, save_child
from puzzlebench.child.configs import child_config, read_spec
from puzzlebench.child.modeling_heterogeneous import CLASSES, MODULES, half_norms, heterogeneous_class, take_half
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.spec import parent_architecture

from .conftest import cache_of, make_child, make_parent, mixed_architecture, tokens

TOLERANCE = 1e-4  # float32 products of other shapes: seen 2e-5 on logits of size 1 to 10; one wrong key changes tenths


def first(output):
    """Some layers of some versions return a tuple."""
    return output[0] if isinstance(output, tuple) else output


def layer_calls(model, **inputs):
    """What each layer is called with, and what it returns."""
    calls = []
    hooks = [
        layer.register_forward_hook(
            lambda _layer, args, kwargs, output: calls.append((args, kwargs, first(output))), with_kwargs=True
        )
        for layer in model.model.layers
    ]
    model(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()
    return calls


def attention_windows(spec, windows):
    """The parent's architecture with these windows."""
    return Architecture(
        blocks=tuple(
            Block(attention=GQA(num_key_value_heads=spec.num_key_value_heads, sliding_window=window), ffn=block.ffn)
            for window, block in zip(windows, parent_architecture(spec).blocks, strict=True)
        )
    )


@pytest.mark.parametrize("of", ["parent", "child"])
def test_halves_one_after_the_other_are_the_layer(parent, of):
    model = parent if of == "parent" else make_child(parent, mixed_architecture(read_spec(parent.config)))
    calls = layer_calls(model, input_ids=tokens())
    for layer, (args, kwargs, output) in zip(model.model.layers, calls, strict=True):
        hidden = first(take_half(layer, "attention")(*args, **kwargs))
        composed = first(take_half(layer, "ffn")(hidden, *args[1:], **kwargs))
        torch.testing.assert_close(composed, output, rtol=0, atol=1e-6)


def test_one_half_fills_the_cache(parent):
    layer = parent.model.layers[0]
    args, kwargs, output = layer_calls(parent, input_ids=tokens())[0]
    cache = transformers.DynamicCache()
    hidden = first(take_half(layer, "attention")(*args, **kwargs | {name_of_cache(parent): cache}))
    composed = first(take_half(layer, "ffn")(hidden, *args[1:], **kwargs | {name_of_cache(parent): cache}))
    torch.testing.assert_close(composed, output, rtol=0, atol=1e-6)
    assert cache.get_seq_length() == 12


def test_a_half_is_the_residual_and_one_sub_block(parent):
    layer = parent.model.layers[3]
    args, kwargs, _ = layer_calls(parent, input_ids=tokens())[3]
    hidden = args[0]
    normed = hidden
    if "pre_feedforward_layernorm" in half_norms(layer, "ffn"):
        normed = layer.pre_feedforward_layernorm(hidden)
    elif "post_feedforward_layernorm" not in half_norms(layer, "ffn"):
        normed = layer.post_attention_layernorm(hidden)
    out = layer.mlp(normed)
    if "post_feedforward_layernorm" in half_norms(layer, "ffn"):
        out = layer.post_feedforward_layernorm(out)
    expected = hidden + out * getattr(layer, "residual_multiplier", 1.0)
    torch.testing.assert_close(first(take_half(layer, "ffn")(*args, **kwargs)), expected, rtol=0, atol=1e-6)


def test_taking_halves_leaves_the_layer_alone(parent):
    layer = parent.model.layers[0]
    modules, seen = dict(layer.named_modules()), []
    hook = layer.register_forward_hook(lambda *_: seen.append(1))
    for part in MODULES:
        half = take_half(layer, part)
        kept = {MODULES[part], *half_norms(layer, part)}
        assert {name.split(".")[0] for name, _ in half.named_parameters()} == kept
        assert all(parameter is layer.get_parameter(name) for name, parameter in half.named_parameters())
        args, kwargs, _ = layer_calls(parent, input_ids=tokens())[0]
        seen.clear()
        half(*args, **kwargs)
        assert not seen
    hook.remove()
    assert dict(layer.named_modules()) == modules


def test_a_layer_of_no_ops_passes_hidden_states_by(parent):
    child = make_child(parent, mixed_architecture(read_spec(parent.config)))
    args, _, output = layer_calls(child, input_ids=tokens())[0]
    assert torch.equal(args[0], output)
    assert not list(child.model.layers[0].parameters())


def test_a_child_like_its_parent_gives_the_parents_logits(parent):
    child = make_child(parent, parent_architecture(read_spec(parent.config)))
    assert torch.equal(child(tokens()).logits, parent(tokens()).logits)


@pytest.mark.parametrize("own_windows", [True, False])
def test_generation_with_a_cache_is_generation_without(parent, own_windows):
    child = make_child(parent, mixed_architecture(read_spec(parent.config), own_windows=own_windows))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    settings = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    settings |= {"output_logits": True, "return_dict_in_generate": True}
    generate = lambda **other: child.generate(tokens(), attention_mask=mask, **settings, **other)  # noqa: E731
    expected, cached = generate(use_cache=False), generate(use_cache=True)
    assert torch.equal(cached.sequences, expected.sequences)
    torch.testing.assert_close(cached.logits, expected.logits, rtol=0, atol=TOLERANCE)
    # The padded row is what the row alone gives.
    alone = child.generate(tokens()[:1, 5:], **settings)
    torch.testing.assert_close(
        torch.stack(alone.logits)[:, 0], torch.stack(cached.logits)[:, 0], rtol=0, atol=TOLERANCE
    )
    if own_windows and any("sliding_window" in layer for layer in stated_layers(child)):
        with pytest.raises(ValueError, match="need a dynamic cache"):
            generate(cache_implementation="static")
    else:
        static = generate(cache_implementation="static")
        torch.testing.assert_close(static.logits, expected.logits, rtol=0, atol=TOLERANCE)


def test_a_static_cache_filled_in_pieces():
    parent = make_parent("llama")
    child = make_child(parent, mixed_architecture(read_spec(parent.config), own_windows=False))
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = child.generate(tokens(), **settings)
    pieces = child.generate(tokens(), cache_implementation="static", prefill_chunk_size=5, **settings)
    assert torch.equal(pieces, expected)


def stated_layers(model):
    return (model.config.to_dict().get("per_layer_config") or {}).values()


def test_a_gemma_3_whose_full_layers_have_scaled_rope_runs_and_loads(tmp_path):
    scaled = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    if hasattr(make_parent("gemma3_text").config, "rope_parameters"):
        local = {"rope_type": "default", "rope_theta": 1e4}
        changes = {"rope_parameters": {"full_attention": scaled, "sliding_attention": local}}
    else:
        changes = {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    parent = make_parent("gemma3_text", **changes)
    child = build_child(parent, read_spec(parent.config), parent_architecture(read_spec(parent.config)), {})
    assert torch.equal(child(tokens()).logits, parent(tokens()).logits)
    narrower = attention_windows(read_spec(parent.config), (3, 6, None, 2))
    changed = build_child(parent, read_spec(parent.config), narrower, {})
    assert not torch.equal(changed(tokens()).logits, parent(tokens()).logits)
    save_child(changed, tmp_path / "child")
    assert torch.equal(load_causal_lm(tmp_path / "child")(tokens()).logits, changed(tokens()).logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("family", "windows"),
    [
        ("llama", (3, None, 5, 2)),
        ("llama", (3, 5, 4, 9)),
        ("olmo2", (None, 3, None, 2)),
        ("granite", (1, None, 4, 4)),
        ("gemma", (None, 2, 3, None)),
        ("mistral", (2, 6, 5, 3)),
        ("phi3", (6, 2, 5, 3)),
        ("ministral", (5, 2, 6, 3)),
        ("qwen2", (None, 3, 8, None)),
        ("qwen3", (None, 9, 6, 2)),
        ("smollm3", (2, None, 7, 3)),
        ("gemma2", (3, 2, 6, 9)),
        ("gemma3_text", (3, 6, None, 2)),
    ],
)
def test_windows_of_layers_are_masks_made_by_hand(family, windows, implementation):
    if family == "gemma2" and implementation == "sdpa":
        pytest.skip("sdpa has no soft caps")
    parent = make_parent(family)
    spec = read_spec(parent.config)
    child = build_child(parent, spec, attention_windows(spec, windows), {})
    child.set_attn_implementation(implementation)
    padding = torch.ones(2, 12, dtype=torch.long)
    padding[0, :3] = 0
    positions = (padding.cumsum(-1) - 1).clamp(min=0)
    inputs = {"input_ids": tokens(), "attention_mask": padding, "position_ids": positions}

    by_hand = copy.deepcopy(parent)
    by_hand.set_attn_implementation("eager")
    age = torch.arange(12)[:, None] - torch.arange(12)
    for layer, window in zip(by_hand.model.layers, windows, strict=True):
        seen = (age >= 0) & (age < (window or 100)) & padding[:, None, None, :].bool()
        mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        layer.self_attn.register_forward_pre_hook(
            lambda _module, args, kwargs, mask=mask: (args, {**kwargs, "attention_mask": mask}), with_kwargs=True
        )
    expected = by_hand(**inputs, use_cache=False).logits
    real = padding.bool()
    torch.testing.assert_close(child(**inputs).logits[real], expected[real], rtol=0, atol=TOLERANCE)

    # transformers makes the cache from the model, or generation from its config, which states every layer's window.
    for cache in ({}, {name_of_cache(child): transformers.DynamicCache(config=child.config)}):
        logits = in_pieces(child, padding, positions, cache)
        torch.testing.assert_close(logits[real], expected[real], rtol=0, atol=TOLERANCE)


def name_of_cache(model):
    parameters = inspect.signature(model.forward).parameters
    return "cache" if "cache" in parameters else "past_key_values"


def in_pieces(model, padding, positions, cache):
    """Logits of 12 tokens, some at a time, given the earlier ones in a cache."""
    logits = []
    for start, stop in ((0, 7), (7, 10), (10, 11), (11, 12)):
        pieces = {"input_ids": tokens()[:, start:stop], "position_ids": positions[:, start:stop]}
        output = model(**pieces, **cache, attention_mask=padding[:, :stop], use_cache=True)
        cache = cache_of(output)
        logits.append(output.logits)
    return torch.cat(logits, dim=1)


def test_gradients_flow_and_checkpointing_does_not_change_them(parent):
    child = make_child(parent, mixed_architecture(read_spec(parent.config))).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            child.gradient_checkpointing_enable()
        child.zero_grad()
        child(tokens(), labels=tokens(), use_cache=False).loss.backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in child.named_parameters()})
    assert all(gradient.abs().sum() > 0 for gradient in gradients[0].values())
    torch.testing.assert_close(gradients[0], gradients[1])


def test_copies_and_hidden_states(parent):
    child = make_child(parent, mixed_architecture(read_spec(parent.config)))
    twin = copy.deepcopy(child)
    output = twin(tokens(), output_hidden_states=True)
    assert torch.equal(output.logits, child(tokens()).logits)
    assert len(output.hidden_states) == 5
    twin.set_attn_implementation("eager")
    for module in (twin.model, twin.model.layers[1].self_attn):
        assert module.config._attn_implementation == "eager"
    twin.model.config.use_cache = False
    assert not twin.config.use_cache
    assert child.config.use_cache
    torch.testing.assert_close(twin(tokens()).logits, output.logits, rtol=0, atol=TOLERANCE)
    assert twin.to(torch.bfloat16)(tokens()).logits.dtype == torch.bfloat16


def test_the_class_without_overrides_is_the_stock_model(parent):
    model = heterogeneous_class(parent.config.model_type)(copy.deepcopy(parent.config)).eval()
    model.load_state_dict(parent.state_dict())
    assert torch.equal(model(tokens()).logits, parent(tokens()).logits)


def test_a_fresh_model_is_initialised_like_the_stock_one():
    parent = make_parent("llama", initializer_range=0.001)
    spec = read_spec(parent.config)
    config = child_config(parent.config, spec, mixed_architecture(spec))
    model = heterogeneous_class("llama")(config)
    assert config.to_dict()["per_layer_config"]
    for layer in (1, 2):
        for name, parameter in model.model.layers[layer].named_parameters():
            assert name.endswith("norm.weight") or parameter.abs().max() < 0.01, name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"1": {"hidden_size": 16}}, "layer 1: 'hidden_size' is not known"),
        ({"1": {"skip": ["norm"]}}, "layer 1: skip names 'norm'; known are attention, mlp"),
        ({"1": {"linear": ["ffn"]}}, "layer 1: linear names 'ffn'"),
        ({"2": {"num_key_value_heads": 3}}, "layer 2: 3 key-value heads do not divide 4 attention heads"),
        ({"0": {"sliding_window": 7}}, "layer 0: a window of 7 tokens is wider than the model's 6"),
        ({"0": {"sliding_window": None}}, "layer 0: a window of all tokens is wider"),
    ],
)
def test_overrides_that_cannot_be_honoured(overrides, message):
    config = make_parent("mistral").config
    config.linear = []
    config.per_layer_config = overrides
    with pytest.raises(ValueError, match=message):
        heterogeneous_class("mistral")(config)


def test_a_window_where_the_config_says_full_attention():
    config = make_parent("qwen3").config
    config.per_layer_config = {"0": {"sliding_window": 3}}
    with pytest.raises(ValueError, match="layer_types says full_attention, so a window of 3 has no effect"):
        heterogeneous_class("qwen3")(config)


def test_classes_are_found_by_name():
    from puzzlebench.child import modeling_heterogeneous

    for model_type, stock in CLASSES.items():
        found = getattr(modeling_heterogeneous, f"Heterogeneous{stock}")
        assert found is heterogeneous_class(model_type)
    with pytest.raises(AttributeError, match="HeterogeneousBert"):
        modeling_heterogeneous.HeterogeneousBert  # noqa: B018


def test_no_attention_anywhere_still_counts_tokens():
    parent = make_parent("llama")
    block = Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=48))
    child = make_child(parent, Architecture(blocks=(block, Block(attention=Linear(), ffn=NoOp()), block, block)))
    output = child(tokens(), use_cache=True)
    (cache,) = cache_of(output).values()
    assert cache.get_seq_length() == 12
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(child.generate(tokens(), **settings), child.generate(tokens(), use_cache=False, **settings))
