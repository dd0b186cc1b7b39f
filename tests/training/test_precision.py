from __future__ import annotations

import pytest
import torch

from puzzlebench.training.precision import DTYPES, fast_precision


@pytest.mark.parametrize(
    ("device", "units", "expected"),
    [
        ("cpu", (False, False), "fp32"),
        ("cpu", (True, False), "bf16"),
        ("cpu", (False, True), "bf16"),
        ("cuda", (), "bf16"),
    ],
)
def test_bf16_where_there_are_units_for_it(monkeypatch, device, units, expected):
    for name, value in zip(("_is_avx512_bf16_supported", "_is_amx_tile_supported"), units, strict=False):
        monkeypatch.setattr(torch.cpu, name, lambda value=value: value)
    assert fast_precision(torch.device(device)) == expected


def test_a_torch_that_cannot_tell_computes_in_fp32(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert fast_precision(torch.device("cpu")) == "fp32"


def test_names_are_those_of_dtypes():
    assert {name: str(dtype) for name, dtype in DTYPES.items()} == {"fp32": "torch.float32", "bf16": "torch.bfloat16"}
