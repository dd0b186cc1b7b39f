"""A run in words: scenario, devices, what an architecture kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puzzlebench.model.blocks import GQA, Architecture, GatedMLP, NoOp
from puzzlebench.reporting.chosen import Search
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.numbers import duration, percent
from puzzlebench.searching.scenarios import ResourceLimit, ServingScenario

METRICS = {"kl": "KL divergence", "lm_loss": "language-model loss", "top1_agreement": "top-1 agreement"}


def metric_name(metric: str) -> str:
    """A score's name for people."""
    return METRICS.get(metric, metric.replace("_", " "))


def model_name(data: ReportData) -> str:
    """The parent's name, its folder left out."""
    if data.search is not None:
        name = data.search.model
    elif data.costs is not None:
        name = data.costs.spec.name
    else:
        name = str(((data.run or {}).get("recipe") or {}).get("parent", "a model"))
    return name.rstrip("/").rpartition("/")[2] or name


def gpu_name(data: ReportData) -> str | None:
    """The device that costs are of, as its datasheet calls it."""
    if data.costs is None:
        return None if data.search is None else data.search.gpu
    gpu: Mapping[str, Any] = data.costs.table.metadata.get("gpu") or {}
    return str(gpu.get("display_name") or data.costs.table.frame["gpu"].iloc[0])


def memory_name(data: ReportData) -> str:
    """What memory in use is called: "per GPU" only where costs are of one, as a CPU's datasheet has no capability."""
    gpu: Mapping[str, Any] = {} if data.costs is None else data.costs.table.metadata.get("gpu") or {}
    return "memory per GPU" if gpu.get("compute_capability") else "memory"


def scenario_words(scenario: ServingScenario, batch_size: int) -> str:
    """ "batches of 16 prompts of 128 tokens, each answered with 64"."""
    many = f"batches of {batch_size} prompts" if batch_size > 1 else "single prompts"
    return f"{many} of {scenario.prefill_len:,} tokens, each answered with {scenario.decode_len:,}"


def stage_duration(stage: Mapping[str, Any]) -> str:
    """How long a stage took: "at least" where an earlier attempt, which nobody timed, was interrupted."""
    return f"{'at least ' if stage.get('resumed') else ''}{duration(stage['seconds'])}"


def limits_words(search: Search) -> str:
    """What the search had to keep."""
    limits = [
        ResourceLimit(resource=row["resource"], low=row["low"], high=row["high"]).describe_named()
        for row in search.stated["limits"]
    ]
    return ", ".join(limits) if limits else "no limits"


def broken_by_parent(search: Search) -> list[str]:
    """Limits that the parent does not keep at the chosen batch size, by resource."""
    stated = search.stated["parent"]
    return [] if stated is None else [limit["column"] for limit in stated["limits"] if not limit["holds"]]


def summary(child: Architecture, parent: Architecture) -> str:
    """What is left of attention and FFN, in a line."""
    attention, ffn = [], []
    gone = 0
    for block, own in zip(child.blocks, parent.blocks, strict=True):
        gone += isinstance(block.attention, NoOp)
        if isinstance(own.attention, GQA):
            mine = block.attention.num_key_value_heads if isinstance(block.attention, GQA) else 0
            attention.append(mine / own.attention.num_key_value_heads)
        if isinstance(own.ffn, GatedMLP):
            mine = block.ffn.intermediate_size if isinstance(block.ffn, GatedMLP) else 0
            ffn.append(mine / own.ffn.intermediate_size)
    parts = []
    if attention:
        parts.append(f"{percent(sum(attention) / len(attention), 0)} of the kv heads")
    if ffn:
        parts.append(f"{percent(sum(ffn) / len(ffn), 0)} of the FFN width")
    if gone:
        parts.append(f"no attention in {gone} of {len(child.blocks)} layers")
    return ", ".join(parts)
