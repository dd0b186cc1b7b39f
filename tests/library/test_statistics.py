from __future__ import annotations

from typing import get_args

import pytest
import torch

from puzzlebench.library.projections import attention_projections, mlp_projections
from puzzlebench.library.statistics import LayerStatistics, Need, collect_statistics, statistics_bytes
from puzzlebench.model.hf_config import from_hf_config

ALL = frozenset(get_args(Need))


def test_statistics_are_those_of_activations_kept_and_looked_at_afterwards(build, family, batches):
    model = build(family)
    statistics = collect_statistics(model, batches, {0: ALL, 1: ALL})
    for layer_idx in (0, 1):
        kept = _keep(model, layer_idx, batches)
        found = statistics[layer_idx]
        layer = model.model.layers[layer_idx]
        attention, mlp = attention_projections(layer), mlp_projections(layer)
        channels, heads = kept["channels"], kept["heads"]
        assert found.tokens == 67 == len(channels)
        torch.testing.assert_close(
            found.channel_contribution, (channels.abs().mean(0) * mlp.down.norm(dim=0)).double(), rtol=1e-5, atol=1e-7
        )
        torch.testing.assert_close(found.channel_second_moment, channels.T @ channels, rtol=1e-4, atol=1e-4)
        size = 2 * attention.head_dim  # two query heads for each key-value head
        for head in range(4):
            part = slice(head * size, (head + 1) * size)
            added = heads[:, part] @ attention.o[:, part].T
            assert found.kv_head_contribution[head].item() == pytest.approx(added.norm(dim=-1).mean().item(), rel=1e-5)
        for equations, x, y in (
            (found.attention_equations, kept["attention_in"], kept["attention_out"]),
            (found.ffn_equations, kept["ffn_in"], kept["ffn_out"]),
        ):
            torch.testing.assert_close(equations.xtx, x.T @ x, rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(equations.xty, x.T @ y, rtol=1e-4, atol=1e-3)


def test_the_contribution_of_the_heads_adds_up_to_the_output_for_one_token(build):
    model = build("llama_biases")
    layer = model.model.layers[0]
    layer.self_attn.o_proj.weight[:, 8:] = 0  # only the first key-value head is heard: two query heads of four
    kept = _keep(model, 0, [torch.tensor([[3]])])
    statistics = collect_statistics(model, [torch.tensor([[3]])], {0: {"kv_head_contribution"}})
    contribution = statistics[0].kv_head_contribution
    output = kept["attention_out"] - layer.self_attn.o_proj.bias
    torch.testing.assert_close(contribution, torch.tensor([output.norm().item(), 0, 0, 0], dtype=torch.float64))


def test_only_what_is_asked_for_is_gathered_and_the_model_is_as_it_was(build, batches):
    model = build("qwen3")
    before = model(batches[0]).logits
    statistics = collect_statistics(model, iter(batches), {1: {"ffn_equations"}})
    assert statistics.keys() == {1}
    assert statistics[1].ffn_equations is not None
    assert statistics[1].channel_contribution is None
    assert statistics[1].channel_second_moment is None
    assert statistics[1].kv_head_contribution is None
    assert statistics[1].attention_equations is None
    torch.testing.assert_close(model(batches[0]).logits, before, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_low_precision_models_are_summed_in_high_precision(build):
    model = build("llama")
    ids = torch.randint(0, 64, (4, 32), generator=torch.Generator().manual_seed(3))
    expected = collect_statistics(model, [ids], {0: ALL})[0]
    found = collect_statistics(model.bfloat16(), [ids] * 5, {0: ALL})[0]
    assert found.channel_second_moment.dtype == torch.float32
    # bfloat16 keeps 8 bits: a relative error of a few 2^-8 per channel, however many tokens are summed
    torch.testing.assert_close(found.channel_contribution, expected.channel_contribution, rtol=0.05, atol=0)


@pytest.mark.parametrize("name", ["llama", "phi3", "gemma2"])
@pytest.mark.parametrize("need", sorted(ALL))
def test_the_bytes_said_beforehand_are_those_kept(build, batches, name, need):
    model = build(name)
    spec, architecture = from_hf_config(model.config.to_dict(), name="tiny")
    needs = {0: {need}, 1: ALL}
    statistics = collect_statistics(model, batches, needs)
    assert statistics_bytes(spec, architecture, needs) == sum(_bytes(layer) for layer in statistics.values())


def test_errors_say_what_would_work(build, batches):
    model = build("llama")
    with pytest.raises(ValueError, match=r"there is no layer 2; the layers are 0 to 1"):
        collect_statistics(model, batches, {2: ALL})
    with pytest.raises(ValueError, match=r"'chanel_contribution' is not known; did you mean channel_contribution\?"):
        collect_statistics(model, batches, {0: {"chanel_contribution"}})
    with pytest.raises(ValueError, match=r"no calibration tokens"):
        collect_statistics(model, [], {0: ALL})
    with pytest.raises(ValueError, match=r"training mode"):
        collect_statistics(model.train(), batches, {0: ALL})
    with pytest.raises(ValueError, match=r"Linear has no model\.layers"):
        collect_statistics(torch.nn.Linear(2, 2), batches, {0: ALL})


def _keep(model, layer_idx, batches):
    """The activations of one layer over all tokens, by a pass that keeps them."""
    layer = model.model.layers[layer_idx]
    kept = {name: [] for name in ("channels", "heads", "attention_in", "attention_out", "ffn_in", "ffn_out")}

    def after_attention(_module, args, kwargs, output):
        kept["attention_in"].append(args[0] if args else kwargs["hidden_states"])
        kept["attention_out"].append(output[0])

    def after_mlp(_module, args, output):
        kept["ffn_in"].append(args[0])
        kept["ffn_out"].append(output)

    hooks = [
        layer.mlp.down_proj.register_forward_pre_hook(lambda _module, args: kept["channels"].append(args[0])),
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _module, args: kept["heads"].append(args[0])),
        layer.self_attn.register_forward_hook(after_attention, with_kwargs=True),
        layer.mlp.register_forward_hook(after_mlp),
    ]
    for ids in batches:
        model(ids)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat([part.flatten(0, -2) for part in parts]) for name, parts in kept.items()}


def _bytes(statistics: LayerStatistics) -> int:
    tensors = [statistics.channel_contribution, statistics.channel_second_moment, statistics.kv_head_contribution]
    for equations in (statistics.attention_equations, statistics.ffn_equations):
        if equations is not None:
            tensors += [equations.xtx, equations.xty]
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
