"""Texts of others inside Markdown: one line, of bounded length, without marks that Markdown or HTML would act on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Final, TypeVar

_LONGEST: Final = 300  # characters of one text
_CODE: Final = 80
_MARKS: Final = re.compile(r"([\\`*\[\]])")
_LINE_BEGINS: Final = ("#", "-", "+", "=", "~", "|")
Value = TypeVar("Value")


def plain(text: object, limit: int = _LONGEST) -> str:
    """A text that means itself wherever it stands."""
    line = _MARKS.sub(r"\\\1", _one_line(text, limit))
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"\\{line}" if line.startswith(_LINE_BEGINS) else line


def code(text: object, limit: int = _CODE) -> str:
    """A text between backticks."""
    return f"`{_one_line(text, limit).replace('`', '')}`"


def clean(value: Value) -> Value:
    """The value with every text in it made `plain`, at any depth; keys of mappings and paths stay as they are."""
    cleaned: Value = _clean(value)
    return cleaned


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, tuple):
        return tuple(_clean(one) for one in value)
    if isinstance(value, Mapping):
        return {key: _clean(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _clean(getattr(value, field.name)) for field in fields(value)})
    return value


def _one_line(text: object, limit: int) -> str:
    line = "".join(letter for letter in " ".join(str(text).split()) if letter.isprintable())
    return line if len(line) <= limit else f"{line[: limit - 1].rstrip()}…"
