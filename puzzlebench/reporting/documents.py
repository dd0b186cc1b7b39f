"""JSON documents of a run: read with one line for what is wrong. Knows no stage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from puzzlebench.estimate import Interval

SCHEMA_VERSION = 1
Parsed = TypeVar("Parsed")


def read_document(
    path: Path, parse: Callable[[Mapping[str, Any]], Parsed], *, unversioned: bool = False
) -> Parsed | None:
    """What `parse` makes of a document, or None where there is no such file.

    Args:
        unversioned: it may state no schema version.

    Raises:
        ValueError: it is not JSON, of another schema version, or lacks what `parse` needs.
    """
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not a JSON file that can be read: {error}") from None
    if not isinstance(stated, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(stated).__name__}")
    version = stated.get("schema_version")
    if version != SCHEMA_VERSION and not (unversioned and version is None):
        raise ValueError(f"{path} has schema version {version!r}; this version reads {SCHEMA_VERSION}")
    try:
        return parse(stated)
    except KeyError as error:
        raise ValueError(f"{path} lacks {error.args[0]!r}; run its stage again") from None
    except (TypeError, AttributeError, IndexError, ValueError) as error:
        raise ValueError(f"{path} is not as its stage writes it: {error}") from None


def number(value: object) -> float:
    """A float; not a number where JSON has null.

    Raises:
        TypeError: it is no number.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return float(value)


def interval(value: object) -> Interval:
    """A value with its interval, or a bare number, whose ends are then not known.

    Raises:
        KeyError, TypeError: it is neither.
    """
    if isinstance(value, Mapping):
        return Interval(value=number(value["value"]), low=number(value.get("low")), high=number(value.get("high")))
    return Interval(value=number(value), low=math.nan, high=math.nan)
