"""What differences say, from numbers whose answer is known."""

from __future__ import annotations

import pytest
from scipy.stats import ttest_rel

from puzzlebench.ablation.experiments import EXPERIMENTS, LOSSES, MEASURES, chosen_experiments
from puzzlebench.ablation.report import report, verdicts
from puzzlebench.ablation.summary import interval, outcome, summarise

REFERENCE = [4.0, 4.2, 4.1]


def run(seed, value, *, after=None, found=True):
    """A run whose measures all are `value`, but for agreement, which falls as it rises."""

    def measures(number):
        return {"lm_loss": number, "kl": number / 10, "top1_agreement": 1 - number / 10}

    return {
        "seed": seed,
        "note": "no such architecture keeps the limits",
        "architecture": {} if found else None,
        "parameters": 3_000_000 if found else None,
        "before": measures(value) if found else None,
        "after": None if after is None else measures(after),
    }


def summary(name, **values):
    """One experiment with values per seed; the others are as the reference."""
    one = EXPERIMENTS[name]
    runs = {}
    for variant in one.variants:
        found = values.get(variant.replace("-", "_"), REFERENCE)
        runs[one.name, variant] = [run(seed, value or 0.0, found=value is not None) for seed, value in enumerate(found)]
    (result,) = summarise([one], runs)
    return result


def difference(experiment, variant, measure, stage="before"):
    (found,) = (one for one in experiment["variants"] if one["variant"] == variant)
    return found[stage][measure]["difference"]


def test_paired_differences_and_their_interval():
    other = [4.5, 4.6, 4.8]
    found = difference(summary("space", **{"no-op only".replace("-", "_"): other}), "no-op only", "lm_loss")
    assert found["mean"] == pytest.approx((0.5 + 0.4 + 0.7) / 3)
    expected = ttest_rel(other, REFERENCE).confidence_interval(0.95)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high))
    assert (found["outcome"], found["worse_in"], found["decided"], found["as_in_paper"]) == ("worse", 3, True, True)


def test_agreement_is_better_when_higher():
    found = difference(summary("bld", initialised=[4.5, 4.6, 4.8]), "initialised", "top1_agreement")
    assert found["mean"] < 0
    assert found["outcome"] == "worse"
    assert found["as_in_paper"]


@pytest.mark.parametrize(
    ("values", "said", "paper"),
    [
        ([3.5, 3.7, 3.7], "better", False),
        ([4.5, 4.1, 4.3], "mixed", None),
        (REFERENCE, "equal", None),
        ([None, None, None], "missing", None),
    ],
)
def test_what_is_not_as_in_the_paper_is_said(values, said, paper):
    experiment = summary("search", greedy=values)
    found = difference(experiment, "greedy", "kl")
    assert (found["outcome"], found["as_in_paper"]) == (said, paper)
    (line,) = (line for line in verdicts(experiment, "before") if line.startswith("`greedy`"))
    assert "As in the paper" not in line
    assert "**" in line, line
    words = {
        "better": "The paper found the opposite",
        "mixed": "does not show what the paper found",
        "equal": "is the same as `mip` in all 3 seeds",
        "missing": "found nothing within the limit",
    }
    assert words[said] in line


def test_worse_in_every_seed_but_not_surely():
    experiment = summary("search", greedy=[4.01, 4.9, 4.11])
    found = difference(experiment, "greedy", "lm_loss")
    assert (found["outcome"], found["decided"]) == ("worse", False)
    (line,) = (line for line in verdicts(experiment, "before") if line.startswith("`greedy`"))
    assert "In the direction of the paper." in line
    assert "the interval includes zero" in line


def test_one_seed_decides_nothing():
    one = EXPERIMENTS["bld"]
    runs = {("bld", "bld"): [run(0, 4.0)], ("bld", "initialised"): [run(0, 4.5)]}
    (experiment,) = summarise([one], runs)
    found = difference(experiment, "initialised", "kl")
    assert (found["low"], found["decided"], found["sd"]) == (None, False, None)
    assert verdicts(experiment, "before")[0].endswith("In the direction of the paper, in one seed.")


def test_a_seed_without_an_architecture_is_left_out_of_pairs():
    experiment = summary("search", homogeneous=[None, 4.9, 4.9])
    found = difference(experiment, "homogeneous", "lm_loss")
    assert found["seeds"] == 2
    assert found["mean"] == pytest.approx((0.7 + 0.8) / 2)
    assert found["as_in_paper"] is None, "the paper has no such comparison"


def test_losses_are_compared_after_distillation_and_none_as_it_is():
    one = EXPERIMENTS["distil"]
    runs = {("distil", variant): [run(seed, 5.0, after=4.0) for seed in range(2)] for variant in one.variants}
    runs["distil", "none"] = [run(seed, 5.0) for seed in range(2)]
    runs["distil", "lm"] = [run(seed, 5.0, after=3.0 + seed) for seed in range(2)]
    (experiment,) = summarise([one], runs)
    assert experiment["stages"] == ["after"]
    assert difference(experiment, "none", "lm_loss", "after")["mean"] == pytest.approx(1.0)
    assert difference(experiment, "lm", "lm_loss", "after")["mean"] == pytest.approx(-0.5)


def test_both_stages_where_all_children_are_distilled():
    one = EXPERIMENTS["space"]
    runs = {("space", variant): [run(0, 5.0, after=4.0), run(1, 5.0, after=4.0)] for variant in one.variants}
    (experiment,) = summarise([one], runs)
    assert experiment["stages"] == ["before", "after"]


def test_outcomes_and_intervals_of_few_values():
    assert outcome([]) == "missing"
    assert outcome([0.0, 1e-15]) == "equal"
    assert outcome([0.1, 0.0]) == "mixed"
    assert interval([1.0]) == (None, None)
    assert interval([1.0, 1.0]) == (1.0, 1.0)


def test_every_loss_variant_has_its_weights():
    one = EXPERIMENTS["distil"]
    assert set(LOSSES) == set(one.variants) - {"none"}
    assert LOSSES["cosine+kl+lm"].weighted == ("cosine", "forward_kl", "lm")
    assert [losses.weighted for name, losses in LOSSES.items() if name in ("lm", "tvd", "reverse_kl")] == [
        ("lm",),
        ("reverse_kl",),
        ("tvd",),
    ]
    for experiment in EXPERIMENTS.values():
        assert set(experiment.claimed) <= set(experiment.others)


def test_experiments_by_name():
    assert [one.name for one in chosen_experiments(("distil", "bld"))] == ["bld", "distil"]
    assert len(chosen_experiments(())) == len(EXPERIMENTS)
    with pytest.raises(ValueError, match="no ablation is named 'blb'; there are bld, score"):
        chosen_experiments(("blb",))


@pytest.mark.parametrize("parent", ["embedded", "tiny"])
def test_the_document(parent):
    experiments = [summary(name) for name in EXPERIMENTS if name != "distil"]
    experiments.append(summary("search", greedy=[None, None, None], random=[4.5, 4.6, 4.8]))
    text = report(
        {
            "puzzlebench_version": "0.1",
            "torch": "2",
            "created": "now",
            "scale": 1.0,
            "parent": {"name": parent, "fingerprint": "f" * 64, "one_per_seed": False},
            "seeds": 3,
            "settings": {
                "steps": 32,
                "library_sequences": 1,
                "length": 2,
                "score_sequences": 3,
                "distil_sequences": 4,
                "test_sequences": 5,
            },
            "limit": {
                "speed_up": 2.0,
                "scenario": {"batch_size": 4, "prefill_len": 128, "decode_len": 128},
                "costs_of": "some CPU",
            },
            "experiments": experiments,
        }
    )
    assert text.startswith("# Ablations\n")
    for words in (
        "| mip | 4.1000 ± 0.1000 | 0.4100 ± 0.0100 | 0.5900 ± 0.0100 |",
        "+0.5333 (+0.1539 to +0.9128)",
        "| greedy | - | - | - | - | - | - | - |",
        "- `greedy`, seed 0: no such architecture keeps the limits",
        "3.00 M",
        "2 times the parent's predicted throughput",
    ):
        assert words in text, words
    assert ("files that nothing was trained on or chosen by" in text) is (parent == "embedded")
    assert ("whether the parent was trained on them is not known" in text) is (parent != "embedded")
    assert len(MEASURES) == 3
