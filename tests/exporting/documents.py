"""JSON as the stages write it, for tests: of a child called distilled of a parent called tiny."""

from __future__ import annotations

import json
from pathlib import Path

from puzzlebench.model.blocks import Architecture, architecture_to_json


def interval(value, spread=0.1):
    return {"value": value, "low": value * (1 - spread), "high": value * (1 + spread)}


def search(architecture: Architecture, *others: Architecture, **changes):
    def solution(one):
        return {
            "batch_size": 4,
            "architecture": architecture_to_json(one),
            "objective": 0.011,
            "values": {"params": 3_084_032.0, "memory": 23_116_800.0, "ttft": 0.0215, "throughput": 1211.4},
            "limits": [],
        }

    return {
        "schema_version": 1,
        "created": "2026-11-28T13:48:59+00:00",
        "title": "tiny on amd_epyc_2c (torch 2.13.0+cpu, weights fp32, KV cache fp32, tensor parallel 1)",
        "gpu": "amd_epyc_2c",
        "engine": "torch 2.13.0+cpu",
        "costs": {"from": "costs.parquet", "source": "measured by puzzlebench 0.1.0", "cells": {"measured": 64}},
        "scores": {"metric": "kl"},
        "scenarios": [{"name": "128+128", "prefill_len": 128, "decode_len": 128, "limits": []}],
        "limits": [
            {"resource": "throughput", "low": 1210.5, "high": None},
            {"resource": "memory", "low": None, "high": 22748851814.0},
        ],
        "memory_limit_is_default": True,
        "engine_rules": None,
        "outcome": "optimal",
        "parent": {
            "batch_size": 4,
            "values": {"params": 7_344_384.0, "memory": 53_789_696.0, "ttft": 0.0514, "throughput": 576.5},
        },
        "solutions": [solution(one) for one in (architecture, *others)],
        "refined": None,
        **changes,
    }


def retention(source: Path | str, **changes):
    row = {
        "task": "puzzlebench_choice",
        "metric": "acc",
        "parent": 0.6775,
        "child": 0.6825,
        "retention": 1.0074,
        "retention_low": 0.9786,
        "retention_high": 1.0376,
        "documents": 400,
    }
    unknown = {"retention": None, "retention_low": None, "retention_high": None, "child": 12.5}
    return {
        "schema_version": 1,
        "created": "2026-11-28T13:51:38+00:00",
        "lm_eval_version": "0.4.13",
        "parent": {"name": "tiny", "source": "tiny"},
        "child": {"name": str(source), "source": str(source)},
        "overall": {"retention": 1.0012, "low": 0.987, "high": 1.0159},
        "tasks": [row, {**row, "task": "other", **unknown}],
        "notes": ["not in the overall retention, which needs a ratio: other"],
        **changes,
    }


def speed(*labels: str, predicted: bool = True, **changes):
    labels = labels or ("child",)
    times = {
        "prefill_ms": interval(50.0),
        "tpot_ms": interval(6.8),
        "generate_ms": interval(917.0),
        "generated_tokens_per_s": interval(558.0),
    }
    phases = {phase: interval(2.1) for phase in ("prefill", "decode", "generate")}
    modelled = {"prefill": 2.4, "decode": 2.08, "generate": 2.05}
    errors = {"prefill": 0.02, "decode": -0.005, "generate": -0.024}
    return {
        "schema_version": 1,
        "created": "2026-11-28T13:53:23+00:00",
        "device": "AMD EPYC, 2 core(s)",
        "engine": "torch",
        "engine_version": "2.13.0+cpu",
        "precision": "fp32",
        "scenario": {"batch_size": 4, "prefill_len": 128, "decode_len": 128},
        "sessions": 5,
        "models": [{"model": label, **times} for label in ("parent", *labels)],
        "speed_ups": [{"model": label, **phases} for label in labels],
        "predicted_speed_ups": [{"model": label, **modelled, "error": errors} for label in labels]
        if predicted
        else None,
        "costs": {"gpu": "amd_epyc_2c", "engine": "torch", "weight_dtype": "fp32", "same_device": True}
        if predicted
        else None,
        **changes,
    }


def distillation(parent_fingerprint: str, **changes):
    held_out = [
        {"step": 0, "length": 128, "loss": 0.9, "cosine": 0.5, "forward_kl": 0.4, "lm": 5.0},
        {"step": 100, "length": 256, "loss": 0.07, "cosine": 0.05, "forward_kl": 0.02, "lm": 4.42},
        {"step": 300, "length": 256, "loss": 0.033, "cosine": 0.027, "forward_kl": 0.006, "lm": 4.39},
    ]
    losses = {"cosine": 1.0, "forward_kl": 1.0, "reverse_kl": 0.0, "tvd": 0.0, "lm": 0.0, "temperature": 1.0}
    return {
        "schema_version": 1,
        "created": "2026-11-28T13:50:40+00:00",
        "parent": "tiny",
        "parent_fingerprint": parent_fingerprint,
        "recipe": {"losses": losses, "optimiser": "adamw"},
        "data": "/home/somebody/texts/books.jsonl",
        "tokens": 307_200,
        "steps": 300,
        "losses": [],
        "held_out": held_out,
        "seconds": 99.2,
        "device": "cpu",
        "precision": "bf16",
        **changes,
    }


def write(path: Path, document) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path
