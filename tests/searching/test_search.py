"""Searches against every architecture tried: limits, scenarios, rules, directions, confidence, diversity."""

import math
from types import SimpleNamespace

import pytest

from puzzlebench.model.engine_rules import load_engine_rules
from puzzlebench.searching import search as module
from puzzlebench.searching.layer_rules import parse_layer_rule
from puzzlebench.searching.scenarios import parse_scenario
from puzzlebench.searching.search import (
    Confidence,
    SearchSettings,
    parent_score,
    problem_around,
    search_architectures,
)
from puzzlebench_search.cases import CaseOutcome
from puzzlebench_search.problem import broken_limits, make_solution

from .conftest import edited, limits, load
from .world import Judge, names_of, scored, ttft_at

SIZES = (1, 4, 16)
TWO = ("a:512+100", "b:1500+700")


@pytest.fixture(scope="module")
def judges(llama):
    known = {}
    return {
        direction: SimpleNamespace(scores=scores, judge=Judge(llama, scores, TWO, known))
        for direction in ("minimise", "maximise")
        for scores in [scored(llama, direction=direction)]
    }


def search(costs, world, scores, **settings):
    return search_architectures(costs, world.table, scores, SearchSettings(batch_sizes=SIZES, **settings))


def check_found(world, scores, outcome, judge, given, scenarios):
    best = outcome.found[0]
    names = names_of(best.architecture)
    assert best.check.holds
    assert judge.keeps(names, best.batch_size, given, scenarios)
    assert best.choices == tuple(f"{layer}:{name}" for layer, name in enumerate(names))
    expected = math.fsum(scores.score_of(layer, name) for layer, name in enumerate(names))
    assert best.objective == pytest.approx(expected)
    assert best.check.values == judge.values(names, best.batch_size)
    assert outcome.proven
    assert outcome.best_proven
    assert outcome.gap == 0
    assert outcome.bound == pytest.approx(best.objective)


@pytest.mark.parametrize("direction", ["minimise", "maximise"])
@pytest.mark.parametrize(
    ("given", "own"),
    [
        (("max-memory=3.6GiB", "min-throughput=3000"), ("", "")),
        (("max-memory=3.2GiB", "min-throughput=2500"), ("", "")),
        (("max-memory=5GiB", "min-params=1.4B"), (",max-ttft=60ms,min-throughput=3500", "")),
        (("max-params=1.6B", "max-latency=2s"), (",max-ttft=20ms,max-memory=3GiB", ",min-throughput=500")),
        (("min-memory=3.4GiB", "max-memory=5GiB", "max-params=1.7B"), ("", ",max-tpot=3ms")),
        (("min-ttft=30ms", "max-throughput=5000"), ("", "")),
        (("min-ttft=30ms", "max-throughput=3000"), ("", "")),
    ],
)
def test_the_best_of_all(llama, judges, direction, given, own):
    one = judges[direction]
    texts = [text + more for text, more in zip(TWO, own, strict=True)]
    scenarios, asked = [parse_scenario(text) for text in texts], limits(*given)
    costs = load(llama, *texts, scores=one.scores, limits=asked)
    outcome = search(costs, llama, one.scores)
    best = one.judge.best(SIZES, lambda names, size: one.judge.keeps(names, size, asked, scenarios))
    if best is None:
        assert not outcome.found
        assert outcome.proven
        assert outcome.gap is None
        return
    check_found(llama, one.scores, outcome, one.judge, asked, scenarios)
    assert outcome.found[0].objective == pytest.approx(best)
    for batch in outcome.batches:
        alone = one.judge.best((batch.batch_size,), lambda names, size: one.judge.keeps(names, size, asked, scenarios))
        assert alone is None or batch.status != "infeasible"
        if alone is None:
            continue
        worse = 1 if direction == "minimise" else -1
        assert worse * batch.bound <= worse * alone + 1e-9, "a bound that a solution beats"
        if batch.status in ("best", "solved"):
            assert batch.bound == pytest.approx(alone)


@pytest.mark.parametrize(
    ("fixes", "exclusions", "engine", "allowed"),
    [
        (["0-1=parent"], [], None, lambda layer, name: layer > 1 or name == "gqa_8+mlp_14336"),
        (["2=gqa_*+*"], ["*=*+linear"], None, lambda layer, name: (layer != 2 or "gqa" in name) and "+l" not in name),
        ([], [], "vllm", lambda layer, name: "linear" not in name and not (layer == 0 and "no_op+" in name)),
        ([], ["1-3=no_op+*"], "vllm", lambda layer, name: "linear" not in name and "no_op+" not in name),
    ],
)
def test_rules(llama, judges, fixes, exclusions, engine, allowed):
    one, asked = judges["minimise"], limits("max-memory=3.4GiB", "max-ttft=150ms")
    costs = load(
        llama,
        *TWO,
        scores=one.scores,
        limits=asked,
        fixes=[parse_layer_rule(text) for text in fixes],
        exclusions=[parse_layer_rule(text) for text in exclusions],
        engine_rules=load_engine_rules(engine) if engine else None,
    )
    outcome = search(costs, llama, one.scores)
    best = one.judge.best(SIZES, lambda names, size: one.judge.keeps(names, size, asked), allowed)
    if best is None:
        assert not outcome.found
        return
    assert outcome.found[0].objective == pytest.approx(best)
    names = names_of(outcome.found[0].architecture)
    assert all(allowed(layer, name) for layer, name in enumerate(names))


def test_workspace_counts_only_what_is_chosen(llama, judges):
    """A limit of memory that only holds because linear needs less workspace than the parent's blocks."""
    one = judges["minimise"]
    names = ("gqa_2+linear",) * 4
    need = one.judge.values(names, 16)["memory[b]"]
    asked = limits(f"max-memory={need:.0f}", "min-params=1.1B")
    outcome = search(load(llama, *TWO, scores=one.scores, limits=asked), llama, one.scores)
    best = one.judge.best(SIZES, lambda chosen, size: one.judge.keeps(chosen, size, asked))
    assert outcome.found[0].objective == pytest.approx(best)


@pytest.mark.parametrize("level", [0.6, 0.95, 0.999])
@pytest.mark.parametrize("errors", ["correlated", "independent"])
@pytest.mark.parametrize("direction", ["minimise", "maximise"])
def test_confidence(llama, judges, direction, errors, level):
    scores = judges[direction].scores
    judge = judges[direction].judge
    parent = names_of(llama.parent)
    high = 0.8 * ttft_at(llama, parent, 4, 0.9, "independent")
    low = 0.5 * high
    asked = limits(f"max-ttft={high * 1e6}us", f"min-ttft={low * 1e6}us")
    costs = load(llama, "512+1", scores=scores, limits=asked)
    confidence = Confidence(level=level, errors_are=errors)
    outcome = search_architectures(costs, llama.table, scores, SearchSettings(batch_sizes=(4,), confidence=confidence))

    def keeps(names, size):
        return ttft_at(llama, names, size, level, errors) <= high * (1 + 1e-9) and ttft_at(
            llama, names, size, level, errors, sign=-1
        ) >= low * (1 - 1e-9)

    best = judge.best((4,), keeps)
    found = outcome.found[0]
    names = names_of(found.architecture)
    assert found.objective == pytest.approx(best)
    assert keeps(names, 4)
    assert found.at_confidence == {
        ("ttft", "high"): pytest.approx(ttft_at(llama, names, 4, level, errors), rel=1e-6),
        ("ttft", "low"): pytest.approx(ttft_at(llama, names, 4, level, errors, sign=-1), rel=1e-6),
    }
    free = judge.best(
        (4,), lambda names, size: low <= ttft_at(llama, names, size, 0.5, "correlated") <= high * (1 + 1e-9)
    )
    assert outcome.price >= 0
    assert outcome.price == pytest.approx(abs(found.objective - free), abs=1e-9)


def test_confidence_in_throughput_is_of_its_low_end(llama, judges):
    scores = judges["minimise"].scores
    costs = load(llama, *TWO, scores=scores, limits=limits("min-throughput=1000"))
    outcome = search(costs, llama, scores, confidence=Confidence(level=0.95, errors_are="independent"))
    found = outcome.found[0]
    for column in ("throughput[a]", "throughput[b]"):
        assert 1000 <= found.at_confidence[column, "low"] < found.check.values[column]
    assert set(found.at_confidence) == {("throughput[a]", "low"), ("throughput[b]", "low")}


@pytest.mark.parametrize("errors", ["correlated", "independent", None])
def test_the_problem_around_a_solution_keeps_its_limits_and_admits_nothing_else(llama, judges, errors):
    scores = judges["minimise"].scores
    high = 0.75 * ttft_at(llama, names_of(llama.parent), 4, 0.9, "independent")
    costs = load(llama, "512+1", scores=scores, limits=limits(f"max-ttft={high * 1e6}us", "max-memory=3.3GiB"))
    confidence = errors and Confidence(level=0.95, errors_are=errors)
    found = search(costs, llama, scores, confidence=confidence).found[0]
    problem = problem_around(costs, found, confidence)
    places = {name: place for place, name in enumerate(problem.names)}
    own = make_solution(problem, [places[name] for name in found.choices])
    assert not broken_limits(problem, own)
    checked = 0
    for changed in problem.names:
        layer = int(changed.partition(":")[0])
        names = [*found.choices[:layer], changed, *found.choices[layer + 1 :]]
        if not broken_limits(problem, make_solution(problem, [places[name] for name in names])):
            blocks = [name.partition(":")[2] for name in names]
            kind = errors or "correlated"
            assert ttft_at(llama, blocks, found.batch_size, 0.95 if errors else 0.5, kind) <= high * (1 + 1e-9)
            checked += 1
    assert checked


def test_diverse_solutions_differ_and_get_no_better(llama, judges):
    one, asked = judges["minimise"], limits("max-memory=4GiB")
    costs = load(llama, *TWO, scores=one.scores, limits=asked)
    outcome = search(costs, llama, one.scores, diverse=3, alpha=0.5)
    assert len(outcome.found) == outcome.wanted == 3
    for place, found in enumerate(outcome.found):
        names = names_of(found.architecture)
        shared = tuple(sum(map(str.__eq__, names, names_of(other.architecture))) for other in outcome.found[:place])
        assert found.shared == shared
        assert all(count <= 2 for count in shared)
    first = names_of(outcome.found[0].architecture)
    second = one.judge.best(
        SIZES,
        lambda names, size: sum(map(str.__eq__, names, first)) <= 2 and one.judge.keeps(names, size, asked),
    )
    assert outcome.found[1].objective == pytest.approx(second)
    assert [found.objective for found in outcome.found] == sorted(found.objective for found in outcome.found)


def test_fewer_solutions_than_asked_for(llama):
    scores = scored(llama, ["gqa_8+mlp_14336", "no_op+no_op"])
    outcome = search(load(llama, scores=scores), llama, scores, diverse=4, alpha=0.0)
    assert (len(outcome.found), outcome.wanted, outcome.proven) == (2, 4, True)


def test_gains_are_of_limits_that_bind(llama, judges):
    scores = judges["minimise"].scores
    costs = load(llama, scores=scores, limits=limits("max-params=1.5B", "max-memory=80GiB"))
    outcome = search(costs, llama, scores)
    assert set(outcome.found[0].gains) == {"params"}
    assert outcome.found[0].gains["params"] < 0, "more room lowers the score, which is good"
    upwards = judges["maximise"].scores
    found = search(load(llama, scores=upwards, limits=limits("max-params=1.5B")), llama, upwards).found[0]
    assert found.gains["params"] > 0


def test_the_parent_is_found_where_it_fits(llama):
    outcome = search(load(llama, limits=limits("max-memory=80GiB")), llama, llama.scores)
    assert outcome.found[0].architecture == llama.parent
    assert outcome.found[0].objective == outcome.parent_score == parent_score(llama.scores) == 0


def test_windows_and_two_gpus(gemma):
    asked = limits("max-params=1.5B", "max-memory=80GiB")
    outcome = search(load(gemma, limits=asked), gemma, gemma.scores)
    assert outcome.found[0].check.holds
    assert 0 < outcome.found[0].objective <= 1.4e9
    assert [block.attention.sliding_window is None for block in gemma.parent.blocks] == [False, True] * 2


def test_a_batch_size_shows_its_best_case_and_what_was_stopped():
    cases = [SimpleNamespace(batch_size=size) for size in (1, 1, 1, 4, 4, 16, 16, 32)]
    statuses = [
        ("infeasible", math.inf),
        ("skipped", 7.0),
        ("skipped", 5.0),
        ("solved", 4.0),
        ("skipped", 3.5),
        ("best", 3.0),
        ("stopped", 2.0),
        ("infeasible", 1.0),
    ]
    outcomes = [CaseOutcome(status=status, bound=bound) for status, bound in statuses]
    found = module._by_batch(cases, outcomes, 1.0, 100.0)
    assert [(one.batch_size, one.status, one.bound) for one in found] == [
        (1, "skipped", 5.0),
        (4, "skipped", 3.5),
        (16, "best", 2.0),
        (32, "infeasible", math.inf),
    ]
    upwards = [CaseOutcome(status=status, bound=-bound) for status, bound in statuses]
    assert [one.bound for one in module._by_batch(cases, upwards, -1.0, 100.0)] == [-5.0, -3.5, -2.0, -math.inf]
    tight = module._by_batch(cases, outcomes, 1.0, 4.5)
    assert [(one.status, one.bound) for one in tight][:2] == [("infeasible", math.inf), ("skipped", 3.5)]


def test_a_search_that_is_stopped_says_how_far_it_may_be_off(llama, judges, monkeypatch):
    scores = judges["minimise"].scores
    real = module.solve_cases

    def stopped(problems, **options):
        from dataclasses import replace

        result = real(problems, **options)
        outcomes = [replace(result.outcomes[0], status="stopped", bound=0.25), *result.outcomes[1:]]
        return replace(result, outcomes=tuple(outcomes))

    monkeypatch.setattr(module, "solve_cases", stopped)
    outcome = search(load(llama, scores=scores, limits=limits("max-params=1.5B")), llama, scores)
    assert not outcome.proven
    assert not outcome.best_proven
    assert outcome.bound == 0.25
    assert outcome.gap == pytest.approx((outcome.found[0].objective - 0.25) / outcome.found[0].objective)


def test_a_missing_cell_at_one_batch_size(llama):
    table = edited(
        llama.table,
        lambda frame: frame.query("not (sub_block == 'gqa_8' and phase == 'decode' and batch_size == 16)"),
    )
    costs = load(llama, "512+100", table=table)
    words = (
        r"layer 0, gqa_8\+mlp_14336: the cost table has no cell for attention gqa_8, decode, batch 16, length .*; "
        "or leave batch size 16 out with --batch-size"
    )
    with pytest.raises(ValueError, match=words):
        search_architectures(costs, table, llama.scores, SearchSettings(batch_sizes=SIZES))
    assert search_architectures(costs, table, llama.scores, SearchSettings(batch_sizes=(1, 4))).found


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_sizes": ()}, "give at least one batch size"),
        ({"diverse": 0}, "the number of solutions must be at least 1, not 0"),
        ({"alpha": 1.0}, r"alpha must be at least 0 and below 1, not 1\.0"),
        ({"alpha": -0.1}, "alpha must be"),
        ({"alpha": math.nan}, "alpha must be"),
        ({"time_limit": 0.0}, r"the time limit must be a number of seconds above 0, not 0\.0"),
        ({"time_limit": math.nan}, "the time limit must be"),
        ({"time_limit": math.inf}, "the time limit must be"),
    ],
)
def test_settings_that_are_not_possible(settings, words):
    with pytest.raises(ValueError, match=words):
        SearchSettings(**{"batch_sizes": SIZES} | settings)


def test_progress_is_reported(llama):
    seen = []
    search_architectures(
        load(llama),
        llama.table,
        llama.scores,
        SearchSettings(batch_sizes=SIZES, diverse=2),
        report=lambda share, stage: seen.append((share, stage)),
    )
    assert {stage for _, stage in seen} == {"solution 1 of 2", "solution 2 of 2"}
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)
    assert 0 < seen[0][0] <= seen[-1][0] <= 1
