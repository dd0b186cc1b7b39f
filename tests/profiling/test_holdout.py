"""Splits: every row on one side, whole sizes left out, the largest problems left out."""

import numpy as np
import pytest

from puzzlebench.profiling.holdout import beyond_split, random_split, whole_value_splits
from puzzlebench.profiling.kernel_features import DECODE_ATTENTION, GEMM, PREFILL_ATTENTION


def assert_parts(split, rows):
    assert sorted([*split.known, *split.held_out]) == list(range(rows))
    assert len(split.held_out)


def test_a_random_split_is_reproducible():
    split = random_split(1000, share=0.2, seed=1)
    assert_parts(split, 1000)
    assert 150 < len(split.held_out) < 250
    np.testing.assert_array_equal(split.held_out, random_split(1000, share=0.2, seed=1).held_out)
    assert set(split.held_out) != set(random_split(1000, share=0.2, seed=2).held_out)


def test_whole_gemm_sizes_leave_the_ends():
    m, n, k = (axis.ravel() for axis in np.meshgrid([1.0, 2.0], [8.0, 16.0, 32.0, 64.0], [4.0, 8.0, 12.0]))
    splits = list(whole_value_splits(GEMM, {"m": m, "n": n, "k": k}))
    assert [split.name for split in splits] == ["whole n", "whole n", "whole k"]
    assert set(n[splits[0].held_out]) == {16.0}
    assert 16.0 not in n[splits[0].known]
    for split in splits:
        assert_parts(split, len(m))


def test_whole_head_configurations_lie_between_others():
    heads = np.array([8.0, 16.0, 32.0, 8.0, 16.0, 64.0])
    kv_heads = np.array([4.0, 4.0, 4.0, 8.0, 8.0, 1.0])
    splits = list(whole_value_splits(DECODE_ATTENTION, {"heads": heads, "kv_heads": kv_heads}))
    assert [split.held_out.tolist() for split in splits] == [[1]]


@pytest.mark.parametrize(
    ("kind", "table", "held"),
    [
        (GEMM, {"m": [1.0, 64.0, 16.0, 17.0]}, [1, 3]),
        (PREFILL_ATTENTION, {"batch": [1.0, 2.0, 8.0], "seq_len": [64.0, 64.0, 64.0]}, [2]),
        (DECODE_ATTENTION, {"batch": [1.0, 4.0, 8.0], "context": [1024.0, 64.0, 64.0]}, [0, 2]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_beyond_holds_out_the_top_two_octaves(kind, table, held):
    split = beyond_split(kind, {name: np.array(values) for name, values in table.items()})
    assert split.held_out.tolist() == held
