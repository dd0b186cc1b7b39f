"""Write the report of a run: report.html, and its charts as PNG where matplotlib is installed."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from puzzlebench.files import make_folder, write_text
from puzzlebench.reporting.data import collect
from puzzlebench.reporting.page import render_page

PAGE: Final = "report.html"
_LOG = logging.getLogger(__name__)


def write_report(run_folder: Path, out: Path) -> list[Path]:
    """Read a run folder and write its report; every file appears whole or not at all.

    Args:
        run_folder: as `puzzlebench run` leaves it, finished or not; what is missing is left out with a note.
        out: a folder; made where there is none.

    Returns:
        What was written, the page first. Without matplotlib the page alone, and a warning is logged.

    Raises:
        ValueError: the folder holds nothing of a run, a file in it is broken, or `out` cannot be written to.
    """
    data = collect(run_folder)
    page = render_page(data)
    out = Path(out)
    make_folder(out)
    write_text(out / PAGE, page)
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        _LOG.warning("no pictures beside %s: pip install 'puzzlebench[plots]'", out / PAGE)
        return [out / PAGE]
    from puzzlebench.reporting.pictures import write_pictures

    return [out / PAGE, *write_pictures(data, out)]
