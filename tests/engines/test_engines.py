"""Exports in the engines they are for: the same greedy tokens and log-probabilities as in puzzlebench.

Where a rule refuses a sample it is exported nevertheless, if its format can hold it, and the engine must then fail or
say something else: rules are not stricter than need be. Slow, and not in the main suite: `make engines`.
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from puzzlebench.exporting.job import ExportJob, run_export
from puzzlebench.exporting.samples import RECIPES
from puzzlebench.exporting.source import open_source
from puzzlebench.exporting.verify import VerifyJob, run_verify
from puzzlebench.model.engine_rules import check_architecture_loads, load_engine_rules

from .table import PLACES, Row

pytestmark = pytest.mark.engines

ONLY_WITH_THE_PLUGIN = ("llama-first-no-attention", "llama-linear-attention", "llama-linear-ffn")
"""What vLLM's own DeciLM refuses, and the plugin loads."""

CASES = [
    (recipe.name, *place)
    for recipe in RECIPES
    for place in PLACES
    if place != ("decilm", "vllm+plugin") or recipe.name in ONLY_WITH_THE_PLUGIN
]


@pytest.mark.parametrize(("name", "written_as", "engine"), CASES, ids=lambda value: str(value))
def test_export(name, written_as, engine, samples, exports, rows, python_of):
    python = python_of(engine)
    sample = samples[name]

    def export(folder, engines):
        if not folder.exists():
            run_export(ExportJob(child=str(sample.folder), out=folder, format=written_as, engines=engines))
        return folder

    def verify(folder):
        return run_verify(
            VerifyJob(
                checkpoint=folder,
                reference=sample.folder,
                engine=engine.partition("+")[0],
                python=python,
                trust_remote_code=True,
            )
        )

    stated = {"sample": name, "format": written_as, "engine": engine}
    reason = None
    try:
        if engine == "vllm+plugin":  # its rules are no matter of a format
            source = open_source(sample.folder)
            for refusal in check_architecture_loads(
                load_engine_rules("vllm_puzzlebench"), source.spec, source.architecture
            ):
                raise ValueError(refusal)
        export(exports / f"{name}-{written_as}-{engine}", () if engine == "vllm+plugin" else (engine,))
    except ValueError as refused:
        reason = str(refused)
    if reason is not None:
        rows.append(_refused(reason, stated, exports / f"{name}-{written_as}", export, verify))
        assert rows[-1].result is None, f"{engine} agrees, though it was refused: {reason}"
        return
    try:
        result = verify(exports / f"{name}-{written_as}-{engine}")
    except ValueError as error:
        rows.append(Row(**stated, refused=_short(str(error), name), tried=None))
        raise
    rows.append(Row(**stated, version=result["engine_version"], result=result))
    assert result["agrees"], result["verdict"]


def _refused(reason, stated, folder, export, verify) -> Row:
    """A row for what is refused, after trying it; one with a result if the engine agrees all the same."""
    name = stated["sample"]
    rule = re.search(r"\[([a-z_]+)\]", reason)
    short = rule[1] if rule else _short(reason, name)
    try:
        export(folder, ())
    except ValueError as error:
        same = rule is None or f"[{rule[1]}]" in str(error)  # the format's writer knows it too
        return Row(**stated, refused=short, tried=None if same else f"cannot be written ({_short(str(error), name)})")
    try:
        result = verify(folder)
    except ValueError as error:
        return Row(**stated, refused=short, tried=f"does not load ({_short(str(error), name)})")
    if result["agrees"]:
        return Row(**stated, version=result["engine_version"], refused=short, result=result)
    tried = f"{result['equal']} of {result['tokens']} tokens equal, off by {result['generated']['largest']:.2g}"
    return Row(**stated, version=result["engine_version"], refused=short, tried=tried)


def _short(message, name) -> str:
    """Without folders, and not too long for a cell."""
    plain = re.sub(r"(/[\w.+-]+)+/", "", message).replace(f"{name}: ", "")
    plain = re.sub(r"^\w+ does not run \S+: |^\S+ cannot be written as \w+: ", "", plain)
    plain = plain.replace("ValidationError: 1 validation error for ModelConfig Value error, ", "")  # of pydantic
    return plain if len(plain) <= 200 else plain[:197] + "..."
