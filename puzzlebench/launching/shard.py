"""One shard of a job that was written down, or its end: what batch scripts run.

python -m puzzlebench.launching.shard JOB.json --shard 0/8
python -m puzzlebench.launching.shard JOB.json --finish
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from puzzlebench.library.job import finish_job, read_job, run_job
from puzzlebench.progress import progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one shard or write the manifest; 2 for errors that a message explains."""
    parser = argparse.ArgumentParser(prog="python -m puzzlebench.launching.shard")
    parser.add_argument("job", type=Path, help="the file that the launcher wrote")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--shard", metavar="I/N", help="make the blocks of layers I, I+N, ...")
    what.add_argument("--finish", action="store_true", help="write the library's manifest")
    parsed = parser.parse_args(arguments)
    try:
        job = read_job(parsed.job)
        if parsed.finish:
            blocks = finish_job(job)["blocks"]
            print(f"{job.out}: {len(blocks)} blocks")
            return 0
        shard, shards = parse_shard(parsed.shard)
        with progress() as report:
            done = run_job(job, shard=shard, shards=shards, progress=report)
        print(f"{job.out}: shard {shard} of {shards} made {done.made} blocks, {done.there_before} were there")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_shard(text: str) -> tuple[int, int]:
    """Number and count of shards: 0/8.

    Raises:
        ValueError: it is no such text.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise ValueError(f"a shard is number/count with numbers from 0, such as 0/8, not {text!r}")
    return int(found[1]), int(found[2])


if __name__ == "__main__":
    sys.exit(main())
