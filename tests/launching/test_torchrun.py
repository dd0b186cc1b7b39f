from __future__ import annotations

import re

import pytest

from puzzlebench.launching.launchers import Torchrun, run_library


@pytest.mark.parametrize(
    ("mode", "end", "storage", "said"),
    [
        ("replicated", "killed", "memory", "Signal 9"),
        ("sharded", "broken", "disk", "rank 1 of 2: the disk of this rank is full"),
    ],
)
def test_a_rank_that_ends_early_ends_the_run_and_a_second_run_completes_it(
    mode, end, storage, said, local, elsewhere, torchrun, assert_same_blocks
):
    """In the end the library is what one process makes."""
    job = elsewhere(activations=storage)
    failed = torchrun(job, mode, end)
    assert failed.returncode != 0
    assert said in failed.stderr
    assert not (job.out / "manifest.json").exists()
    made = len(list((job.out / "blocks").glob("*.safetensors")))
    assert 2 <= made < 12
    done = torchrun(job, mode)
    assert done.returncode == 0, done.stderr
    counts = re.search(r"rank 0: made \[(\d+), (\d+)\], there \[(\d+), (\d+)\], .* manifest True", done.stdout)
    assert counts
    assert int(counts[1]) + int(counts[2]) == 12 - made
    assert int(counts[3]) + int(counts[4]) == made
    assert f"kept in {storage}" in done.stdout
    assert_same_blocks(local, job)


def test_says_how_to_start_it(job, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ValueError, match="RANK is not set: the torchrun launcher runs under torchrun"):
        run_library(job, Torchrun())
