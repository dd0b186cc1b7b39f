"""Tiny checkpoints on disk, with what deci can hold, for tests of GGUF files."""

from __future__ import annotations

from puzzlebench.model.blocks import Architecture, parse_block

from ..child.conftest import make_child, make_parent

HELD = ("gqa_4+mlp_48", "no_op+mlp_24", "gqa_1+mlp_40", "linear+mlp_48", "no_op+no_op", "gqa_2+mlp_7")
"""Every kind of layer that llama.cpp loads: other heads, odd widths, linear attention, no attention, nothing."""


def architecture_of(*names):
    return Architecture(blocks=tuple(parse_block(name) for name in names))


def save_model(folder, names=HELD, family="llama", tokenizer=None, dtype=None, **changes):
    """A parent of the family, made a child with these layers (None: left alone), in a folder; gives the model."""
    from puzzlebench.child.checkpoints import save_child

    layers = {} if names is None else {"num_hidden_layers": len(names), "num_key_value_heads": 4}
    plain = {"attention_bias": False, "mlp_bias": False} if family == "llama" else {}
    model = make_parent(family, **plain | layers | changes)
    if names is not None:
        model = make_child(model, architecture_of(*names))
    if dtype is not None:
        model = model.to(dtype)
        model.config.dtype = dtype
    if names is None:
        model.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    else:
        save_child(model, folder, tokenizer)
    return model
