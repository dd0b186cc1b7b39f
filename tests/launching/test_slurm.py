from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest

from puzzlebench.launching.launchers import Slurm, run_library
from puzzlebench.launching.shard import main, parse_shard
from puzzlebench.library.job import read_job


@pytest.fixture
def srun(tmp_path: Path) -> str:
    """A PATH with an srun that runs its command here."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shim = folder / "srun"
    shim.write_text('#!/bin/sh\nexec "$@"\n')
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_the_scripts_make_the_library(local, elsewhere, srun, run_command, assert_same_blocks):
    job = elsewhere("a folder")
    outcome = run_library(job, Slurm(shards=2, args=("--partition=gpu", "--gres=gpu:1")))
    folder = job.out / "slurm"
    assert read_job(folder / "job.json") == job
    array, manifest = folder / "library.sbatch", folder / "manifest.sbatch"
    assert outcome.command == f"sbatch --dependency=\"afterok:$(sbatch --parsable '{array}')\" '{manifest}'"
    for script in (array, manifest):
        assert {"#SBATCH --partition=gpu", "#SBATCH --gres=gpu:1"} <= set(script.read_text().splitlines())
    assert "#SBATCH --array=0-1\n" in array.read_text()
    made = [run_command(["bash", str(array)], PATH=srun, SLURM_ARRAY_TASK_ID=str(task)) for task in range(2)]
    assert [run.returncode for run in made] == [0, 0], made
    assert "shard 1 of 2 made 4 blocks, 0 were there" in made[1].stdout
    assert not (job.out / "manifest.json").exists()
    assert run_command(["bash", str(manifest)], PATH=srun).returncode == 0
    assert_same_blocks(local, job)


def test_paths_and_python_do_not_depend_on_where_a_node_starts(job, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_library(elsewhere_relative(job), Slurm(shards=3))
    script = (tmp_path / "library" / "slurm" / "library.sbatch").read_text()
    assert sys.executable in script
    assert read_job(tmp_path / "library" / "slurm" / "job.json").out == tmp_path / "library"
    assert str(tmp_path / "library" / "slurm") in (outcome.command or "")


def elsewhere_relative(job):
    from dataclasses import replace

    return replace(job, out=Path("library"))


@pytest.mark.parametrize("arg", ["partition=gpu", "--comment=a\nrm -rf"])
def test_refuses_what_is_no_option(elsewhere, arg):
    with pytest.raises(ValueError, match="an option of sbatch looks like --partition=gpu"):
        run_library(elsewhere(), Slurm(shards=2, args=(arg,)))


@pytest.mark.parametrize("text", ["2/2", "1", "-1/2", "a/b", "0/0"])
def test_refuses_what_is_no_shard(text):
    with pytest.raises(ValueError, match="such as 0/8"):
        parse_shard(text)


def test_a_shard_that_fails_says_why_in_a_line(elsewhere, capsys, tmp_path):
    job = elsewhere(sequences=10_000)
    run_library(job, Slurm(shards=2))
    assert main([str(job.out / "slurm" / "job.json"), "--shard", "0/2"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: too little ")
