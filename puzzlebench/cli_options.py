"""What several commands read alike from their arguments. One line says what is wrong with them."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from puzzlebench.serving.workload import Lengths, Scheduler

_WHOLE: Final = re.compile(r"[+-]?[0-9]+")

INFEASIBLE: Final = 3
"""Exit code of a search that proved that nothing keeps the limits."""
NEEDS_MODELS: Final = "this needs torch and transformers: pip install 'puzzlebench[models]'"


def whole_numbers(text: str) -> tuple[int, ...]:
    """A type of arguments: whole numbers with commas between them."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,8,64") from None


def length_or_range(text: str) -> int | str:
    """A type of arguments: a whole number where it is one; a range, or what is neither, is for `lengths_of` to read."""
    return int(text) if _WHOLE.fullmatch(text.strip()) else text


def lengths_of(value: int | str, option: str) -> Lengths:
    """Tokens of prompts or answers: one number, or a range such as 820:1024.

    Raises:
        ValueError: it is neither.
    """
    from puzzlebench.serving.workload import Lengths

    try:
        return Lengths.parse(str(value))
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def add_scheduler_options(group: argparse._ArgumentGroup) -> None:
    """How the engine fills its iterations; `scheduler_of` reads them."""
    group.add_argument(
        "--chunked-prefill",
        action=argparse.BooleanOptionalAction,
        help="cut prompts to the room that an iteration has left; default: what the engine does",
    )
    group.add_argument("--max-num-tokens", type=int, metavar="N", help="most tokens of an iteration (the engine's)")
    group.add_argument("--max-batch-size", type=int, metavar="N", help="most sequences in flight (the engine's)")


def scheduler_of(arguments: argparse.Namespace, engine: str, prefill: Lengths) -> Scheduler:
    """What an engine does by itself, with what the options change.

    Raises:
        ValueError: a value is not possible, the engine's scheduler is not known, or it cannot run such prompts.
    """
    from puzzlebench.serving.served_model import default_scheduler

    options = ("chunked_prefill", "max_num_tokens", "max_batch_size")
    given = {name: value for name in options if (value := getattr(arguments, name)) is not None}
    if "chunked_prefill" in given:
        given["chunked"] = given.pop("chunked_prefill")
    return default_scheduler(engine, prefill, **given)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a JSON file: {error}") from None


def require_models() -> None:
    """Raise ValueError unless torch and transformers are installed; quiet the latter."""
    try:
        import torch  # noqa: F401
        from transformers.utils import logging
    except ImportError:
        raise ValueError(NEEDS_MODELS) from None
    # Its progress bars and hints are about its own work, not the user's.
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
