"""Exact searches, and the plain program in HiGHS beside them: `python -m puzzlebench_search.benchmark` has more."""

from __future__ import annotations

import pytest

from puzzlebench_search.benchmark import FAMILIES, format_table, time_instance
from puzzlebench_search.solve import solve


@pytest.mark.parametrize("layers", [80, 126])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_solve(benchmark, family: str, layers: int) -> None:
    problem = FAMILIES[family](layers, seed=0)
    result = benchmark.pedantic(lambda: solve(problem), rounds=5, warmup_rounds=1)
    assert result.outcome == "optimal"
    benchmark.extra_info |= {"choices_left": result.choices_left, "states": result.states}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_beside_highs(benchmark, family: str) -> None:
    timings = benchmark.pedantic(
        lambda: [time_instance(family, 80, seed, plain=["highs"], time_limit=30) for seed in range(3)], rounds=1
    )
    assert all(one.agree for one in timings)
    print("\n" + format_table(timings))
