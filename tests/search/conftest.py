"""Small problems for hypothesis, handed out by fixtures: test files are imported by path, not from one another."""

import numpy as np
import pytest
from hypothesis import strategies as st

from puzzlebench_search.baselines import ChoiceFacts
from puzzlebench_search.problem import Limit, Problem


@st.composite
def small_problems(draw, *, spans=False, most_layers=4, most_choices=4, most_resources=3, both_ends=True):
    """A few hundred combinations at most; scores and uses on a grid, so that ties and exact hits of a limit are common.

    Limits come from what some solution uses, a little tighter or looser: many problems are just feasible or just not.
    """
    layers = draw(st.integers(1, most_layers))
    counts = [draw(st.integers(1, most_choices)) for _ in range(layers)]
    place = [layer for layer, count in enumerate(counts) for _ in range(count)]
    total, resources = len(place), draw(st.integers(0, most_resources))
    score_unit = draw(st.sampled_from([1e-6, 0.125, 1.0, 1e6]))
    scores = score_unit * np.array(draw(st.lists(st.integers(-2, 9), min_size=total, max_size=total)), dtype=float)
    units = [draw(st.sampled_from([1e-3, 1.0, 1e9])) for _ in range(resources)]
    grid = draw(st.lists(st.integers(-1, 8), min_size=total * resources, max_size=total * resources))
    uses = np.array(grid, dtype=float).reshape(total, resources) * np.array(units)
    base = np.array([draw(st.integers(0, 5)) * unit for unit in units])
    lengths = [draw(st.integers(1, min(3, layers - layer))) if spans else 1 for layer in place]
    ends = np.array(place) + np.array(lengths)
    if ends.max() < layers:
        lengths[-1] = layers - place[-1]

    limits = []
    some = [draw(st.sampled_from([at for at, layer in enumerate(place) if layer == row])) for row in range(layers)]
    for column, unit in enumerate(units):
        middle = base[column] + uses[some, column].sum()
        high = middle + unit * draw(st.integers(-4, 4))
        low = high - unit * draw(st.integers(0, 8))
        kind = draw(st.sampled_from(["high", "low", "both", "none"] if both_ends else ["high", "none"]))
        if kind != "none":
            limits.append(
                Limit(
                    resource=f"r{column}",
                    high=high if kind != "low" else np.inf,
                    low=low if kind != "high" else -np.inf,
                )
            )
    return Problem(
        scores=scores,
        uses=uses,
        layers=np.array(place),
        spans=np.array(lengths),
        names=tuple(f"c{at}" for at in range(total)),
        resources=tuple(f"r{column}" for column in range(resources)),
        limits=tuple(limits),
        base=base,
        direction=draw(st.sampled_from(["minimise", "maximise"])),
    )


def served_facts(problem):
    """What the choices of a problem of `instances` are."""
    halves = [name.split("+") for name in problem.names]
    own = {(0, "kv8"), (1, "28672")}
    return ChoiceFacts(
        parent=np.array([half == ["kv8", "28672"] for half in halves]),
        no_op_or_parent=np.array(
            [all(part == "none" or (at, part) in own for at, part in enumerate(h)) for h in halves]
        ),
        dropped=np.array([half == ["none", "none"] for half in halves]),
        kind=problem.names,
        params=problem.uses[:, problem.column("params")],
    )


@pytest.fixture(scope="session")
def problems():
    """The strategy `small_problems`, to be drawn from through `st.data()`."""
    return small_problems


@pytest.fixture(scope="session")
def facts_of():
    return served_facts


@pytest.fixture
def tiny():
    """Two layers of three choices, less and less of a resource at a growing score; the parent's come first."""
    return Problem(
        scores=np.array([0.0, 1.0, 3.0, 0.0, 2.0, 5.0]),
        uses=np.array([[10.0], [6.0], [1.0], [10.0], [6.0], [1.0]]),
        layers=np.array([0, 0, 0, 1, 1, 1]),
        names=("full", "half", "none") * 2,
        resources=("memory",),
        limits=(Limit(resource="memory", high=13.0),),
    )
