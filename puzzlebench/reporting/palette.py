"""The colours of page and pictures, by role, for light and dark. The one place that names them.

Text on either ground has a contrast of at least 4.5, marks of at least 3 (WCAG 2.2 AA); parts stay apart for people
with colour-blindness, and nothing is told by colour alone. Tests compute all three.
"""

from __future__ import annotations

from typing import Final

LIGHT: Final = {
    "ground": "#ffffff",
    "raised": "#f3f6f7",
    "ink": "#10181d",
    "muted": "#56636c",
    "line": "#d5dde1",
    "ghost": "#7d8a93",
    "accent": "#005f59",
    "parent": "#7a8791",
    "attention": "#0b62a8",
    "ffn": "#bf5200",
    "ends": "#66737c",
    "term3": "#8a3f86",
    "warn": "#a33a00",
}
DARK: Final = {
    "ground": "#0e1418",
    "raised": "#172026",
    "ink": "#e9eff2",
    "muted": "#9cabb4",
    "line": "#2c3840",
    "ghost": "#71808a",
    "accent": "#45c9b9",
    "parent": "#7f8d97",
    "attention": "#5eaef2",
    "ffn": "#f0883e",
    "ends": "#87959e",
    "term3": "#d18acd",
    "warn": "#ff9d5c",
}
THEMES: Final = {"light": LIGHT, "dark": DARK}
TEXT: Final = ("ink", "muted", "accent", "warn")
MARKS: Final = ("ghost", "accent", "parent", "attention", "ffn", "ends", "term3")

HEAT_LIGHT: Final = (
    "#faf5f9", "#efdfed", "#e2c6df", "#d2a9ce", "#be89b9", "#a56aa1", "#874d84", "#663464", "#431e42",
)  # fmt: skip
HEAT_DARK: Final = (
    "#1c1f26", "#2f2834", "#463147", "#623d61", "#80497d", "#a05c9b", "#bf78b8", "#dba0d4", "#f5d4ef",
)  # fmt: skip
"""From no harm to the most: lightness goes one way, so the order needs no hue."""


def style_variables() -> str:
    """CSS: both themes as variables, the window's by default, another by data-theme, paper always light."""
    light, dark = (
        "".join(f"--{name}:{colour};" for name, colour in colours.items())
        + "".join(f"--q{place}:{colour};" for place, colour in enumerate(heat))
        for colours, heat in ((LIGHT, HEAT_LIGHT), (DARK, HEAT_DARK))
    )
    return (
        f":root{{color-scheme:light;{light}}}\n"
        f"@media (prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{dark}}}}}\n"
        f":root[data-theme=dark]{{color-scheme:dark;{dark}}}\n"
        f"@media print{{:root:root:root{{color-scheme:light;{light}}}}}\n"
        + "".join(f".q{place}{{fill:var(--q{place})}}" for place in range(len(HEAT_LIGHT)))
    )


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
