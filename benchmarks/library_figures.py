"""The figures of docs/library.md, measured anew: what sharing one parent run is worth, what distillation lowers, and
coupled against decoupled. One run on the machine in hand; ratios come from the same run.

    python benchmarks/library_figures.py --out figures/ [--parent embedded] [--seeds 3]

It resumes: what a former run has measured is kept in --out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from puzzlebench.child.halves import swapped
from puzzlebench.library.build import build_library, wanted_blocks
from puzzlebench.library.job import data_fingerprint, load_tokens, parent_facts
from puzzlebench.library.recipe import Recipe, Training
from puzzlebench.library.store import Library, create_library
from puzzlebench.model.blocks import Block, NoOp, sub_block_name
from puzzlebench.model.space import LayerCandidates, SearchSpace, default_space, space_of
from puzzlebench.parent.open import find_parent, load_parent
from puzzlebench.progress import progress
from puzzlebench.scoring.layer_halves import LayerHalves
from puzzlebench.scoring.metrics import metrics, reference
from puzzlebench.scoring.replace_one import score_layers

LENGTH = 256


class Bench:
    """One parent, its text and a folder of results."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.files = find_parent(arguments.parent)
        self.model = load_parent(self.files, torch.device("cpu"), torch.float32)
        stated = [self.files.fingerprint, arguments.steps, arguments.sequences, arguments.scored, arguments.seeds]
        digest = hashlib.sha256(json.dumps(stated).encode()).hexdigest()[:12]
        self.out: Path = arguments.out / digest  # other settings, other results
        self.out.mkdir(parents=True, exist_ok=True)
        self.train = load_tokens(self.files, None, "train", sequences=arguments.sequences, length=LENGTH)
        self.held_out = load_tokens(self.files, None, "test", sequences=arguments.scored, length=LENGTH)
        self.space = default_space(self.files.spec, self.files.architecture)
        self.steps = arguments.steps

    def recipe(self, **training: object) -> Recipe:
        settings = replace(Training(steps=self.steps), **training).with_rates(self.files.spec.hidden_size)
        return Recipe(training=settings, data=data_fingerprint(self.train), sequences=len(self.train), length=LENGTH)

    def library(self, name: str) -> Library:
        return create_library(self.out / name, parent_facts(self.files))

    def build(self, space: SearchSpace, recipe: Recipe, library: Library, stage: str) -> float:
        started = time.perf_counter()
        with progress() as report:
            build_library(
                self.model,
                self.files.spec,
                self.files.architecture,
                space,
                self.train,
                recipe,
                library,
                progress=lambda share, what: report(share, f"{stage}: {what}"),
            )
        return time.perf_counter() - started

    def kl(self, space: SearchSpace, recipe: Recipe, library: Library, name: str) -> dict[tuple[int, str], float]:
        """Mean KL per (layer, block)."""
        folder = self.out / "scores" / name
        folder.mkdir(parents=True, exist_ok=True)
        with progress() as report:
            found = score_layers(
                self.model,
                self.files.architecture,
                space,
                library,
                recipe.id,
                self.held_out,
                folder=folder,
                progress=lambda share, what: report(share, f"{name}: {what}"),
            )
        return {(one.layer, block): float(values[:, 0].mean()) for one in found for block, values in one.values.items()}

    def kept(self, name: str, measure):
        """A result from a former run, or measured now."""
        file = self.out / f"{name}.json"
        if not file.exists():
            file.write_text(json.dumps(measure(), indent=1))
        return json.loads(file.read_text())


def halves_spaces(bench: Bench) -> dict[str, SearchSpace]:
    """The space with one half of each layer replaced: attention beside the parent's FFN, and the other way round."""
    own = bench.files.architecture.blocks
    return {
        "attention": SearchSpace(
            layers=tuple(
                LayerCandidates(attention=layer.attention, ffn=(block.ffn,))
                for layer, block in zip(bench.space.layers, own, strict=True)
            )
        ),
        "ffn": SearchSpace(
            layers=tuple(
                LayerCandidates(attention=(block.attention,), ffn=layer.ffn)
                for layer, block in zip(bench.space.layers, own, strict=True)
            )
        ),
    }


def training_ratio(bench: Bench, steps: int) -> dict[str, float]:
    """All variants of a layer from one parent run, against one variant at a time, each with the parent run it needs."""
    recipe = bench.recipe(steps=steps, patience=0)
    layers = (bench.files.spec.num_hidden_layers // 2,)
    own = space_of(bench.files.architecture)

    def one_layer(layer: int, candidates: LayerCandidates) -> SearchSpace:
        return SearchSpace(layers=tuple(candidates if n == layer else one for n, one in enumerate(own.layers)))

    together = alone = 0.0
    for layer in layers:
        candidates, parents = bench.space.layers[layer], bench.files.architecture.blocks[layer]
        together += bench.build(
            one_layer(layer, candidates),
            recipe,
            bench.library(f"together-{layer}-{time.time_ns()}"),
            f"together {layer}",
        )
        singles = [
            LayerCandidates(attention=(parents.attention, sub), ffn=(parents.ffn,)) for sub in candidates.attention[1:]
        ]
        singles += [
            LayerCandidates(attention=(parents.attention,), ffn=(parents.ffn, sub)) for sub in candidates.ffn[1:]
        ]
        for number, single in enumerate(singles):
            space = one_layer(layer, single)
            if wanted_blocks(space, bench.files.architecture, "decoupled"):
                library = bench.library(f"alone-{layer}-{number}-{time.time_ns()}")
                alone += bench.build(space, recipe, library, f"alone {layer}.{number}")
    return {"layers": list(layers), "steps": steps, "together_s": together, "alone_s": alone, "ratio": alone / together}


@torch.inference_mode()
def scoring_ratio(bench: Bench, recipe: Recipe, library: Library) -> dict[str, float]:
    """Scoring from the replaced layer on, against the whole model per candidate; both once per candidate."""
    tokens = bench.held_out[:4]
    folder = bench.out / "scores" / f"timed-{time.time_ns()}"
    folder.mkdir(parents=True)
    started = time.perf_counter()
    score_layers(
        bench.model, bench.files.architecture, bench.space, library, recipe.id, tokens, folder=folder, batch_size=4
    )
    ours = time.perf_counter() - started
    full = both = 0.0
    candidates = 0
    for layer, space in enumerate(bench.space.layers):
        own = bench.files.architecture.blocks[layer]
        halves = LayerHalves(bench.model, layer, space, own, library, recipe.id)
        for block in space.blocks():
            attention, ffn = halves.of(block)
            for rows in torch.from_numpy(tokens).long().split(4):
                began = time.perf_counter()
                parent = reference(bench.model(rows, use_cache=False).logits, rows)
                parents_time = time.perf_counter() - began
                began = time.perf_counter()
                with swapped(bench.model, layer, attention=attention, ffn=ffn):
                    metrics(bench.model(rows, use_cache=False).logits, parent)
                childs_time = time.perf_counter() - began
                full += childs_time
                both += childs_time + parents_time
            candidates += 1
    return {
        "candidates": candidates,
        "tokens": int(tokens.size),
        "prefix_cached_s": ours,
        "full_forward_s": full,
        "full_forward_and_parent_s": both,
        "ratio_parent_logits_kept": full / ours,
        "ratio_parent_run_too": both / ours,
    }


def distillation_table(bench: Bench, seeds: int) -> list[dict[str, object]]:
    """Replace-1-block KL of every variant type: initial weights, and after distillation with several seeds."""
    spaces = halves_spaces(bench)
    initial = bench.recipe(steps=0)
    library = bench.library("library")
    bench.build(bench.space, initial, library, "initial weights")
    runs = [bench.recipe(seed=seed) for seed in range(seeds)]
    for seed, recipe in enumerate(runs):
        seconds = bench.build(bench.space, recipe, library, f"seed {seed}")
        bench.kept(f"library-seconds-{seed}", lambda seconds=seconds: seconds)
    rows = []
    for part, space in spaces.items():
        before = bench.kl(space, initial, library, f"{part}-initial")
        after = [bench.kl(space, recipe, library, f"{part}-seed-{seed}") for seed, recipe in enumerate(runs)]
        names = [sub_block_name(sub) for sub in getattr(bench.space.layers[0], part)[1:] if not isinstance(sub, NoOp)]
        for name in names:
            keys = [key for key in before if sub_block_name(getattr(_parse(key[1]), part)) == name]
            means = [statistics.fmean(run[key] for key in keys) for run in after]
            better = sum(run[key] < before[key] for run in after for key in keys)
            rows.append(
                {
                    "variant": f"{part}.{name}",
                    "initial": statistics.fmean(before[key] for key in keys),
                    "distilled": statistics.fmean(means),
                    "spread": statistics.stdev(means) if len(means) > 1 else None,
                    "lower_in": f"{better} of {len(keys) * len(after)}",
                }
            )
    return rows


def coupled_table(bench: Bench) -> dict[str, object]:
    """Pairs trained together against the same halves trained apart and composed, a small space per layer."""
    attention = [1, 3]  # of each layer's candidates: half the key-value heads, and linear
    ffn = [3, 6]  # half the width, and a tenth
    space = SearchSpace(
        layers=tuple(
            LayerCandidates(
                attention=(layer.attention[0], *(layer.attention[n] for n in attention)),
                ffn=(layer.ffn[0], *(layer.ffn[n] for n in ffn)),
            )
            for layer in bench.space.layers
        )
    )
    library = bench.library("library")
    apart = bench.recipe(seed=0)
    together = replace(apart, mode="coupled")
    bench.build(space, together, library, "coupled")
    composed = bench.kl(space, apart, library, "pairs-decoupled")
    coupled = bench.kl(space, together, library, "pairs-coupled")
    own = bench.files.architecture.blocks
    pairs = [
        (layer, name)
        for layer, name in composed
        if _parse(name).attention != own[layer].attention and _parse(name).ffn != own[layer].ffn
    ]
    logs = [math.log(coupled[key] / composed[key]) for key in pairs]
    return {
        "pairs": len(pairs),
        "coupled_lower_in": sum(coupled[key] < composed[key] for key in pairs),
        "kl_decoupled": statistics.fmean(composed[key] for key in pairs),
        "kl_coupled": statistics.fmean(coupled[key] for key in pairs),
        "geometric_ratio": math.exp(statistics.fmean(logs)),
    }


def _parse(name: str) -> Block:
    from puzzlebench.model.blocks import parse_block

    return parse_block(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parent", default="embedded")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=Training().steps)
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--scored", type=int, default=16)
    parser.add_argument("--parts", default="training,table,scoring,coupled")
    arguments = parser.parse_args()
    bench = Bench(arguments)
    parts = arguments.parts.split(",")
    if "training" in parts:
        print(json.dumps(bench.kept("training-ratio", lambda: training_ratio(bench, bench.steps)), indent=1))
    if "table" in parts:
        table = bench.kept("distillation", lambda: distillation_table(bench, arguments.seeds))
        print("| variant | KL initial | distilled | spread over seeds | lower in |\n| --- | --- | --- | --- | --- |")
        for row in table:
            spread = "" if row["spread"] is None else f"{row['spread']:.4f}"
            print(
                f"| {row['variant']} | {row['initial']:.4f} | {row['distilled']:.4f} | {spread} | {row['lower_in']} |"
            )
    if "scoring" in parts:
        library = bench.library("library")
        print(
            json.dumps(
                bench.kept("scoring-ratio", lambda: scoring_ratio(bench, bench.recipe(seed=0), library)), indent=1
            )
        )
    if "coupled" in parts:
        print(json.dumps(bench.kept("coupled", lambda: coupled_table(bench)), indent=1))


if __name__ == "__main__":
    main()
