"""What sections are made of: headings, tables, notes, legends and the words for where a number comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from puzzlebench.reporting.markup import Html, join, tag

Kind: TypeAlias = Literal["measured", "predicted", "modelled", "counted"]
KINDS: Final[Mapping[Kind, str]] = {
    "measured": "timed or evaluated in this run, with the 95 % interval of its repetitions or samples",
    "predicted": "summed block by block from the cost table; no whole model was timed for it",
    "modelled": "of the cost table: cells from a datasheet, without a measurement of this kernel",
    "counted": "exact: follows from shapes alone",
}
NONE_PASSED_OVER: Final[Mapping[str, str]] = MappingProxyType({})


def kind(name: Kind) -> Html:
    """The word for where a number comes from; its mark differs in form, not in colour alone."""
    return tag("span", name, class_=f"kind {name}")


def section(anchor: str, title: str, *children: object, lede: object = None, kinds: Sequence[Kind] = ()) -> Html:
    """A section with a heading and a sentence or two on what it shows."""
    return tag(
        "section",
        tag("h2", title),
        tag("p", lede, *(join((" ", kind(name))) for name in kinds), class_="lede") if lede or kinds else None,
        *children,
        id=anchor,
        aria_label=title,
    )


def absent(file: str, stage: str, passed_over: Mapping[str, str] = NONE_PASSED_OVER) -> Html:
    """The note for a part that the run folder lacks, or has from another run."""
    why = passed_over.get(file)
    rest = f" The file is there, but {why}." if why else None
    return tag("p", "Not in this run: ", tag("code", file), f", which {stage} writes.", rest, class_="absent")


def table(heads: Sequence[object], rows: Iterable[Sequence[object]], *, label: str, text_columns: int = 1) -> Html:
    """A table that scrolls by itself where the window is narrow.

    Args:
        rows: one of a single cell is a heading for those under it.
        label: what it holds, for screen readers.
        text_columns: how many columns at the left hold words; the others are numbers.
    """
    body = [
        tag(
            "tr",
            *(
                tag("th", cell, scope="row") if place == 0 else tag("td", cell, class_=_align(place, text_columns))
                for place, cell in enumerate(row)
            ),
        )
        if len(row) > 1
        else tag("tr", tag("th", row[0], colspan=len(heads), scope="rowgroup"), class_="group")
        for row in rows
    ]
    head = tag(
        "tr", *(tag("th", name, scope="col", class_=_align(place, text_columns)) for place, name in enumerate(heads))
    )
    return scrolling(tag("table", tag("thead", head), tag("tbody", *body)), label)


def scrolling(content: Html, label: str) -> Html:
    """A box that scrolls sideways, by keyboard too."""
    return tag("div", content, class_="scroll", tabindex=0, role="region", aria_label=label)


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and values."""
    return tag("dl", *(join((tag("dt", name), tag("dd", value))) for name, value in pairs))


def fingerprint(digest: str) -> Html:
    """Its beginning, as long as `short_digest` makes them; pointing at it shows all of it."""
    return tag("code", digest[:12], title=digest if len(digest) > 12 else None)


def details(summary: str, *children: object, wide: bool = False) -> Html:
    """What opens on demand, and for paper unless it is too wide for it."""
    return tag("details", tag("summary", summary), *children, class_="wide" if wide else None)


def legend(items: Iterable[tuple[Html, str]]) -> Html:
    """Samples and what they stand for."""
    return tag("ul", *(tag("li", sample, " ", words) for sample, words in items), class_="legend")


def swatch(*shapes: Html) -> Html:
    """A small picture for a legend."""
    return tag("svg", *shapes, width=22, height=14, viewbox="0 0 22 14", aria_hidden="true")


def box(class_: str) -> Html:
    """A swatch of an area."""
    return swatch(tag("rect", x=1, y=1, width=20, height=12, class_=class_))


def figure(picture: Html, caption: object = None) -> Html:
    """A chart and what is to be seen."""
    return tag("figure", picture, tag("figcaption", caption) if caption is not None else None)


def _align(place: int, text_columns: int) -> str | None:
    return None if place < text_columns else "number"
