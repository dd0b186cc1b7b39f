"""The model card of an exported child: README.md with front matter that the Hub reads, and what a user has to know.

Says what is known and from where: results only where something was measured, predictions as predictions, and nothing
about folders of the machine it was made on. Writes no file.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import puzzlebench
from puzzlebench.exporting.card_tables import (
    architecture_table,
    costs_table,
    engines_table,
    kv_bytes_per_token,
    limits_lines,
    parent_table,
    percent,
    retention_table,
    speed_table,
    times,
    with_interval,
)
from puzzlebench.exporting.evidence_values import Evidence, SearchEvidence, SpeedEvidence
from puzzlebench.exporting.licences import Licence, name_problem
from puzzlebench.model.blocks import Architecture
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.parameters import model_parameters
from puzzlebench.model.spec import ModelSpec

if TYPE_CHECKING:
    from puzzlebench.exporting.source import ExportSource

ExportFormat: TypeAlias = Literal["decilm", "hf", "gguf"]

_PAPER: Final = "[Puzzle](https://arxiv.org/abs/2411.19146)"
_LIBRARIES: Final = {"decilm": "transformers", "hf": "transformers", "gguf": "llama-cpp-python"}
_FORMATS: Final = {
    "decilm": "safetensors as DeciLM (`nemotron-nas`, layers in `block_configs`)",
    "hf": "safetensors with `per_layer_config`, the class in this repository",
    "gguf": "GGUF, architecture `deci`",
}
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def model_card(
    source: ExportSource,
    evidence: Evidence,
    licence: Licence,
    compatibility: Mapping[str, tuple[str, ...]],
    *,
    format: ExportFormat,  # noqa: A002, the word of the command line
    title: str,
    base_model: str | None,
) -> str:
    """The whole README.md.

    Args:
        compatibility: engines of the format, and what each refuses; empty where nothing is known against it.
        title: name of the model.
        base_model: the parent by its id on the Hub, or what it is called; None where it is not known.
    """
    parent = _parent(source)
    parts = [
        [f"# {title}", *_first(licence, title)],
        ["## What it is", "", *_what(source, evidence, title, base_model, parent)],
        ["## Use", "", *_use(format, title, compatibility)],
        ["## Architecture", "", *_architecture(source, parent)],
        ["## Limits it was searched under", "", *_limits(evidence.search)],
        ["## Speed", "", *_speed(evidence.search, evidence.speed)],
        ["## What it keeps of its parent", "", *_retention(evidence)],
        ["## Training", "", *_training(evidence)],
        ["## Engines", "", *_engines(compatibility)],
        ["## Licence", "", *_licence(licence, base_model)],
        ["## Where this is from", "", *_provenance(source, evidence, format)],
    ]
    body = "\n\n".join("\n".join(part) for part in parts)
    head = _front_matter(evidence, licence, written_as=format, title=title, base_model=base_model)
    return f"---\n{head}\n---\n\n{body}\n"


def _front_matter(
    evidence: Evidence, licence: Licence, *, written_as: ExportFormat, title: str, base_model: str | None
) -> str:
    """YAML by the Hub's own library."""
    from huggingface_hub import EvalResult, ModelCardData

    hub_id = base_model if base_model is not None and _HUB_ID.fullmatch(base_model) else None
    kept = evidence.retention
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=task.task,
            dataset_name=task.task,
            metric_type=task.metric,
            metric_value=task.child,
        )
        for task in (kept.tasks if kept is not None else ())
        if math.isfinite(task.child)
    ]
    stated: dict[str, Any] = {
        "language": list(licence.languages) or None,
        "license": licence.id,
        "license_name": licence.license_name if licence.id == "other" else None,
        "license_link": _license_link(licence) if licence.id == "other" else None,
        "library_name": _LIBRARIES[written_as],
        "pipeline_tag": "text-generation",
        "base_model": hub_id,
        "base_model_relation": None if hub_id is None else "finetune",
        "tags": ["puzzlebench", "puzzle", "pruning", "distillation", *(["gguf"] if written_as == "gguf" else [])],
    }
    data = ModelCardData(**stated, model_name=title if results else None, eval_results=results or None)
    return str(data.to_yaml())


def _license_link(licence: Licence) -> str | None:
    """To the text, or its name where it lies beside the card."""
    texts = [file.name for file in licence.files if file.name.lower().startswith(("license", "licence"))]
    return licence.link or next(iter(texts), None)


def _parent(source: ExportSource) -> tuple[ModelSpec, Architecture] | None:
    """The parent's, where the config states its sizes for the whole model and the count of its parameters agrees."""
    solution = source.solution or {}
    try:
        spec, architecture = from_hf_config({**source.config, "per_layer_config": None}, name="parent")
    except ValueError:
        return None
    stated = solution.get("parent_parameters")
    if stated is None or model_parameters(spec, architecture) != stated:
        return None
    return spec, architecture


def _first(licence: Licence, title: str) -> list[str]:
    """What has to be seen first."""
    lines = [] if licence.display is None else ["", f"**{licence.display}**"]
    problem = name_problem(licence, title)
    return lines if problem is None else [*lines, "", f"> {problem}"]


def _what(
    source: ExportSource,
    evidence: Evidence,
    title: str,
    base_model: str | None,
    parent: tuple[ModelSpec, Architecture] | None,
) -> list[str]:
    own = model_parameters(source.spec, source.architecture)
    solution = source.solution
    if solution is None:
        return [f"{title} holds the weights of {_called(base_model)} in another format: {own:,} parameters."]
    before = solution.get("parent_parameters")
    share = f" of {before:,} ({100 * own / before:.1f} %)" if isinstance(before, int) and before > 0 else ""
    lines = [
        f"{title} is a smaller child of {_called(base_model)}, made with puzzlebench by the {_PAPER} method: each "
        "layer has an attention and a feed-forward network (FFN) of its own size, or a single matrix, or nothing in "
        "their place.",
        "",
        f"- parameters: {own:,}{share}",
    ]
    if parent is not None:
        one, other = kv_bytes_per_token(source.spec, source.architecture), kv_bytes_per_token(*parent)
        share = f" of {other:,} ({100 * one / other:.1f} %)" if other else ""
        lines.append(f"- key-value cache in bf16: {one:,} bytes per token{share}")
    if evidence.speed is not None:
        speed = evidence.speed
        ratio = with_interval(speed.speed_ups["generate"], times)
        lines.append(f"- measured on {speed.device}: {ratio} as fast as its parent, see [Speed](#speed)")
    if evidence.retention is not None and math.isfinite(evidence.retention.overall.value):
        kept = with_interval(evidence.retention.overall, percent)
        lines.append(f"- keeps {kept} of its parent's results in {len(evidence.retention.tasks)} tasks, see below")
    return lines


def _use(format: ExportFormat, title: str, compatibility: Mapping[str, tuple[str, ...]]) -> list[str]:  # noqa: A002
    here = f"`{title}` stands for this repository's id, or for the folder it lies in."
    if format == "gguf":
        return [
            here,
            "",
            "```bash",
            f"llama-cli -hf {title} -p 'import os'    # or -m FILE.gguf",
            "```",
            "",
            "```python",
            "from llama_cpp import Llama",
            "",
            f'model = Llama.from_pretrained("{title}", filename="*.gguf")',
            'print(model("import os", max_tokens=32))',
            "```",
        ]
    lines = [
        f"{here} The model's class is code in this repository: read it, then allow it.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'model = AutoModelForCausalLM.from_pretrained("{title}", trust_remote_code=True)',
        f'tokenizer = AutoTokenizer.from_pretrained("{title}")',
        'ids = tokenizer("import os", return_tensors="pt")',
        "print(tokenizer.decode(model.generate(**ids, max_new_tokens=32)[0]))",
        "```",
    ]
    with_plugin = compatibility.get("vllm") != ()
    for engine, command in (
        ("vllm", f"vllm serve {title} --trust-remote-code"),
        *(
            [("vllm_puzzlebench", f"vllm serve {title} --trust-remote-code    # puzzlebench installed beside vLLM")]
            if with_plugin
            else []
        ),
        ("tensorrt_llm", f"trtllm-serve {title} --trust_remote_code"),
    ):
        if compatibility.get(engine) == ():
            lines += ["", "```bash", command, "```"]
    return lines


def _architecture(source: ExportSource, parent: tuple[ModelSpec, Architecture] | None) -> list[str]:
    spec = source.spec
    head = f"{spec.num_hidden_layers} layers of hidden size {spec.hidden_size:,}, a vocabulary of {spec.vocab_size:,}"
    tied = "tied embeddings" if spec.tie_word_embeddings else "embeddings and output matrix apart"
    lines = [f"{head}, {tied}; model type `{spec.model_type}`.", "", *architecture_table(spec, source.architecture)]
    if parent is not None:
        lines += ["", "The parent, for comparison:", "", *parent_table(*parent)]
    return lines


def _limits(search: SearchEvidence | None) -> list[str]:
    if search is None:
        return ["Not recorded here."]
    score = {"kl": "KL divergence from the parent", "lm_loss": "language-model loss"}.get(search.metric, search.metric)
    best = "no other of the space is better within the limits" if search.proven else "not proven to be the best"
    return [
        f"Costs: {search.title}. The architecture was chosen by the sum of its blocks' scores ({score}); {best}.",
        "",
        *limits_lines(search),
    ]


def _speed(search: SearchEvidence | None, speed: SpeedEvidence | None) -> list[str]:
    if search is None and speed is None:
        return ["Neither predicted nor measured here."]
    lines: list[str] = []
    if search is not None:
        cells = ", ".join(f"{count:,} {name}" for name, count in search.cost_cells.items())
        lines += [
            f"**Predicted** before the model was made, by summing a cost table's cells ({cells}): "
            f"{search.cost_source}. Batch size {search.batch_size}. "
            "The sums are modelled: the model itself did not run.",
            "",
            *costs_table(search),
        ]
    if speed is None:
        return [*lines, "", "The model itself was **not measured**."]
    lines += [""] if lines else []
    lines += [
        f"**Measured** on {speed.device}, {speed.engine} {speed.engine_version}, {speed.precision}, batch "
        f"{speed.batch_size}, prompts of {speed.prefill_len:,} tokens, {speed.decode_len:,} generated, in "
        f"{speed.sessions} fresh processes. In brackets 95 % intervals.",
        "",
        *speed_table(speed),
    ]
    if speed.predicted:
        error = 100 * speed.errors["generate"]
        lines += ["", f"The prediction of the whole was off by {error:+.1f} % (predicted over measured, less 1)."]
    return [*lines, *(line for sentence in speed.other_setup for line in ("", sentence))]


def _retention(evidence: Evidence) -> list[str]:
    kept = evidence.retention
    if kept is None:
        return ["Not evaluated here."]
    lines = [
        f"By the LM Evaluation Harness {kept.lm_eval_version}, the same documents for both. Retained is the child's "
        "result over the parent's, or the other way round where less is better; in brackets paired 95 % intervals.",
        "",
        *retention_table(kept),
    ]
    if kept.before is not None and math.isfinite(kept.before.value):
        lines += ["", f"Before the whole was distilled the mean was {100 * kept.before.value:.1f} %."]
    return [*lines, *(line for note in kept.notes for line in ("", note))]


def _training(evidence: Evidence) -> list[str]:
    found = evidence.distillation
    if found is None:
        return ["Global distillation of the whole model is not recorded here."]
    losses = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in found.losses.items())
    lines = [
        f"Blocks were distilled one by one, then the whole from its parent on {found.tokens:,} tokens "
        f"({found.steps:,} steps) of {found.data}: {losses}, {found.optimiser}, {found.precision}, "
        f"{found.seconds:,.0f} s on {found.device}.",
    ]
    if found.held_out:
        ends = ", ".join(f"{name} {first:.4g} to {last:.4g}" for name, (first, last) in found.held_out.items())
        lines += ["", f"On text that it was not trained on: {ends}."]
    return lines


def _engines(compatibility: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [
        "By puzzlebench's rules, read in the engines' sources at the versions named; a later version may know more.",
        "",
        *engines_table(compatibility),
    ]


def _licence(licence: Licence, base_model: str | None) -> list[str]:
    if licence.embedded and licence.stated_in != "who exported it":
        lines = [
            "The parent was trained by puzzlebench on the spot, on the sources of Python's standard library (PSF "
            "License Agreement), and states no licence for its weights. Who shares this model has to state one."
        ]
    elif licence.name is None:
        lines = [
            f"**Unknown.** Nothing beside the weights of {_called(base_model)} states a licence, and none is guessed "
            "here. Find out what its makers allow before you share or use this model."
        ]
    else:
        where = "" if licence.stated_in is None else f", as {licence.stated_in} states"
        named = f"[{licence.name}]({licence.link})" if licence.link else licence.name
        lines = [f"This model is made from {_called(base_model)} and is under its licence: {named}{where}."]
        if licence.read_in is None:
            lines.append("puzzlebench knows no list of what it asks for: read it.")
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
        names = ", ".join(f"`{file.name}`" for file in licence.files)
        lines += ["", f"Carried over from the parent: {names}."]
    if licence.base_models:
        lines += ["", f"The parent was itself made from {', '.join(licence.base_models)}, whose terms may hold too."]
    return [
        *lines,
        "",
        "**Changed** from the parent: the weights, the config and the code of the model. puzzlebench, which made the "
        "changes, is under Apache-2.0.",
    ]


def _provenance(source: ExportSource, evidence: Evidence, format: ExportFormat) -> list[str]:  # noqa: A002
    solution = source.solution or {}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    lines = [
        f"- exported {today} by puzzlebench {puzzlebench.__version__} as {_FORMATS[format]}",
        f"- weights exported: `{source.fingerprint[:16]}`",
    ]
    if parent := solution.get("parent_fingerprint"):
        lines.append(f"- weights of the parent: `{str(parent)[:16]}`")
    if recipe := solution.get("recipe"):
        lines.append(f"- recipe of the block library: `{recipe}`")
    dates = {
        "search": evidence.search,
        "distillation": evidence.distillation,
        "evaluation": evidence.retention,
        "speed": evidence.speed,
    }
    lines += [f"- {name}: {found.created[:10]}" for name, found in dates.items() if found is not None]
    return [*lines, *(f"- {note}" for note in evidence.notes)]


def _called(base_model: str | None) -> str:
    """A parent by its name, without folders."""
    if base_model is None:
        return "a parent that is not named"
    if _HUB_ID.fullmatch(base_model):
        return f"[{base_model}](https://huggingface.co/{base_model})"
    return PurePath(base_model).name
