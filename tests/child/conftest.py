"""Tiny random parents of every supported family, and children of them."""

from __future__ import annotations

import pytest

from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.spec import parent_architecture

_SETTINGS = {
    "gemma": {"head_dim": 16},
    "gemma2": {
        "head_dim": 16,
        "sliding_window": 6,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "attn_implementation": "eager",  # sdpa has no soft caps: some versions refuse it, some leave them out
    },
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": 6,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"],
    },
    "granite": {"residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "llama": {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True},
    "ministral": {"head_dim": 8, "sliding_window": 6},
    "mistral": {"sliding_window": 6},
    "olmo2": {"num_key_value_heads": 4},
    "phi3": {"sliding_window": 6},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 16, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2},
    "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
}


def make_parent(family: str, **changes):
    """A causal LM of 4 layers, 4 heads and a vocabulary of 64, whose norms and biases are not one and zero."""
    settings = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "tie_word_embeddings": False,
    }
    import torch
    import transformers

    from puzzlebench.child.modeling_heterogeneous import CLASSES

    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[family](**settings | _SETTINGS[family] | changes)
    model = getattr(transformers, CLASSES[family])(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3) if parameter.ndim > 1 else parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def mixed_architecture(spec, *, own_windows: bool = True) -> Architecture:
    """Every kind of sub-block; no attention in layers 0 and 2, nothing at all in layer 0."""
    windows = spec.sliding_windows
    own = 4 if own_windows and (windows[1] is not None or spec.model_type != "gemma3_text") else windows[1]
    return Architecture(
        blocks=(
            Block(attention=NoOp(), ffn=NoOp()),
            Block(attention=GQA(num_key_value_heads=1, sliding_window=own), ffn=Linear()),
            Block(attention=Linear(), ffn=GatedMLP(intermediate_size=24)),
            Block(
                attention=GQA(num_key_value_heads=spec.num_key_value_heads, sliding_window=windows[3]),
                ffn=GatedMLP(intermediate_size=spec.intermediate_size),
            ),
        )
    )


def make_child(parent, architecture):
    """A child whose sub-blocks that differ have random weights, the same at every call."""
    import torch

    from puzzlebench.child.building import build_child
    from puzzlebench.child.configs import read_spec
    from puzzlebench.child.halves import half_state, new_sub_block

    torch.manual_seed(1)
    spec = read_spec(parent.config)
    states = {}
    for layer, (block, own) in enumerate(zip(architecture.blocks, parent_architecture(spec).blocks, strict=True)):
        for part in ("attention", "ffn"):
            sub = getattr(block, part)
            if sub != getattr(own, part):
                half = new_sub_block(parent.model.layers[layer], parent.config, layer, part, sub)
                states[layer, part] = half_state(half)
                for tensor in states[layer, part].values():
                    tensor.normal_(0.0, 0.3)
    return build_child(parent, spec, architecture, states)


def tokens(sequences: int = 2, length: int = 12):
    """Token ids [sequences, length], none of them special."""
    import torch

    return torch.randint(3, 64, (sequences, length), generator=torch.Generator().manual_seed(1))


def cache_of(output):
    """The key-value cache in a model's output, as the keyword argument of the next call."""
    name = "cache" if "cache" in output else "past_key_values"  # the newer name, which warns about the older
    return {name: output[name]}


@pytest.fixture(params=sorted(_SETTINGS), scope="module")
def parent(request):
    """One parent per family; tests do not change it."""
    return make_parent(request.param)
