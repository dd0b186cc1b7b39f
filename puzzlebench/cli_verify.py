"""The command `verify`: whether an engine computes from an export what puzzlebench computes from the child."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from puzzlebench.cli_options import require_models
from puzzlebench.progress import progress

DIFFERS = 1
"""Exit code of a check that found a difference."""


def add_verify(parser: argparse.ArgumentParser) -> None:
    """Options of `verify`."""
    from puzzlebench.exporting.verify import ENGINES, TOLERANCES

    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="an exported folder, or a GGUF file")
    parser.add_argument(
        "--reference", type=Path, metavar="DIR", help="the child it was exported from; default: CHECKPOINT itself"
    )
    parser.add_argument("--engine", choices=ENGINES, default="transformers", help="to ask (%(default)s)")
    parser.add_argument(
        "--python", type=Path, metavar="INTERPRETER", help="that has the engine, such as venv/bin/python (this one)"
    )
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="let the engine run code that lies in CHECKPOINT; exports to transformers need it",
    )
    size = parser.add_argument_group("what is compared")
    size.add_argument("--prompts", type=int, default=4, metavar="N", help="(%(default)s)")
    size.add_argument("--prompt-len", type=int, default=24, metavar="N", help="tokens of each (%(default)s)")
    size.add_argument("--new-tokens", type=int, default=16, metavar="N", help="generated after each (%(default)s)")
    size.add_argument("--dtype", choices=tuple(TOLERANCES), default="fp32", help="of both sides (%(default)s)")
    usual = ", ".join(f"{value:g} in {dtype}" for dtype, value in TOLERANCES.items())
    size.add_argument(
        "--tolerance", type=float, metavar="NATS", help=f"largest difference of a log-probability (default: {usual})"
    )
    size.add_argument("--timeout", type=float, default=900.0, metavar="S", help="of the engine (%(default)g)")


def verify_command(arguments: argparse.Namespace) -> int:
    """Check and print; the exit code is 0 where the two agree."""
    require_models()
    from puzzlebench.exporting.verify import VerifyJob, run_verify
    from puzzlebench.render import print_json

    job = VerifyJob(
        checkpoint=arguments.checkpoint,
        reference=arguments.reference,
        engine=arguments.engine,
        python=arguments.python,
        prompts=arguments.prompts,
        prompt_len=arguments.prompt_len,
        new_tokens=arguments.new_tokens,
        dtype=arguments.dtype,
        tolerance=arguments.tolerance,
        trust_remote_code=arguments.trust_remote_code,
        timeout=arguments.timeout,
    )
    with progress() as report:
        result = run_verify(job, progress=report)
    if arguments.json:
        print_json(result)
    else:
        _print(result)
    return 0 if result["agrees"] else DIFFERS


def _print(result: Mapping[str, Any]) -> None:
    asked, engine = result["prompts"], f"{result['engine']} {result['engine_version']}"
    print(f"{result['checkpoint']} in {engine}, {result['dtype']}, beside puzzlebench's {result['reference']}")
    print(
        f"{asked['count']} prompts of {asked['length']} tokens ({asked['source']}), "
        f"{asked['new_tokens']} generated after each"
    )
    for what in ("prompt", "generated"):
        found = result[what]
        print(
            f"  {what} log-probabilities: {found['count']}, off by {found['largest']:.2g} at most, "
            f"{found['mean']:.2g} in the mean"
        )
    if first := result["first_divergence"]:
        print(
            f"  first other token: prompt {first['prompt']}, position {first['position']}: {first['engine_token']} "
            f"where puzzlebench takes {first['own_token']}, likelier by {first['margin']:.2g}"
        )
    if cache := result["kv_cache"]:
        _print_cache(cache)
    print(result["verdict"])


def _print_cache(cache: Mapping[str, Any]) -> None:
    own, found = cache["predicted_bytes_per_token"], cache["allocated_bytes_per_token"]
    print(f"  key-value cache: {found:,g} bytes per token in the engine, {own:,} predicted")
    for row in cache["rows"]:
        if row["predicted_bytes_per_token"] != row["allocated_bytes_per_token"]:
            place = row["attention"] if row["layer"] is None else f"layer {row['layer']} ({row['attention']})"
            print(
                f"    {place}: {row['allocated_bytes_per_token']:,g} in the engine, "
                f"{row['predicted_bytes_per_token']:,} predicted"
            )
