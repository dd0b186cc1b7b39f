"""Where a library job runs. Every launcher is an engine that exists.

What they share is the job and the library's folder. Knows no engine: each is imported when it is run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from puzzlebench.library.build import BuildReport
from puzzlebench.library.job import LibraryJob, finish_job, run_job

Progress: TypeAlias = Callable[[float, str], None]
"""Called with the share done (0 to 1) and what is going on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a launcher did.

    Attributes:
        shards: reports of the shards that this process knows of, in their order.
        manifest: the finished library's; None where this process did not write it.
        command: what to run next, where nothing was run yet.
    """

    shards: tuple[BuildReport, ...] = ()
    manifest: dict[str, Any] | None = None
    command: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Local:
    """All of it in this process."""

    def run(self, job: LibraryJob, progress: Progress) -> Outcome:
        """Make the library."""
        report = run_job(job, progress=progress)
        return Outcome(shards=(report,), manifest=finish_job(job))


@dataclass(frozen=True, kw_only=True, slots=True)
class Torchrun:
    """In a process that torchrun started, a share per process.

    Attributes:
        shard_parent: spread the parent's weights over the processes, for one that fits no single device.
    """

    shard_parent: bool = False

    def run(self, job: LibraryJob, progress: Progress) -> Outcome:
        """Make this process's share; the one of rank 0 returns the manifest and everyone's reports."""
        from puzzlebench.launching.torchrun import run_rank

        return run_rank(job, shard_parent=self.shard_parent, progress=progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ray:
    """As tasks on a Ray cluster, one per shard; each has a GPU to itself where the job is for GPUs, else a CPU core.

    Attributes:
        address: of a running cluster; None for one that RAY_ADDRESS names, or a new one on this machine.
    """

    shards: int
    address: str | None = None

    def run(self, job: LibraryJob, progress: Progress) -> Outcome:
        """Make the library."""
        from puzzlebench.launching.ray_tasks import run_tasks

        return run_tasks(job, shards=self.shards, address=self.address, progress=progress)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slurm:
    """Write batch scripts, one array task per shard. Submits nothing.

    Attributes:
        args: options of sbatch that both scripts get, such as --partition=gpu or --gres=gpu:1.
    """

    shards: int
    args: tuple[str, ...] = ()

    def run(self, job: LibraryJob, progress: Progress) -> Outcome:  # noqa: ARG002, nothing takes long
        """Write the scripts; the command to submit them is in the outcome."""
        from puzzlebench.launching.slurm import write_scripts

        return Outcome(command=write_scripts(job, shards=self.shards, args=self.args))


Launcher: TypeAlias = Local | Torchrun | Ray | Slurm

LAUNCHERS: Final[dict[str, type[Local] | type[Torchrun] | type[Ray] | type[Slurm]]] = {
    "local": Local,
    "torchrun": Torchrun,
    "ray": Ray,
    "slurm": Slurm,
}


def run_library(job: LibraryJob, launcher: Launcher, progress: Progress = lambda _share, _stage: None) -> Outcome:
    """Make what the job's library lacks; a run that ended early is completed by running it again.

    Raises:
        ValueError: the job or the launcher's surroundings do not fit, or shards failed. Blocks that are done stay.
    """
    return launcher.run(absolute_job(job), progress)


def absolute_job(job: LibraryJob) -> LibraryJob:
    """The same job for a process with another working directory."""
    parent = Path(job.parent).expanduser()
    return replace(
        job,
        parent=str(parent.absolute()) if parent.is_dir() else job.parent,
        out=job.out.absolute(),
        data=None if job.data is None else job.data.absolute(),
        work_dir=None if job.work_dir is None else job.work_dir.absolute(),
    )
