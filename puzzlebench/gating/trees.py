"""A folder with the code of a revision, and an interpreter to run it with. Knows git and pip, and no benchmark.

A tree is unpacked from `git archive` (the working tree is copied file by file), so nothing is registered in the
repository, whatever kills the gate, and nobody's edits reach a measurement that is under way.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from puzzlebench.errors import first_line

PACKAGE: Final = "puzzlebench"
SUITE: Final = "puzzlebench/benching"
_COMPANIONS: Final = tuple(
    f"puzzlebench/measuring/{name}.py" for name in ("disturbance", "rounds", "statistics", "stopwatch")
)
"""The instruments of the suite: two revisions are measured with one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Revision:
    """The code of one side.

    Attributes:
        asked: what the user called it; None for the working tree.
        commit: the full hash; of a working tree the one it is based on.
        changes: files of a working tree that differ from that commit.
        content: a digest of the files of a working tree that has changes, "" otherwise.
    """

    asked: str | None
    commit: str
    changes: int = 0
    content: str = ""

    @property
    def name(self) -> str:
        """For people and results: the short hash, with + and a digest where files differ from it."""
        return self.commit[:12] + (f"+{self.content[:8]}" if self.changes else "")


def open_repository(path: Path) -> Path:
    """The root of the git repository that a folder is in.

    Raises:
        ValueError: it is in none, git is missing, or the repository does not hold this package.
    """
    try:
        root = Path(_git(path, "rev-parse", "--show-toplevel").decode().strip()).resolve()
    except ValueError as error:
        raise ValueError(f"{path.resolve()} is not in a git repository ({error}); run the gate in a checkout") from None
    if not (root / PACKAGE / "__init__.py").is_file():
        raise ValueError(f"{root} is no checkout of {PACKAGE}: it has no {PACKAGE}/__init__.py")
    return root


def find_revision(root: Path, asked: str) -> Revision:
    """The commit that a branch, tag, hash or expression means.

    Raises:
        ValueError: there is none, or it does not hold this package.
    """
    try:
        commit = (
            _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{asked}^{{commit}}").decode().strip()
        )
    except ValueError:
        shallow = _git(root, "rev-parse", "--is-shallow-repository").decode().strip() == "true"
        hint = "this clone is shallow: fetch it (git fetch --unshallow)" if shallow else "give a branch, tag or hash"
        raise ValueError(f"no revision is called {asked!r} in {root}; {hint}") from None
    if not _git(root, "ls-tree", commit, f"{PACKAGE}/__init__.py"):
        raise ValueError(f"revision {asked} ({commit[:12]}) has no package {PACKAGE}")
    return Revision(asked=asked, commit=commit)


def working_tree(root: Path, *, without: Path | None = None) -> Revision:
    """What lies in the checkout now, files that git neither tracks nor ignores included.

    Args:
        without: a folder to pass over: the gate's own.

    Raises:
        ValueError: there is no commit yet.
    """
    try:
        commit = _git(root, "rev-parse", "--verify", "HEAD").decode().strip()
    except ValueError:
        raise ValueError(f"{root} has no commit yet") from None
    status = _git(root, "status", "--porcelain", "-z", "--no-renames", "--untracked-files=all").decode().split("\0")
    changed = [root / line[3:] for line in status if line]  # two letters and a space before the path
    changes = sum(without is None or not path.is_relative_to(without.resolve()) for path in changed)
    if not changes:
        return Revision(asked=None, commit=commit)
    digest = hashlib.sha256()
    for path in _files(root, without):
        digest.update(path.encode() + b"\0" + hashlib.sha256((root / path).read_bytes()).digest())
    return Revision(asked=None, commit=commit, changes=changes, content=digest.hexdigest())


def unpack(root: Path, revision: Revision, folder: Path, *, without: Path | None = None) -> None:
    """Write the revision's files into a new folder.

    Args:
        without: see `working_tree`.

    Raises:
        ValueError: git cannot give them, or they cannot be written.
    """
    try:
        folder.mkdir(parents=True)
        if revision.changes:
            for path in _files(root, without):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(root / path, folder / path)
            return
        with tarfile.open(fileobj=io.BytesIO(_git(root, "archive", "--format=tar", revision.commit))) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # came with Python 3.11.4
            archive.extractall(folder)  # noqa: S202 (of the user's own repository)
    except (OSError, tarfile.TarError) as error:
        raise ValueError(f"cannot unpack {revision.name} to {folder}: {first_line(error)}") from None


def lay_suite_over(base: Path, new: Path) -> str | None:
    """Give BASE the suite and the instruments of NEW, so that both measure alike; a line on what changed, or None.

    A benchmark that the base's code cannot run is missing there, and said to be.

    Raises:
        ValueError: NEW has no suite.
    """
    if not (new / SUITE / "session.py").is_file():
        raise ValueError(f"NEW has no {SUITE}: there is nothing to measure it with")
    had = _contents(base / SUITE)
    shutil.rmtree(base / SUITE, ignore_errors=True)
    shutil.copytree(new / SUITE, base / SUITE, ignore=shutil.ignore_patterns("__pycache__"))
    others = []
    for path in _COMPANIONS:
        if (new / path).is_file():
            if not (base / path).is_file() or (base / path).read_bytes() != (new / path).read_bytes():
                others.append(Path(path).stem)
            (base / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(new / path, base / path)
    if not had:
        return "BASE has no benchmarks of its own (no puzzlebench.benching): it runs those of NEW"
    if had != _contents(new / SUITE):
        return "the benchmarks differ between the revisions: both run those of NEW"
    return f"BASE is measured with NEW's {', '.join(others)} (puzzlebench.measuring)" if others else None


def dependencies(tree: Path) -> dict[str, Any]:
    """What a tree's pyproject.toml asks to be installed; {} where it has none that can be read."""
    try:
        project = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        return {}
    return {key: project.get(key) for key in ("requires-python", "dependencies", "optional-dependencies")}


def build_environment(tree: Path, folder: Path, *, extras: str = "models") -> str:
    """A virtual environment with a tree's dependencies, as pip resolves them; the path of its interpreter.

    An environment that was finished before is used as it is.

    Raises:
        ValueError: it cannot be made, with pip's last word.
    """
    python, finished = folder / "bin" / "python", folder / "finished"
    if finished.exists():
        return str(python)
    shutil.rmtree(folder, ignore_errors=True)
    wanted = f"{tree}[{extras}]" if extras in (dependencies(tree).get("optional-dependencies") or {}) else str(tree)
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install", wanted],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr or done.stdout).strip().splitlines()[-1:]
            raise ValueError(f"cannot build an environment for {tree.name}: {''.join(last) or 'no message'}")
    finished.touch()
    return str(python)


def _files(root: Path, without: Path | None) -> list[str]:
    """Of a working tree: what git tracks or would, as it lies there."""
    left_out = None if without is None else without.resolve()
    listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split(b"\0")
    paths = {raw.decode() for raw in listed if raw}
    kept = (path for path in paths if left_out is None or not (root / path).is_relative_to(left_out))
    return sorted(path for path in kept if (root / path).is_file())


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.py")}


def _git(folder: Path, *arguments: str) -> bytes:
    try:
        quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # looking does not lock the user's index
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False, env=quiet)
    except OSError as error:
        raise ValueError(f"git cannot be run: {error.strerror}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(said[0] if said else f"git {arguments[0]} failed")
    return done.stdout
