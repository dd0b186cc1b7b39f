"""Where the time goes: parent and child as bars of their parts, prefill and decode apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from puzzlebench.estimate import Interval
from puzzlebench.reporting.charts.frame import mark, svg, text
from puzzlebench.reporting.markup import Html, tag
from puzzlebench.reporting.numbers import percent, quantity, spread
from puzzlebench.reporting.time_by_part import PARTS, TITLES, whole

_LEFT: Final = 54
_BAR: Final = 30
_CHARACTER: Final = 6.8


def draw_bars(times: Mapping[str, Mapping[str, Interval]], width: int, *, title: str) -> Html:
    """One phase.

    Args:
        times: seconds by part, of parent and child by name.
    """
    right = width - 78
    totals = {name: whole(dict(parts)) for name, parts in times.items()}
    longest = max(total.value for total in totals.values())
    parts: list[Html] = [text(0, 14, title, class_="label")]
    for row, (name, spent) in enumerate(times.items()):
        y = 28 + row * (_BAR + 10)
        parts.append(text(0, y + _BAR / 2 + 4, name, class_="tick"))
        x = float(_LEFT)
        for column, part in enumerate(PARTS):
            share = spent[part].value / totals[name].value
            wide = spent[part].value / longest * (right - _LEFT)
            words = percent(share, 0)
            inside = text(x + wide / 2, y + _BAR / 2 + 4, words, anchor="middle", class_="on-bar")
            tip = (
                f"{name}, {TITLES[part]}\n{quantity('latency', spent[part].value)} ({percent(share)})\n"
                f"95 % interval {spread(spent[part], lambda value: quantity('latency', value))}"
            )
            parts.append(
                mark(
                    tag("rect", x=x, y=y, width=max(wide - 1.5, 0.5), height=_BAR, class_=f"fill-{part}"),
                    inside if wide > len(words) * _CHARACTER + 8 else None,
                    tip=tip,
                    row=row,
                    column=column,
                )
            )
            x += wide
        parts.append(text(x + 8, y + _BAR / 2 + 4, quantity("latency", totals[name].value), class_="value"))
    return svg(width, 28 + len(times) * (_BAR + 10), *parts, label=f"{title}: time by part", marks=True)
