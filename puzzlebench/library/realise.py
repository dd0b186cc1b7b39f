"""An architecture made real: the parent with the library's blocks in place, as a checkpoint. Knows no search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from puzzlebench.child.building import build_child
from puzzlebench.child.checkpoints import load_causal_lm, save_child
from puzzlebench.library.job import parent_facts
from puzzlebench.library.store import Library, open_library
from puzzlebench.model.blocks import Architecture, Part, architecture_to_json
from puzzlebench.model.parameters import model_parameters
from puzzlebench.model.spec import check_architecture
from puzzlebench.parent.open import ParentFiles, load_tokenizer

SOLUTION_FILE = "puzzle_solution.json"
OF_WEIGHTS = ("retention", "speed", "distillation", "export")
"""What an export adds to that file of the weights as they are, which holds of no others."""


def realise(
    files: ParentFiles, library: Path, architecture: Architecture, out: Path, *, recipe: str | None = None
) -> dict[str, Any]:
    """Write the child's checkpoint, whole or not at all, in the parent's own dtype; what is known of it comes back.

    Raises:
        ValueError: the library is another parent's or lacks a block, or `out` exists.
    """
    check_architecture(files.spec, architecture)
    if out.exists():
        raise ValueError(f"{out} exists; a child is written to a new folder")
    opened = open_library(library, parent_facts(files))
    chosen = opened.recipe_id(recipe)
    states = architecture_states(opened, chosen, files.architecture, architecture)
    parent = load_causal_lm(files.folder)
    child = build_child(parent, files.spec, architecture, states)
    facts = {
        "parent": files.name,
        "parent_fingerprint": files.fingerprint,
        "recipe": chosen,
        "architecture": architecture_to_json(architecture),
        "parameters": model_parameters(files.spec, architecture),
        "parent_parameters": model_parameters(files.spec, files.architecture),
    }
    save_child(child, out, load_tokenizer(files), extra={SOLUTION_FILE: json.dumps(facts, indent=1) + "\n"})
    return facts


def architecture_states(
    library: Library, recipe: str, parent: Architecture, architecture: Architecture
) -> dict[tuple[int, Part], dict[str, torch.Tensor]]:
    """The library's weights of every half that is not the parent's.

    Raises:
        ValueError: one is missing; the message names the layer.
    """
    states: dict[tuple[int, Part], dict[str, torch.Tensor]] = {}
    for layer, (block, own) in enumerate(zip(architecture.blocks, parent.blocks, strict=True)):
        for part, state in library.layer_states(layer, block, own, recipe).items():
            states[layer, part] = state
    return states
