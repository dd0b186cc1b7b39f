"""Batch scripts of Slurm: an array with a task per shard, and a job behind it for the manifest. Submits nothing.

The scripts name this Python and the folders by absolute paths, so the nodes must share both.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from puzzlebench.files import make_folder, write_text
from puzzlebench.library.job import LibraryJob, write_job
from puzzlebench.model.checks import require_positive_int


def write_scripts(job: LibraryJob, *, shards: int, args: Sequence[str] = ()) -> str:
    """Write job.json, library.sbatch and manifest.sbatch to `slurm` in the job's folder.

    Args:
        job: with absolute paths.
        args: options of sbatch, as --name=value.

    Returns:
        The command that submits them, the second to run once all of the first succeeded.

    Raises:
        ValueError: an option is none, or the folder cannot be written to.
    """
    require_positive_int("shards", shards)
    for arg in args:
        if not arg.startswith("-") or "\n" in arg:
            raise ValueError(f"an option of sbatch looks like --partition=gpu, not {arg!r}")
    folder = job.out / "slurm"
    make_folder(folder)
    job_file, library, manifest = folder / "job.json", folder / "library.sbatch", folder / "manifest.sbatch"
    write_job(job, job_file)
    run = f"srun {shlex.quote(sys.executable)} -m puzzlebench.launching.shard {shlex.quote(str(job_file))}"
    log = str(folder / "%x-%A_%a.log")
    array = ["--job-name=puzzlebench-library", f"--array=0-{shards - 1}", f"--output={log}"]
    write_text(library, _script([*array, *args], f'{run} --shard "$SLURM_ARRAY_TASK_ID/{shards}"'))
    log = str(folder / "%x-%j.log")
    write_text(manifest, _script(["--job-name=puzzlebench-manifest", f"--output={log}", *args], f"{run} --finish"))
    first = f"$(sbatch --parsable {shlex.quote(str(library))})"
    return f'sbatch --dependency="afterok:{first}" {shlex.quote(str(manifest))}'


def _script(options: Sequence[str], command: str) -> str:
    stated = "".join(f"#SBATCH {option}\n" for option in options)
    return f"#!/bin/bash\n{stated}set -euo pipefail\n{command}\n"
