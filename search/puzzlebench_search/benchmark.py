"""How long exact searches take, beside the plain program in HiGHS and CBC: `python -m puzzlebench_search.benchmark`.

Instances are generated (`instances`). All methods run one after the other in one process on each instance, and their
objectives are compared. The plain program is PuLP's with the gap set to 0; building it is in its time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from puzzlebench_search.instances import hard_instance, served_instance
from puzzlebench_search.milp import solve_milp
from puzzlebench_search.problem import Problem
from puzzlebench_search.solve import solve

FAMILIES: dict[str, Callable[..., Problem]] = {"served": served_instance, "hard": hard_instance}
PLAIN = ("highs", "cbc")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One instance.

    Attributes:
        seconds: of this package's search: the median of its repeats.
        spread: the fastest and the slowest of them.
        plain: seconds of each plain solver; at most the time limit.
        proven: which of them, and of ours, proved the optimum in that time.
        agree: whether all that did have the same objective.
    """

    family: str
    layers: int
    seed: int
    seconds: float
    spread: tuple[float, float]
    plain: dict[str, float]
    proven: dict[str, bool]
    agree: bool


def time_instance(
    family: str, layers: int, seed: int, *, repeats: int = 3, plain: Sequence[str] = PLAIN, time_limit: float = 60.0
) -> Timing:
    """Time all methods on one instance.

    Raises:
        ValueError: no such family.
    """
    if family not in FAMILIES:
        raise ValueError(f"no family is named {family!r}; there are {', '.join(FAMILIES)}")
    problem = FAMILIES[family](layers, seed=seed)
    ours = [solve(problem, time_limit=time_limit) for _ in range(repeats)]
    objectives, proven, seconds = [], {"ours": ours[0].outcome != "stopped"}, {}
    if ours[0].solution is not None:
        objectives.append(ours[0].solution.objective)
    for name in plain:
        started = time.perf_counter()
        found = solve_milp(problem, solver="highs" if name == "highs" else "cbc", time_limit=time_limit)
        seconds[name] = time.perf_counter() - started
        proven[name] = found.outcome != "stopped"
        if proven[name] and found.solution is not None:
            objectives.append(found.solution.objective)
    taken = [one.seconds for one in ours]
    return Timing(
        family=family,
        layers=layers,
        seed=seed,
        seconds=float(np.median(taken)),
        spread=(min(taken), max(taken)),
        plain=seconds,
        proven=proven,
        agree=bool(np.ptp(objectives) <= 1e-9 * max(1.0, abs(objectives[0]))) if objectives else True,
    )


def format_table(timings: Sequence[Timing]) -> str:
    """Rows side by side, and the median ratio of each family and size."""
    names = list(timings[0].plain)
    lines = [
        f"{'instance':<20}{'ours s':>9}{'spread':>16}" + "".join(f"{name + ' s':>10}{'ratio':>8}" for name in names)
    ]
    for one in timings:
        spread = f"{one.spread[0]:.3f}-{one.spread[1]:.3f}"
        line = f"{f'{one.family} {one.layers} #{one.seed}':<20}{_time(one, 'ours', one.seconds):>9}{spread:>16}"
        for name in names:
            line += f"{_time(one, name, one.plain[name]):>10}{one.plain[name] / one.seconds:>8.0f}"
        lines.append(line + ("" if one.agree else "  OBJECTIVES DIFFER"))
    for family, layers in dict.fromkeys((one.family, one.layers) for one in timings):
        group = [one for one in timings if (one.family, one.layers) == (family, layers)]
        median, worst = np.median([one.seconds for one in group]), max(one.seconds for one in group)
        line = f"{f'{family} {layers}':<20}{median:>9.3f}{f'worst {worst:.3f}':>16}"
        for name in names:
            ratio = np.median([one.plain[name] / one.seconds for one in group])
            line += f"{np.median([one.plain[name] for one in group]):>10.2f}{ratio:>8.0f}"
        lines.append(line)
    return "\n".join([*lines, "> the time limit passed before it was proven; ratios of medians count the limit"])


def _time(one: Timing, name: str, seconds: float) -> str:
    digits = f"{seconds:.3f}" if name == "ours" else f"{seconds:.2f}"
    return digits if one.proven[name] else f">{digits}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m puzzlebench_search.benchmark", description=__doc__)
    parser.add_argument("--families", default="served,hard", help="%(default)s")
    parser.add_argument("--layers", default="80,126", help="%(default)s")
    parser.add_argument("--seeds", type=int, default=8, help="instances of each (%(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="of ours (%(default)s)")
    parser.add_argument("--plain", default=",".join(PLAIN), help="%(default)s; none for ours alone")
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds for each solver (%(default)s)")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    plain = [] if parsed.plain == "none" else parsed.plain.split(",")
    timings = [
        time_instance(family, int(layers), seed, repeats=parsed.repeats, plain=plain, time_limit=parsed.time_limit)
        for family in parsed.families.split(",")
        for layers in parsed.layers.split(",")
        for seed in range(parsed.seeds)
    ]
    if parsed.json:
        print(json.dumps([asdict(one) for one in timings], indent=1))
        return
    print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}")
    print(format_table(timings))


if __name__ == "__main__":
    main()
