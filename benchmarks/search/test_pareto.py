"""A front of Llama-3.1-70B on an H100: 20 budgets, the best of 16 batch sizes for each, every amount of workspace.

Costs are a kernel table's; scores are made up as `puzzlebench_search.instances` does.
"""

from __future__ import annotations

import numpy as np
import pytest

from puzzlebench.model.catalog import load_model
from puzzlebench.model.space import default_space
from puzzlebench.profiling.profile import Grid, build_cost_table
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.scenario import Precision
from puzzlebench.scores import ScoreTable, parameter_scores
from puzzlebench.searching.costs import load_costs
from puzzlebench.searching.pareto import pareto
from puzzlebench.searching.scenarios import join_limits, parse_limit, parse_scenario

BATCH_SIZES = tuple(range(8, 129, 8))


@pytest.mark.parametrize("x", ["throughput", "memory"])
def test_front(benchmark, x: str) -> None:
    spec, architecture = load_model("llama-3.1-70b")
    gpu, kernels = open_kernels("h100")
    space = default_space(spec, architecture)
    grid = Grid(batch_sizes=BATCH_SIZES, prefill_lens=(2048,), context_lens=(2048, 4096))
    table = build_cost_table(kernels, gpu, spec, space, Precision(weight_dtype="fp8", kv_dtype="fp8"), grid)
    scores = _made_up(parameter_scores(spec, space, architecture))
    limits = join_limits([parse_limit("max-memory", "80GiB")])
    costs = load_costs(table, scores, [parse_scenario("2048+512")], limits=limits)
    front = benchmark.pedantic(lambda: pareto(costs, BATCH_SIZES, x, "score", table=table, points=20), rounds=3)
    assert front.proven
    benchmark.extra_info["points"] = len(front.points)
    print(f"\n{x} and score: {len(front.points)} points in {front.seconds:.1f} s")


def _made_up(proxy: ScoreTable) -> ScoreTable:
    """Scores that grow with what is taken away, by a sensitivity of each layer, and noise."""
    rng = np.random.default_rng(0)
    frame = proxy.frame.copy()
    taken = frame["score"] / frame["score"].max()
    sensitivity = rng.lognormal(0, 0.7, proxy.num_layers)
    frame["score"] = 0.05 * sensitivity[frame["layer"]] * taken**1.3 * rng.lognormal(0, 0.15, len(frame))
    return ScoreTable(frame=frame, metadata={**proxy.metadata, "metric": "made up", "source": "made up"})
