"""What several commands read alike from their arguments. One line says what is wrong with them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

INFEASIBLE: Final = 3
"""Exit code of a search that proved that nothing keeps the limits."""
NEEDS_MODELS: Final = "this needs torch and transformers: pip install 'puzzlebench[models]'"


def whole_numbers(text: str) -> tuple[int, ...]:
    """A type of arguments: whole numbers with commas between them."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of whole numbers such as 1,8,64") from None


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
