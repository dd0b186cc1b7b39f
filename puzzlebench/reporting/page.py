"""The whole page as one text: style, script and pictures are inside, so that it opens anywhere and asks nobody."""

from __future__ import annotations

from importlib import resources
from typing import Final

from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.describe import model_name
from puzzlebench.reporting.markup import Html, tag
from puzzlebench.reporting.palette import style_variables
from puzzlebench.reporting.sections.architecture import architecture_section
from puzzlebench.reporting.sections.costs import costs_section
from puzzlebench.reporting.sections.distillation import distillation_section
from puzzlebench.reporting.sections.front import front_section
from puzzlebench.reporting.sections.head import head
from puzzlebench.reporting.sections.provenance import provenance_section
from puzzlebench.reporting.sections.quality import quality_section
from puzzlebench.reporting.sections.scores import scores_section
from puzzlebench.reporting.sections.speed import speed_section

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
_SECTIONS: Final = {
    "front": ("Choice", front_section),
    "architecture": ("Architecture", architecture_section),
    "costs": ("Time", costs_section),
    "scores": ("Scores", scores_section),
    "speed": ("Speed", speed_section),
    "quality": ("Quality", quality_section),
    "distillation": ("Distillation", distillation_section),
    "provenance": ("Provenance", provenance_section),
}
"""By anchor: the word in the menu, and what draws it."""


def render_page(data: ReportData) -> str:
    """HTML; nothing in it is fetched from anywhere, and its policy forbids it."""
    files = resources.files("puzzlebench.reporting")
    style = style_variables() + (files / "style.css").read_text(encoding="utf-8")
    script = (files / "script.js").read_text(encoding="utf-8")
    top = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"{model_name(data)}: puzzlebench report"),
        tag("style", Html(style)),
    )
    body = tag(
        "body",
        tag("a", "Skip to the report", href="#report", class_="skip"),
        _patterns(),
        _menu(),
        tag("main", head(data), *(draw(data) for _, draw in _SECTIONS.values()), id="report"),
        tag("div", id="tip", role="tooltip", hidden=True),
        tag("script", Html(script)),
    )
    return f'<!doctype html>\n<html lang="en">{top}{body}</html>\n'


def _menu() -> Html:
    links = [tag("li", tag("a", words, href=f"#{anchor}")) for anchor, (words, _) in _SECTIONS.items()]
    return tag(
        "nav",
        tag("a", "puzzlebench", href="#top", class_="brand"),
        tag("ul", *links),
        tag("button", "Dark", type="button", id="theme", hidden=True, aria_label="Switch between light and dark"),
        aria_label="Sections",
    )


def _patterns() -> Html:
    """Hatches, which every chart refers to; a picture that is not shown could not hold them."""
    hatches = [
        tag(
            "pattern",
            tag("path", d="M-1 1l2 -2M0 6l6 -6M5 7l2 -2", class_=f"stroke-{part}"),
            id=f"hatch-{part}",
            width=6,
            height=6,
            patternUnits="userSpaceOnUse",
        )
        for part in ("attention", "ffn")
    ]
    return tag("svg", tag("defs", *hatches), width=0, height=0, aria_hidden="true", class_="patterns")
