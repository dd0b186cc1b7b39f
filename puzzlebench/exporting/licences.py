"""What licence a parent states, and what well-known licences ask of who shares a model made from it.

A licence is read from the parent's model card or its LICENSE file, never guessed from a name; what licence_duties.yaml
does not know gets no duties here, and the card says so. A reminder, no legal advice.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import yaml

from puzzlebench.files import write_text

DUTIES_SCHEMA: Final = 1
NOTICE_FILE: Final = "NOTICE"
_CARRIED: Final = re.compile(r"(licen[sc]e|notice|copying|(acceptable_|prohibited_)?use[_-]policy).*", re.IGNORECASE)
_NO_TEXT: Final = (".json", ".py", ".safetensors", ".bin")
_HEAD: Final = 600  # characters of a LICENSE file in which its title stands


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """The licence that a child inherits.

    Attributes:
        id: as a model card states it, such as apache-2.0 or other; None where the parent states none.
        name: for people; None as above.
        link: to its text; None where nothing states one.
        files: the parent's licence, notice and use-policy files, to go along with the child.
        duties: a sentence each, for the card; empty where none are known.
        stated_in: where it was read: README.md, a LICENSE file, or who gave it; None where nothing states it.
        license_name: as a model card states it beside `other`.
        display: words that must be shown; None where there are none.
        notice: a sentence that a NOTICE file must hold; None as above.
        name_begins_with: how the child's name must begin; None as above.
        read_in: the text that the duties were read in; None where none are known.
        base_models: what the parent's card says that the parent was made from.
        languages: as the parent's card states them.
        embedded: the parent was made by puzzlebench itself, on Python's standard library.
    """

    id: str | None = None
    name: str | None = None
    link: str | None = None
    files: tuple[Path, ...] = ()
    duties: tuple[str, ...] = ()
    stated_in: str | None = None
    license_name: str | None = None
    display: str | None = None
    notice: str | None = None
    name_begins_with: str | None = None
    read_in: str | None = None
    base_models: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    embedded: bool = False


def read_licence(folder: Path | None, *, given: str | None = None, parent: str | None = None) -> Licence:
    """What a parent's folder states.

    Args:
        folder: the parent's; None where it is not here.
        given: the licence by its id on the Hub, in place of what the folder states.
        parent: its name; `embedded` is known without a folder.

    Raises:
        ValueError: the front matter of its README.md cannot be read.
    """
    from puzzlebench.parent.embedded import FACTS_FILE
    from puzzlebench.parent.open import EMBEDDED

    card = {} if folder is None else read_front_matter(folder / "README.md")
    files = () if folder is None else _licence_files(folder)
    embedded = parent == EMBEDDED or (folder is not None and (folder / FACTS_FILE).is_file())
    found = Licence(
        files=files,
        base_models=_names(card.get("base_model")),
        languages=_names(card.get("language")),
        embedded=embedded,
    )
    if given is not None:
        ours = given in {row["id"] for row in _rows()} - set(_HUB_IDS)
        return _known(
            replace(
                found,
                id="other" if ours else given,
                license_name=given if ours else None,
                name=given,
                stated_in="who exported it",
            )
        )
    if stated := _names(card.get("license")):
        return _known(
            replace(
                found,
                id=stated[0],
                name=_text(card.get("license_name")) or stated[0],
                license_name=_text(card.get("license_name")),
                link=_web_link(card.get("license_link")),
                stated_in="README.md",
            )
        )
    for file in files:
        if row := _by_title(file):
            other = row["id"] not in _HUB_IDS
            return _known(
                replace(
                    found,
                    id="other" if other else row["id"],
                    name=row["name"],
                    license_name=row["id"] if other else None,
                    stated_in=file.name,
                )
            )
    return found


def name_problem(licence: Licence, title: str) -> str | None:
    """What is wrong with a child's name under this licence, in one sentence; None where nothing is."""
    start = licence.name_begins_with
    if start is None or title.startswith(start):
        return None
    return f"The {licence.name} asks for a name that begins with {start!r}, and {title!r} does not: rename it first."


def write_licence_files(licence: Licence, folder: Path) -> tuple[str, ...]:
    """Put the parent's files into a child's folder, and the NOTICE that its licence asks for; their names come back.

    Raises:
        ValueError: a file cannot be read or written.
    """
    texts = {}
    for file in licence.files:
        try:
            texts[file.name] = file.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    if licence.notice is not None and not any(_words(licence.notice) in _words(text) for text in texts.values()):
        own = next((name for name in texts if name.lower().startswith("notice")), NOTICE_FILE)
        texts[own] = f"{texts[own].rstrip()}\n\n{licence.notice}\n" if own in texts else f"{licence.notice}\n"
    for name, text in texts.items():
        write_text(folder / name, text)
    return tuple(texts)


def read_front_matter(file: Path) -> dict[str, Any]:
    """The YAML at the head of a model card; empty where there is no such file or no such head.

    Raises:
        ValueError: it is not YAML, or no mapping.
    """
    try:
        text = file.read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    found = re.match(r"---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(\r?\n|$)", text, re.DOTALL)
    if found is None:
        return {}
    try:
        data = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: its front matter is not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ValueError(f"{file}: its front matter must be a mapping, not {type(data).__name__}")
    return data


_HUB_IDS: Final = ("llama3.3", "llama3.2", "llama3.1", "llama3", "gemma", "apache-2.0", "mit")
"""Licences of the list of duties that the Hub knows by that id; the others are `other` there, with a name."""


@cache
def _rows() -> tuple[Mapping[str, Any], ...]:
    file = resources.files("puzzlebench.exporting") / "licence_duties.yaml"
    data = yaml.safe_load(file.read_text(encoding="utf-8"))
    if data["schema"] != DUTIES_SCHEMA:
        raise ValueError(f"licence duties schema {data['schema']!r} is not known; this version reads {DUTIES_SCHEMA}")
    return tuple(data["licences"])


def _known(licence: Licence) -> Licence:
    """With the duties of the list, where it has this licence."""
    names = {name.lower() for name in (licence.id, licence.license_name) if name is not None}
    row = next((row for row in _rows() if row["id"] in names), None)
    if row is None and names == {"other"}:  # the card leaves it to the file beside it
        row = next(filter(None, map(_by_title, licence.files)), None)
    if row is None:
        return licence
    return replace(
        licence,
        name=row["name"],
        license_name=licence.license_name or (row["id"] if licence.id == "other" else None),
        link=licence.link or row["link"],
        duties=tuple(row["duties"]),
        display=row.get("display"),
        notice=row.get("notice"),
        name_begins_with=row.get("name_begins_with"),
        read_in=row["read_in"],
    )


def _by_title(file: Path) -> Mapping[str, Any] | None:
    if not file.name.lower().startswith(("license", "licence", "copying")):
        return None
    try:
        head = _words(file.read_text(encoding="utf-8", errors="replace")[:_HEAD])
    except OSError:
        return None
    return next((row for row in _rows() if any(title in head for title in row["titles"])), None)


def _licence_files(folder: Path) -> tuple[Path, ...]:
    return tuple(
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and _CARRIED.fullmatch(file.name) and file.suffix not in _NO_TEXT
    )


def _words(text: str) -> str:
    """In lower case, with single spaces and without marks of Markdown."""
    return " ".join(re.sub(r"[*#_`“”\"]", "", text).lower().split())


def _names(value: object) -> tuple[str, ...]:
    """What a card states as a text or a list of texts."""
    values = value if isinstance(value, list) else [value]
    return tuple(str(one).strip() for one in values if isinstance(one, str) and one.strip())


def _text(value: object) -> str | None:
    return next(iter(_names(value)), None)


def _web_link(value: object) -> str | None:
    """A link that means the same in another repository; cards may name a file beside them."""
    text = _text(value)
    return text if text is not None and text.startswith(("http://", "https://")) else None
