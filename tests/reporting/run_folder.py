"""A run folder as a finished run leaves it: tables, search and front by the real writers, the rest by its formats.

Scores, measured speeds, retention and losses are drawn with a seed: nothing was trained or timed.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from puzzlebench.cli import main
from puzzlebench.model.blocks import GQA, GatedMLP, Linear, architecture_from_json, architecture_to_json, block_name
from puzzlebench.model.catalog import load_model
from puzzlebench.model.space import default_space
from puzzlebench.profiling.cost_table import write_cost_table
from puzzlebench.profiling.profile import Grid, build_cost_table
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision
from puzzlebench.scores import ScoreTable, write_score_table
from puzzlebench.searching.recheck import recheck
from puzzlebench.searching.scenarios import parse_scenario

CREATED = "2026-11-28T09:30:00+00:00"


def make_run(
    folder: Path, *, model="embedded", batch_size=16, prefill=128, decode=64, speed_up=1.6, fractions=None, points=12
):
    """Write everything but library and checkpoints, of which the report reads distillation.json alone."""
    rng = np.random.default_rng(7)
    spec, parent = load_model(model)
    space = default_space(spec, parent) if fractions is None else default_space(spec, parent, ffn_fractions=fractions)
    gpu, kernels = open_kernels("h100", "trtllm")
    grid = Grid(
        batch_sizes=(1, batch_size),
        prefill_lens=(prefill // 2, prefill, 2 * prefill),
        context_lens=(prefill // 2, prefill, 2 * (prefill + decode)),
    )
    table = build_cost_table(kernels, gpu, spec, space, Precision(), grid)
    for name in ("scores", "search", "distilled", "evaluation/realised", "evaluation/distilled", "speed"):
        (folder / name).mkdir(parents=True)
    write_cost_table(table, folder / "costs.parquet")
    for metric in ("kl", "lm_loss"):
        write_score_table(drawn_scores(spec, parent, space, metric, rng), folder / "scores" / f"{metric}.parquet")
    scenario = parse_scenario(f"{prefill}+{decode}")
    own = recheck(table, spec, parent, [scenario], batch_size).values
    common = ["--costs", str(folder / "costs.parquet"), "--scores", str(folder / "scores" / "kl.parquet")]
    common += ["--scenario", scenario.name, "--json"]
    asked = ["--batch-size", str(batch_size), "--min-throughput", str(round(speed_up * own["throughput"]))]
    assert main(["search", *common, *asked, "--out", str(folder / "search")]) == 0
    front = ["--points", str(points), "--out", str(folder / "search" / "front.json")]
    assert main(["pareto", *common, *front]) == 0
    chosen = architecture_from_json(json.loads((folder / "search" / "architecture.json").read_text()))
    child = recheck(table, spec, chosen, [scenario], batch_size).values
    put(folder / "distilled" / "distillation.json", distillation(rng))
    put(folder / "evaluation" / "realised" / "retention.json", retention(rng, 0.81))
    put(folder / "evaluation" / "distilled" / "retention.json", retention(rng, 0.95))
    put(folder / "speed" / "speed.json", speed(rng, own, child, table, (batch_size, prefill, decode)))
    put(folder / "run.json", run_facts(model))
    assert architecture_to_json(chosen)["blocks"]
    return folder


def put(path, value):
    path.write_text(json.dumps(value, indent=1))


def drawn_scores(spec, parent, space, metric, rng):
    """More for smaller blocks and for the first and last layers; 0 for the parent's own."""
    depth = spec.num_hidden_layers
    rows = []
    for layer, (candidates, own) in enumerate(zip(space.layers, parent.blocks, strict=True)):
        edge = 1.0 + 5.0 * np.exp(-layer / (0.06 * depth)) + 1.5 * np.exp(-(depth - 1 - layer) / (0.1 * depth))
        draws = {sub: rng.uniform(0.8, 1.25) for sub in (*candidates.attention, *candidates.ffn)}
        for block in candidates.blocks():
            hurt = harm(block.attention, own.attention) * draws[block.attention]
            hurt += harm(block.ffn, own.ffn) * draws[block.ffn]
            score = 0.0 if block == own else 0.02 * edge * hurt * rng.uniform(0.95, 1.05)
            rows.append((layer, block_name(block), score, 0.05 * score, 64))
    frame = pd.DataFrame(rows, columns=["layer", "block", "score", "standard_error", "samples"])
    metadata = {
        "puzzlebench_version": "0.1.0",
        "created": CREATED,
        "metric": metric,
        "direction": "minimise",
        "parent": architecture_to_json(parent),
        "source": "drawn with a seed, for tests",
        "model": {"name": spec.name},
    }
    return ScoreTable(frame=frame, metadata=metadata)


def harm(sub, own):
    if isinstance(sub, GQA):
        return 0.15 * np.log2(own.num_key_value_heads / sub.num_key_value_heads)
    if isinstance(sub, GatedMLP):
        return 0.9 * (1 - sub.intermediate_size / own.intermediate_size) ** 2 + 0.001 * (sub != own)
    return 1.0 if isinstance(sub, Linear) else 1.6


def distillation(rng, steps=240, every=4):
    def terms(step, noise, *, training):
        left = 0.12 + 0.88 * np.exp(-step / 50)
        cosine, kl = (scale * left * (1 + noise * rng.normal()) for scale in (0.9, 0.55))
        sums = {"step": step, "tokens": step * 4096, "loss": cosine + kl, "cosine": cosine, "forward_kl": kl}
        return sums | ({"gradient_norm": 0.3} if training else {"length": 256, "lm": 4.4 + 0.1 * left})

    return {
        "schema_version": 1,
        "created": CREATED,
        "puzzlebench_version": "0.1.0",
        "parent": "embedded",
        "parent_fingerprint": "3f1c9a7be204" + "5d" * 26,
        "child": "child",
        "recipe": {
            "losses": {"cosine": 1.0, "forward_kl": 1.0, "reverse_kl": 0.0, "tvd": 0.0, "lm": 0.0, "temperature": 1.0},
            "lr": 2e-3,
            "seed": 0,
        },
        "data": "the standard library's sources",
        "tokens": steps * 4096,
        "steps": steps,
        "losses": [terms(step, 0.04, training=True) for step in range(0, steps + 1, every)],
        "held_out": [terms(step, 0.005, training=False) for step in range(0, steps + 1, 40)],
        "seconds": 312.4,
        "device": "cpu",
        "precision": "fp32",
        "world_size": 1,
    }


def retention(rng, level):
    tasks = []
    for name, metric, higher, parent in (
        ("puzzlebench_choice", "acc", True, 0.62),
        ("puzzlebench_perplexity", "word_perplexity", False, 14.2),
        ("puzzlebench_generation", "exact_match", True, 0.41),
    ):
        kept = level * rng.uniform(0.98, 1.02)
        child = parent * kept if higher else parent / kept
        tasks.append(
            {
                "task": name,
                "metric": metric,
                "higher_is_better": higher,
                "parent": parent,
                "child": child,
                "retention": kept,
                "retention_low": kept - 0.035,
                "retention_high": kept + 0.03,
                "retention_above_chance": kept - 0.04 if name == "puzzlebench_choice" else None,
                "difference": child - parent,
                "difference_low": child - parent - 0.03 * parent,
                "difference_high": child - parent + 0.03 * parent,
                "documents": 500,
                "binary": higher,
                "mcnemar_p": 0.0031 if higher else None,
                "lost": 41 if higher else None,
                "gained": 17 if higher else None,
            }
        )
    return {
        "schema_version": 1,
        "created": CREATED,
        "puzzlebench_version": "0.1.0",
        "lm_eval_version": "0.4.13",
        "parent": {"name": "embedded", "source": "checkpoint"},
        "child": {"name": "child", "source": "checkpoint"},
        "overall": {"retention": level, "low": level - 0.021, "high": level + 0.019},
        "tasks": tasks,
    }


def interval(value, width):
    return {"value": value, "low": value * (1 - width), "high": value * (1 + width)}


def speed(rng, parent, child, table, sizes):
    """Times near what the cost table says, though of another device, engine and number format."""
    batch_size, prefill, decode = sizes
    first = table.frame.iloc[0]

    def times(name, values, off, width):
        generate = values["latency"] * 1e3 * off
        rate = batch_size * decode / generate * 1e3
        return {
            "model": name,
            "prefill_ms": interval(values["ttft"] * 1e3 * off, width),
            "tpot_ms": interval(values["tpot"] * 1e3 * off, width),
            "generate_ms": interval(generate, width),
            "generated_tokens_per_s": interval(rate, width),
        }

    columns = (("prefill", "ttft"), ("decode", "tpot"), ("generate", "latency"))
    offs = (1.06, 1.11)
    predicted = {name: parent[key] / child[key] for name, key in columns}
    measured = {name: value * offs[0] / offs[1] for name, value in predicted.items()}
    return {
        "schema_version": 1,
        "created": CREATED,
        "puzzlebench_version": "0.1.0",
        "device": "Intel Xeon (2 cores)",
        "engine": "torch",
        "engine_version": "2.13.0",
        "precision": "fp32",
        "threads": 1,
        "scenario": {"batch_size": batch_size, "prefill_len": prefill, "decode_len": decode},
        "sessions": 5,
        "disturbed_share": 0.25,
        "models": [times("parent", parent, offs[0], 0.02), times("child", child, offs[1], 0.03)],
        "speed_ups": [{"model": "child"} | {name: interval(value, 0.025) for name, value in measured.items()}],
        "predictions": [times("parent", parent, 1.0, 0.05), times("child", child, 1.0, 0.05)],
        "predicted_speed_ups": [
            {"model": "child"}
            | predicted
            | {"error": {name: predicted[name] / measured[name] - 1 for name in measured}}
        ],
        "costs": {
            "from": "costs.parquet",
            "source": table.metadata["source"],
            "gpu": str(first["gpu"]),
            "engine": str(first["engine"]),
            "weight_dtype": str(first["weight_dtype"]),
            "same_device": False,
            "same_precision": False,
        },
        "tokens_agree": {"parent": 1.0, "child": 0.998},
    }


def run_facts(model):
    stages = (
        ("parent", 214.0),
        ("profile", 402.5),
        ("library", 388.0),
        ("score", 145.2),
        ("search", 1.9),
        ("realise", 2.4),
        ("distil", 318.9),
        ("evaluate", 201.7),
        ("speed", 120.3),
    )
    return {
        "schema_version": 1,
        "puzzlebench_version": "0.1.0",
        "created": CREATED,
        "recipe": {
            "parent": model,
            "scenario": {"batch_size": 16, "prefill_len": 128, "decode_len": 64},
            "search": {"metric": "kl", "min_speed_up": 1.6},
            "distil": {"stages": [{"length": 256, "sequences": 3840, "batch_size": 16}], "lr": 0.002},
        },
        "machine": {
            "cpu": "Intel Xeon",
            "cores": 2,
            "memory_bytes": 16 * 2**30,
            "gpu": None,
            "platform": "Linux-6.1-x86_64",
            "python": "3.11.9",
            "torch": "2.13.0+cpu",
            "transformers": "5.24.0",
            "lm_eval": "0.4.13",
        },
        "stages": [
            {
                "name": name,
                "seconds": seconds,
                "finished": f"2026-11-28T09:{10 + place:02d}:00+00:00",
                "key": f"{place:012x}",
                "output": f"{place:064x}",
                "resumed": False,
                "outputs": [name],
            }
            for place, (name, seconds) in enumerate(stages)
        ],
        "begun": [],
    }
