"""Held-out errors and the generated report."""

import re
import sys

import numpy as np
import pytest

from puzzlebench.profiling import transfer_error as transfer
from puzzlebench.validation import held_out, report
from puzzlebench.validation.held_out import ErrorSummary, held_out_errors, repeat_error
from puzzlebench.validation.serving import errors_by_engine, serving_errors


@pytest.fixture(scope="module")
def one_slice():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held_out, "SLICES", (("decode_attention", ("fp8",)),))
        return held_out_errors("h100_sxm", "trtllm", share=0.1)


def test_error_summary_of_known_errors():
    summary = ErrorSummary.of(np.array([-0.1, 0.02, 0.03]), np.array([False, True, True]))
    assert summary.count == 3
    assert summary.median == pytest.approx(3.0)
    assert summary.p90 == pytest.approx(3 + 0.8 * 7)
    assert summary.bias == pytest.approx(2.0)
    assert summary.coverage == pytest.approx(2 / 3)


def test_every_kind_of_split_is_reported_and_small(one_slice):
    assert {row.split for row in one_slice} == {"random 20%", "beyond the range", "whole head configuration"}
    for row in one_slice:
        assert row.error.count >= 20
        assert row.error.median < 5
        assert row.error.coverage > 0.7


def test_held_out_rows_are_not_answered_verbatim(one_slice):
    assert min(row.error.median for row in one_slice) > 0.01


def test_repeats_compare_the_same_shapes():
    apart = repeat_error("h100_sxm", "trtllm", "vllm")
    assert apart is not None
    assert apart.count > 30_000
    assert 1 < apart.median < 6
    assert repeat_error("h100_sxm", "trtllm", "trtllm").p90 == 0
    assert repeat_error("h100_sxm", "trtllm", "no such engine") is None


def test_a_gpu_is_predicted_from_another_one():
    error = transfer.transfer_error("h100_sxm", "decode_attention", ("fp8",), rows=300)
    assert error.donor == "h200_sxm"
    assert error.same_architecture
    assert np.median(np.abs(error.log_error)) < 0.05
    assert transfer.transfer_error("a100_sxm", "gemm", ("fp8",), rows=300) is None


def test_the_report_fills_its_template(tmp_path, one_slice, predictions, capsys):
    made = report.Report(
        gpu="h100_sxm",
        engine="trtllm",
        created="2026-01-01",
        held_out=one_slice,
        interpolated=one_slice,
        falls=[],
        repeats={"vllm": ErrorSummary.of(np.array([0.01, 0.02]))},
        transfer=[],
        predicted=predictions,
        serving=serving_errors(predictions),
        residuals=errors_by_engine(predictions, ("users",)),
        unused=[],
        published=[],
        paper=[],
    )
    path = tmp_path / "accuracy.md"
    report.write_report(made, path)
    text = path.read_text()
    assert not re.search(r"\{\w+\}", text)
    assert "| decode_attention | fp8 | whole head configuration |" in text
    assert "| time per output token | benchmark replayed | develop | 4 | 5.00 |" in text
    assert "](accuracy-serving.svg)" in text
    assert "**0 % of the report half, not 90 %.**" in text
    assert "| all | all | all | TPOT median, TPOT p90, TPOT inside, throughput median, throughput p90" in text
    assert (tmp_path / "accuracy-serving.svg").read_text().startswith("<?xml")
    report.print_report(made)
    assert "whole head" in capsys.readouterr().out  # narrow terminals break the cell
    with pytest.raises(ValueError, match="cannot write"):
        report.write_report(made, tmp_path / "missing" / "accuracy.md")


def test_a_missing_library_stops_a_pictured_report_before_its_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setattr(report, "held_out_errors", lambda *_args, **_kwargs: pytest.fail("work was begun"))
    with pytest.raises(ValueError, match=r"puzzlebench\[plots\]"):
        report.validate("h100_sxm", "trtllm", pictured=True)


def test_a_picture_that_cannot_be_drawn_leaves_no_page(tmp_path, one_slice, predictions, monkeypatch):
    made = report.Report(
        gpu="h100_sxm",
        engine="trtllm",
        created="2026-01-01",
        held_out=one_slice,
        interpolated=one_slice,
        falls=[],
        repeats={},
        transfer=[],
        predicted=predictions,
        serving=serving_errors(predictions),
        residuals={},
        unused=[],
        published=[],
        paper=[],
    )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ValueError, match="matplotlib"):
        report.write_report(made, tmp_path / "accuracy.md")
    assert not list(tmp_path.iterdir())
