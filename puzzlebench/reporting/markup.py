"""HTML and SVG elements as text that is safe by construction: whatever is not `Html` is escaped."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable
from typing import Final

WIDE: Final = 960
NARROW: Final = 340
"""Pixels that charts are drawn for; the page shows the one that its window has room for."""


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    Args:
        name: of the element.
        children: text, numbers, `Html` or None for nothing.
        attributes: "_" becomes "-", a trailing one goes ("class_"); None leaves one out, True leaves out its value.
    """
    head = name + "".join(_attribute(key, value) for key, value in attributes.items() if value is not None)
    if name in ("meta", "link", "br", "hr"):
        return Html(f"<{head}>")
    return Html(f"<{head}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Children one after the other."""
    return Html("".join(_text(child) for child in children if child is not None))


def responsive(draw: Callable[[int], Html], wide: int = WIDE, narrow: int = NARROW) -> Html:
    """A chart drawn twice; the style sheet shows one of the two."""
    return join(
        tag("div", draw(width), class_=f"chart {name}") for name, width in (("on-wide", wide), ("on-narrow", narrow))
    )


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    if name == "viewbox":
        name = "viewBox"
    if value is True:
        return f" {name}"
    text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
    return f' {name}="{html.escape(text)}"'


def _text(child: object) -> str:
    return str(child) if isinstance(child, Html) else html.escape(str(child))
