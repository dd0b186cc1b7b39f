"""Tiny children on disk, with widths that DeciLM can state, and what their exports are compared by."""

from __future__ import annotations

import functools
import json

from puzzlebench.model.blocks import Architecture, architecture_to_json, parse_block
from puzzlebench.parent.embedded import train_tokenizer
from puzzlebench.text.corpus import Document

from ..child.conftest import make_child, make_parent, tokens

MIXED = ("gqa_2+mlp_256", "no_op+mlp_512", "linear+linear", "gqa_1+no_op")
"""Four layers that DeciLM can state, of every kind."""

PLAIN = {"attention_bias": False, "mlp_bias": False, "num_key_value_heads": 2}
_TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(1, 200))


def architecture_of(*names):
    return Architecture(blocks=tuple(parse_block(name) for name in names))


def make_model(names=MIXED, family="llama", **changes):
    """A parent of width 512, or a child of it with these layers; norms and biases are not one and zero."""
    own = PLAIN if family == "llama" else {}
    parent = make_parent(family, **{"intermediate_size": 512, "vocab_size": 300} | own | changes)
    return parent if names is None else make_child(parent, architecture_of(*names))


def save_model(folder, names=MIXED, family="llama", *, tokenizer=True, solution=True, **changes):
    """Save such a model as `realise` saves it, or a stock one as transformers does; gives the model."""
    from puzzlebench.child.checkpoints import save_child

    model = make_model(names, family, **changes)
    words = _tokenizer() if tokenizer else None
    if names is None:
        model.save_pretrained(folder)
        if words is not None:
            words.save_pretrained(folder)
        return model
    facts = {
        "parent": "some/parent",
        "parent_fingerprint": "0" * 64,
        "recipe": "r",
        "architecture": architecture_to_json(architecture_of(*names)),
    }
    save_child(model, folder, words, extra={"puzzle_solution.json": json.dumps(facts)} if solution else None)
    return model


@functools.cache
def _tokenizer():
    return train_tokenizer([Document(name="text", text=_TEXT)], 300)


def logits(model):
    """Of two sequences of twelve tokens."""
    import torch

    with torch.no_grad():
        return model.eval()(tokens()).logits


def load_auto(folder):
    """As anybody loads the folder, with its own code."""
    import transformers

    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True
    )
    assert not any(report.values()), report
    return model.eval()


def read_json(path):
    return json.loads(path.read_text())
