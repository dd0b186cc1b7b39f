"""A library of a sharded parent, made by all ranks together.

Layers are taken in turns of one per rank. For a turn all ranks run the parent's layers in lockstep over the same
sequences, each layer gathered once; the rank a layer falls to keeps a plain copy of it, of what it is given, and its
calibration statistics. Then every rank trains the blocks of its own layer alone, and the next turn begins. What a rank
holds does not grow with the layers: its shards of those still to come, and one layer with all it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from puzzlebench.child.blockwise import Blockwise
from puzzlebench.launching.launchers import Progress
from puzzlebench.launching.sharded_parent import copy_layer, load_sharded, open_sharded, whole
from puzzlebench.library.activations import KEPT_IN, KeptInputs, open_inputs
from puzzlebench.library.build import (
    BuildReport,
    Maker,
    Wanted,
    calibration_batches,
    calibration_needs,
    missing_blocks,
    work_folder,
)
from puzzlebench.library.job import LibraryJob, job_recipe, load_tokens, parent_facts
from puzzlebench.library.statistics import LayerStatistics, Need, collect_statistics
from puzzlebench.library.store import create_library
from puzzlebench.parent.open import empty_parent, find_parent
from puzzlebench.text.tokens import Tokens
from puzzlebench.training.precision import DTYPES


def build_sharded(job: LibraryJob, *, control: Any, progress: Progress) -> BuildReport:
    """Make what the library lacks. Every rank calls it; each returns what it made itself.

    Args:
        job: whose device is this rank's.
        control: a gloo group of all ranks, on which they wait for one another.

    Raises:
        ValueError: as `run_job`, or activations are to be streamed, which would gather the parent for every batch.
    """
    if job.activations == "stream":
        raise ValueError("a sharded parent cannot stream activations; keep them with --activations memory or disk")
    rank, ranks, device = dist.get_rank(), dist.get_world_size(), torch.device(job.device)
    progress(0.0, "parent and text")
    files = find_parent(job.parent, quiet=True)
    tokens = load_tokens(files, job.data, "train", sequences=job.sequences, length=job.length)
    library = create_library(job.out, parent_facts(files))
    recipe = job_recipe(job, tokens, files.spec.hidden_size)
    # Files may appear on a shared folder at different times, and all must take the same layers.
    agreed: list[Any] = [missing_blocks(job.space, files.architecture, recipe, library)]
    dist.broadcast_object_list(agreed, src=0, group=control)
    missing: dict[int, list[Wanted]] = agreed[0][0]
    report = BuildReport(made=0, there_before=agreed[0][1].there_before if rank == 0 else 0)
    if not missing:
        return report
    folder = work_folder(library, job.work_dir)
    model = load_sharded(files, device, DTYPES[job.precision], init_device_mesh(device.type, (ranks,)))
    blockwise = open_sharded(model, job.length)
    needs = calibration_needs(recipe, files.architecture, [one for wanted in missing.values() for one in wanted])
    inputs = None
    with whole(model.get_input_embeddings()):
        calibration = _Calibration(blockwise, calibration_batches(tokens)) if needs else None
        if recipe.training.steps:
            inputs = _open_kept(blockwise, tokens, job, files.spec.hidden_size, folder)
    lockstep = _Lockstep(blockwise, empty_parent(files, DTYPES[job.precision]), inputs, calibration)
    layers = sorted(missing)
    for first in range(0, len(layers), ranks):
        turn = layers[first : first + ranks]
        progress(first / len(layers), f"the parent up to layer {turn[-1]}")
        own = turn[rank] if rank < len(turn) else None
        given, statistics = lockstep.run(turn[-1], own, needs, is_last=turn[-1] == layers[-1])
        if own is not None:
            progress(first / len(layers), f"layers {turn[0]} to {turn[-1]}: {len(missing[own])} blocks in this process")
            maker = Maker(
                blockwise=blockwise,
                spec=files.spec,
                parent=files.architecture,
                recipe=recipe,
                library=library,
                statistics=statistics,
            )
            _make(maker, own, missing[own], given, job.memory_limit // 2, folder)
            report = replace(report, made=report.made + len(missing[own]))
            blockwise.layers[own] = nn.Identity()
        dist.barrier(group=control)  # not on the device's own group, whose waits are to be short
    if inputs is None:
        return report
    inputs.close()
    return replace(report, activations=inputs.kind, activation_bytes=2 * inputs.bytes)


class _Lockstep:
    """The parent's layers, one after the other and each once, on hidden states that are kept between them."""

    def __init__(
        self, blockwise: Blockwise, plain: Any, inputs: KeptInputs | None, calibration: _Calibration | None
    ) -> None:
        self._blockwise, self._plain, self._inputs, self._calibration = blockwise, plain, inputs, calibration
        self._next = 0

    def run(
        self, until: int, own: int | None, needs: dict[int, set[Need]], *, is_last: bool
    ) -> tuple[KeptInputs | None, dict[int, LayerStatistics]]:
        """Go on up to and with layer `until`: what layer `own` is given, and its statistics.

        That layer's plain copy takes its place in the model; all others are given up, as nothing needs them again.
        """
        given: KeptInputs | None = None
        statistics: dict[int, LayerStatistics] = {}
        for layer_idx in range(self._next, until + 1):
            layer = self._blockwise.layers[layer_idx]
            stays: nn.Module = nn.Identity()
            with whole(layer):
                if self._calibration is not None:
                    statistics |= self._calibration.advance(
                        layer_idx, needs.get(layer_idx, set()) if layer_idx == own else set()
                    )
                if layer_idx == own:
                    stays = copy_layer(self._plain.model.layers[layer_idx], layer)
                    given = None if self._inputs is None else self._inputs.copy()
                if self._inputs is not None and not (is_last and layer_idx == until):
                    self._inputs.advance()
            self._blockwise.layers[layer_idx] = stays
            self._plain.model.layers[layer_idx] = nn.Identity()
        self._next = until + 1
        return given, statistics


class _Calibration(nn.Module):
    """Calibration sequences between two layers, unrounded as in the model; to `collect_statistics` it is a model whose
    forward is one layer."""

    def __init__(self, blockwise: Blockwise, batches: list[torch.Tensor]) -> None:
        super().__init__()
        self.training = False
        self._blockwise, self._batches = blockwise, batches
        self.layers = blockwise.layers
        self._device = next(blockwise.model.parameters()).device
        with torch.no_grad():
            self._hidden = [blockwise.embed(ids.to(self._device)).cpu() for ids in batches]

    @property
    def model(self) -> nn.Module:
        """Itself: the layers and what is called."""
        return self

    def advance(self, layer_idx: int, needs: set[Need]) -> dict[int, LayerStatistics]:
        """Run the layer, and watch it where something is needed of it."""
        self._layer_idx = layer_idx
        self._after: list[torch.Tensor] = []
        statistics = collect_statistics(self, self._batches, {layer_idx: needs} if needs else {})
        self._hidden = self._after
        return statistics

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> None:  # noqa: ARG002, what a model is called with
        """The next batch through the layer."""
        hidden = self._hidden[len(self._after)].to(self._device)
        self._after.append(self._blockwise.run(self._layer_idx, self.layers[self._layer_idx], hidden).cpu())


def _open_kept(blockwise: Blockwise, tokens: Tokens, job: LibraryJob, hidden_size: int, folder: Path) -> KeptInputs:
    """Twice the activations of one layer are kept: those on their way, and a copy of those that are trained on."""
    storage = job.activations
    if storage == "auto":
        both = 2 * tokens.size * hidden_size * KEPT_IN.itemsize
        storage = "memory" if both <= job.memory_limit // 2 else "disk"
    inputs = open_inputs(blockwise, tokens, storage=storage, memory_limit=job.memory_limit, folder=folder)
    assert isinstance(inputs, KeptInputs)
    return inputs


def _make(
    maker: Maker, layer: int, wanted: Sequence[Wanted], given: KeptInputs | None, limit: int, folder: Path
) -> None:
    if given is None:
        for one in wanted:
            maker.store(maker.variant(one), one, trained=False)
        return
    for chunk in maker.chunks(wanted, limit):
        maker.train(layer, chunk, given, folder, lambda _share: None)
    given.close()
