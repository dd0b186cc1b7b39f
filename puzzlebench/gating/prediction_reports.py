"""What a gate on predictions found, as Markdown for a pull request and as JUnit XML. Judges nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final
from xml.etree import ElementTree

from puzzlebench.comparing.junit import document
from puzzlebench.comparing.markdown import marker
from puzzlebench.gating.predictions import PredictionGate

_SHOWN: Final = 100


def predictions_markdown(gate: PredictionGate, *, name: str) -> str:
    """The text of a comment that begins with the hidden line of its name; at most a hundred findings.

    Raises:
        ValueError: the name could end the hidden line.
    """
    lines = [marker(name), f"### Predictions: {len(gate.failed)} of {gate.cells} fail", ""]
    lines += [f"The largest drift from the goldens is {gate.largest_drift:.2%}.", ""]
    findings = gate.by_gravity
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
    cases = []
    for cell in names:
        case = ElementTree.Element("testcase", {"classname": "predictions", "name": cell})
        cases.append(case)
        said = "\n".join(f"{one.outcome}: {one.what}" for one in gate.findings if one.cell == cell)
        if cell in gate.failed:
            failure = ElementTree.SubElement(case, "failure", {"message": said.splitlines()[0], "type": "regression"})
            failure.text = said
        elif said:
            ElementTree.SubElement(case, "system-out").text = said
    return document(cases, name=name)
