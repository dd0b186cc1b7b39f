"""Checkpoints of random weights that engines load like any other: config.json and sharded safetensors.

Weights are scaled so that every sub-block's output has about the size of its input, so activations stay finite however
deep the stack; nothing is zero, since matrix units run faster on zeros. A tensor depends on its name and the seed only:
the first layers of a longer stack are the layers of a shorter one, and both layouts hold the same weights. There is no
tokenizer: engines are given token ids.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from puzzlebench.files import new_folder
from puzzlebench.measuring.stack.layouts import CONFIG_CLASS_FILE, Layout, checkpoint_config
from puzzlebench.measuring.stack.read import config_class_source
from puzzlebench.model.blocks import Architecture, Linear, SubBlock
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.parameters import sub_block_matrices
from puzzlebench.model.spec import ModelSpec

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SHARD_BYTES = 2 << 30
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPlan:
    """One tensor of the checkpoint: normal values around `mean`."""

    name: str
    shape: tuple[int, ...]
    mean: float
    std: float


def write_checkpoint(
    spec: ModelSpec,
    architecture: Architecture,
    folder: Path,
    *,
    dtype: str = "bfloat16",
    seed: int = 0,
    vocab_size: int | None = None,
    layout: Layout = "decilm",
) -> None:
    """Write a checkpoint of random weights; the folder appears whole or not at all.

    Args:
        spec: num_hidden_layers is the architecture's length.
        folder: must not exist; its parent is made.
        dtype: bfloat16, float16 or float32.
        vocab_size: in place of the spec's, where the embeddings and the head do not matter.
        layout: decilm for layers that may differ, llama for equal ones.

    Raises:
        ValueError: the folder exists, or the layout or the dtype cannot say what is asked.
    """
    from safetensors import SafetensorError

    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not known; use {', '.join(DTYPES)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, not {seed!r}")
    if vocab_size is not None:
        require_positive_int("vocab_size", vocab_size)
        spec = replace(spec, vocab_size=vocab_size)
    config = checkpoint_config(spec, architecture, dtype=dtype, layout=layout)
    with new_folder(Path(folder), SafetensorError) as partial:
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if layout == "decilm":
            (partial / CONFIG_CLASS_FILE).write_text(config_class_source(), encoding="utf-8")
        drawn = ((plan.name, _values(plan, DTYPES[dtype], seed)) for plan in plan_tensors(spec, architecture))
        write_shards(drawn, partial, SHARD_BYTES)


def plan_tensors(spec: ModelSpec, architecture: Architecture) -> Iterator[TensorPlan]:
    """Every tensor in the order of the model, named as Llama's; linear sub-blocks as TensorRT-LLM names them."""
    yield TensorPlan(name="model.embed_tokens.weight", shape=(spec.vocab_size, spec.hidden_size), mean=0.0, std=1.0)
    for layer, block in enumerate(architecture.blocks):
        prefix = f"model.layers.{layer}"
        yield from _sub_block(spec, block.attention, f"{prefix}.input_layernorm", f"{prefix}.self_attn", "linear_attn")
        yield from _sub_block(spec, block.ffn, f"{prefix}.post_attention_layernorm", f"{prefix}.mlp", "linear_mlp")
    yield _norm("model.norm.weight", spec.hidden_size)
    if not spec.tie_word_embeddings:
        yield _matrix("lm_head.weight", spec.vocab_size, spec.hidden_size)


def _sub_block(spec: ModelSpec, sub: SubBlock, norm: str, module: str, linear: str) -> Iterator[TensorPlan]:
    matrices = sub_block_matrices(spec, sub)
    if matrices:
        yield _norm(f"{norm}.weight", spec.hidden_size)
    for matrix in matrices:
        name = linear if isinstance(sub, Linear) else f"{matrix.name}_proj"
        yield _matrix(f"{module}.{name}.weight", matrix.output_features, matrix.input_features)


def _matrix(name: str, outputs: int, inputs: int) -> TensorPlan:
    return TensorPlan(name=name, shape=(outputs, inputs), mean=0.0, std=inputs**-0.5)


def _norm(name: str, width: int) -> TensorPlan:
    return TensorPlan(name=name, shape=(width,), mean=1.0, std=0.1)


def write_shards(tensors: Iterable[tuple[str, torch.Tensor]], folder: Path, shard_bytes: int) -> int:
    """Write tensors in their order to safetensors files and an index; the bytes of all of them come back.

    One file is in memory at a time: tensors go to the next one before this would hold more than `shard_bytes`.
    """
    from safetensors.torch import save_file

    parts: list[Path] = []
    held: dict[str, torch.Tensor] = {}
    places: dict[str, int] = {}
    size = total = 0

    def write() -> None:
        parts.append(folder / f".{len(parts)}.part")
        save_file(held, parts[-1], metadata={"format": "pt"})
        held.clear()

    for name, tensor in tensors:
        if held and size + tensor.nbytes > shard_bytes:
            write()
            size = 0
        held[name] = tensor.contiguous()
        places[name] = len(parts)
        size += tensor.nbytes
        total += tensor.nbytes
    write()
    names = [f"model-{number:05d}-of-{len(parts):05d}.safetensors" for number in range(1, len(parts) + 1)]
    for part, name in zip(parts, names, strict=True):
        part.chmod(0o644)  # safetensors' files are for their owner alone
        part.rename(folder / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[place] for name, place in places.items()},
    }
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return total


def _values(plan: TensorPlan, dtype: torch.dtype, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{plan.name}".encode()))
    return torch.empty(plan.shape).normal_(plan.mean, plan.std, generator=generator).to(dtype)
