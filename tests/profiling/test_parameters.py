"""What ships of the fitted kernel model: small, versioned text, complete for every table, refused otherwise."""

import json

import pytest

from puzzlebench.profiling import parameters
from puzzlebench.profiling.calibrate_intervals import interval_scale
from puzzlebench.profiling.kernel_features import KINDS, SLICES
from puzzlebench.profiling.measured_kernels import MeasuredKernels
from puzzlebench.profiling.parameters import PARAMETERS_FILE, SCALES_FILE, calibrated_parameters
from puzzlebench_profiles.kernel_tables import KernelTableId, find_kernel_table, list_kernel_tables, manifest


@pytest.mark.parametrize("table", list_kernel_tables(), ids=lambda table: f"{table.gpu}-{table.engine}")
def test_every_measured_slice_has_parameters_and_an_interval(table, h100):
    kernels, found = MeasuredKernels(table), 0
    for kind, dtypes in SLICES:
        try:
            rows = kernels.rows(kind, *dtypes)
        except ValueError:
            continue
        found += 1
        fitted = calibrated_parameters(table, kind, dtypes)
        first = {axis: rows[axis][:1] for axis in KINDS[kind].axes}
        assert fitted.metric.shape == (KINDS[kind].features(first, h100).shape[1],)
        assert 0.3 < fitted.interval_scale < 20
    assert found >= 3


def test_the_files_are_small_plain_and_say_where_they_come_from():
    assert {path.suffix for path in PARAMETERS_FILE.parent.iterdir()} == {".json"}
    for path, module in ((PARAMETERS_FILE, "fit_kriging"), (SCALES_FILE, "calibrate_intervals")):
        assert path.stat().st_size < 16_384
        written = json.loads(path.read_text())
        assert written["schema_version"] == parameters.SCHEMA_VERSION
        assert f"python -m puzzlebench.profiling.{module}" in written["about"]
    written = json.loads(PARAMETERS_FILE.read_text())
    assert set(written["surfaces"]) == set(KINDS)
    facts = manifest()
    assert f"{facts['source']} {facts['source_version']}" in written["fitted_on"]


def test_a_table_without_intervals_is_named():
    table = KernelTableId(gpu="h100_sxm", engine="trtllm", engine_version="9.9")
    with pytest.raises(
        ValueError, match=r"h100_sxm/trtllm-9.9 has no interval scale for gemm bf16; .*calibrate_interv"
    ):
        calibrated_parameters(table, "gemm", ("bf16",))


def test_another_schema_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "interval_scales.json"
    path.write_text(json.dumps({"schema_version": 99, "about": "written by hand", "scales": {}}))
    monkeypatch.setattr(parameters, "SCALES_FILE", path)
    with pytest.raises(ValueError, match=r"interval_scales\.json has schema version 99, not 1: written by hand"):
        calibrated_parameters(find_kernel_table("h100_sxm", "trtllm"), "gemm", ("bf16",))


def test_the_committed_interval_is_what_its_command_finds():
    table = find_kernel_table("a100_sxm", "trtllm")
    kernels = MeasuredKernels(table)
    found = interval_scale(kernels, "decode_attention", ("bf16",), kernels.rows("decode_attention", "bf16"))
    committed = calibrated_parameters(table, "decode_attention", ("bf16",)).interval_scale
    assert found == pytest.approx(committed, rel=0.01)
