from __future__ import annotations

import sys

import pytest

from puzzlebench.launching.launchers import Ray, run_library


@pytest.fixture
def ray(monkeypatch):
    """A Ray of this machine with two CPU cores, for one test."""
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()


def test_tasks_make_what_one_process_makes_and_failed_ones_are_named(ray, local, elsewhere, assert_same_blocks):
    job = elsewhere()
    (job.out / "blocks").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"2 of 2 shards failed, .* shard 1 of 2: too little "):
        run_library(elsewhere(sequences=10_000), Ray(shards=2))
    outcome = run_library(job, Ray(shards=2))
    assert [report.made for report in outcome.shards] == [8, 4]
    assert outcome.manifest is not None
    assert_same_blocks(local, job)
    assert ray.is_initialized(), "a cluster that was there before is left running"


def test_names_the_extra_that_is_missing(job, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install 'puzzlebench\[ray\]'"):
        run_library(job, Ray(shards=2))


def test_refuses_no_shards(job):
    with pytest.raises(ValueError, match="shards must be a whole number of at least 1, not 0"):
        run_library(job, Ray(shards=0))
