"""Two tables of the same cells: what counts as the same within their intervals."""

from dataclasses import replace

import numpy as np
import pytest

from puzzlebench.measuring.agreement import agreement
from puzzlebench.model.space import default_space
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.profiling.profile import Grid, build_cost_table
from puzzlebench.scenario import Precision


@pytest.fixture(scope="module")
def table(h100_kernels, h100, llama_8b):
    spec, architecture = llama_8b
    grid = Grid(batch_sizes=(1, 8), prefill_lens=(256,), context_lens=(256, 1024))
    built = build_cost_table(h100_kernels, h100, spec, default_space(spec, architecture), Precision(), grid)
    frame = built.frame.assign(
        latency_low_us=built.frame["latency_us"] * 0.98, latency_high_us=built.frame["latency_us"] * 1.05
    )
    return CostTable(frame=frame, metadata=built.metadata)


def times(table, factor, rows=slice(None)):
    """The table with the latencies of some of its busy rows multiplied, intervals too."""
    frame = table.frame.copy()
    busy = frame.index[frame["latency_us"] > 0][rows]
    names = ["latency_us", "latency_low_us", "latency_high_us"]
    frame.loc[busy, names] = frame.loc[busy, names] * factor
    return replace(table, frame=frame)


def test_a_table_agrees_with_itself(table):
    found = agreement(table, table)
    assert found.cells == (table.frame["latency_us"] > 0).sum() < len(table.frame)
    assert (found.agree, found.shift, found.median_difference, found.p90_difference) == (1, 0, 0, 0)
    assert found.median_interval == pytest.approx(0.035)


def test_cells_that_doubled_do_not(table):
    cells = agreement(table, table).cells
    found = agreement(table, times(table, 2.0, slice(0, 7)))
    assert found.agree == pytest.approx(1 - 7 / cells)
    assert found.shift == 0
    found = agreement(times(table, 2.0), table)
    assert found.agree == 0
    assert found.shift == found.median_difference * -1 == pytest.approx(-np.log(2))


def test_the_ends_that_face_each_other_count(table):
    """Up by less than hypot(5 %, 2 %) agrees; the other way round it is the same comparison."""
    up, down = np.hypot(np.log(1.05), np.log(1 / 0.98)), np.hypot(np.log(1 / 0.98), np.log(1.05))
    assert up == down
    for factor in (np.exp(0.99 * up), np.exp(-0.99 * up)):
        assert agreement(table, times(table, factor)).agree == 1
    for factor in (np.exp(1.01 * up), np.exp(-1.01 * up)):
        assert agreement(table, times(table, factor)).agree == 0


def test_one_sided_intervals(table):
    """First only upwards, second not at all: what is above agrees, what is below does not."""
    frame = table.frame
    first = replace(table, frame=frame.assign(latency_low_us=frame["latency_us"]))
    exact = replace(table, frame=frame.assign(latency_low_us=frame["latency_us"], latency_high_us=frame["latency_us"]))
    assert agreement(first, times(exact, 1.04)).agree == 1
    assert agreement(first, times(exact, 0.96)).agree == 0
    assert agreement(times(exact, 1.04), first).agree == 1
    assert agreement(times(exact, 0.96), first).agree == 0


def test_only_common_cells_count(table):
    half = replace(table, frame=table.frame[table.frame["phase"] == "decode"])
    busy = half.frame[half.frame["latency_us"] > 0]
    assert agreement(table, half).cells == agreement(half, table).cells == len(busy)


@pytest.mark.parametrize(("column", "value"), [("gpu", "h200_sxm"), ("engine", "torch"), ("engine_version", "9")])
def test_tables_of_other_things_are_refused(table, column, value):
    other = replace(table, frame=table.frame.assign(**{column: value}))
    with pytest.raises(ValueError, match="the two tables have no cell in common"):
        agreement(table, other)


def test_no_ops_alone_are_nothing_in_common(table):
    idle = replace(table, frame=table.frame[table.frame["sub_block"] == "no_op"])
    with pytest.raises(ValueError, match="no cell in common"):
        agreement(table, idle)
