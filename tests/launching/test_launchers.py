from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from puzzlebench.launching.launchers import LAUNCHERS, Local, absolute_job, run_library
from puzzlebench.library.store import Library


def test_names():
    assert list(LAUNCHERS) == ["local", "torchrun", "ray", "slurm"]


def test_what_a_run_that_ended_early_lacks_is_made_by_the_next(local, elsewhere, monkeypatch, assert_same_blocks):
    job, write = elsewhere(), Library.write
    written = []

    def end(library, facts, state):
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(facts)
        write(library, facts, state)

    monkeypatch.setattr(Library, "write", end)
    with pytest.raises(KeyboardInterrupt):
        run_library(job, Local())
    monkeypatch.undo()
    outcome = run_library(job, Local())
    assert (outcome.shards[0].made, outcome.shards[0].there_before) == (7, 5)
    assert_same_blocks(local, job)


def test_jobs_for_other_processes_have_absolute_paths(job, tmp_path, monkeypatch):
    (tmp_path / "parent").mkdir()
    monkeypatch.chdir(tmp_path)
    here = replace(job, parent="parent", out=Path("out"), data=Path("text.txt"), work_dir=Path("work"))
    there = absolute_job(here)
    assert there.parent == str(tmp_path / "parent")
    assert (there.out, there.data, there.work_dir) == (tmp_path / "out", tmp_path / "text.txt", tmp_path / "work")
    assert absolute_job(replace(here, parent="meta-llama/Llama-3.1-8B")).parent == "meta-llama/Llama-3.1-8B"
