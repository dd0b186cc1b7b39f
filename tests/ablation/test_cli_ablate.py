"""The command: what it makes of its options, and what it writes."""

from __future__ import annotations

import argparse
import json

import pytest

pytest.importorskip("transformers")

from puzzlebench.ablation import job as jobs
from puzzlebench.ablation import report as reports
from puzzlebench.cli_ablate import ablate_command, add_ablate


def parse(*options):
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    add_ablate(parser)
    return parser.parse_args(list(map(str, options)))


@pytest.fixture
def asked(monkeypatch):
    found = []

    def run(job, progress):
        found.append(job)
        return {"experiments": []}

    monkeypatch.setattr(jobs, "run_ablations", run)
    monkeypatch.setattr(reports, "report", lambda result: f"# {len(result['experiments'])} ablations\n")
    return found


def test_options_become_a_job(asked, tmp_path, capsys):
    options = (
        "--out",
        tmp_path / "a",
        "--seeds",
        2,
        "--only",
        "bld,distil",
        "--scale",
        0.5,
        "--report",
        tmp_path / "r.md",
    )
    ablate_command(parse(*options, "--distil-all", "--speed-up", 1.5, "--batch-size", 2, "--prefill", 8, "--decode", 4))
    (job,) = asked
    assert (job.parent, job.out, job.seeds, job.only, job.scale) == (
        "embedded",
        tmp_path / "a",
        2,
        ("bld", "distil"),
        0.5,
    )
    assert (job.speed_up, job.batch_size, job.prefill_len, job.decode_len) == (1.5, 2, 8, 4)
    assert (job.distil_all, job.parent_seeds, job.device, job.precision, job.costs) == (
        True,
        False,
        "cpu",
        "fp32",
        None,
    )
    assert (tmp_path / "r.md").read_text() == "# 0 ablations\n"
    assert "# 0 ablations" in capsys.readouterr().out
    ablate_command(parse("--out", tmp_path / "a", "--json"))
    assert json.loads(capsys.readouterr().out) == {"experiments": []}
    assert asked[1].only == ()


def test_a_report_that_cannot_be_written_is_said_before_the_work(asked, tmp_path):
    with pytest.raises(ValueError, match="there is no folder"):
        ablate_command(parse("--report", tmp_path / "nowhere" / "r.md"))
    assert asked == []
