"""Shards as Ray tasks.

Ray carries the job and the reports; the library's folder must be one that every node sees.
"""

from __future__ import annotations

from puzzlebench.errors import first_line
from puzzlebench.launching.launchers import Outcome, Progress
from puzzlebench.library.build import BuildReport
from puzzlebench.library.job import LibraryJob, finish_job, run_job
from puzzlebench.model.checks import require_positive_int


def run_tasks(job: LibraryJob, *, shards: int, address: str | None, progress: Progress) -> Outcome:
    """Run every shard as a task and write the manifest. A Ray that is not running yet ends with the call.

    Raises:
        ValueError: Ray is not installed or not to be reached, or shards failed; the others are finished first.
    """
    require_positive_int("shards", shards)
    try:
        import ray
    except ImportError:
        raise ValueError("the ray launcher needs Ray: pip install 'puzzlebench[ray]'") from None
    started_here = not ray.is_initialized()
    if started_here:
        try:
            ray.init(address=address, include_dashboard=False, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ValueError(f"Ray at {address or 'this machine'} cannot be reached: {first_line(error)}") from None
    try:
        reports = _run_all(job, shards, progress)
    finally:
        if started_here:
            ray.shutdown()
    return Outcome(shards=reports, manifest=finish_job(job))


def _run_all(job: LibraryJob, shards: int, progress: Progress) -> tuple[BuildReport, ...]:
    import ray

    task = ray.remote(num_gpus=int(job.device.startswith("cuda")), num_cpus=1)(run_shard)
    pending = {task.remote(job, shard, shards): shard for shard in range(shards)}
    reports: dict[int, BuildReport] = {}
    failures: dict[int, str] = {}
    while pending:
        progress(len(reports) / shards, f"{len(pending)} of {shards} shards left")
        (done,), _ = ray.wait(list(pending), num_returns=1)
        shard = pending.pop(done)
        try:
            reports[shard] = ray.get(done)
        except ray.exceptions.RayError as error:
            failures[shard] = first_line(getattr(error, "cause", None) or error)
    if failures:
        said = "; ".join(f"shard {shard} of {shards}: {reason}" for shard, reason in sorted(failures.items()))
        raise ValueError(f"{len(failures)} of {shards} shards failed, run it again to make what is missing. {said}")
    return tuple(reports[shard] for shard in range(shards))


def run_shard(job: LibraryJob, shard: int, shards: int) -> BuildReport:
    """What a task does."""
    return run_job(job, shard=shard, shards=shards)
