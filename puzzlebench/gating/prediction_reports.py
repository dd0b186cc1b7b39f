"""What a gate on predictions found, as Markdown for a pull request and as JUnit XML. Judges nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree

from puzzlebench.comparing.markdown import marker
from puzzlebench.gating.predictions import PredictionGate

_SHOWN: Final = 100
_ORDER: Final = ("fails", "improves", "drifts")


def predictions_markdown(gate: PredictionGate, *, name: str) -> str:
    """The text of a comment that begins with the hidden line of its name; at most a hundred findings.

    Raises:
        ValueError: the name could end the hidden line.
    """
    failed = len({one.cell for one in gate.findings if one.outcome == "fails"})
    lines = [marker(name), f"### Predictions: {failed} of {gate.cells} fail", ""]
    lines += [f"The largest drift from the goldens is {gate.largest_drift:.2%}.", ""]
    findings = sorted(gate.findings, key=lambda one: _ORDER.index(one.outcome))
    if findings:
        lines += ["| prediction | | what |", "| --- | --- | --- |"]
        lines += [f"| `{one.cell}` | {one.outcome} | {_text(one.what)} |" for one in findings[:_SHOWN]]
    if len(findings) > _SHOWN:
        lines += ["", f"And {len(findings) - _SHOWN} more."]
    return "\n".join(lines) + "\n"


def _text(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|" else letter for letter in " ".join(text.split()))[:500]


def predictions_junit(gate: PredictionGate, cells: Sequence[str], *, name: str) -> str:
    """A test case for every prediction: those that fail say why, the others may have drifted.

    Args:
        cells: names of all predictions; findings of others, such as goldens without a case, are added.
    """
    names = list(dict.fromkeys([*cells, *(one.cell for one in gate.findings)]))
    failures = {one.cell for one in gate.findings if one.outcome == "fails"}
    counts = {"tests": str(len(names)), "failures": str(len(failures)), "errors": "0", "skipped": "0"}
    root = ElementTree.Element("testsuites", counts)
    suite = ElementTree.SubElement(root, "testsuite", {"name": name, **counts})
    for cell in names:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "predictions", "name": cell})
        said = "\n".join(f"{one.outcome}: {one.what}" for one in gate.findings if one.cell == cell)
        if cell in failures:
            failure = ElementTree.SubElement(case, "failure", {"message": said.splitlines()[0], "type": "regression"})
            failure.text = said
        elif said:
            ElementTree.SubElement(case, "system-out").text = said
    ElementTree.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ElementTree.tostring(root, encoding="unicode")}\n'
