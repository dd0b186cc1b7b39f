"""This process's share of a job, in a process that torchrun started. Knows the ranks; starts and restarts nothing.

A rank that fails raises. torchrun sees it end and ends the others, on all nodes; the timeouts below are for ranks that
neither end nor go on.
"""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from puzzlebench.errors import first_line
from puzzlebench.launching.launchers import Outcome, Progress
from puzzlebench.library.build import BuildReport
from puzzlebench.library.job import LibraryJob, finish_job, run_job

_LOCKSTEP: Final = timedelta(minutes=30)
"""For what ranks do at the same time: loading, and the parent's layers."""
_PATIENCE: Final = timedelta(hours=48)
"""For the slowest of the ranks, which train for as long as their layers take."""
_VARIABLES: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def run_rank(job: LibraryJob, *, shard_parent: bool, progress: Progress) -> Outcome:
    """Make the blocks of this rank's layers, wait for the others, and write the manifest on rank 0.

    Args:
        job: with device cuda for the GPU of this rank's number on its node.
        shard_parent: spread the parent's weights over the ranks; else each rank loads the whole parent.

    Raises:
        ValueError: not under torchrun, this rank's share failed, or another rank ended.
    """
    outcome = record(_run)(job, shard_parent, progress)  # torchrun's summary then names the rank that failed first
    assert outcome is not None
    return outcome


def _run(job: LibraryJob, shard_parent: bool, progress: Progress) -> Outcome:
    if missing := [name for name in _VARIABLES if name not in os.environ]:
        raise ValueError(
            f"{missing[0]} is not set: the torchrun launcher runs under torchrun, as in "
            "`torchrun --nproc-per-node 8 -m puzzlebench.cli library ... --launcher torchrun`"
        )
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = torch.device(job.device)
    if device.type == "cuda":
        device = _own_gpu(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_LOCKSTEP)
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    own = replace(job, device=str(device))
    quiet = progress if rank == 0 else (lambda _share, _stage: None)
    try:
        if shard_parent:
            from puzzlebench.launching.sharded_build import build_sharded

            report = build_sharded(own, control=control, progress=quiet)
        else:
            report = run_job(own, shard=rank, shards=ranks, progress=quiet)
        reports: list[BuildReport | None] = [None] * ranks
        dist.all_gather_object(reports, report, group=control)  # so all blocks are there before the manifest
    except (ValueError, RuntimeError, OSError) as error:
        # The groups are left to the end of the process: taking them down waits for ranks that wait for this one.
        raise ValueError(f"rank {rank} of {ranks}: {_reason(error)}") from error
    dist.barrier(group=control)
    dist.destroy_process_group()
    if rank != 0:
        return Outcome(shards=(report,))
    return Outcome(shards=tuple(one for one in reports if one is not None), manifest=finish_job(job))


def _own_gpu(number: int) -> torch.device:
    if number >= torch.cuda.device_count():
        raise ValueError(
            f"local rank {number} has no GPU: {torch.cuda.device_count()} are visible; start fewer processes per node"
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _reason(error: Exception) -> str:
    if "by peer" in str(error):  # how gloo says that the other end of a connection is gone
        return "another rank ended; its own message says why"
    return first_line(error)
