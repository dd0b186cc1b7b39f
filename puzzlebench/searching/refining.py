"""Score whole architectures with a function of the user's and search around the best, within the limits."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from puzzlebench.model.blocks import Architecture
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.searching.costs import SearchCosts
from puzzlebench.searching.recheck import Recheck
from puzzlebench.searching.search import Found, SearchSettings, count_found, problem_around
from puzzlebench_search.problem import broken_limits, make_solution
from puzzlebench_search.refine import Evaluated, refine

ArchitectureScorer: TypeAlias = Callable[[Architecture], float]


@dataclass(frozen=True, kw_only=True)
class RefinedArchitecture:
    """The best architecture by the score of the whole.

    Attributes:
        additive: the sum of single scores.
        real: the score of the whole; `first_real` that of the search's best.
        evaluations: how many architectures were scored.
        stopped: why.
    """

    batch_size: int
    architecture: Architecture
    check: Recheck
    additive: float
    real: float
    first_real: float
    evaluations: int
    stopped: str


def load_scorer(name: str) -> ArchitectureScorer:
    """A function by its name, "package.module:function"; it takes an Architecture and returns a number.

    Modules in the current folder are found too.

    Raises:
        ValueError: there is no such module or function.
    """
    module, colon, function = name.partition(":")
    if not colon or not module or not function:
        raise ValueError(f"{name!r} does not name a scorer; expected package.module:function")
    if os.getcwd() not in sys.path:  # an installed command has its own folder there instead
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"the scorer {name!r} cannot be loaded: {error}") from None
    if not callable(found):
        raise ValueError(f"the scorer {name!r} is not a function but {type(found).__name__}")
    scorer: ArchitectureScorer = found
    return scorer


def refine_architectures(
    costs: SearchCosts,
    table: CostTable,
    settings: SearchSettings,
    found: Sequence[Found],
    scorer: ArchitectureScorer,
    *,
    evaluations: int,
    report: Callable[[float, str], None] | None = None,
) -> RefinedArchitecture:
    """Start from the solutions that were found at the best one's batch size.

    Limits hold with the confidence asked for; see `problem_around`.

    Raises:
        ValueError: nothing was found, or the scorer fails.
    """
    if not found:
        raise ValueError("there is no solution to refine")
    batch_size = found[0].batch_size
    problem = problem_around(costs, found[0], settings.confidence)
    places = {name: place for place, name in enumerate(problem.names)}
    starts = [
        make_solution(problem, [places[name] for name in one.choices])
        for one in found
        if one.batch_size == batch_size and all(name in places for name in one.choices)
    ]
    starts = [start for start in starts if not broken_limits(problem, start)]  # other cases count less workspace
    scored = itertools.count(1)

    def tell(_: Evaluated) -> None:
        if report is not None:
            report(next(scored) / evaluations, "scoring whole models")

    refined = refine(
        problem,
        starts,
        lambda choices: float(scorer(costs.architecture(problem, choices))),
        evaluations=evaluations,
        report=tell,
    )
    architecture = costs.architecture(problem, refined.best.choices)
    return RefinedArchitecture(
        batch_size=batch_size,
        architecture=architecture,
        check=count_found(costs, table, architecture, batch_size),
        additive=refined.best.objective,
        real=refined.real,
        first_real=refined.evaluated[0].real,
        evaluations=len(refined.evaluated),
        stopped=refined.stopped,
    )
