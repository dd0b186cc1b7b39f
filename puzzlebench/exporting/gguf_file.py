"""A checkpoint as one GGUF file of llama.cpp's `deci` architecture, written tensor by tensor.

What the file holds is what llama.cpp's loader reads (src/llama-model.cpp and src/models/deci.cpp there; names and rows
in `gguf_layers`). Weights are fp32, fp16 or bf16, norms and biases always fp32, as llama.cpp adds in fp32. Nothing is
quantised here: llama.cpp's own llama-quantize does that to the file. Which layers llama.cpp loads is in
engine_rules.yaml; what no rule knows (activations, RoPE, models without any attention) is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from puzzlebench import __version__
from puzzlebench.exporting.decilm import decilm_tensors
from puzzlebench.exporting.gguf_layers import (
    ROPE_FACTORS,
    feed_forward_lengths,
    gguf_name,
    head_counts,
    tensor_shapes,
    to_neighbours,
)
from puzzlebench.exporting.gguf_rope import Rope, frequency_factors, read_rope
from puzzlebench.exporting.gguf_tokenizer import GGUFTokenizer, read_tokenizer
from puzzlebench.exporting.sidecars import own_solution
from puzzlebench.exporting.source import ExportSource, cast
from puzzlebench.files import replacing
from puzzlebench.model.blocks import GQA, architecture_to_json
from puzzlebench.model.engine_rules import find_refusals, first_refusal, load_engine_rules

if TYPE_CHECKING:
    from torch import Tensor

GGUFDtype: TypeAlias = Literal["fp32", "fp16", "bf16"]

PROVENANCE: Final = "puzzlebench."
"""Prefix of the keys that say where a file comes from, which llama.cpp passes over."""

_NO_WORDS_FOR: Final = ("ffn_linear", "sliding_window", "qk_norm", "norm_not_before", "family_not_listed")
"""Kinds of engine rules that are about the file itself; the others are about what llama.cpp does with it."""

_FROM_CONFIG: Final[Mapping[str | None, GGUFDtype]] = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


def write_gguf(
    source: ExportSource,
    file: Path,
    *,
    dtype: GGUFDtype | None = None,
    title: str | None = None,
    base_model: str | None = None,
    licence: str | None = None,
    tokenizer_folder: Path | None = None,
    loads: bool = True,
) -> tuple[str, ...]:
    """Write a checkpoint to a GGUF file, which appears whole or not at all.

    At no time is more than one tensor in memory. The file is little-endian and in one piece.

    Args:
        file: replaced where there is one; its folder must exist.
        dtype: of the matrices; None is the checkpoint's own.
        title: the model's name; the source's by default.
        base_model: of which it was derived: organisation/name.
        licence: its SPDX identifier, or the name that the Hub has for it.
        tokenizer_folder: where the tokenizer's files are; None is beside the weights.
        loads: refuse also what a deci file can say and llama.cpp does not load, or loads as something else.

    Returns:
        What llama.cpp will do otherwise than transformers: one line each, about the tokenizer.

    Raises:
        ValueError: llama.cpp's deci cannot hold the model or its tokenizer (the layer is named), a weight does not fit
            into fp16, the file cannot be written, or the gguf package is missing.
    """
    gguf = _package()
    kind = dtype or _own_dtype(source)
    if kind not in get_args(GGUFDtype):
        raise ValueError(f"dtype {kind!r} cannot be written as GGUF here; use {', '.join(get_args(GGUFDtype))}")
    settings = source.settings()
    rope = check_expressible(source, settings, loads=loads)
    tokenizer = read_tokenizer(tokenizer_folder or source.folder, source.spec.vocab_size)
    with replacing(Path(file)) as part:
        writer = gguf.GGUFWriter(part, "deci")
        try:
            _add_general(writer, gguf, source, kind, title or source.name, base_model, licence)
            _add_layers(writer, gguf, source, settings, rope)
            _add_tokenizer(writer, tokenizer)
            _write_tensors(writer, gguf, source, rope, kind)
        finally:
            writer.close()
        part.chmod(0o644)
    return tokenizer.notes


def check_expressible(source: ExportSource, settings: Mapping[str, Any], *, loads: bool) -> Rope:
    """The model's RoPE, or ValueError in one line where a deci file cannot say what the model computes.

    Args:
        loads: see `write_gguf`.
    """
    spec, rules = source.spec, load_engine_rules("llama_cpp")
    if not loads:
        rules = replace(rules, rules=tuple(rule for rule in rules.rules if rule.refuses in _NO_WORDS_FOR))
    try:
        if refusals := find_refusals(rules, spec, source.architecture):
            raise ValueError(first_refusal(refusals))
        if loads and not any(isinstance(block.attention, GQA) for block in source.architecture.blocks):
            raise ValueError("no layer has attention with keys and values, and llama.cpp makes no cache of none")
        if (activation := settings.get("hidden_act")) not in ("silu", "swish"):
            raise ValueError(f"its activation is {activation}, and deci's is silu")
        for layer, rotates in enumerate(settings.get("no_rope_layers") or ()):
            if not rotates:
                raise ValueError(f"layer {layer} has no RoPE, and deci has it in every layer")
        return read_rope(settings)
    except ValueError as error:
        raise ValueError(f"{source.name} cannot be written as GGUF: {error}") from None


def _own_dtype(source: ExportSource) -> GGUFDtype:
    if own := _FROM_CONFIG.get(source.spec.torch_dtype):
        return own
    _, first = next(source.tensors())
    stated = str(first.dtype).removeprefix("torch.")
    if own := _FROM_CONFIG.get(stated):
        return own
    raise ValueError(f"{source.name} has weights of {stated}; give a dtype: {', '.join(get_args(GGUFDtype))}")


def _add_general(
    writer: Any,
    gguf: Any,
    source: ExportSource,
    kind: GGUFDtype,
    title: str,
    base_model: str | None,
    licence: str | None,
) -> None:
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(title)
    if licence:
        writer.add_license(licence)
    if base_model:
        organisation, _, name = base_model.rpartition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, name)
        writer.add_base_model_organization(0, organisation)
    file_types = gguf.LlamaFileType
    types = {"fp32": file_types.ALL_F32, "fp16": file_types.MOSTLY_F16, "bf16": file_types.MOSTLY_BF16}
    writer.add_file_type(types[kind])
    stated = {
        "version": __version__,
        "fingerprint": source.fingerprint,
        "model_type": source.spec.model_type,
        "architecture": json.dumps(architecture_to_json(source.architecture)),
        "solution": "" if source.solution is None else json.dumps(own_solution(source)),
    }
    for key, value in stated.items():
        writer.add_string(PROVENANCE + key, value)


def _add_layers(writer: Any, gguf: Any, source: ExportSource, settings: Mapping[str, Any], rope: Rope) -> None:
    spec = source.spec
    heads, key_value_heads = head_counts(spec, source.architecture)
    writer.add_block_count(spec.num_hidden_layers)
    writer.add_context_length(spec.max_position_embeddings)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_value_heads)
    writer.add_feed_forward_length(feed_forward_lengths(source.architecture))
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_layer_norm_rms_eps(float(settings["rms_norm_eps"]))
    writer.add_vocab_size(spec.vocab_size)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.kind))
        writer.add_rope_scaling_factor(rope.factor)
    if rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope.original_context)


def _add_tokenizer(writer: Any, tokenizer: GGUFTokenizer) -> None:
    writer.add_tokenizer_model(tokenizer.model)
    if tokenizer.model == "none":
        return
    writer.add_token_list(list(tokenizer.tokens))
    writer.add_token_types(list(tokenizer.types))
    if tokenizer.pre is not None:
        writer.add_tokenizer_pre(tokenizer.pre)
    if tokenizer.scores is not None:
        writer.add_token_scores(list(tokenizer.scores))
    if tokenizer.merges is not None:
        writer.add_token_merges(list(tokenizer.merges))
    for role, number in tokenizer.special.items():
        writer.add_uint32(f"tokenizer.ggml.{_ROLE_KEYS[role]}_token_id", number)
    writer.add_add_bos_token(tokenizer.add_bos)
    writer.add_add_eos_token(tokenizer.add_eos)
    if tokenizer.space_prefix is not None:
        writer.add_add_space_prefix(tokenizer.space_prefix)
    if tokenizer.templates:
        writer.add_chat_template(
            [{"name": name, "template": template} for name, template in tokenizer.templates.items()]
        )


_ROLE_KEYS: Final = {"bos": "bos", "eos": "eos", "eot": "eot", "unk": "unknown", "pad": "padding"}


def _write_tensors(writer: Any, gguf: Any, source: ExportSource, rope: Rope, kind: GGUFDtype) -> None:
    """All names and sizes first, then the weights in the same order."""
    import torch

    names = set()
    for name, tensor in decilm_tensors(source):
        form = _form(tensor, kind)
        raw = gguf.GGMLQuantizationType[{"fp32": "F32", "fp16": "F16", "bf16": "BF16"}[form]]
        size = tensor.numel() * (4 if form == "fp32" else 2)
        writer.add_tensor_info(gguf_name(name), list(tensor.shape), _numpy_dtype(form), size, raw_dtype=raw)
        names.add(name)
    expected = tensor_shapes(source.spec, source.architecture, tied=source.spec.tie_word_embeddings)
    if wrong := sorted(names ^ expected.keys()):
        raise ValueError(
            f"{source.name} has other weights than its layers: {len(wrong)} differ, the first is {wrong[0]}"
        )
    factors = None
    if rope.kind == "llama3":
        factors = torch.tensor(frequency_factors(rope, source.spec.head_dim), dtype=torch.float32)
        writer.add_tensor_info(ROPE_FACTORS, list(factors.shape), _numpy_dtype("fp32"), 4 * factors.numel())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor in decilm_tensors(source):
        form = _form(tensor, kind)
        writer.write_tensor_data(_as_numpy(name, to_neighbours(source.spec, name, tensor), form))
    if factors is not None:
        writer.write_tensor_data(factors.numpy())


def _form(tensor: Tensor, kind: GGUFDtype) -> GGUFDtype:
    """Vectors (norms, biases) are fp32 whatever the matrices are."""
    return kind if tensor.ndim > 1 else "fp32"


def _numpy_dtype(form: GGUFDtype) -> Any:
    import numpy as np

    return np.dtype({"fp32": np.float32, "fp16": np.float16, "bf16": np.int16}[form])


def _as_numpy(name: str, tensor: Tensor, form: GGUFDtype) -> Any:
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[form]
    done = cast(name, tensor, dtype).contiguous()
    return (done.view(torch.int16) if form == "bf16" else done).numpy()


def _package() -> Any:
    try:
        import gguf
    except ImportError as error:
        if error.name != "gguf":
            raise
        raise ValueError("a GGUF file needs the gguf package; install puzzlebench[export]") from None
    return gguf
