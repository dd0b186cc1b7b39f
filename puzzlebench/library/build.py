"""Make the blocks of a library: which are missing, their initial weights, their training, layer by layer.

The parent's layers run once over all sequences: what a layer gives is what the next one is given, and all variants of a
layer learn from it side by side. Knows no command line and no ranks: `layers` says which are wanted here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from puzzlebench.child.blockwise import Blockwise, open_blockwise
from puzzlebench.child.halves import half_state, new_sub_block
from puzzlebench.child.modeling_heterogeneous import take_half
from puzzlebench.files import make_folder
from puzzlebench.library.activations import LayerInputs, Storage, open_inputs
from puzzlebench.library.distil import LayerRun, Variant, distil_layer
from puzzlebench.library.initialise import initial_state, needed_statistics
from puzzlebench.library.recipe import Mode, Recipe
from puzzlebench.library.statistics import LayerStatistics, Need, collect_statistics, statistics_bytes
from puzzlebench.library.store import BlockFacts, Library, half_name
from puzzlebench.model.blocks import PARTS, Architecture, Block, NoOp, Part, SubBlock, block_name
from puzzlebench.model.parameters import sub_block_parameters
from puzzlebench.model.space import SearchSpace
from puzzlebench.model.spec import ModelSpec
from puzzlebench.progress import part_of
from puzzlebench.text.tokens import Tokens
from puzzlebench.training.checkpoints import SaveClock

CALIBRATION_SEQUENCES = 64
_TRAINING_BYTES = 20  # per parameter: weight, gradient, two moments and the initial weight, in float32


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """One block to make: its name in the library, and the halves that differ from the parent's."""

    layer: int
    name: str
    halves: dict[Part, SubBlock]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What a build did.

    Attributes:
        made, there_before: blocks.
        activations: where they were kept: memory, disk, stream, or none where nothing was trained.
        activation_bytes: kept at a time.
    """

    made: int
    there_before: int
    activations: str = "none"
    activation_bytes: int = 0


def wanted_blocks(space: SearchSpace, parent: Architecture, mode: Mode) -> list[Wanted]:
    """The blocks that a library of this space holds, layer by layer.

    Every half that has weights and differs from the parent's; in coupled mode every pair of differing halves too.

    Raises:
        ValueError: the space and the parent have different numbers of layers.
    """
    if len(space.layers) != len(parent.blocks):
        raise ValueError(f"the space has {len(space.layers)} layers, the parent {len(parent.blocks)}")
    wanted = []
    for layer, (candidates, own) in enumerate(zip(space.layers, parent.blocks, strict=True)):
        attentions = [sub for sub in candidates.attention if sub != own.attention]
        ffns = [sub for sub in candidates.ffn if sub != own.ffn]
        halves: list[tuple[Part, SubBlock]] = [("attention", sub) for sub in attentions]
        halves += [("ffn", sub) for sub in ffns]
        wanted += [
            Wanted(layer=layer, name=half_name(part, sub), halves={part: sub})
            for part, sub in halves
            if not isinstance(sub, NoOp)
        ]
        if mode == "coupled":
            pairs = [Block(attention=attention, ffn=ffn) for attention in attentions for ffn in ffns]
            wanted += [
                Wanted(layer=layer, name=block_name(pair), halves={"attention": pair.attention, "ffn": pair.ffn})
                for pair in pairs
                if not (isinstance(pair.attention, NoOp) and isinstance(pair.ffn, NoOp))
            ]
    return wanted


def build_library(
    model: nn.Module,
    spec: ModelSpec,
    parent: Architecture,
    space: SearchSpace,
    tokens: Tokens,
    recipe: Recipe,
    library: Library,
    *,
    layers: Collection[int] | None = None,
    activations: Storage = "auto",
    memory_limit: int = 8 << 30,
    work_dir: Path | None = None,
    progress: Callable[[float, str], None] = lambda _share, _stage: None,
) -> BuildReport:
    """Make every missing block of the space; what the library has by this recipe is left alone.

    Args:
        model: the parent, frozen and in eval mode, on the device to train on.
        tokens: [N, T]; the last tenth is held out for early stops and losses.
        layers: which to make blocks of; all by default.
        activations: where they are kept, see `open_inputs`.
        memory_limit: bytes, half of them for activations kept in memory, half for variants trained side by side;
            statistics above half of it are collected layer by layer.
        work_dir: for activations and checkpoints; the library's own by default.

    Raises:
        ValueError: too few sequences, or a full disk; blocks that are done stay.
    """
    by_layer, report = missing_blocks(space, parent, recipe, library, layers)
    missing = [one for wanted in by_layer.values() for one in wanted]
    if not missing:
        return report
    work_dir = work_folder(library, work_dir)
    progress(0.0, "calibration")
    needs = calibration_needs(recipe, parent, missing)
    maker = Maker(
        blockwise=open_blockwise(model, tokens.shape[1]),
        spec=spec,
        parent=parent,
        recipe=recipe,
        library=library,
        statistics={},
    )

    def calibrate(layer: int) -> None:
        """Statistics of all layers in one pass where they fit, else of this one."""
        if layer in maker.statistics or layer not in needs:
            return
        fit = statistics_bytes(spec, parent, needs) <= memory_limit // 2
        maker.statistics.clear()
        asked = needs if fit else {layer: needs[layer]}
        maker.statistics.update(collect_statistics(model, calibration_batches(tokens), asked))

    if not recipe.training.steps:
        for one in missing:
            calibrate(one.layer)
            maker.store(maker.variant(one), one, trained=False)
        return report
    inputs = open_inputs(maker.blockwise, tokens, storage=activations, memory_limit=memory_limit, folder=work_dir)
    try:
        done = 0
        progress(0.0, f"activations: {inputs.kind}")
        for layer in range(max(by_layer) + 1):
            calibrate(layer)
            for chunk in maker.chunks(by_layer.get(layer, []), memory_limit // 2):
                at, share = done / len(missing), len(chunk) / len(missing)
                stage = f"layer {layer}: {len(chunk)} blocks"
                maker.train(layer, chunk, inputs, work_dir, part_of(progress, at, share, stage))
                done += len(chunk)
            if layer < max(by_layer):
                inputs.advance()
    finally:
        inputs.close()
    return replace(report, activations=inputs.kind, activation_bytes=inputs.bytes)


def missing_blocks(
    space: SearchSpace,
    parent: Architecture,
    recipe: Recipe,
    library: Library,
    layers: Collection[int] | None = None,
) -> tuple[dict[int, list[Wanted]], BuildReport]:
    """What the library lacks by this recipe, layer by layer, and how much that is; states the recipe in the library."""
    everything = wanted_blocks(space, parent, recipe.mode)
    wanted = [one for one in everything if layers is None or one.layer in layers]
    missing = [one for one in wanted if not library.has(one.layer, one.name, recipe.id)]
    names: dict[str, list[str]] = {str(layer): [] for layer in range(len(space.layers))}
    for one in everything:
        names[str(one.layer)].append(one.name)
    library.write_recipe(recipe.id, recipe.to_json(), names)
    by_layer: dict[int, list[Wanted]] = {}
    for one in missing:
        by_layer.setdefault(one.layer, []).append(one)
    return by_layer, BuildReport(made=len(missing), there_before=len(wanted) - len(missing))


def work_folder(library: Library, work_dir: Path | None) -> Path:
    """Where activations and checkpoints go, made if there is none."""
    folder = work_dir or library.path / "work"
    make_folder(folder)
    return folder


def calibration_needs(recipe: Recipe, parent: Architecture, wanted: Sequence[Wanted]) -> dict[int, set[Need]]:
    """The statistics that these blocks' initialisations read, by layer."""
    needs: dict[int, set[Need]] = {}
    for one in wanted:
        for part, sub in one.halves.items():
            own = getattr(parent.blocks[one.layer], part)
            needs.setdefault(one.layer, set()).update(needed_statistics(recipe.init, part, own, sub))
    return {layer: needed for layer, needed in needs.items() if needed}


def calibration_batches(tokens: Tokens) -> list[torch.Tensor]:
    """The first training sequences, token ids [B, T] each."""
    rows = tokens[: max(1, min(CALIBRATION_SEQUENCES, len(tokens) * 9 // 10))]
    return [torch.from_numpy(rows[start : start + 8]).long() for start in range(0, len(rows), 8)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Maker:
    """Gives blocks of one parent their first weights, trains them and stores them.

    Attributes:
        statistics: by layer, what `calibration_needs` names for the blocks to make.
    """

    blockwise: Blockwise
    spec: ModelSpec
    parent: Architecture
    recipe: Recipe
    library: Library
    statistics: dict[int, LayerStatistics]

    def chunks(self, wanted: Sequence[Wanted], limit: int) -> list[list[Wanted]]:
        """Split what is trained side by side so that weights, gradients and optimisers stay within `limit` bytes."""
        chunks: list[list[Wanted]] = []
        held = limit + 1
        for one in wanted:
            size = _TRAINING_BYTES * sum(sub_block_parameters(self.spec, sub) for sub in one.halves.values())
            if held + size > limit:
                chunks.append([])
                held = 0
            chunks[-1].append(one)
            held += size
        return chunks

    def variant(self, wanted: Wanted) -> Variant:
        """The block with its initial weights, in float32, ready to learn."""
        layer = self.blockwise.layers[wanted.layer]
        own = self.parent.blocks[wanted.layer]
        halves = {}
        for part, sub in wanted.halves.items():
            half = new_sub_block(layer, self.blockwise.model.config, wanted.layer, part, sub)
            state = initial_state(
                layer, self.spec, part, getattr(own, part), sub, self.recipe.init, self.statistics.get(wanted.layer)
            )
            half.load_state_dict(state)
            halves[part] = half.float().requires_grad_()  # in eval mode: dropout is none of the parent's behaviour
        trained = tuple(part for part, sub in wanted.halves.items() if not isinstance(sub, NoOp))
        if "ffn" not in halves:
            halves["ffn"] = take_half(layer, "ffn")
        return Variant(name=wanted.name, halves=halves, trained=trained)

    def train(
        self,
        layer: int,
        wanted: Sequence[Wanted],
        inputs: LayerInputs,
        work_dir: Path,
        progress: Callable[[float], None],
    ) -> None:
        """Train blocks of one layer side by side and store them."""
        stock = self.blockwise.layers[layer]
        run = LayerRun(
            blockwise=self.blockwise,
            layer=layer,
            attention=take_half(stock, "attention"),
            ffn=take_half(stock, "ffn"),
            inputs=inputs,
            precision=self.recipe.precision,
        )
        variants = [self.variant(one) for one in wanted]
        what = "\n".join((self.library.parent.fingerprint, *(one.name for one in wanted)))
        digest = hashlib.sha256(what.encode()).hexdigest()[:12]  # a training of other blocks is not gone on with
        checkpoint = work_dir / f"{layer:03d}.{digest}.{self.recipe.id}.safetensors"
        distil_layer(run, variants, self.recipe, checkpoint=checkpoint, save_now=SaveClock(), progress=progress)
        for variant, one in zip(variants, wanted, strict=True):
            self.store(variant, one, trained=True)
        checkpoint.unlink(missing_ok=True)

    def store(self, variant: Variant, wanted: Wanted, *, trained: bool) -> None:
        """Write a block, in the parent's dtype."""
        dtype = next(self.blockwise.model.parameters()).dtype
        state: dict[str, torch.Tensor] = {}
        for part in PARTS:
            if part in wanted.halves:
                prefix = f"{part}/" if len(wanted.halves) == 2 else ""
                state |= {
                    prefix + name: value.detach().to("cpu", dtype)
                    for name, value in half_state(variant.halves[part]).items()
                }
        training = self.recipe.training
        self.library.write(
            BlockFacts(
                parent=self.library.parent.fingerprint,
                layer=wanted.layer,
                block=wanted.name,
                recipe=self.recipe.id,
                initial_loss=variant.losses[0] if trained else None,
                final_loss=variant.losses[-1] if trained else None,
                kept="trained" if trained and variant.losses[-1] < variant.losses[0] else "initialisation",
                steps=variant.steps,
                tokens=variant.steps * training.batch_size * self.recipe.length,
            ),
            state,
        )
