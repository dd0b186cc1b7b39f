"""Print libraries and scores for people. Computes nothing but means."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from rich.table import Table

from puzzlebench.library.build import BuildReport
from puzzlebench.model.blocks import block_name
from puzzlebench.render import console
from puzzlebench.scores import ScoreTable

_SHOWN = 12


def print_library(
    path: Path, manifest: Mapping[str, Any], shards: Sequence[BuildReport], *, host: int, gpu: int
) -> None:
    """What training did to each kind of block, over the layers, by recipe."""
    kinds: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for block in manifest["blocks"]:
        kinds.setdefault((block["recipe"], block["block"]), []).append(block)
    table = Table(title=f"{path}: blocks of {manifest['parent']['name']}", title_justify="left")
    for name in ("recipe", "block", "layers", "loss before", "after", "less by", "steps"):
        table.add_column(name, justify="left" if name in ("recipe", "block") else "right")
    shown = sorted(kinds.items(), key=lambda item: (item[0][0], "+" in item[0][1], _by_number(item[0][1])))
    for (recipe, name), blocks in shown[: 4 * _SHOWN]:
        trained = [block for block in blocks if block["final_loss"] is not None]
        cells = ["-"] * 4
        if trained:
            before, after = (fmean(block[key] for block in trained) for key in ("initial_loss", "final_loss"))
            cells = [f"{before:.4f}", f"{after:.4f}", f"{1 - after / before:.0%}" if before else "-"]
            cells.append(f"{median(block['steps'] for block in trained):.0f}")
        table.add_row(recipe, name, str(len(blocks)), *cells)
    console().print(table)
    if len(shown) > 4 * _SHOWN:
        console().print(f"... and {len(shown) - 4 * _SHOWN} kinds more in {path / 'manifest.json'}", highlight=False)
    console().print(
        "loss: MSE of the layer's output over the output's mean square, on held-out sequences, mean over layers",
        highlight=False,
    )
    used = [shard for shard in shards if shard.activations != "none"]
    kept = f"; activations: {', '.join(sorted({shard.activations for shard in used}))}" if used else ""
    most = max((shard.activation_bytes for shard in used), default=0)
    size = f" ({most / 2**20:,.0f} MiB)" if most else ""
    made, before = sum(shard.made for shard in shards), sum(shard.there_before for shard in shards)
    console().print(f"{made} blocks made, {before} were there{kept}{size}; {peak_memory(host, gpu)}", highlight=False)


def _by_number(name: str) -> str:
    """A key that puts mlp_64 before mlp_160."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(9), name)


def peak_memory(host: int, gpu: int) -> str:
    """Most memory held, in words."""
    return f"peak memory {host / 2**30:.2f} GiB" + (f", on the GPU {gpu / 2**30:.2f} GiB" if gpu else "")


def print_scores(metric: str, path: Path, table: ScoreTable) -> None:
    """What each layer is worth: the parent's own score, without attention, without FFN, and the worst block."""
    shown = Table(title=f"{metric} ({table.direction}), {path}", title_justify="left")
    for name in ("layer", "parent's own", "no attention", "no FFN", "worst", "median error"):
        shown.add_column(name, justify="right")
    worse = max if table.direction == "minimise" else min
    for layer, own in enumerate(table.parent.blocks):
        rows = table.frame[table.frame["layer"] == layer]
        errors = dict(zip(rows["block"], rows["standard_error"], strict=True))
        scores = table.layer_scores(layer)
        attention, ffn = block_name(own).split("+")
        cells = [
            f"{scores[name]:.4f} ± {errors[name]:.4f}" if name in scores else "-"
            for name in (f"no_op+{ffn}", f"{attention}+no_op")
        ]
        worst = worse(scores, key=scores.__getitem__)
        middle = f"{rows['standard_error'].median():.4f}"
        shown.add_row(str(layer), f"{scores[block_name(own)]:.4f}", *cells, f"{worst} {scores[worst]:.4f}", middle)
    console().print(shown)
