"""Explanations: which limits clash, the nearest values, and relaxations that, typed in as printed, do."""

import pytest

from puzzlebench.searching.scenarios import ResourceLimit, join_limits, parse_limit
from puzzlebench.searching.search import Confidence, SearchSettings, search_architectures
from puzzlebench.searching.why_not import LimitEnd, why_not

from .conftest import limits, load
from .world import Judge, scored

SIZES = (1, 4, 16)


@pytest.fixture(scope="module")
def scores(llama):
    return scored(llama)


@pytest.fixture(scope="module")
def judge(llama, scores):
    return Judge(llama, scores, ["512+100"])


def as_typed(text):
    """The limit that a person reads in a relaxation: "ttft at most 20.1 ms"."""
    words = text.removesuffix(" with its margin").split()
    side = {"most": "max", "least": "min"}[words[2]]
    value = "".join(words[3:]).replace(",", "").replace("tokens/s", "")
    return parse_limit(f"{side}-{words[0]}", value)


def relaxed(found, batch_size=None):
    """The limits that do, as printed."""
    if batch_size is not None:
        return [as_typed(end.roomy_text) for end in found.batches[batch_size]]
    return [as_typed((one.relaxed or one.asked).roomy_text if one.relaxed else one.asked.text) for one in found.limits]


def test_one_limit_that_is_out_of_reach(llama, scores, judge):
    costs = load(llama, "512+100", scores=scores, limits=limits("max-memory=1GiB", "max-ttft=10s"))
    found = why_not(costs, SearchSettings(batch_sizes=SIZES))
    memory, ttft = sorted(found.limits, key=lambda one: one.asked.column)
    assert memory.asked == LimitEnd(column="memory", side="max", value=2.0**30, with_margin=False)
    assert (memory.clashes, ttft.clashes) == (True, False)
    least = judge.values(("no_op+no_op",) * 4, 1)["memory"]
    assert memory.alone == memory.with_others == memory.relaxed.value == pytest.approx(least)
    assert ttft.with_others is None
    assert ttft.relaxed is None
    assert found.batch_size == 1
    assert found.change == pytest.approx(least / 2**30 - 1)
    assert set(found.batches) == set(SIZES)
    assert found.errors_taken_as is None


@pytest.mark.parametrize(
    "asked",
    [
        ("max-memory=3GiB", "min-params=1.6B"),
        ("max-ttft=4ms", "min-throughput=9000", "min-params=1.5B"),
        ("min-memory=3.9GiB", "max-memory=4.2GiB", "max-ttft=1ms"),
        ("max-tpot=500us", "min-latency=200ms", "max-throughput=10000"),
    ],
)
@pytest.mark.parametrize(
    "confidence", [None, Confidence(level=0.95), Confidence(level=0.95, errors_are="independent")], ids=str
)
def test_what_is_said_to_do_does(llama, scores, judge, asked, confidence):
    costs = load(llama, "512+100", scores=scores, limits=limits(*asked))
    settings = SearchSettings(batch_sizes=SIZES, confidence=confidence)
    assert not search_architectures(costs, llama.table, scores, settings).found
    found = why_not(costs, settings)
    assert found.errors_taken_as == (confidence and "correlated")
    assert sum(one.clashes for one in found.limits) >= 1
    assert found.change > 0

    clash = [ResourceLimit(**as_fields(one.asked)) for one in found.limits if one.clashes]
    if confidence is None:  # the clash: at no batch size does anything keep it, and each is needed for that
        assert judge.best(SIZES, lambda names, size: judge.keeps(names, size, join_limits(clash))) is None
        for one in clash:
            rest = join_limits(other for other in clash if other != one)
            assert judge.best(SIZES, lambda names, size, rest=rest: judge.keeps(names, size, rest)) is not None

    moved = {(one.asked.column, one.asked.side) for one in found.limits if one.relaxed}
    assert moved == {(end.column, end.side) for end in found.batches[found.batch_size]}
    costs = costs.with_limits(join_limits(relaxed(found)))
    again = search_architectures(
        costs, llama.table, scores, SearchSettings(batch_sizes=(found.batch_size,), confidence=confidence)
    )
    assert again.found, "typed in as printed the relaxed limits can be kept"
    assert again.found[0].objective <= found.objective + 1e-9
    for one in found.limits:
        assert one.asked.with_margin == (confidence is not None and one.asked.column not in ("memory", "params"))
    for batch_size in SIZES[1:]:
        kept = {(limit.resource, "max" if limit.high else "min"): limit for limit in relaxed(found, batch_size)}
        ends = [kept.get((one.asked.column, one.asked.side), as_typed(one.asked.text)) for one in found.limits]
        costs = costs.with_limits(join_limits(ends))
        settings = SearchSettings(batch_sizes=(batch_size,), confidence=confidence)
        assert search_architectures(costs, llama.table, scores, settings).found


def as_fields(end):
    return {"resource": end.column, "high" if end.side == "max" else "low": end.value}


def test_nearest_values_are_those_of_every_architecture(llama, scores, judge):
    asked = limits("max-ttft=4ms", "min-throughput=9000", "min-params=1.5B")
    found = why_not(load(llama, "512+100", scores=scores, limits=asked), SearchSettings(batch_sizes=SIZES))
    for one in found.limits:
        others = join_limits(
            ResourceLimit(**as_fields(other.asked)) for other in found.limits if other.asked != one.asked
        )
        best = min if one.asked.side == "max" else max
        everything, keeping = [], []

        def keeps(names, size, column=one.asked.column, others=others, everything=everything, keeping=keeping):
            value = judge.values(names, size)[column]
            everything.append(value)
            if judge.keeps(names, size, others):
                keeping.append(value)
            return False

        judge.best(SIZES, keeps)
        assert one.alone == pytest.approx(best(everything))
        assert one.with_others == (pytest.approx(best(keeping)) if keeping else None)


def test_scenarios_are_named(llama, scores):
    asked = limits("max-memory=40GiB")
    costs = load(llama, "chat:512+100,max-ttft=1us", "long:1500+100,max-ttft=1us", scores=scores, limits=asked)
    found = why_not(costs, SearchSettings(batch_sizes=(4,)))
    assert {one.asked.text for one in found.limits} == {
        "ttft[chat] at most 1 us",
        "ttft[long] at most 1 us",
        "memory[chat] at most 40 GiB",
        "memory[long] at most 40 GiB",
    }
    assert sum(one.clashes for one in found.limits) == 1


def test_the_printed_value_gives_room():
    for side, value, text in (
        ("max", 1.97349 * 2**30, "memory at most 1.974 GiB"),
        ("min", 1.97351 * 2**30, "memory at least 1.973 GiB"),
    ):
        assert LimitEnd(column="memory", side=side, value=value, with_margin=False).roomy_text == text
    end = LimitEnd(column="ttft[chat]", side="max", value=0.8, with_margin=True)
    assert end.text == "ttft[chat] at most 800 ms with its margin"


def test_what_has_a_solution_has_no_explanation(llama, scores):
    with pytest.raises(ValueError, match="nothing to explain"):
        why_not(load(llama, scores=scores, limits=limits("max-memory=80GiB")), SearchSettings(batch_sizes=(1,)))
