"""The table of engines: its cells, and its place in the document."""

from __future__ import annotations

from pathlib import Path

import pytest

from .table import BEGIN, END, Row, lines, write


def result(allocated=5632.0, **changes):
    return {
        "equal": 63,
        "tokens": 64,
        "prompt": {"largest": 1.7e-5},
        "generated": {"largest": 8e-6},
        "kv_cache": {"allocated_bytes_per_token": allocated, "predicted_bytes_per_token": 5632},
        **changes,
    }


def row(**changes):
    return Row(**{"sample": "llama-sized", "format": "decilm", "engine": "vllm", **changes})


def cells(text: str) -> list[str]:
    return [cell.strip() for cell in text.strip("|").split("|")]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (row(result=result(), version="0.32.0"), ["63 of 64", "1.7e-05", "8.0e-06", "5,632"]),
        (row(result=result(6000.0)), ["63 of 64", "1.7e-05", "8.0e-06", "6,000, predicted 5,632"]),
        (row(result=result(kv_cache=None)), ["63 of 64", "1.7e-05", "8.0e-06", ""]),
        (row(refused="ffn_linear", tried="does not load"), ["no: ffn_linear; tried: does not load", "", "", ""]),
        (row(refused="ffn_linear"), ["no: ffn_linear", "", "", ""]),
    ],
)
def test_a_row(made, expected):
    text = lines([made])
    assert cells(text[4]) == ["`llama-sized`", "decilm", "vLLM", *expected]
    assert text[-1] == "- `llama-sized`: other heads and widths in each layer"


def test_versions_and_order():
    rows = [row(sample="qwen2-sized", version="0.32.0", result=result()), row(sample="llama-parent", refused="x")]
    text = lines(rows)
    assert text[0].endswith("; vLLM 0.32.0; fp32 on a CPU.")
    assert [cells(line)[0] for line in text[4:6]] == ["`llama-parent`", "`qwen2-sized`"]


def test_written_between_the_marks(tmp_path):
    file = tmp_path / "engines.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write([row(refused="x")], file)
        text = file.read_text()
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"{END}\nafter\n")
        assert "old" not in text
        assert text.count("`llama-sized` |") == 1


def test_the_document_has_the_marks():
    text = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
    assert text.index(BEGIN) < text.index(END)
