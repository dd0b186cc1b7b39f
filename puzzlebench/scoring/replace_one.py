"""Score every candidate block: the parent with that one block in place, against the parent.

The parent's activations before a layer are computed once, a candidate runs from its layer on, and candidates that share
their attention share its run. Results of a layer are on disk before the next begins. Knows no command line.
Legend: N sequences, B of them at a time, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from puzzlebench.child.blockwise import Blockwise, open_blockwise
from puzzlebench.library.activations import LayerInputs, Storage, open_inputs
from puzzlebench.library.store import Library
from puzzlebench.model.blocks import Architecture, block_name
from puzzlebench.model.space import LayerCandidates, SearchSpace
from puzzlebench.progress import part_of
from puzzlebench.scoring.layer_halves import LayerHalves
from puzzlebench.scoring.metrics import METRICS, metrics, reference
from puzzlebench.scoring.results import LayerScores, read_layer, write_layer
from puzzlebench.text.tokens import Tokens


def score_layers(
    model: nn.Module,
    parent: Architecture,
    space: SearchSpace,
    library: Library,
    recipe: str,
    tokens: Tokens,
    *,
    folder: Path,
    batch_size: int = 4,
    activations: Storage = "auto",
    memory_limit: int = 8 << 30,
    progress: Callable[[float, str], None] = lambda _share, _stage: None,
) -> list[LayerScores]:
    """Score every pair of halves in every layer of the space by `METRICS`.

    Args:
        model: the parent, frozen and in eval mode.
        recipe: id of the recipe whose blocks are scored.
        tokens: [N, T], which no block was trained on.
        folder: where the results of each layer are kept; layers that have theirs are not scored again.

    Raises:
        ValueError: the library lacks a block, or there is one sequence only, so no standard error.
    """
    if len(tokens) < 2:
        raise ValueError(f"{len(tokens)} sequence(s) are too few for a standard error; give at least 2")
    names = [[block_name(block) for block in layer.blocks()] for layer in space.layers]
    kept = {layer: read_layer(folder, layer, names[layer]) for layer in range(len(names))}
    todo = [layer for layer, found in kept.items() if found is None]
    for layer in todo:  # before hours are spent
        for block in space.layers[layer].blocks():
            library.require(layer, block, parent.blocks[layer], recipe)
    if todo:
        blockwise = open_blockwise(model, tokens.shape[1])
        inputs = open_inputs(blockwise, tokens, storage=activations, memory_limit=memory_limit, folder=folder)
        total, done = sum(len(names[layer]) for layer in todo), 0
        try:
            for layer in range(max(todo) + 1):
                if layer in todo:
                    scores = _score(
                        blockwise,
                        inputs,
                        layer,
                        space.layers[layer],
                        LayerHalves(model, layer, space.layers[layer], parent.blocks[layer], library, recipe),
                        tokens,
                        batch_size,
                        part_of(progress, done / total, len(names[layer]) / total, f"layer {layer}"),
                    )
                    write_layer(folder, scores)
                    kept[layer] = scores
                    done += len(names[layer])
                if layer < max(todo):
                    inputs.advance()
        finally:
            inputs.close()
    return [scores for scores in kept.values() if scores is not None]


@torch.inference_mode()
def _score(
    blockwise: Blockwise,
    inputs: LayerInputs,
    layer: int,
    candidates: LayerCandidates,
    halves: LayerHalves,
    tokens: Tokens,
    batch_size: int,
    progress: Callable[[float], None],
) -> LayerScores:
    """All sequences through all candidates of a layer."""
    blocks = candidates.blocks()
    values: dict[str, list[torch.Tensor]] = {block_name(block): [] for block in blocks}
    for rows in torch.arange(len(tokens)).split(batch_size):  # type: ignore[no-untyped-call]
        hidden = inputs.read(rows)
        ids = torch.from_numpy(tokens[rows.numpy()]).to(device=hidden.device, dtype=torch.long)
        parent = reference(blockwise.logits(blockwise.run_own(hidden, layer, blockwise.num_layers)), ids)
        middles: dict[nn.Module, torch.Tensor] = {}
        for number, block in enumerate(blocks):
            attention, ffn = halves.of(block)
            if attention not in middles:
                middles[attention] = blockwise.run(layer, attention, hidden)
            output = blockwise.run(layer, ffn, middles[attention])
            values[block_name(block)].append(metrics(_logits(blockwise, layer, output), parent))
            progress((int(rows[0]) + len(rows) * (number + 1) / len(blocks)) / len(tokens))
    found = {name: torch.cat(parts) for name, parts in values.items()}
    return LayerScores(layer=layer, metrics=tuple(METRICS), values=found)


def _logits(blockwise: Blockwise, layer: int, hidden: torch.Tensor) -> torch.Tensor:
    """From a layer's output to logits, through the parent's later layers."""
    return blockwise.logits(blockwise.run_own(hidden, layer + 1, blockwise.num_layers))
