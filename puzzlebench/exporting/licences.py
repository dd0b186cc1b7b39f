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
_TEXTS: Final = ("license", "licence", "copying")  # how a file with the text itself is called
_HEAD: Final = 600  # characters of a LICENSE file in which its title stands
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._+()-]{0,99}")
_NO_NAME: Final = ("other", "unknown", "none")


@dataclass(frozen=True, kw_only=True, slots=True)
class Licence:
    """The licence that a child inherits.

    Attributes:
        id: as a model card states it, one that the Hub knows; None where the parent states none.
        name: for people; None as above.
        link: to its text; None where nothing states one.
        files: the parent's licence, notice and use-policy files, to go along with the child.
        duties: a sentence each, for the card; empty where none are known.
        stated_in: the file it was read in: README.md or a LICENSE file; None where no file states it.
        given: whoever exported the child stated it, in place of the parent's files.
        parents: what those state, where it is another one; None where they state none.
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
    given: bool = False
    parents: str | None = None
    license_name: str | None = None
    display: str | None = None
    notice: str | None = None
    name_begins_with: str | None = None
    read_in: str | None = None
    base_models: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    embedded: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the files that hold the text of a licence."""
        return tuple(file.name for file in self.files if file.name.lower().startswith(_TEXTS))


def read_licence(folder: Path | None, *, given: str | None = None, parent: str | None = None) -> Licence:
    """What a parent's folder states.

    Args:
        folder: the parent's; None where it is not here.
        given: the licence by its id on the Hub or its own name, in place of what the folder states.
        parent: its name; `embedded` is known without a folder.

    Raises:
        ValueError: the front matter of its README.md cannot be read, or `given` names no licence.
    """
    from puzzlebench.parent.embedded import FACTS_FILE
    from puzzlebench.parent.open import EMBEDDED

    card = {} if folder is None else read_front_matter(folder / "README.md")
    nothing = Licence(
        files=() if folder is None else _licence_files(folder),
        base_models=_names(card.get("base_model")),
        languages=_names(card.get("language")),
        embedded=parent == EMBEDDED or (folder is not None and (folder / FACTS_FILE).is_file()),
    )
    stated = _stated(nothing, card)
    if given is None:
        return stated
    if not _NAME.fullmatch(given.strip()) or given.strip().lower() in _NO_NAME:
        raise ValueError(
            f"licence {given!r} names none; give its id on the Hub, such as apache-2.0, or its own name in one line"
        )
    own = _known(replace(_named(nothing, given.strip()), given=True))
    return stated if own.name == stated.name else replace(own, parents=stated.name)


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


def _stated(nothing: Licence, card: Mapping[str, Any]) -> Licence:
    """By the card, or else by a LICENSE file."""
    if stated := _names(card.get("license")):
        own, link = _text(card.get("license_name")), _web_link(card.get("license_link"))
        found = _named(nothing, stated[0])
        if own is not None:
            found = replace(found, name=own, license_name=own)
        return _known(replace(found, link=link, stated_in="README.md"))
    for file in nothing.files:
        if row := _by_title(file):
            return _known(replace(_named(nothing, row["id"]), stated_in=file.name))
    return nothing


def _named(licence: Licence, name: str) -> Licence:
    """With the id that the Hub has for a name, or else `other` there, with a name."""
    known = next((one for one in (*_hub_ids(), *(row["id"] for row in _rows())) if _same(one, name)), None)
    if known in _hub_ids():
        return replace(licence, id=known, name=known)
    if known is not None:
        return replace(licence, id="other", name=known, license_name=known)
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")
    return replace(licence, id="other", name=name, license_name=slug or None)


def _same(one: str, other: str) -> bool:
    """But for case and marks: Apache 2.0 is apache-2.0."""
    letters = [re.sub(r"[^a-z0-9+]", "", text.lower()) for text in (one, other)]
    return letters[0] == letters[1]


@cache
def _duties() -> Mapping[str, Any]:
    file = resources.files("puzzlebench.exporting") / "licence_duties.yaml"
    data: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    if data["schema"] != DUTIES_SCHEMA:
        raise ValueError(f"licence duties schema {data['schema']!r} is not known; this version reads {DUTIES_SCHEMA}")
    return data


def _rows() -> tuple[Mapping[str, Any], ...]:
    return tuple(_duties()["licences"])


def _hub_ids() -> tuple[str, ...]:
    return tuple(_duties()["hub_ids"])


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
    if not file.name.lower().startswith(_TEXTS):
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
    return text if text is not None and re.fullmatch(r"https?://[^\s()<>\[\]]+", text) else None
