"""The model card of an exported child: README.md with front matter that the Hub reads, and what a user has to know.

Says what is known and from where: results only where something was measured, predictions as predictions, and nothing
about folders of the machine it was made on. Writes no file.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final

import puzzlebench
from puzzlebench.exporting.card_licence import licence_lines
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
from puzzlebench.exporting.card_text import clean, code, plain
from puzzlebench.exporting.card_use import use_lines
from puzzlebench.exporting.evidence_values import Evidence, RetentionEvidence, SearchEvidence, SpeedEvidence
from puzzlebench.exporting.licences import Licence, name_problem
from puzzlebench.model.blocks import Architecture
from puzzlebench.model.dtypes import KVDtype
from puzzlebench.model.engine_rules import Refusal
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.parameters import model_parameters
from puzzlebench.model.spec import ModelSpec

if TYPE_CHECKING:
    from puzzlebench.exporting.job import Format
    from puzzlebench.exporting.source import ExportSource

_PAPER: Final = "[Puzzle](https://arxiv.org/abs/2411.19146)"
_LIBRARIES: Final[Mapping[Format, str]] = {"decilm": "transformers", "hf": "transformers", "gguf": "llama-cpp-python"}
_FORMATS: Final[Mapping[Format, str]] = {
    "decilm": "safetensors as DeciLM (`nemotron-nas`, layers in `block_configs`)",
    "hf": "safetensors with `per_layer_config`, the class in this repository",
    "gguf": "GGUF, architecture `deci`",
}
_STOCK: Final = "safetensors, a stock checkpoint"
_DTYPES: Final[Mapping[str, KVDtype]] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """What is written, and from what.

    Attributes:
        parent: its shapes; None where they are not known.
        runs_code: whether the model's class is in the folder.
        dtype, before: of the weights as written and as read; `before` is None where it is not known.
        kv_dtype: of the cache, which engines take to be that of the weights.
    """

    source: ExportSource
    format: Format
    title: str
    base_model: str | None
    parent: tuple[ModelSpec, Architecture] | None
    runs_code: bool
    dtype: str
    before: str | None
    kv_dtype: KVDtype

    @property
    def is_stock(self) -> bool:
        """Whether it is a checkpoint of its family like any other."""
        return self.format == "hf" and not self.runs_code

    @property
    def is_cast(self) -> bool:
        """Whether the weights are written in another dtype than was measured."""
        return self.before is not None and self.before != self.dtype


def model_card(
    source: ExportSource,
    evidence: Evidence,
    licence: Licence,
    compatibility: Mapping[str, tuple[Refusal, ...]],
    *,
    format: Format,  # noqa: A002, the word of the command line
    title: str,
    base_model: str | None,
    dtype: str,
    repo: str | None,
    config: Mapping[str, Any],
    tokenizer: bool,
) -> str:
    """The whole README.md.

    Args:
        compatibility: engines of the format, and what each refuses; empty where nothing is known against it.
        title: name of the model.
        base_model: the parent by its id on the Hub, or what it is called; None where it is not known.
        dtype: of the weights as written, by its name in torch.
        repo: where the folder is pushed to, by its full id; None where it is not.
        config: the config.json as written; empty for a GGUF file.
        tokenizer: whether one is written.
    """
    stated = source.spec.torch_dtype
    model = _Model(
        source=source,
        format=format,
        title=plain(title),
        base_model=base_model,
        parent=_parent(source),
        runs_code="auto_map" in config,
        dtype=_DTYPES.get(dtype, dtype),
        before=None if stated is None else _DTYPES.get(stated, stated),
        kv_dtype=_DTYPES.get(dtype, "bf16"),
    )
    known = clean(evidence)
    use = use_lines(title, compatibility, format=format, repo=repo, runs_code=model.runs_code, tokenizer=tokenizer)
    parts = [
        [f"# {model.title}", *_first(licence, title)],
        ["## What it is", "", *_what(model, known)],
        ["## Use", "", *use],
        ["## Architecture", "", *_architecture(model)],
        ["## Limits it was searched under", "", *_limits(known.search)],
        ["## Speed", "", *_speed(model, known.search, known.speed)],
        ["## What it keeps of its parent", "", *_retention(model, known.retention)],
        ["## Training", "", *_training(known)],
        ["## Engines", "", *_engines(model, compatibility)],
        ["## Licence", "", *licence_lines(clean(licence), _called(base_model), _changed(model))],
        ["## Where this is from", "", *_provenance(model, known)],
    ]
    body = "\n\n".join("\n".join(part) for part in parts)
    head = _front_matter(model, evidence, licence, title)
    return f"---\n{head}\n---\n\n{body}\n"


def _front_matter(model: _Model, evidence: Evidence, licence: Licence, title: str) -> str:
    """YAML by the Hub's own library."""
    from huggingface_hub import EvalResult, ModelCardData

    hub_id = model.base_model if model.base_model is not None and _HUB_ID.fullmatch(model.base_model) else None
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
        "license_link": licence.link or next(iter(licence.texts), None) if licence.id == "other" else None,
        "library_name": _LIBRARIES[model.format],
        "pipeline_tag": "text-generation",
        "base_model": hub_id,
        "base_model_relation": None if hub_id is None or model.source.solution is None else "finetune",
        "tags": ["puzzlebench", "puzzle", "pruning", "distillation", *(["gguf"] if model.format == "gguf" else [])],
    }
    data = ModelCardData(**stated, model_name=title if results else None, eval_results=results or None)
    return str(data.to_yaml())


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
    return lines if problem is None else [*lines, "", f"> {plain(problem)}"]


def _what(model: _Model, evidence: Evidence) -> list[str]:
    source = model.source
    own = model_parameters(source.spec, source.architecture)
    weights = f"- weights: {model.dtype}{f', cast from {model.before}' if model.is_cast else ''}"
    if source.solution is None:
        form = _STOCK if model.is_stock else _FORMATS[model.format]
        held = f"{model.title} holds the weights of {_called(model.base_model)} as {form}."
        return [held, "", f"- parameters: {own:,}", weights]
    before = source.solution.get("parent_parameters")
    share = f" of {before:,} ({100 * own / before:.1f} %)" if isinstance(before, int) and before > 0 else ""
    lines = [
        f"{model.title} is made from {_called(model.base_model)} with puzzlebench, by the {_PAPER} method: each layer "
        "has an attention and a feed-forward network (FFN) of its own size, or a single matrix, or nothing in their "
        "place.",
        "",
        f"- parameters: {own:,}{share}",
        weights,
    ]
    if model.parent is not None:
        one = kv_bytes_per_token(source.spec, source.architecture, model.kv_dtype)
        other = kv_bytes_per_token(*model.parent, model.kv_dtype)
        share = f" of {other:,} ({100 * one / other:.1f} %)" if other else ""
        lines.append(f"- key-value cache in {model.kv_dtype}: {one:,} bytes per token{share}")
    if (speed := evidence.speed) is not None:
        ratio = with_interval(speed.speed_ups["generate"], times)
        seen = "" if speed.checked else ", not checked in full"
        lines.append(f"- measured on {speed.device}: {ratio} as fast as its parent{seen}, see [Speed](#speed)")
    kept = evidence.retention
    # without an interval the documents were too few to say anything of the whole
    if kept is not None and all(map(math.isfinite, (kept.overall.value, kept.overall.low, kept.overall.high))):
        documents = sum(task.documents for task in kept.tasks)
        seen = "" if kept.checked else ", not checked in full"
        lines.append(
            f"- keeps {with_interval(kept.overall, percent)} of its parent's results in {len(kept.tasks)} tasks of "
            f"{documents:,} documents{seen}, see [below](#what-it-keeps-of-its-parent)"
        )
    return lines


def _architecture(model: _Model) -> list[str]:
    spec = model.source.spec
    head = f"{spec.num_hidden_layers} layers of hidden size {spec.hidden_size:,}, a vocabulary of {spec.vocab_size:,}"
    tied = "tied embeddings" if spec.tie_word_embeddings else "embeddings and output matrix apart"
    lines = [
        f"{head}, {tied}; model type `{spec.model_type}`. Key-value bytes are in {model.kv_dtype}.",
        "",
        *architecture_table(spec, model.source.architecture, model.kv_dtype),
    ]
    if model.parent is not None:
        lines += ["", "The parent, for comparison:", "", *parent_table(*model.parent, model.kv_dtype)]
    return lines


def _limits(search: SearchEvidence | None) -> list[str]:
    if search is None:
        return ["Not recorded here."]
    score = {"kl": "KL divergence from the parent", "lm_loss": "language-model loss"}.get(search.metric, search.metric)
    best = "no other in the search space is better within the limits" if search.proven else "not proven to be the best"
    return [
        f"Costs: {search.title}. The architecture was chosen by the sum of its blocks' scores ({score}); {best}.",
        "",
        *limits_lines(search),
    ]


def _speed(model: _Model, search: SearchEvidence | None, speed: SpeedEvidence | None) -> list[str]:
    if search is None and speed is None:
        return ["Neither predicted nor measured here."]
    lines: list[str] = []
    if search is not None:
        cells = ", ".join(f"{count:,} {plain(name)}" for name, count in search.cost_cells.items())
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
        f"**Measured** on {speed.device}, {speed.engine} {speed.engine_version}, {speed.precision} weights, batch "
        f"{speed.batch_size}, prompts of {speed.prefill_len:,} tokens, {speed.decode_len:,} generated, in "
        f"{speed.sessions} fresh processes. In brackets 95 % intervals.",
        "",
        *speed_table(speed),
    ]
    notes = []
    if speed.predicted:
        notes.append("Error: predicted speed-up over measured, less 1.")
    if speed.disturbed_share > 0:  # false where it is not a number
        notes.append(
            f"Something else on the machine disturbed {100 * speed.disturbed_share:.0f} % of the rounds; they were "
            "left out where there were others."
        )
    if speed.precision != model.dtype:
        notes.append(f"Measured was {speed.precision}; the weights here are {model.dtype}.")
    if not speed.checked:
        notes.append("**Not checked:** that the weights measured are of this architecture and of its parent.")
    return [*lines, *_paragraphs(*notes, *speed.other_setup)]


def _retention(model: _Model, kept: RetentionEvidence | None) -> list[str]:
    if kept is None:
        return ["Not evaluated here."]
    lines = [
        f"By the LM Evaluation Harness {kept.lm_eval_version}, with the same documents for both models. Retained: this "
        "model's result divided by the parent's, or the parent's by this model's where lower is better. Above chance: "
        "the same of what is above guessing. In brackets 95 % intervals, paired by document.",
        "",
        *retention_table(kept),
    ]
    notes = []
    if kept.before is not None and math.isfinite(kept.before.value):
        notes.append(f"Before the whole model was distilled the mean was {100 * kept.before.value:.1f} %.")
    if model.is_cast:
        notes.append(f"Evaluated were the {model.before} weights; those here are {model.dtype}.")
    if not kept.checked:
        notes.append("**Not checked:** that the weights evaluated are this model's and its parent's.")
    return [*lines, *_paragraphs(*notes, *kept.notes)]


def _training(evidence: Evidence) -> list[str]:
    found = evidence.distillation
    if found is None:
        return ["Global distillation of the whole model is not recorded here."]
    weighted = ((plain(name), weight) for name, weight in found.losses.items())
    losses = " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weighted)
    lines = [
        f"Blocks were distilled one by one, then the whole from its parent on {found.tokens:,} tokens "
        f"({found.steps:,} steps) of {found.data}: {losses}, {found.optimiser}, {found.precision}, "
        f"{found.seconds:,.0f} s on {found.device}.",
    ]
    notes = []
    if found.held_out:
        ends = ", ".join(f"{plain(name)} {first:.4g} to {last:.4g}" for name, (first, last) in found.held_out.items())
        notes.append(f"On text that it was not trained on: {ends}.")
    if not found.checked:
        notes.append("**Not checked:** that the weights trained are this model's, and from its parent.")
    return [*lines, *_paragraphs(*notes)]


def _engines(model: _Model, compatibility: Mapping[str, tuple[Refusal, ...]]) -> list[str]:
    if model.is_stock:
        return [
            f"A stock checkpoint of model type `{model.source.spec.model_type}`, without code of its own: what loads "
            "others of that type loads it."
        ]
    return [
        "By puzzlebench's rules of what each engine refuses, at the versions named: read in the engines' sources, some "
        "also tried. Yes: no rule is against it; this model itself was not run there.",
        "",
        *engines_table(compatibility),
    ]


def _changed(model: _Model) -> str:
    changed = ["the weights"] if model.source.solution is not None or model.is_cast else []
    if model.format == "gguf":
        changed.append("the file format")
    else:
        changed += ["the config", *(["the code of the model"] if model.runs_code else [])]
    return " and ".join([", ".join(changed[:-1]), changed[-1]] if len(changed) > 1 else changed)


def _provenance(model: _Model, evidence: Evidence) -> list[str]:
    solution = model.source.solution or {}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    written = _STOCK if model.is_stock else _FORMATS[model.format]
    lines = [
        f"- exported {today} by puzzlebench {puzzlebench.__version__} as {written}",
        "- fingerprint of these weights: `weights_fingerprint` of `export` in `puzzle_solution.json`",
        f"- made from weights {code(model.source.fingerprint[:16])}",
    ]
    if parent := solution.get("parent_fingerprint"):
        lines.append(f"- weights of the parent: {code(str(parent)[:16])}")
    if recipe := solution.get("recipe"):
        lines.append(f"- recipe of the block library: {code(recipe)}")
    dates = {
        "search": evidence.search,
        "distillation": evidence.distillation,
        "evaluation": evidence.retention,
        "speed": evidence.speed,
    }
    lines += [f"- {name}: {found.created[:10]}" for name, found in dates.items() if found is not None]
    return [*lines, *(f"- {note}" for note in evidence.notes)]


def _paragraphs(*sentences: str) -> list[str]:
    """Each after an empty line."""
    return [line for sentence in sentences for line in ("", sentence)]


def _called(base_model: str | None) -> str:
    """A parent by its name, without folders."""
    from puzzlebench.parent.open import EMBEDDED

    if base_model is None:
        return "a model that is not named"
    if base_model == EMBEDDED:
        return "the small model that puzzlebench trains itself (`embedded`)"
    if _HUB_ID.fullmatch(base_model):
        return f"[{base_model}](https://huggingface.co/{base_model})"
    return plain(PurePath(base_model).name)
