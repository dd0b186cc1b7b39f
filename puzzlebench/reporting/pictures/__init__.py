"""The page's charts as PNG, for slides and documents. Needs matplotlib; reads `ReportData` and counts nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from puzzlebench.files import replacing
from puzzlebench.reporting.data import ReportData
from puzzlebench.reporting.pictures.choice import draw_front, draw_heat, draw_layers
from puzzlebench.reporting.pictures.results import draw_bars, draw_losses, draw_retention, draw_speed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES: Final[dict[str, Callable[[ReportData], Figure | None]]] = {
    "front.png": draw_front,
    "architecture.png": draw_layers,
    "time.png": draw_bars,
    "scores.png": draw_heat,
    "speed.png": draw_speed,
    "retention.png": draw_retention,
    "losses.png": draw_losses,
}
"""What draws each; None where the run lacks its data."""
_DPI: Final = 160


def write_pictures(data: ReportData, out: Path) -> list[Path]:
    """Write those that the run has data for, each whole or not at all; an earlier report's others go.

    Raises:
        ValueError: the folder cannot be written to.
    """
    written = []
    for name, draw in PICTURES.items():
        path, figure = out / name, draw(data)
        if figure is None:
            path.unlink(missing_ok=True)
            continue
        with replacing(path) as part:
            figure.savefig(part, format="png", dpi=_DPI)
        written.append(path)
    return written
