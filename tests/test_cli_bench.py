"""`bench`, `compare`, `gate` and `history` as a user calls them, on made-up results and a checkout of milliseconds."""

from __future__ import annotations

import argparse
import json
import random
import xml.etree.ElementTree as ET

import pytest

from puzzlebench import cli_bench, cli_gate
from puzzlebench.gating import predictions, prove

from .gating.conftest import CELLS, checkout  # noqa: F401

pytest.importorskip("torch")
COMMANDS = {
    "bench": (cli_bench.add_bench, cli_bench.bench_command),
    "compare": (cli_bench.add_compare, cli_bench.compare_command),
    "gate": (cli_gate.add_gate, cli_gate.gate_command),
    "history": (cli_bench.add_history, cli_bench.history_command),
}


@pytest.fixture
def run(capsys):
    """Run a command; its exit code and what it printed."""

    def call(command, *arguments):
        add, execute = COMMANDS[command]
        parser = argparse.ArgumentParser(prog=command)
        add(parser)
        parser.add_argument("--json", action="store_true")
        code = execute(parser.parse_args([str(one) for one in arguments]))
        return code or 0, capsys.readouterr().out

    return call


@pytest.fixture
def results(tmp_path):
    """Writes a result whose cells take `factors` times as long."""

    def write(name, *, day=1, revision="abcdef0", sessions=6, **factors):
        draw = random.Random(name)
        rows = []
        for number in range(sessions):
            cells = {}
            for cell, cost in CELLS.items():
                median = cost * factors.get(cell.split("/")[1], 1) * (1 + 0.001 * draw.gauss(0, 1))
                cells[cell] = {
                    "unit": "us",
                    "median": median,
                    "low": median * 0.999,
                    "high": median * 1.001,
                    "samples": 9,
                }
            rows.append(
                {"session": number, "others_share": 0.0, "set_aside_share": 0.0, "throttled_share": 0.0, "cells": cells}
            )
        stated = {
            "schema_version": 1,
            "created": f"2026-01-{day:02d}T00:00:00+00:00",
            "puzzlebench_version": "0",
            "revision": revision,
            "fingerprint": {"device": "made_up", "display_name": "made up", "threads": 1},
            "disturbed": {"others_share": 0.0, "set_aside_share": 0.0, "throttled_share": 0.0},
            "skipped": {},
            "sessions": rows,
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(stated))
        return path

    return write


def test_the_suite_is_listed(run):
    code, out = run("bench", "--list", "--device", "cpu", "--only", "search/*")
    assert code == 0
    assert "search/exact.served.l8" in out
    _, out = run("bench", "--list", "--device", "cpu", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["search/exact.served.l8"]["missing"] is None
    assert {row["missing"] for name, row in rows.items() if name.startswith("block/triton")} == {"is for GPUs"}


def test_a_bench_is_measured_printed_and_written(run, tmp_path):
    out_file = tmp_path / "bench.json"
    arguments = ("--only", "pack_text", "--sessions", "2", "--seconds", "0.1", "--device", "cpu", "--out", out_file)
    code, out = run("bench", *arguments)
    assert code == 0
    assert "pipeline/pack_text" in out
    assert "2 fresh process(es)" in out
    assert f"wrote {out_file}" in out
    assert len(json.loads(out_file.read_text())["sessions"]) == 2


def test_a_result_is_written_in_other_formats(run, results, tmp_path):
    base = results("base")
    for form, key in (
        ("github-action-benchmark", None),
        ("bencher", "block/cell_0"),
        ("pytest-benchmark", "benchmarks"),
    ):
        out = tmp_path / f"{form}.json"
        assert run("bench", "--read", base, "--format", form, "--out", out)[0] == 0
        stated = json.loads(out.read_text())
        assert (len(stated) == len(CELLS)) if key is None else key in stated
    assert run("bench", "--read", base, "--format", "asv", "--out", tmp_path / "asv")[0] == 0
    assert (tmp_path / "asv/benchmarks.json").exists()
    with pytest.raises(ValueError, match="needs another --format"):
        run("bench", "--read", base, "--out", tmp_path / "x.json")


def test_compare_finds_the_slower_cell_and_writes_every_report(run, results, tmp_path):
    base, new = results("base"), results("new", cell_3=1.2)
    reports = {name: tmp_path / f"report.{name}" for name in ("markdown", "junit", "html")}
    options = [part for name, path in reports.items() for part in (f"--{name}", path)]
    code, out = run("compare", base, new, *options)
    assert code == 1
    assert "block/cell_3" in out
    assert "block/cell_4" not in out
    assert "block/cell_3" in reports["markdown"].read_text()
    assert ET.parse(reports["junit"]).getroot().attrib["failures"] == "1"
    assert "<!doctype html>" in reports["html"].read_text()
    code, out = run("compare", base, new, "--band", "0.3", "--all")
    assert code == 0
    assert "block/cell_4" in out
    code, out = run("compare", base, new, "--json")
    assert (code, json.loads(out)["counts"]["SLOWER"]) == (1, 1)
    assert run("compare", base, results("again"))[0] == 0


def test_compare_says_with_strict_that_it_cannot_tell(run, results):
    few = [results(name, sessions=1) for name in ("base", "new")]
    assert run("compare", *few)[0] == 0
    assert run("compare", *few, "--strict")[0] == 4


def test_reports_that_cannot_be_written_are_refused_before_the_work(run, results, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        run("compare", results("base"), results("new"), "--html", tmp_path / "none" / "x.html")
    with pytest.raises(ValueError, match="comment's name"):
        run("compare", results("base"), results("new"), "--name", "a --> b")


def test_a_gate_fails_on_the_slower_cell_and_names_both_revisions(run, checkout, tmp_path):  # noqa: F811
    checkout.costs(cells={name: cost * (1.2 if name == "block/cell_3" else 1) for name, cost in CELLS.items()})
    options = ("--base", "main", "--repository", checkout.root, "--sessions", "5", "--seconds", "10")
    code, out = run("gate", *options, "--markdown", tmp_path / "comment.md", "--html", tmp_path / "page.html")
    assert code == 1
    assert "1 of 1 slower cells were slower again in as many fresh sessions" in out
    assert "slower again" in (tmp_path / "comment.md").read_text()
    assert checkout.git("rev-parse", "HEAD")[:12] in (tmp_path / "page.html").read_text()
    code, out = run("gate", *options, "--new", "HEAD", "--strict", "--json")
    assert code == 0
    assert json.loads(out)["confirmed"] == []


def test_a_gate_on_predictions(run, monkeypatch, tmp_path):
    goldens = predictions.read_goldens()
    monkeypatch.setattr(predictions, "predict_cases", lambda _cases, progress: goldens)
    code, out = run("gate", "--predictions")
    assert code == 0
    assert f"{len(goldens)} predictions, 0 fail" in out
    name = next(iter(goldens))
    file = tmp_path / "goldens.json"
    predictions.write_goldens(file, goldens | {name: {**goldens[name], "decode_ms": 1.0}})
    code, out = run("gate", "--predictions", "--goldens", file)
    assert code == 1
    assert "1 fail" in out
    assert run("gate", "--predictions", "--goldens", file, "--tolerance", "1e9", "--json")[0] == 0
    reports = ("--markdown", tmp_path / "p.md", "--junit", tmp_path / "p.xml")
    assert run("gate", "--predictions", "--goldens", file, *reports)[0] == 1
    assert f"| `{name}` | fails | decode" in (tmp_path / "p.md").read_text()
    counts = ET.parse(tmp_path / "p.xml").getroot().attrib
    assert (counts["tests"], counts["failures"]) == (str(len(goldens)), "1")
    assert "look at the diff" in run("gate", "--predictions", "--goldens", file, "--update")[1]
    assert predictions.read_goldens(file) == goldens


def test_a_proof_needs_a_folder_and_passes_its_options_on(run, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="give --work DIR"):
        run("gate", "--prove")
    asked = []

    def stops(job, progress):
        asked.append(job)
        raise ValueError("seen")

    monkeypatch.setattr(prove, "run_proof", stops)
    with pytest.raises(ValueError, match="seen"):
        run("gate", "--prove", "--work", tmp_path, "--pairs", "6", "--suites", "7", "--minutes", "2", "--band", "0.05")
    assert (asked[0].pairs, asked[0].suites, asked[0].minutes, asked[0].band) == ((6,), 7, 2.0, 0.05)


def test_a_gate_is_one_of_three(run):
    with pytest.raises(SystemExit):
        run("gate")
    with pytest.raises(SystemExit):
        run("gate", "--base", "main", "--predictions")


@pytest.mark.parametrize(
    "options",
    [
        ("--predictions", "--html", "x.html"),
        ("--predictions", "--only", "search/*"),
        ("--predictions", "--no-rerun"),
        ("--prove", "--work", "w", "--markdown", "x.md"),
        ("--base", "main", "--update"),
        ("--base", "main", "--minutes", "3"),
    ],
)
def test_options_of_another_gate_are_refused(run, options):
    with pytest.raises(ValueError, match=f"has no meaning with {options[0]}; leave it out"):
        run("gate", *options)


def test_results_are_kept_in_a_folder_and_listed(run, results, tmp_path):
    folder = tmp_path / "history"
    code, out = run("history", "append", folder, results("first"), results("second", day=2, revision="1234567"))
    assert (code, out.count("added ")) == (0, 2)
    assert len(list(folder.glob("*.json"))) == 2
    code, out = run("history", "show", folder)
    assert "1234567" in out
    assert [entry["revision"] for entry in json.loads(run("history", "show", folder, "--json")[1])] == [
        "abcdef0",
        "1234567",
    ]
    with pytest.raises(ValueError, match="nothing to append"):
        run("history", "append", folder)
    with pytest.raises(ValueError, match="takes a folder only"):
        run("history", "show", folder, "more.json")


def test_changes_of_a_history_are_found(run, results, tmp_path):
    pytest.importorskip("otava")
    for day in range(1, 17):
        factors = {"cell_3": 1.2 if day > 8 else 1.0}
        run("history", "append", tmp_path / "history", results(f"r{day}", day=day, revision=f"{day:07d}", **factors))
    code, out = run("history", "changes", tmp_path / "history", "--json")
    [change] = json.loads(out)
    assert (code, change["cell"], change["revision"]) == (0, "block/cell_3", "0000009")
