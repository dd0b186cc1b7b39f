"""The fit that makes the kernel model's numbers: a few steps of it, and the file that it writes."""

import json

import pytest

pytest.importorskip("torch")

from puzzlebench.profiling import fit_kriging
from puzzlebench.profiling.parameters import PARAMETERS_FILE, SCHEMA_VERSION


def test_a_fit_writes_small_plain_numbers_and_keeps_those_of_other_kinds(tmp_path, monkeypatch):
    out = tmp_path / "kriging.json"
    out.write_text(PARAMETERS_FILE.read_text())
    monkeypatch.setattr(fit_kriging, "_RANDOM_ROWS", 200)
    monkeypatch.setattr(fit_kriging, "_WHOLE_ROWS", 20)
    monkeypatch.setattr("sys.argv", ["fit_kriging", "decode_attention", "--steps", "2", "--out", str(out)])
    fit_kriging.main()
    before, after = json.loads(PARAMETERS_FILE.read_text()), json.loads(out.read_text())
    assert after["schema_version"] == SCHEMA_VERSION
    assert after["fitted_on"] == before["fitted_on"]
    assert after["surfaces"]["gemm"] == before["surfaces"]["gemm"]
    fitted, shipped = (one["surfaces"]["decode_attention"] for one in (after, before))
    assert fitted != shipped
    assert [len(row) for row in fitted["lengthscales"]] == [len(row) for row in shipped["lengthscales"]]
    assert out.stat().st_size < 16_384
