from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from puzzlebench.library.projections import attention_projections, attention_state, mlp_projections, mlp_state


def test_what_is_read_is_written_back_under_the_layers_own_names(build, family):
    layer = build(family).model.layers[0]
    state = attention_state(layer, attention_projections(layer)) | mlp_state(layer, mlp_projections(layer))
    own = {name: value for name, value in layer.state_dict().items() if name.startswith(("self_attn.", "mlp."))}
    assert state.keys() == own.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, own[name], rtol=0, atol=0, msg=name)
        assert value.is_contiguous()
        assert value.data_ptr() != own[name].data_ptr()


def test_heads_and_channels_are_counted(build, family):
    layer = build(family).model.layers[0]
    attention, mlp = attention_projections(layer), mlp_projections(layer)
    assert (attention.num_attention_heads, attention.num_key_value_heads, mlp.intermediate_size) == (8, 4, 24)
    assert attention.v.shape == attention.k.shape == (4 * attention.head_dim, 32)
    assert attention.o.shape == (32, 8 * attention.head_dim)
    assert attention.k_norm_is_full is (family == "olmo2")


def test_the_mlp_that_is_read_computes_what_the_layers_does(build, family):
    mlp = build(family).model.layers[0].mlp
    read = mlp_projections(build(family).model.layers[0])
    activate = getattr(mlp, "act_fn", None) or mlp.activation_fn
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    gated = activate(F.linear(x, read.gate, read.gate_bias)) * F.linear(x, read.up, read.up_bias)
    torch.testing.assert_close(F.linear(gated, read.down, read.down_bias), mlp(x))


def test_the_fused_value_projection_is_the_one_the_attention_uses(build):
    model = build("phi3")
    layer = model.model.layers[0]
    read = attention_projections(layer)
    layer.self_attn.load_state_dict(
        {
            name.removeprefix("self_attn."): value
            for name, value in attention_state(layer, replace(read, v=torch.zeros_like(read.v))).items()
        }
    )
    outputs = []
    hook = layer.self_attn.register_forward_hook(lambda _module, _args, output: outputs.append(output[0]))
    model(torch.arange(6)[None])
    hook.remove()
    assert not outputs[0].any()
    assert attention_projections(layer).k.any()


def test_what_is_no_decoder_layer_is_refused():
    class Layer(nn.Module):
        def __init__(self, **modules: nn.Module) -> None:
            super().__init__()
            for name, module in modules.items():
                self.add_module(name, module)

    with pytest.raises(ValueError, match=r"Layer has no self_attn"):
        attention_projections(Layer())
    with pytest.raises(ValueError, match=r"mlp of Layer has fc1\.bias, fc1\.weight; expected weights of gate_proj"):
        mlp_projections(Layer(mlp=Layer(fc1=nn.Linear(2, 2))))
    with pytest.raises(ValueError, match=r"self_attn of Layer has no parameters"):
        attention_projections(Layer(self_attn=nn.Identity()))
    experts = {name: nn.Linear(2, 2, bias=False) for name in ("gate_proj", "up_proj", "down_proj", "router")}
    with pytest.raises(ValueError, match=r"mlp of Layer has router\.weight, which no supported family has"):
        mlp_projections(Layer(mlp=Layer(**experts)))
