"""The results of ablations as Markdown. Every sentence about them is made from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from puzzlebench.ablation.experiments import MEASURES
from puzzlebench.parent.open import EMBEDDED

_TITLES: Final = {
    "lm_loss": "LM loss",
    "kl": "KL to the parent",
    "top1_agreement": "top-1 agreement",
}
_HEADINGS: Final = {
    "bld": "Blockwise local distillation",
    "score": "The replace-1-block score",
    "search": "The search",
    "space": "The search space",
    "distil": "Losses of global distillation",
}
_STAGES: Final = {"before": "before global distillation", "after": "after global distillation"}
_MANY: Final = 1e6


def report(result: Mapping[str, Any]) -> str:
    """The document of what `run_ablations` gave."""
    parts = [_head(result), *(_experiment(one) for one in result["experiments"])]
    return "\n\n".join(parts) + "\n"


def verdicts(experiment: Mapping[str, Any], stage: str) -> list[str]:
    """One sentence per variant: what the paired differences say, and whether it is what the paper found."""
    lines = []
    for variant in experiment["variants"]:
        if variant["variant"] == experiment["reference"]:
            continue
        differences: dict[str, Any] = {measure: variant[stage][measure]["difference"] for measure in MEASURES}
        lines.append(
            f"`{variant['variant']}` {_sentence(experiment['reference'], differences)}{_paper(variant, differences)}"
        )
    return lines


def _head(result: Mapping[str, Any]) -> str:
    limit, settings = result["limit"], result["settings"]
    size = limit["scenario"]
    parents = "another parent for every seed" if result["parent"]["one_per_seed"] else "one parent"
    return "\n\n".join(
        (
            "# Ablations",
            f"Made by `puzzlebench ablate` (puzzlebench {result['puzzlebench_version']}, torch {result['torch']}, "
            f"{result['created']}), scale {result['scale']:g}.",
            f"Parent: {result['parent']['name']} (fingerprint {result['parent']['fingerprint'][:12]}), {parents}; "
            f"{result['seeds']} seed(s), which decide what text blocks and children are trained on and scores are "
            "taken on, and its order. Every child keeps the same limit: "
            f"{limit['speed_up']:g} times the parent's predicted throughput with {size['batch_size']} prompts of "
            f"{size['prefill_len']} tokens and {size['decode_len']} generated ones, by one cost table "
            f"({limit['costs_of']}).",
            f"Blocks: {settings['steps']} steps on {settings['library_sequences']} sequences of {settings['length']} "
            f"tokens; scores on {settings['score_sequences']} validation sequences; global distillation on "
            f"{settings['distil_sequences']} sequences. Results are on {settings['test_sequences']} test sequences, "
            f"{_test_text(result['parent']['name'])}: LM loss and KL(parent || child) in nats per token, and "
            "the share of tokens that both models put first. Means ± standard deviation over seeds; differences are "
            "within seeds, with the 95 % interval of their mean by Student's t.",
            "The model is small and little is trained: what holds here need not hold for a large one, nor the other "
            "way round.",
        )
    )


def _test_text(parent: str) -> str:
    """What is known of the text that results are on."""
    if parent == EMBEDDED:
        return "of files that nothing was trained on or chosen by"
    return (
        "of files of Python's standard library that no block or child was trained on and nothing was chosen by here "
        "(whether the parent was trained on them is not known)"
    )


def _experiment(experiment: Mapping[str, Any]) -> str:
    parts = [f"## {_HEADINGS[experiment['name']]}", experiment["question"]]
    for stage in experiment["stages"]:
        if len(experiment["stages"]) > 1:
            parts.append(f"### {_STAGES[stage].capitalize()}")
        parts.append(_table(experiment, stage))
        parts.append("\n".join(f"- {line}" for line in verdicts(experiment, stage)))
    notes = _notes(experiment)
    return "\n\n".join([*parts, *([notes] if notes else [])])


def _table(experiment: Mapping[str, Any], stage: str) -> str:
    head = ["variant", *_TITLES.values(), *(f"difference in {title}" for title in _TITLES.values()), "parameters"]
    rows = [head, ["---", *["---:"] * (len(head) - 1)]]
    for variant in experiment["variants"]:
        cells = [variant["variant"]]
        cells += [_mean(variant[stage][measure]) for measure in MEASURES]
        cells += [_difference(variant[stage][measure]["difference"]) for measure in MEASURES]
        sizes = [run["parameters"] for run in variant["runs"] if run["parameters"] is not None]
        cells.append(f"{sum(sizes) / len(sizes) / _MANY:.2f} M" if sizes else "-")
        rows.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _mean(values: Mapping[str, Any]) -> str:
    if values["mean"] is None:
        return "-"
    return f"{values['mean']:.4f}" + ("" if values["sd"] is None else f" ± {values['sd']:.4f}")


def _difference(values: Mapping[str, Any] | None) -> str:
    if values is None or values["mean"] is None:
        return "-"
    ends = "" if values["low"] is None else f" ({values['low']:+.4f} to {values['high']:+.4f})"
    return f"{values['mean']:+.4f}{ends}"


def _sentence(reference: str, differences: Mapping[str, Mapping[str, Any]]) -> str:
    """What all measures say of one variant, those that say the same named together."""
    said: dict[str, list[str]] = {}
    for measure, values in differences.items():
        said.setdefault(_words(reference, values), []).append(_TITLES[measure])
    parts = [
        f"{words} in {_list(titles)}" if len(said) > 1 else f"{words} in all three measures"
        for words, titles in said.items()
    ]
    return "; ".join(parts)


def _words(reference: str, values: Mapping[str, Any]) -> str:
    seeds = values["seeds"]
    every = "the one seed" if seeds == 1 else f"all {seeds} seeds"
    sure = (
        ""
        if seeds < 2
        else (" and the interval excludes zero" if values["decided"] else ", but the interval includes zero")
    )
    match values["outcome"]:
        case "missing":
            return "found nothing within the limit, so there is nothing to compare"
        case "equal":
            return f"is the same as `{reference}` in {every}"
        case "mixed":
            return f"is worse than `{reference}` in {values['worse_in']} of {seeds} seeds"
    return f"is {values['outcome']} than `{reference}` in {every}{sure}"


def _paper(variant: Mapping[str, Any], differences: Mapping[str, Mapping[str, Any]]) -> str:
    """Whether that is what the paper found."""
    if not variant["claimed_worse"]:
        return " (the paper makes no such comparison that we know of)."
    agree = [_TITLES[measure] for measure, values in differences.items() if values["as_in_paper"] is True]
    against = [_TITLES[measure] for measure, values in differences.items() if values["as_in_paper"] is False]
    if len(agree) == len(differences):
        if all(values["seeds"] == 1 for values in differences.values()):
            return ". In the direction of the paper, in one seed."
        sure = all(values["decided"] for values in differences.values())
        return ". As in the paper." if sure else ". In the direction of the paper."
    if len(against) == len(differences):
        return ". **The paper found the opposite.**"
    if not agree and not against:
        return ". **This does not show what the paper found** (that it is worse)."
    parts = [f"as in the paper in {_list(agree)}"] if agree else []
    parts += [f"the opposite of the paper in {_list(against)}"] if against else []
    unclear = [title for title in (_TITLES[measure] for measure in differences) if title not in (*agree, *against)]
    parts += [f"not clear in {_list(unclear)}"] if unclear else []
    return (
        f". **Only partly as in the paper**: {'; '.join(parts)}."
        if agree
        else f". **Not as in the paper**: {'; '.join(parts)}."
    )


def _notes(experiment: Mapping[str, Any]) -> str:
    """Why a variant has no child in some seed."""
    lines = [
        f"- `{variant['variant']}`, seed {run['seed']}: {run['note']}"
        for variant in experiment["variants"]
        for run in variant["runs"]
        if run["architecture"] is None
    ]
    return "\n".join(["Without an architecture:", "", *lines]) if lines else ""


def _list(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
