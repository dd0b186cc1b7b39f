"""The paper's models at their best number of users."""

import math

import pytest

from puzzlebench.estimate import Interval
from puzzlebench.validation import paper, tables
from puzzlebench.validation.paper import PaperPoint, PaperRow, best_point, best_rows, ratio


def point(value, users=8):
    return PaperPoint(users=users, tokens_per_s=Interval(value=value, low=0.9 * value, high=1.1 * value), tpot_ms=20.0)


def row(tensor_parallel, parent, child, lengths=(128, 1024)):
    return PaperRow(
        prefill_len=lengths[0],
        decode_len=lengths[1],
        tensor_parallel=tensor_parallel,
        parent=None if parent is None else point(parent),
        child=None if child is None else point(child),
    )


def test_a_ratio_is_of_the_same_gpus_and_a_best_ratio_of_each_model_s_best():
    rows = [row(1, 100.0, 600.0), row(2, 300.0, 500.0), row(4, 200.0, 400.0), row(1, 1.0, 1.0, lengths=(128, 128))]
    alone = ratio(rows[0].child, rows[0].parent)
    assert alone.value == pytest.approx(6.0)
    assert alone.high == pytest.approx(6.0 * math.exp(math.sqrt(2) * math.log(1.1)))
    assert alone.low * alone.high == pytest.approx(36.0)
    parent, child = best_rows(rows, (128, 1024))
    assert (parent.tensor_parallel, child.tensor_parallel) == (2, 1)


def test_a_model_that_does_not_fit_has_no_ratio_and_is_said_not_to_fit():
    rows = [row(1, None, 600.0), row(2, 300.0, 500.0)]
    assert ratio(rows[0].child, rows[0].parent) is None
    assert best_rows(rows, (128, 1024)) == (rows[1], rows[0])
    cells = tables.paper_table(rows).rows
    assert cells[0] == ("128/1024", "1", "", "does not fit", "8", "600 (540 to 660)", "")
    assert cells[1][-1] == "1.67 (1.46 to 1.91)"
    with pytest.raises(ValueError, match="fits on none"):
        best_rows(rows[:1], (128, 1024))


def test_the_published_ratio_stands_beside_where_there_is_one():
    rows = [row(1, 300.0, 600.0), row(1, 300.0, 600.0, lengths=(128, 128))]
    text, chat = tables.paper_best_table(rows).rows
    assert text[-3:] == ("2,975", "6,472", "2.18")
    assert chat[-3:] == ("", "", "")


def test_the_child_serves_more_users_than_the_parent_on_one_gpu():
    parent, child = (best_point(model, 128, 128, 1) for model in (paper.PARENT, paper.CHILD))
    assert child.users > parent.users
    assert child.tokens_per_s.value > 1.5 * parent.tokens_per_s.value
    assert parent.tokens_per_s.low < parent.tokens_per_s.value < parent.tokens_per_s.high


def test_a_model_too_large_for_one_gpu_is_none(monkeypatch):
    monkeypatch.setattr(paper, "GPU", "l40s")
    assert best_point(paper.PARENT, 128, 128, 1) is None
