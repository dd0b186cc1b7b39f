"""Exports in the engines they are for: puzzlebench's greedy tokens, log-probabilities and predicted key-value memory.

Where a rule refuses a sample it is exported nevertheless, if its format can hold it, and the engine must then say that
it does not load it, or compute something else: rules are not stricter than need be. That counts only of an engine that
runs a sample that nothing refuses; one that takes too long or dies without a word is an error of the test.
Slow, and not in the main suite: `make engines`.
"""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from puzzlebench.exporting.job import ExportJob, run_export
from puzzlebench.exporting.source import open_source
from puzzlebench.exporting.verify import VerifyJob, run_verify
from puzzlebench.exporting.verify_engine import EngineDiedError, EngineRefusedError
from puzzlebench.model.engine_rules import find_refusals, load_engine_rules

from ..exporting.samples import RECIPES
from .table import PLACES, Row

pytestmark = pytest.mark.engines

KNOWN_GOOD = "llama-sized"
"""Loads everywhere; with the plugin, by the plugin."""

ONLY_WITH_THE_PLUGIN = ("llama-first-no-attention", "llama-linear-attention", "llama-linear-ffn")
"""What vLLM's own DeciLM refuses, and the plugin loads."""

CANNOT_SAY = {
    "decilm": ("qwen3-sized", "mistral-window", "smollm3-sized", "granite-sized", "olmo2-sized", "gemma2-sized"),
    "gguf": (
        "llama-linear-ffn",
        "qwen3-sized",
        "mistral-window",
        "smollm3-sized",
        "granite-sized",
        "olmo2-sized",
        "gemma2-sized",
    ),
    "hf": (),
}
"""What a format has no words for, so that nothing can be tried in any engine."""

ABORTS = {("llama-last-empty", "llama_cpp")}
"""What ends the engine's process by an assertion of its own."""

THE_PLUGIN_REFUSES = "puzzlebench's vLLM plugin does not load"

CASES = [
    (recipe.name, *place)
    for recipe in RECIPES
    for place in PLACES
    if place != ("decilm", "vllm+plugin") or recipe.name in ONLY_WITH_THE_PLUGIN
]


@pytest.fixture(scope="session")
def verified(samples, exports):
    """The result of a sample in a format in an engine; each is run once."""
    known = {}

    def verify(name, written_as, engine, python, *, engines):
        key = (name, written_as, engine)
        if key not in known:
            folder = exports / "-".join((*key, *engines))
            if not folder.exists():
                run_export(ExportJob(child=str(samples[name].folder), out=folder, format=written_as, engines=engines))
            known[key] = run_verify(
                VerifyJob(
                    checkpoint=folder,
                    reference=samples[name].folder,
                    engine=engine.partition("+")[0],
                    python=python,
                    trust_remote_code=engine != "vllm+plugin",
                )
            )
        return known[key]

    return verify


@pytest.mark.parametrize(("name", "written_as", "engine"), CASES, ids=lambda value: str(value))
def test_export(name, written_as, engine, samples, exports, rows, python_of, verified):
    python = python_of(engine)
    own = () if engine == "vllm+plugin" else (engine,)  # the plugin's rules are no matter of a format
    stated = {"sample": name, "format": written_as, "engine": engine}
    if rules := _rules_against(samples[name], engine):
        rows.append(_refused(rules, stated, exports, python, verified, samples))
        return
    if name in CANNOT_SAY[written_as]:
        reason = _export_error(samples[name], exports, written_as, own)
        rows.append(Row(**stated, reason=_short(reason, name)))
        return
    result = verified(name, written_as, engine, python, engines=own)
    rows.append(Row(**stated, version=result["engine_version"], result=result))
    assert result["passes"], f"{result['verdict']}; {result['kv_cache'] and result['kv_cache']['verdict']}"
    assert (result["kv_cache"] is not None) == engine.startswith("vllm")


def _rules_against(sample, engine) -> tuple[str, ...]:
    source = open_source(sample.folder)
    rules = load_engine_rules("vllm_puzzlebench" if engine == "vllm+plugin" else engine)
    refusals = find_refusals(rules, source.spec, source.architecture)
    return tuple(dict.fromkeys(refusal.rule.refuses for refusal in refusals))


def _export_error(sample, exports, written_as, engines) -> str:
    """Why the writer refuses."""
    out = exports / f"{sample.name}-{written_as}-refused"
    with pytest.raises(ValueError, match=re.escape(sample.name)) as caught:
        run_export(ExportJob(child=str(sample.folder), out=out, format=written_as, engines=engines))
    assert not out.exists()
    return str(caught.value)


def _refused(rules, stated, exports, python, verified, samples) -> Row:
    """A row for what rules refuse, after trying it where that can be done."""
    name, written_as, engine = stated.values()
    if engine != "vllm+plugin":
        reason = _export_error(samples[name], exports, written_as, (engine,))
        assert any(f"[{rule}]" in reason for rule in rules), reason
    if name in CANNOT_SAY[written_as]:
        _export_error(samples[name], exports, written_as, ())
        return Row(**stated, rules=rules)
    good = verified(KNOWN_GOOD, written_as, engine, python, engines=() if engine == "vllm+plugin" else (engine,))
    assert good["passes"], f"{engine} does not run {KNOWN_GOOD} as it should: {good['verdict']}"
    version = good["engine_version"]
    if (name, engine) in ABORTS:
        with pytest.raises(EngineDiedError) as died:
            verified(name, written_as, engine, python, engines=())
        code = re.search(r"exit code -?\d+", str(died.value))
        return Row(**stated, version=version, rules=rules, tried=f"dies ({code[0]})")
    try:
        result = verified(name, written_as, engine, python, engines=())
    except EngineRefusedError as error:
        if THE_PLUGIN_REFUSES in str(error):
            return Row(**stated, version=version, rules=rules)
        return Row(**stated, version=version, rules=rules, tried=f"does not load ({_short(str(error), name)})")
    assert not result["passes"], f"{engine} runs {name} as it should, though {', '.join(rules)} refuses it"
    tried = f"{result['equal']} of {result['tokens']} tokens equal, off by {result['generated']['largest']:.2g}"
    return Row(**stated, version=version, rules=rules, tried=tried)


def _short(message, name) -> str:
    """Without folders, and not too long for a cell."""
    plain = re.sub(r"(/[\w.+-]+)+/", "", message).replace(f"{name}: ", "")
    plain = re.sub(r"^\w+ does not run \S+: |^\S+ cannot be written as \w+: ", "", plain)
    plain = plain.replace("ValidationError: 1 validation error for ModelConfig Value error, ", "")  # of pydantic
    return plain if len(plain) <= 200 else plain[:197] + "..."
