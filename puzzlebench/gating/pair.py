"""The code of both sides of a gate, unpacked side by side once and kept until all is measured.

It appears whole or not at all, so a measurement that was killed goes on with the code that it began with. Paths of both
sides are of one length: a longer one moves the stack.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

from puzzlebench.files import make_folder, write_text
from puzzlebench.gating import trees
from puzzlebench.gating.trees import Revision

Side: TypeAlias = Literal["base", "next"]
SIDES: Final[tuple[Side, Side]] = ("base", "next")
"""Names of folders and files, of one length."""
_STATED: Final = "pair.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two trees in a folder.

    Attributes:
        base, new: what they are of.
        suite: a line on whose benchmarks BASE runs, where that is not plain.
    """

    folder: Path
    base: Revision
    new: Revision
    suite: str | None = None

    def tree(self, side: Side) -> Path:
        """The root of a side."""
        return self.folder / side

    def environment(self, side: Side) -> Path:
        """Where an environment of its own belongs: as it was made for this code, it goes with it."""
        return self.folder / f"environment-{side}"


def unpack_pair(root: Path, base: Revision, new: Revision, folder: Path, *, without: Path | None = None) -> Pair:
    """Both trees in a folder that is replaced if it is there, BASE with the suite of NEW.

    Args:
        without: see `trees.working_tree`.

    Raises:
        ValueError: git cannot give them, they cannot be written, or NEW has no suite.
    """
    part = folder.with_name(f".{folder.name}.part")
    try:
        for old in (part, folder):
            shutil.rmtree(old, ignore_errors=True)
        make_folder(part)
        for side, revision in zip(SIDES, (base, new), strict=True):
            trees.unpack(root, revision, part / side, without=without)
        suite = trees.lay_suite_over(part / "base", part / "next")
        write_text(part / _STATED, json.dumps({"base": asdict(base), "new": asdict(new), "suite": suite}))
        part.rename(folder)
    except OSError as error:
        raise ValueError(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Pair(folder=folder, base=base, new=new, suite=suite)


def read_pair(folder: Path) -> Pair | None:
    """What was unpacked there; None where nothing was, or it was removed."""
    if not folder.is_dir():
        return None
    stated = json.loads((folder / _STATED).read_text())
    return Pair(folder=folder, base=Revision(**stated["base"]), new=Revision(**stated["new"]), suite=stated["suite"])
