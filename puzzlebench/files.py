"""Text files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Write beside the file, then put it in its place."""
    unfinished = path.with_name(f".{path.name}.part")
    unfinished.write_text(text)
    os.replace(unfinished, path)
