"""Baselines: all of them, under the same limits, none better than the search."""

import pytest

from puzzlebench.searching.compare import choice_facts, compare
from puzzlebench.searching.search import Confidence, SearchSettings, problem_around, search_architectures
from puzzlebench_search.baselines import BASELINES
from puzzlebench_search.problem import broken_limits, make_solution

from .conftest import limits, load, places
from .world import scored

CONFIDENCES = [None, Confidence(level=0.95), Confidence(level=0.95, errors_are="independent")]


@pytest.mark.parametrize("confidence", CONFIDENCES, ids=str)
@pytest.mark.parametrize("direction", ["minimise", "maximise"])
@pytest.mark.parametrize("asked", [("max-memory=3.2GiB", "min-throughput=2500"), ("max-ttft=12ms",)])
def test_none_beats_the_search(llama, direction, confidence, asked):
    scores = scored(llama, direction=direction)
    costs = load(llama, "512+100", scores=scores, limits=limits(*asked))
    settings = SearchSettings(batch_sizes=(1, 4), confidence=confidence)
    found = search_architectures(costs, llama.table, scores, settings).found[0]
    rows = compare(costs, llama.parent, settings, found, samples=20)
    assert [row.name for row in rows] == list(BASELINES)
    sign = 1 if direction == "minimise" else -1
    for row in rows:
        assert (row.worse_by is None) == (row.objective is None)
        if row.objective is not None:
            assert row.worse_by == pytest.approx(sign * (row.objective - found.objective))
            assert row.worse_by >= -1e-9
        assert row.note
    assert sum(row.objective is not None for row in rows) >= 2


def test_the_case_is_one_that_the_solution_keeps_its_limits_in(llama):
    """Its own memory is the limit, so that with the workspace of larger cases it would break it."""
    scores = scored(llama, ["gqa_8+mlp_14336", "gqa_2+linear", "linear+no_op"])
    costs = load(llama, "2048+100", scores=scores, limits=limits("max-params=1.2B"))
    settings = SearchSettings(batch_sizes=(16,))
    need = search_architectures(costs, llama.table, scores, settings).found[0].check.values["memory"]
    costs = costs.with_limits(limits(f"max-memory={need:.0f}"))
    found = search_architectures(costs, llama.table, scores, settings).found[0]
    holding = [case.problem for case in costs.cases(16) if set(found.choices) <= set(case.problem.names)]
    kept = [not broken_limits(one, make_solution(one, places(one, found.architecture))) for one in holding]
    assert kept[0] is False, "the case with most workspace is not its own"
    assert problem_around(costs, found, None).names == holding[kept.index(True)].names
    assert all(row.worse_by is None or row.worse_by >= 0 for row in compare(costs, llama.parent, settings, found))


def test_facts_of_choices(llama):
    problem = load(llama).cases(1)[0].problem
    facts = choice_facts(problem, llama.spec, llama.parent)
    assert facts.parent.sum() == 4
    assert facts.dropped.sum() == 4
    assert facts.no_op_or_parent.sum() == 16
    place = problem.names.index("2:gqa_8+no_op")
    assert (facts.kind[place], bool(facts.no_op_or_parent[place]), bool(facts.dropped[place])) == (
        "gqa_8+no_op",
        True,
        False,
    )
    assert facts.params[place] == 4096 * 128 * (2 * 32 + 2 * 8) + 4096
