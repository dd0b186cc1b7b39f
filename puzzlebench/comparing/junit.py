"""JUnit XML of a comparison: a test case for every cell and one for the suite, for what shows tests in CI.

SLOWER and missing cells fail, AMBIGUOUS ones are skipped with what would settle them, the others pass. Times are NEW's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree

from puzzlebench.comparing.comparison import CellVerdict, Comparison
from puzzlebench.comparing.measured import NANOSECONDS
from puzzlebench.comparing.words import (
    amount,
    basis_line,
    change_with_interval,
    headline,
    more_sessions,
    probability,
    suite_line,
)

_NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # XML 1.0, section 2.2


def junit(comparison: Comparison, *, name: str = "puzzlebench", allow_missing: bool = False) -> str:
    """The document; valid XML whatever the cells are called."""
    cases = [_case(comparison, cell) for cell in comparison.cells]
    cases += [_missing(missing, skipped=allow_missing) for missing in comparison.missing]
    cases.append(_suite(comparison))
    facts = [("summary", headline(comparison)), ("basis", basis_line(comparison))]
    facts += [("differs", label) for label in comparison.labels] + [("note", note) for note in comparison.notes]
    return document(cases, name=name, facts=facts)


def document(cases: Sequence[ElementTree.Element], *, name: str, facts: Sequence[tuple[str, str]] = ()) -> str:
    """The document of some test cases.

    Args:
        facts: properties of the suite.
    """
    counts = {
        "tests": len(cases),
        "failures": sum(case.find("failure") is not None for case in cases),
        "errors": 0,
        "skipped": sum(case.find("skipped") is not None for case in cases),
    }
    stated = {key: str(count) for key, count in counts.items()}
    root = ElementTree.Element("testsuites", stated)
    suite = ElementTree.SubElement(root, "testsuite", {"name": _clean(name), **stated})
    properties = ElementTree.SubElement(suite, "properties") if facts else suite
    for key, value in facts:
        ElementTree.SubElement(properties, "property", {"name": key, "value": _clean(value)})
    suite.extend(cases)
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'


def _case(comparison: Comparison, cell: CellVerdict) -> ElementTree.Element:
    case = _element(cell.name)
    if cell.unit in NANOSECONDS and cell.new == cell.new:  # not a number where nothing was measured
        case.set("time", f"{cell.new * NANOSECONDS[cell.unit] / 1e9:.9f}")
    text = f"{change_with_interval(comparison.judged(cell))}, p {probability(cell.p)}"
    if cell.verdict == "SLOWER":
        _outcome(case, "failure", f"SLOWER: {text}", f"{amount(cell.base, cell.unit)} to {amount(cell.new, cell.unit)}")
    elif cell.verdict == "AMBIGUOUS":
        _outcome(case, "skipped", f"AMBIGUOUS: {text}; {more_sessions(cell)}")
    else:
        ElementTree.SubElement(case, "system-out").text = _clean(f"{cell.verdict}: {text}")
    return case


def _missing(name: str, *, skipped: bool) -> ElementTree.Element:
    case = _element(name)
    _outcome(case, "skipped" if skipped else "failure", "missing in NEW")
    return case


def _suite(comparison: Comparison) -> ElementTree.Element:
    case = ElementTree.Element("testcase", {"classname": "suite", "name": "shift common to all cells"})
    verdict = None if comparison.suite is None else comparison.suite.verdict
    if comparison.suite_slower:
        _outcome(case, "failure", suite_line(comparison))
    elif verdict in ("SAME", "FASTER"):
        ElementTree.SubElement(case, "system-out").text = suite_line(comparison)
    else:
        _outcome(case, "skipped", suite_line(comparison))
    return case


def _element(name: str) -> ElementTree.Element:
    group, _, rest = name.partition("/")
    names = {"classname": _clean(group if rest else "cells"), "name": _clean(rest or name)}
    return ElementTree.Element("testcase", names)


def _outcome(case: ElementTree.Element, kind: str, message: str, text: str = "") -> None:
    outcome = ElementTree.SubElement(case, kind, {"message": _clean(message)})
    if kind == "failure":
        outcome.set("type", "regression")
    if text:
        outcome.text = _clean(text)


def _clean(text: str) -> str:
    return _NOT_XML.sub("\ufffd", text)
