"""Held-out errors, serving predictions and the generated report."""

import re

import numpy as np
import pytest

from puzzlebench.profiling import transfer_error as transfer
from puzzlebench.validation import held_out, report, serving
from puzzlebench.validation.held_out import ErrorSummary, held_out_errors, repeat_error


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


def test_the_serving_split_is_by_id_and_both_halves_hold_every_engine():
    runs = serving.serving_runs()
    assert len(runs) == 177
    halves = {split: {(run.gpu, run.engine) for run in runs if run.split == split} for split in ("develop", "report")}
    assert halves["develop"] == halves["report"]
    assert len(halves["report"]) == 3


def test_predicted_time_per_token_is_near_the_measured_one():
    runs = [run for run in serving.serving_runs() if (run.gpu, run.engine) == ("h200_sxm", "trtllm")][::6]
    errors = [abs(serving.predict_tpot_ms(run) / run.tpot_ms - 1) for run in runs]
    assert np.median(errors) < 0.08


def test_a_prediction_that_does_not_fit_runs_fewer_sequences():
    runs = {
        (run.tensor_parallel, run.prefill_len, run.decode_len, run.concurrency): run
        for run in serving.serving_runs()
        if (run.gpu, run.engine) == ("h200_sxm", "trtllm")
    }
    crowded, more = runs[1, 8192, 1024, 64], runs[1, 8192, 1024, 128]
    assert serving.predict_tpot_ms(crowded) == pytest.approx(serving.predict_tpot_ms(more))
    assert serving.predict_tpot_ms(runs[1, 8192, 1024, 16]) < serving.predict_tpot_ms(crowded)


def test_the_report_fills_its_template(tmp_path, one_slice, capsys):
    made = report.Report(
        gpu="h100_sxm",
        engine="trtllm",
        created="2026-01-01",
        held_out=one_slice,
        repeats={"vllm": ErrorSummary.of(np.array([0.01, 0.02]))},
        transfer=[],
        serving=serving.serving_errors(serving.serving_runs()[:3]),
    )
    path = tmp_path / "accuracy.md"
    report.write_report(made, path)
    text = path.read_text()
    assert not re.search(r"\{\w+\}", text)
    assert "| decode_attention | fp8 | whole head configuration |" in text
    report.print_report(made)
    assert "whole head configuration" in capsys.readouterr().out
    with pytest.raises(ValueError, match="cannot write"):
        report.write_report(made, tmp_path / "missing" / "accuracy.md")
