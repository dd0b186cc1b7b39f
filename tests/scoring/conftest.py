"""Tiny parents, and libraries of random blocks: a score needs no good ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from puzzlebench.child.halves import half_state, new_sub_block
from puzzlebench.library.build import wanted_blocks
from puzzlebench.library.store import BlockFacts, ParentFacts, create_library
from puzzlebench.model.blocks import GatedMLP, Linear, NoOp
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.space import LayerCandidates, SearchSpace

from ..library.conftest import build  # noqa: F401

LENGTH = 12
RECIPE = "0123456789ab"


def space_around(parent):
    """The parent's own, one head, a matrix, nothing; the parent's own, a narrow one, nothing."""
    return SearchSpace(
        layers=tuple(
            LayerCandidates(
                attention=(block.attention, replace(block.attention, num_key_value_heads=1), Linear(), NoOp()),
                ffn=(block.ffn, GatedMLP(intermediate_size=8), NoOp()),
            )
            for block in parent.blocks
        )
    )


def parent_of(model):
    return from_hf_config(model.config.to_dict(), name="tiny")[1]


def fill_library(model, path, mode="decoupled"):
    """A library with random weights for every block of `space_around`."""
    parent = parent_of(model)
    facts = ParentFacts(name="tiny", model_type="x", num_hidden_layers=len(parent.blocks), fingerprint="f" * 64)
    library = create_library(path, facts)
    for number, one in enumerate(wanted_blocks(space_around(parent), parent, mode)):
        torch.manual_seed(number)
        state = {}
        for part, sub in one.halves.items():
            half = new_sub_block(model.model.layers[one.layer], model.config, one.layer, part, sub)
            prefix = f"{part}/" if len(one.halves) == 2 else ""
            state |= {prefix + name: value for name, value in half_state(half).items()}
        library.write(BlockFacts(parent="f" * 64, layer=one.layer, block=one.name, recipe=RECIPE), state)
    return library


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(0, 64, (5, LENGTH)).astype(np.int32)
