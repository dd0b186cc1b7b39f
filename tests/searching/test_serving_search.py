"""Searches under in-flight batching against every architecture tried, and what was found served by itself."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from puzzlebench.model.blocks import Architecture, parse_block
from puzzlebench.searching.costs import device_memory_limit
from puzzlebench.searching.recheck import recheck
from puzzlebench.searching.scenarios import parse_scenario
from puzzlebench.searching.search import SearchSettings, search_architectures
from puzzlebench.searching.serving_costs import ServedSpace
from puzzlebench.searching.serving_search import SETTLED, check_served, search_served
from puzzlebench.serving.workload import Scheduler

from .conftest import limits, load
from .world import Judge, names_of, scored

USERS = (4, 16, 64)
SMALL = Scheduler(max_num_tokens=2048, max_batch_size=64)  # fewer sizes to cost


@pytest.fixture(scope="module")
def scores(llama):
    return scored(llama)


@pytest.fixture(scope="module")
def spaces(llama, overheads):
    """By lengths; each costs its sub-blocks once."""
    known = {}

    def of(text):
        if text not in known:
            known[text] = ServedSpace(llama.table, parse_scenario(text), tensor_parallel=1, scheduler=SMALL)
        return known[text]

    return of


def loader(world, space, scores, asked):
    text = f"{space.scenario.prefill_len}+{space.scenario.decode_len}"
    return lambda table: load(world, text, table=table, scores=scores, limits=asked)


@pytest.mark.parametrize(
    "given",
    [
        ("min-throughput=20000",),
        ("max-tpot=1300us", "max-ttft=5ms"),
        ("max-ttft=6ms", "min-throughput=38000", "max-memory=5GiB"),
        ("max-memory=3GiB", "max-latency=300ms"),
        ("max-tpot=1us",),
    ],
)
def test_the_best_of_all_at_the_parents_points(llama, scores, spaces, given):
    space, asked = spaces("512+256"), limits(*given)
    table = space.table(space.points(llama.parent, USERS))
    costs = loader(llama, space, scores, asked)(table)
    outcome = search_architectures(costs, table, scores, SearchSettings(batch_sizes=USERS))
    judge = Judge(SimpleNamespace(table=table, spec=llama.spec), scores, ["512+256"])
    best = judge.best(USERS, lambda names, users: judge.keeps(names, users, asked))
    assert outcome.proven
    if best is None:
        assert not outcome.found
        return
    assert outcome.found[0].objective == pytest.approx(best)
    assert judge.keeps(names_of(outcome.found[0].architecture), outcome.found[0].batch_size, asked)


def search(world, space, scores, *given, users=USERS):
    asked = limits(*given)
    settings = SearchSettings(batch_sizes=users)
    found = search_served(space, loader(world, space, scores, asked), scores, settings)
    return found, asked


def test_what_is_found_keeps_its_limits_when_it_is_served(llama, scores, spaces):
    space = spaces("512+256")
    found, _ = search(llama, space, scores, "min-throughput=20000", "max-tpot=1500us")
    best = found.outcome.found[0]
    check = check_served(space, found.costs, best.architecture, best.batch_size)
    assert found.keeps
    assert check.keeps
    assert not check.broken
    assert {limit.column for limit in check.limits} == {"throughput", "tpot"}
    assert check.estimate.tpot_ms.value / 1e3 == pytest.approx(best.check.values["tpot"], rel=SETTLED)
    assert check.estimate.state.queue_ms == 0


@pytest.mark.parametrize("share", [0.7, 0.6, 0.5])
def test_the_search_goes_on_at_the_point_of_what_it_found(llama, scores, spaces, share):
    """Prompts take most of the time, so an architecture with cheaper ones settles elsewhere than its parent."""
    space = spaces("1500+24")
    (parent,) = space.points(llama.parent, [16])
    ttft = share * parent.estimate.ttft_ms.value
    found, asked = search(llama, space, scores, f"max-ttft={1e3 * ttft:.0f}us", users=(16,))
    assert len(found.moves) > 1
    best = found.outcome.found[0]
    (own,) = space.points(best.architecture, [16])
    assert found.keeps == (own.estimate.ttft_ms.value <= ttft * (1 + 1e-6))
    if found.settled:
        assert found.settings.batch_sizes == (16,)
        assert best.check.values["ttft"] == pytest.approx(own.estimate.ttft_ms.value / 1e3, rel=SETTLED)
        table = space.table([found.point])
        judge = Judge(SimpleNamespace(table=table, spec=llama.spec), scores, ["1500+24"])
        assert best.objective == pytest.approx(judge.best((16,), lambda names, users: judge.keeps(names, users, asked)))


@pytest.fixture
def bent(llama, spaces):
    """A space of made-up operating points, and what is added up at the parent's."""
    space = spaces("512+256")
    (point,) = space.points(llama.parent, [16])

    def added(architecture):
        return recheck(space.table([point]), llama.spec, architecture, [space.scenario], 16).values

    parent = added(llama.parent)

    class Bent:
        """Operating points that change by these factors of the time to first token, one after the other."""

        def __init__(self, *factors):
            self.scenario, self.table, self.factors = space.scenario, space.table, iter(factors)

        def points(self, architecture, concurrencies):
            assert concurrencies in ((16,), [16])
            factor, values = next(self.factors), added(architecture)
            own = {
                f"{name}_ms": getattr(point.estimate, f"{name}_ms").scaled(change * values[name] / parent[name])
                for name, change in (("ttft", factor), ("tpot", 1.0))
            }
            weights = {"ttft": factor * point.ttft, "fixed_ttft_ms": factor * point.fixed_ttft_ms}
            return [replace(point, estimate=replace(point.estimate, **own), **weights)]

    return SimpleNamespace(at=Bent, added=added)


def test_nothing_is_left_at_the_point_of_what_was_found(llama, scores, bent):
    """It is the answer then, and does not keep its limit."""
    quickest = bent.added(Architecture(blocks=(parse_block("no_op+no_op"),) * 4))["ttft"]
    found, _ = search(llama, bent.at(1, 2, 2), scores, f"max-ttft={1.2e6 * quickest:.0f}us", users=(16,))
    assert found.outcome.found
    assert not found.keeps
    assert not found.settled
    assert found.moves == (pytest.approx(1.0),)


def test_of_searches_that_go_in_circles_the_best_that_keeps_its_limits(llama, scores, bent):
    """At a point with quick prompts more may be chosen, which then turns out to have slow ones."""
    limit = 0.8 * bent.added(llama.parent)["ttft"]
    turns = (1, 0.8, 1.25, 0.8, 1.25, 0.8, 1.25)
    found, _ = search(llama, bent.at(*turns), scores, f"max-ttft={1e6 * limit:.0f}us", users=(16,))
    alone, _ = search(llama, bent.at(1, 1), scores, f"max-ttft={1e6 * limit:.0f}us", users=(16,))
    assert found.keeps
    assert not found.settled
    assert 1 < len(found.moves) <= 6
    assert alone.settled
    assert found.outcome.found[0].architecture == alone.outcome.found[0].architecture


def test_nothing_keeps_the_limits(llama, scores, spaces):
    found, _ = search(llama, spaces("512+256"), scores, "max-tpot=1us")
    assert not found.outcome.found
    assert found.point is None
    assert found.moves == ()
    assert not found.settled
    assert not found.keeps


def test_what_does_not_fit_is_not_served(llama, spaces, scores):
    space = spaces("512+256")
    costs = loader(llama, space, scores, limits("max-memory=500MiB"))(space.table(space.points(llama.parent, [1])))
    check = check_served(space, costs, llama.parent, 1)
    assert check.estimate is None
    assert "does not fit" in check.why_not
    assert not check.keeps
    assert check.broken == ()


def test_memory_that_the_search_allows_holds_all_users(llama, scores, spaces):
    """The tightest limit of memory under which the parent's blocks may be chosen: of it the cache has just enough."""
    roomy = replace(SMALL, max_batch_size=100)
    space = ServedSpace(llama.table, parse_scenario("512+256"), tensor_parallel=1, scheduler=roomy)
    table = space.table(space.points(llama.parent, [64]))
    judge = Judge(SimpleNamespace(table=table, spec=llama.spec), scores, ["512+256"])
    need = judge.values(names_of(llama.parent), 64)["memory"]
    costs = loader(llama, space, scores, limits(f"max-memory={need:.0f}"))(table)
    check = check_served(space, costs, llama.parent, 64)
    assert check.estimate.state.limit == "users"
    assert 64 <= check.estimate.state.slots < 70  # the cache, not the batch size
    assert check_served(space, costs, llama.parent, 75).estimate.state.limit == "cache"
    assert device_memory_limit(table, 0.9).high == pytest.approx(0.9 * space.gpu_memory_bytes, abs=1)
