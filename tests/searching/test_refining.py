"""Refinement with a scorer of whole models: never worse, within the limits and their margins."""

import sys

import numpy as np
import pytest

from puzzlebench.searching.refining import load_scorer, refine_architectures
from puzzlebench.searching.search import Confidence, SearchSettings, search_architectures

from .conftest import limits, load
from .world import names_of, scored, ttft_at


def made_up(seed, sign=1):
    """A score of the whole that is no sum: each block pulls in its own direction."""
    rng = np.random.default_rng(seed)
    known = {}

    def score(architecture):
        pulls = []
        for key in enumerate(names_of(architecture)):
            if key not in known:
                known[key] = rng.normal(size=8)
            pulls.append(known[key])
        return sign * float((np.sum(pulls, axis=0) ** 2).sum())

    return score


CONFIDENCES = [None, Confidence(level=0.95), Confidence(level=0.95, errors_are="independent")]


@pytest.mark.parametrize("confidence", CONFIDENCES, ids=str)
@pytest.mark.parametrize(("direction", "sign"), [("minimise", 1), ("maximise", -1)])
def test_never_worse_and_within_the_limits(llama, direction, sign, confidence):
    scores = scored(llama, direction=direction)
    costs = load(llama, "512+1", scores=scores, limits=limits("max-ttft=30ms", "max-memory=3.4GiB"))
    settings = SearchSettings(batch_sizes=(4, 16), diverse=3, alpha=0.5, confidence=confidence)
    found = search_architectures(costs, llama.table, scores, settings).found
    scorer, seen, shares = made_up(1, sign), [], []

    def counting(architecture):
        seen.append(architecture)
        return scorer(architecture)

    refined = refine_architectures(
        costs,
        llama.table,
        settings,
        found,
        counting,
        evaluations=40,
        report=lambda share, stage: shares.append((share, stage)),
    )
    assert seen[0] == found[0].architecture
    assert refined.first_real == scorer(found[0].architecture)
    assert refined.real == scorer(refined.architecture)
    assert sign * refined.real <= sign * min((scorer(one) for one in seen), key=lambda real: sign * real) + 1e-12
    assert refined.evaluations == len(seen) == len(set(map(names_of, seen))) <= 40
    assert shares[-1] == (pytest.approx(len(seen) / 40), "scoring whole models")
    assert refined.check.holds
    assert refined.batch_size == found[0].batch_size
    total = sum(scores.score_of(layer, name) for layer, name in enumerate(names_of(refined.architecture)))
    assert refined.additive == pytest.approx(total)
    for architecture in seen:
        level, errors = (0.95, confidence.errors_are) if confidence else (0.5, "correlated")
        assert ttft_at(llama, names_of(architecture), refined.batch_size, level, errors) <= 0.03 * (1 + 1e-9)


def test_one_evaluation_is_the_best_of_the_search(llama):
    settings = SearchSettings(batch_sizes=(1,))
    costs = load(llama, limits=limits("max-memory=2.9GiB"))
    found = search_architectures(costs, llama.table, llama.scores, settings).found
    refined = refine_architectures(costs, llama.table, settings, found, lambda _: 5, evaluations=1)
    assert (refined.architecture, refined.real, refined.evaluations) == (found[0].architecture, 5.0, 1)


@pytest.mark.parametrize(
    ("scorer", "words"),
    [
        (lambda _: float("nan"), "the scorer returned nan"),
        (lambda _: "good", "the scorer failed on .*: could not convert"),
        (lambda _: 1 / 0, "the scorer failed on .*: division by zero"),
    ],
)
def test_a_scorer_that_fails(llama, scorer, words):
    settings = SearchSettings(batch_sizes=(1,))
    costs = load(llama)
    found = search_architectures(costs, llama.table, llama.scores, settings).found
    with pytest.raises(ValueError, match=words):
        refine_architectures(costs, llama.table, settings, found, scorer, evaluations=3)
    with pytest.raises(ValueError, match="there is no solution to refine"):
        refine_architectures(costs, llama.table, settings, [], scorer, evaluations=3)


def test_scorers_are_found_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    (tmp_path / "made_up_scorer.py").write_text("def score(architecture):\n    return 7.0\n\nlimit = 3\n")
    (tmp_path / "broken_scorer.py").write_text("raise RuntimeError('no data')\n")
    assert load_scorer("made_up_scorer:score")(None) == 7.0
    for name, words in (
        ("made_up_scorer", "'made_up_scorer' does not name a scorer; expected package.module:function"),
        (":score", "does not name a scorer"),
        ("made_up_scorer:", "does not name a scorer"),
        ("made_up_scorer:other", "cannot be loaded: .*has no attribute 'other'"),
        ("made_up_scorer:limit", "is not a function but int"),
        ("no_such_scorer:score", "cannot be loaded: No module named 'no_such_scorer'"),
        ("broken_scorer:score", "cannot be loaded: no data"),
        ("..made_up_scorer:score", "cannot be loaded"),
    ):
        with pytest.raises(ValueError, match=words):
            load_scorer(name)
    sys.modules.pop("made_up_scorer")
