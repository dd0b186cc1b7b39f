"""Means, spreads and paired differences over seeds, and what they say of the paper's claims. Knows numbers only.

Whether something is as in the paper is decided here, from the differences: nothing is assumed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any, Final, Literal, TypeAlias

from puzzlebench.ablation.experiments import HIGHER_IS_BETTER, MEASURES, Experiment

Stage: TypeAlias = Literal["before", "after"]
Outcome: TypeAlias = Literal["worse", "better", "equal", "mixed", "missing"]
"""Of a variant beside the reference: in all seeds worse, in all better, the same in all, or none of these; missing
where no seed has both."""

_EQUAL: Final = 1e-12


def summarise(
    experiments: Sequence[Experiment], runs: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]]
) -> list[dict[str, Any]]:
    """Every experiment's variants with their runs, means and differences, JSON-ready.

    Args:
        runs: by experiment and variant, one per seed: `seed`, `before` and `after` (measures or None) and other facts.
    """
    return [_experiment(one, {variant: runs[one.name, variant] for variant in one.variants}) for one in experiments]


def _experiment(one: Experiment, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    stages = _stages(one, runs)
    return {
        "name": one.name,
        "question": one.question,
        "reference": one.reference,
        "stages": list(stages),
        "variants": [
            {
                "variant": variant,
                "claimed_worse": variant in one.claimed,
                "runs": [dict(run) for run in runs[variant]],
                **{stage: _variant(one, variant, runs, stage) for stage in stages},
            }
            for variant in one.variants
        ],
    }


def _stages(one: Experiment, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[Stage, ...]:
    """Where variants differ: losses of a distillation only after it."""
    if one.name == "distil":
        return ("after",)
    return ("before", "after") if any(run["after"] for run in runs[one.reference]) else ("before",)


def _variant(
    one: Experiment, variant: str, runs: Mapping[str, Sequence[Mapping[str, Any]]], stage: Stage
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for measure in MEASURES:
        own = _values(one, runs[variant], stage, measure)
        reference = _values(one, runs[one.reference], stage, measure)
        found[measure] = {
            **_spread(list(own.values())),
            "difference": None
            if variant == one.reference
            else _difference(own, reference, measure, claimed=variant in one.claimed),
        }
    return found


def _values(one: Experiment, runs: Sequence[Mapping[str, Any]], stage: Stage, measure: str) -> dict[int, float]:
    """By seed; a child that is not distilled stands beside those that are as it is."""
    values = {}
    for run in runs:
        measures = run[stage] or (run["before"] if one.name == "distil" else None)
        if measures is not None:
            values[int(run["seed"])] = float(measures[measure])
    return values


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {
        "mean": fmean(values) if values else None,
        "sd": stdev(values) if len(values) > 1 else None,
        "seeds": len(values),
    }


def _difference(
    own: Mapping[int, float], reference: Mapping[int, float], measure: str, *, claimed: bool
) -> dict[str, Any]:
    """Variant less reference within seeds: mean, standard deviation, 95 % interval, and what it says."""
    differences = [own[seed] - reference[seed] for seed in sorted(own) if seed in reference]
    spread = _spread(differences)
    low, high = interval(differences)
    sign = -1.0 if measure in HIGHER_IS_BETTER else 1.0
    result = outcome([sign * difference for difference in differences])
    return {
        **spread,
        "low": low,
        "high": high,
        "worse_in": sum(sign * difference > _EQUAL for difference in differences),
        "outcome": result,
        "decided": low is not None and high is not None and (low > 0 or high < 0),
        "as_in_paper": {"worse": True, "better": False}.get(result) if claimed else None,
    }


def outcome(losses: Sequence[float]) -> Outcome:
    """What differences say, of which those above 0 mean worse."""
    if not losses:
        return "missing"
    if all(abs(loss) <= _EQUAL for loss in losses):
        return "equal"
    if all(loss > _EQUAL for loss in losses):
        return "worse"
    return "better" if all(loss < -_EQUAL for loss in losses) else "mixed"


def interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % interval of the mean by Student's t; nothing for fewer than two values."""
    if len(values) < 2:
        return None, None
    from scipy.stats import t as student

    half = float(student.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half
