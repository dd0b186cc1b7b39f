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
    ("made", "cache", "cell"),
    [
        (row(result=result(), version="0.32.0"), "5,632", "1.7e-05, 63 of 64"),
        (row(result=result(equal=64)), "5,632", "1.7e-05"),
        (row(result=result(6000.0, equal=64)), "6,000, predicted 5,632", "1.7e-05"),
        (row(result=result(kv_cache=None, equal=64)), "", "1.7e-05"),
        (row(refused="ffn_linear", tried="does not load"), "", "no: ffn_linear"),
        (row(refused="decilm has no norms"), "", "no"),
    ],
)
def test_a_row(made, cache, cell):
    text = lines([made])
    assert cells(text[2]) == ["sample", "what it has", "KV bytes", "decilm: vLLM"]
    assert cells(text[4]) == ["`llama-sized`", "other heads and widths in each layer", cache, cell]


def test_why_not():
    assert lines([row(refused="ffn_linear", tried="does not load")])[-1] == (
        "- `llama-sized`, decilm, vLLM: `ffn_linear`; tried: does not load"
    )
    assert lines([row(refused="decilm has no norms")])[-1] == "- `llama-sized`, decilm, vLLM: decilm has no norms"
    assert lines([row(result=result())])[-1] == ""
    assert lines([row(refused="ffn_linear")])[-1] == "", "the table says it"


def test_versions_and_order():
    rows = [
        row(sample="qwen2-sized", version="0.32.0", result=result()),
        row(sample="llama-parent", refused="x"),
        row(sample="llama-parent", format="hf", engine="transformers", result=result(kv_cache=None, equal=64)),
    ]
    text = lines(rows)
    assert text[0].endswith("; vLLM 0.32.0; fp32 on a CPU.")
    assert cells(text[2])[3:] == ["hf: transformers", "decilm: vLLM"]
    assert [cells(line)[0] for line in text[4:6]] == ["`llama-parent`", "`qwen2-sized`"]
    assert [cells(line)[3:] for line in text[4:6]] == [["1.7e-05", "no: x"], ["", "1.7e-05, 63 of 64"]]


def test_written_between_the_marks(tmp_path):
    file = tmp_path / "engines.md"
    file.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write([row(refused="x")], file)
        text = file.read_text()
        assert text.startswith(f"before\n{BEGIN}\n")
        assert text.endswith(f"{END}\nafter\n")
        assert "old" not in text
        assert text.count("| `llama-sized` |") == 1


def test_the_document_has_the_marks():
    text = (Path(__file__).parents[2] / "docs" / "engines.md").read_text()
    assert text.index(BEGIN) < text.index(END)
