"""What a model card says of the licence: which it is, who says so, and what it asks for. Knows no model."""

from __future__ import annotations

from puzzlebench.exporting.card_text import code
from puzzlebench.exporting.licences import Licence


def licence_lines(licence: Licence, parent: str, changed: str) -> list[str]:
    """The section on the licence.

    Args:
        licence: with texts that can stand in Markdown.
        parent: its name, in Markdown.
        changed: what differs from the parent, in words.
    """
    named = f"[{licence.name}]({licence.link})" if licence.link else f"{licence.name}"
    if licence.given:
        theirs = "none" if licence.parents is None else f"another one, {licence.parents}, whose terms may hold too"
        lines = [f"{named}, as was given for this export. The parent, {parent}, states {theirs}."]
    elif licence.name is not None:
        lines = [f"This model is made from {parent} and is under its licence: {named}, by its {licence.stated_in}."]
    elif licence.embedded:
        lines = [
            "The parent was trained by puzzlebench, on the sources of Python's standard library (PSF License "
            "Agreement), and states no licence for its weights. State one if you share this model."
        ]
    else:
        lines = [
            f"**Unknown.** Nothing beside the weights of {parent} states a licence, and none is guessed here. Find out "
            "what its makers allow before you share or use this model."
        ]
    if licence.name is not None and licence.read_in is None:
        lines.append("puzzlebench has no list of what it asks for: read it.")
    if licence.name is not None and not licence.texts:
        missing = (
            "**Its text is missing here**, as it did not lie beside the parent's weights: add it before you share."
        )
        lines += ["", missing]
    duties = list(licence.duties)
    if licence.display is not None:
        duties.insert(0, f"“{licence.display}” is to be shown where the model is used or described.")
    if licence.name_begins_with is not None:
        duties.insert(0, f"The name of a model made from it begins with “{licence.name_begins_with}”.")
    if licence.notice is not None:
        duties.append(f"A NOTICE file holds: “{licence.notice}”")
    if duties:
        lines += ["", f"What it asks for ({licence.read_in}; no legal advice):", "", *(f"- {duty}" for duty in duties)]
    if licence.files:
        lines += ["", f"Carried over from the parent: {', '.join(code(file.name) for file in licence.files)}."]
    if licence.base_models:
        lines += ["", f"The parent was itself made from {', '.join(licence.base_models)}, whose terms may hold too."]
    return [*lines, "", f"**Changed** from the parent: {changed}. puzzlebench, which did it, is under Apache-2.0."]
