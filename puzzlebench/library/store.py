"""The block library on disk: one safetensors file per trained block, and an index of them.

    library.json                                  the parent this library is of
    manifest.json                                 index of every block, made anew from the files' own headers
    recipes/<recipe>.json                         what a recipe id stands for
    blocks/<layer>.<block>.<recipe>.safetensors   the weights, named as in the parent's layer, and their facts

A block is one half of a layer (attention.gqa_2, ffn.mlp_384) or a whole one trained together (gqa_2+mlp_384). Files are
self-describing and appear whole, so processes that share the folder need no other agreement. Knows nothing of training.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from puzzlebench.files import make_folder, write_text
from puzzlebench.model.blocks import (
    PARTS,
    Architecture,
    Block,
    NoOp,
    Part,
    SubBlock,
    block_name,
    parse_sub_block,
    sub_block_name,
)
from puzzlebench.model.space import LayerCandidates, SearchSpace
from puzzlebench.training.tensors import read_facts, read_tensors, write_tensors

LIBRARY_SCHEMA: Final = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class ParentFacts:
    """Which parent a library is of. `fingerprint` is of its weights; the rest is for people."""

    name: str
    model_type: str
    num_hidden_layers: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFacts:
    """What is known of one stored block.

    Attributes:
        block: `attention.gqa_2`, `ffn.mlp_384`, or `gqa_2+mlp_384` for a pair trained together.
        recipe: id of the recipe, see `Recipe.id`.
        initial_loss, final_loss: normalised MSE on held-out sequences before and after training; None untrained.
        kept: whether the weights are the trained ones or, where those were no better, the initial ones.
        steps: optimiser steps taken; fewer than the recipe's where training stopped early.
    """

    parent: str
    layer: int
    block: str
    recipe: str
    initial_loss: float | None = None
    final_loss: float | None = None
    kept: str = "initialisation"
    steps: int = 0
    tokens: int = 0


def half_name(part: Part, sub: SubBlock) -> str:
    """The name of half a layer in a library: attention.gqa_2, ffn.mlp_384."""
    return f"{part}.{sub_block_name(sub)}"


class Library:
    """A folder of blocks of one parent; made by `open_library` and `create_library`."""

    def __init__(self, path: Path, parent: ParentFacts) -> None:
        self.path, self.parent = path, parent

    def file(self, layer: int, block: str, recipe: str) -> Path:
        """Where that block is, or would be."""
        return self.path / "blocks" / f"{layer:03d}.{block}.{recipe}.safetensors"

    def has(self, layer: int, block: str, recipe: str) -> bool:
        """Whether that block is there."""
        return self.file(layer, block, recipe).exists()

    def write(self, facts: BlockFacts, state: Mapping[str, torch.Tensor]) -> None:
        """Store a block. Names of tensors are those of the layer (self_attn.k_proj.weight, ...).

        Raises:
            ValueError: it is another parent's, or the disk is full.
        """
        if facts.parent != self.parent.fingerprint:
            raise ValueError(f"{self.path} is a library of another parent")
        file = self.file(facts.layer, facts.block, facts.recipe)
        write_tensors(file, state, {"schema": LIBRARY_SCHEMA, **asdict(facts)})

    def write_recipe(self, recipe: str, described: Mapping[str, Any], wanted: Mapping[str, Sequence[str]]) -> None:
        """State what a recipe id stands for, and which blocks by layer it was to make; earlier ones stay wanted."""
        file = self.path / "recipes" / f"{recipe}.json"
        before: dict[str, list[str]] = self._recipe_file(recipe)["wanted"] if file.exists() else {}
        union = {layer: list(dict.fromkeys((*before.get(layer, ()), *names))) for layer, names in wanted.items()}
        if union != before or not file.exists():
            write_text(file, json.dumps({"recipe": described, "wanted": union}, indent=1) + "\n")

    def recipe(self, recipe: str) -> dict[str, Any]:
        """What a recipe id stands for.

        Raises:
            ValueError: its file cannot be read.
        """
        return self._recipe_file(recipe)["recipe"]  # type: ignore[no-any-return]

    def wanted(self, recipe: str) -> list[tuple[int, str]]:
        """Layer and name of every block that was to be made by this recipe.

        Raises:
            ValueError: the recipe's file cannot be read.
        """
        stated: dict[str, list[str]] = self._recipe_file(recipe)["wanted"]
        return [(int(layer), name) for layer, names in stated.items() for name in names]

    def require_complete(self, recipe: str) -> None:
        """Raise ValueError unless every block that was to be made by this recipe is there."""
        missing = [(layer, name) for layer, name in self.wanted(recipe) if not self.has(layer, name, recipe)]
        if missing:
            layer, name = missing[0]
            raise ValueError(
                f"{self.path} lacks {len(missing)} blocks that recipe {recipe} was to make, the first is {name} of "
                f"layer {layer}; finish it with the `puzzlebench library` command that began it"
            )

    def _recipe_file(self, recipe: str) -> dict[str, Any]:
        file = self.path / "recipes" / f"{recipe}.json"
        try:
            data: dict[str, Any] = json.loads(file.read_text())
            return {"recipe": data["recipe"], "wanted": data["wanted"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file} cannot be read ({error})") from None

    def blocks(self) -> Iterator[BlockFacts]:
        """Facts of every block, read from the files."""
        for file in sorted((self.path / "blocks").glob("*.safetensors")):
            facts = read_facts(file)
            if facts.pop("schema", None) != LIBRARY_SCHEMA:
                raise ValueError(f"{file} is of another schema; this version reads {LIBRARY_SCHEMA}")
            yield BlockFacts(**facts)

    def write_manifest(self) -> dict[str, Any]:
        """Make the index anew from the files, and return it."""
        manifest = {
            "schema": LIBRARY_SCHEMA,
            "parent": asdict(self.parent),
            "recipes": {file.stem: self.recipe(file.stem) for file in sorted((self.path / "recipes").glob("*.json"))},
            "blocks": [
                asdict(facts) | {"file": f"blocks/{self.file(facts.layer, facts.block, facts.recipe).name}"}
                for facts in self.blocks()
            ],
        }
        write_text(self.path / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        return manifest

    def recipe_id(self, wanted: str | None = None) -> str:
        """The id that begins with `wanted`, or the only one there is.

        Raises:
            ValueError: none or several fit.
        """
        ids = sorted(file.stem for file in (self.path / "recipes").glob("*.json"))
        found = [one for one in ids if one.startswith(wanted or "")]
        if len(found) != 1:
            what = f"{len(found)} recipes begin with {wanted!r}" if wanted else f"{len(ids)} recipes"
            raise ValueError(f"{self.path} holds {what}; name one with --recipe: {', '.join(ids) or 'there is none'}")
        return found[0]

    def space(self, parent: Architecture, recipe: str) -> SearchSpace:
        """Every half that there is by this recipe, the parent's own first, and no-ops, which need no weights."""
        names: list[dict[str, list[str]]] = [{"attention": [], "ffn": []} for _ in parent.blocks]
        for facts in self.blocks():
            part, _, name = facts.block.partition(".")
            if facts.recipe == recipe and part in PARTS:
                names[facts.layer][part].append(name)
        layers = []
        for own, found in zip(parent.blocks, names, strict=True):
            attention = [own.attention, *(parse_sub_block("attention", name) for name in found["attention"]), NoOp()]
            ffn = [own.ffn, *(parse_sub_block("ffn", name) for name in found["ffn"]), NoOp()]
            layers.append(LayerCandidates(attention=tuple(dict.fromkeys(attention)), ffn=tuple(dict.fromkeys(ffn))))
        return SearchSpace(layers=tuple(layers))

    def require(self, layer: int, block: Block, own: Block, recipe: str) -> None:
        """Raise ValueError unless the library has all weights of a block that are not the parent's."""
        if self.has(layer, block_name(block), recipe):
            return
        for part, sub in _differing(block, own).items():
            if not isinstance(sub, NoOp) and not self.has(layer, half_name(part, sub), recipe):
                raise ValueError(
                    f"{self.path} has no {half_name(part, sub)} for layer {layer} by recipe {recipe}; make it with "
                    "`puzzlebench library`"
                )

    def layer_states(
        self, layer: int, block: Block, own: Block, recipe: str, parts: Collection[Part] = PARTS
    ) -> dict[Part, dict[str, torch.Tensor]]:
        """States of the halves of a block that are not the parent's own, by part; a no-op's is empty.

        A pair that was trained together comes before halves that were trained apart.

        Raises:
            ValueError: the library lacks it, or a file is broken.
        """
        self.require(layer, block, own, recipe)
        pair = self.file(layer, block_name(block), recipe)
        if pair.exists():
            tensors, _ = read_tensors(pair)
            return {
                part: {name.removeprefix(f"{part}/"): value for name, value in tensors.items() if name.startswith(part)}
                for part in parts
            }
        return {
            part: {} if isinstance(sub, NoOp) else read_tensors(self.file(layer, half_name(part, sub), recipe))[0]
            for part, sub in _differing(block, own).items()
            if part in parts
        }


def _differing(block: Block, own: Block) -> dict[Part, SubBlock]:
    halves: dict[Part, tuple[SubBlock, SubBlock]] = {
        "attention": (block.attention, own.attention),
        "ffn": (block.ffn, own.ffn),
    }
    return {part: sub for part, (sub, parents) in halves.items() if sub != parents}


def create_library(path: Path, parent: ParentFacts) -> Library:
    """The library in a folder, made if there is none.

    Raises:
        ValueError: it is one of another parent, or the folder cannot be written to.
    """
    for folder in (path, path / "blocks", path / "recipes"):
        make_folder(folder)
    if not (path / "library.json").exists():
        if leftover := next((path / "blocks").iterdir(), None):
            raise ValueError(f"{path} holds {leftover.name} and no library.json: it is no library")
        write_text(path / "library.json", json.dumps({"schema": LIBRARY_SCHEMA, "parent": asdict(parent)}, indent=1))
    return open_library(path, parent)


def open_library(path: Path, parent: ParentFacts | None = None) -> Library:
    """The library in a folder.

    Raises:
        ValueError: there is none, it is of another schema, or of another parent than the one given.
    """
    try:
        stated = json.loads((path / "library.json").read_text())
        schema, facts = stated["schema"], ParentFacts(**stated["parent"])
    except FileNotFoundError:
        raise ValueError(f"{path} is not a block library: it has no library.json") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a block library: library.json cannot be read ({error})") from None
    if schema != LIBRARY_SCHEMA:
        raise ValueError(f"{path} is a library of schema {schema!r}; this version reads {LIBRARY_SCHEMA}")
    if parent is not None and parent.fingerprint != facts.fingerprint:
        raise ValueError(
            f"{path} is a library of {facts.name} ({facts.fingerprint[:12]}), not of {parent.name} "
            f"({parent.fingerprint[:12]}); give another folder"
        )
    return Library(path, facts)
