"""A GGUF file as a Hugging Face checkpoint: its config, its weights one by one, and its tokenizer's files.

Reads llama.cpp's `deci` and `llama` architectures as its converters and its quantiser write them, in one file or split
over several. Quantised tensors come as the fp32 numbers they stand for: what the quantiser lost stays lost. Layers that
differ become `per_layer_config` of a child of ours. Knows no checkpoint folders: the caller writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from puzzlebench.errors import first_line
from puzzlebench.exporting.gguf_file import PROVENANCE
from puzzlebench.exporting.gguf_layers import ROPE_FACTORS, gguf_name, tensor_shapes, to_halves
from puzzlebench.exporting.gguf_rope import Rope, find_llama3, rope_scaling
from puzzlebench.exporting.gguf_tokenizer_import import tokenizer_files
from puzzlebench.library.realise import SOLUTION_FILE
from puzzlebench.measuring.stack.layouts import rope_settings
from puzzlebench.model.blocks import (
    GQA,
    Architecture,
    AttentionSubBlock,
    Block,
    FFNSubBlock,
    GatedMLP,
    Linear,
    NoOp,
)
from puzzlebench.model.layouts import largest_sizes
from puzzlebench.model.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES: Final = ("deci", "llama")
_SPLIT_NAME: Final = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")
_PLAIN: Final = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DEFAULT_THETA: Final = 10000.0
_ROLES: Final = {"bos": "bos", "eos": "eos", "pad": "padding"}


class ImportedGGUF(NamedTuple):
    """What a GGUF file holds.

    Attributes:
        config: of a config.json: llama, or qwen2 where only queries, keys and values have biases; with
            per_layer_config where layers differ.
        tensors: Hugging Face names and weights, in the order of the layers, each read when it is its turn.
        files: text by name, all for the checkpoint's folder: those of the tokenizer, or one that says why it cannot be
            rebuilt; generation_config.json; of a file that puzzlebench wrote, puzzle_solution.json.
    """

    config: dict[str, Any]
    tensors: Iterator[tuple[str, Tensor]]
    files: Mapping[str, str]


def read_gguf(file: Path) -> ImportedGGUF:
    """Read a GGUF file; of a split one, give any part.

    Raises:
        ValueError: it cannot be read, is of another architecture, or holds what no config here can say; or the gguf
            package is missing.
    """
    file = Path(file)
    readers = [_open(part) for part in _parts(file)]
    try:
        keys = _keys(readers[0])
        stored = {tensor.name: tensor for reader in readers for tensor in reader.tensors}
        values, architecture = _read_values(keys, stored)
        config, spec = _make_config(values, architecture)
        shapes = tensor_shapes(spec, architecture, tied=spec.tie_word_embeddings)
        _check_tensors(shapes, stored)
        files = {**tokenizer_files(keys, spec.vocab_size), **_other_files(keys)}
    except KeyError as error:
        raise ValueError(f"{file} has no {error.args[0]}, which a model of its architecture needs") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    return ImportedGGUF(config, _weights(spec, shapes, stored, values["torch_dtype"]), files)


def _parts(file: Path) -> list[Path]:
    found = _SPLIT_NAME.fullmatch(file.name)
    if not found:
        return [file]
    stem, count = found[1], int(found[3])
    parts = [file.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise ValueError(f"{file} is one of {count} parts, and {missing[0]} is not beside it")
    return parts


def _open(file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        if error.name != "gguf":
            raise
        raise ValueError("a GGUF file needs the gguf package; install puzzlebench[export]") from None
    try:
        return GGUFReader(file)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise ValueError(f"{file} is not a GGUF file that can be read: {first_line(error)}") from None


def _keys(reader: Any) -> dict[str, Any]:
    """Every key and its value, without the architecture's name in front."""
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    architecture = values.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ValueError(f"its architecture is {architecture!r}; read are {', '.join(ARCHITECTURES)}")
    return {name.removeprefix(f"{architecture}."): value for name, value in values.items()}


def _read_values(keys: Mapping[str, Any], stored: Mapping[str, Any]) -> tuple[dict[str, Any], Architecture]:
    """What the config says of the whole model, and the layers."""
    if keys.get("expert_count"):
        raise ValueError(f"it is a mixture of {keys['expert_count']} experts, which is not supported")
    layers, hidden = int(keys["block_count"]), int(keys["embedding_length"])
    heads, architecture = _read_layers(keys, layers)
    head_dim = int(keys.get("attention.key_length", hidden // heads))
    if (other := int(keys.get("attention.value_length", head_dim))) != head_dim:
        raise ValueError(f"its keys have {head_dim} numbers a head and its values {other}; supported is one size")
    sizes, biases, rope = largest_sizes(architecture), _biases(stored), _read_rope(keys, stored, head_dim)
    values: dict[str, Any] = {
        "model_type": "qwen2" if biases == {"qkv"} else "llama",
        "vocab_size": int(stored["token_embd.weight"].shape[1]),  # GGUF has the columns first
        "hidden_size": hidden,
        "intermediate_size": sizes.get("intermediate_size", hidden),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": sizes.get("num_key_value_heads", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": int(keys["context_length"]),
        "rms_norm_eps": _shortest(keys["attention.layer_norm_rms_epsilon"]),
        "tie_word_embeddings": "output.weight" not in stored,
        "torch_dtype": _dtype(stored),
        **rope_settings(rope.theta, rope_scaling(rope)),
    }
    if values["model_type"] == "llama":
        values |= {"attention_bias": "qkv" in biases, "mlp_bias": "mlp" in biases}
    for role, key in _ROLES.items():
        number = keys.get(f"tokenizer.ggml.{key}_token_id")
        values[f"{role}_token_id"] = None if number is None else int(number)
    return values, architecture


def _read_layers(keys: Mapping[str, Any], layers: int) -> tuple[int, Architecture]:
    heads = _per_layer(keys, "attention.head_count", layers)
    key_value_heads = _per_layer(keys, "attention.head_count_kv", layers, default=heads)
    widths = _per_layer(keys, "feed_forward_length", layers)
    different = sorted({count for count in heads if count})
    if len(different) != 1:
        raise ValueError(f"its layers have {different or 'no'} attention heads; supported is one number for all")
    blocks = []
    for own, shared, width in zip(heads, key_value_heads, widths, strict=True):
        attention: AttentionSubBlock = NoOp()
        if own:
            attention = GQA(num_key_value_heads=shared) if shared else Linear()
        ffn: FFNSubBlock = GatedMLP(intermediate_size=width) if width else NoOp()
        blocks.append(Block(attention=attention, ffn=ffn))
    return different[0], Architecture(blocks=tuple(blocks))


def _per_layer(keys: Mapping[str, Any], key: str, layers: int, default: list[int] | None = None) -> list[int]:
    value = keys[key] if default is None else keys.get(key, default)
    if not isinstance(value, list):
        return [int(value)] * layers
    if len(value) != layers:
        raise ValueError(f"{key} has {len(value)} entries for {layers} layers")
    return [int(entry) for entry in value]


def _biases(stored: Mapping[str, Any]) -> set[str]:
    """Which of qkv, output and mlp have biases: those that a family of ours has together."""
    parts = {
        "qkv": ("attn_q", "attn_k", "attn_v"),
        "output": ("attn_output",),
        "mlp": ("ffn_gate", "ffn_up", "ffn_down"),
    }
    found = {name.split(".")[2] for name in stored if name.startswith("blk.") and name.endswith(".bias")}
    biases = {part for part, names in parts.items() if found & set(names)}
    if biases not in (set(), {"qkv"}, {"mlp"}, {"qkv", "output"}, {"qkv", "output", "mlp"}):
        raise ValueError(f"only {', '.join(sorted(biases))} have biases in it, as in no family that is supported")
    return biases


def _read_rope(keys: Mapping[str, Any], stored: Mapping[str, Any], head_dim: int) -> Rope:
    theta = _shortest(keys.get("rope.freq_base", _DEFAULT_THETA))
    if (turned := int(keys.get("rope.dimension_count", head_dim))) != head_dim:
        raise ValueError(f"RoPE turns {turned} of the {head_dim} numbers of a head; supported is all of them")
    if any(name.startswith("rope_factors_") for name in stored):
        raise ValueError("it has long and short RoPE factors (longrope), which are not supported")
    if ROPE_FACTORS in stored:
        return find_llama3([float(factor) for factor in stored[ROPE_FACTORS].data], theta)
    factor = _shortest(keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0)))
    kind = keys.get("rope.scaling.type", "linear")
    if factor in (0.0, 1.0) or kind == "none":
        return Rope(theta=theta)
    original = int(keys.get("rope.scaling.original_context_length", keys["context_length"]))
    return Rope(theta=theta, kind=kind, factor=factor, original_context=original if kind == "yarn" else None)


def _make_config(values: Mapping[str, Any], architecture: Architecture) -> tuple[dict[str, Any], ModelSpec]:
    """The config of a child with these layers, and the spec of the whole model."""
    from puzzlebench.child.configs import child_config, read_spec
    from puzzlebench.exporting.decilm import finished_child
    from puzzlebench.exporting.source import read_config

    stock = read_config(values)
    spec = read_spec(stock)
    child = child_config(stock, spec, architecture)
    return finished_child(json.loads(child.to_json_string())), spec


def _other_files(keys: Mapping[str, Any]) -> dict[str, str]:
    files = {}
    ids = {role: keys.get(f"tokenizer.ggml.{key}_token_id") for role, key in _ROLES.items()}
    if (another := keys.get("tokenizer.ggml.eot_token_id")) not in (None, ids["eos"]):
        ids["eos"] = another if ids["eos"] is None else [ids["eos"], another]
    stated = {f"{role}_token_id": number for role, number in ids.items() if number is not None}
    if stated:
        files["generation_config.json"] = json.dumps(stated, indent=2) + "\n"
    if solution := keys.get(f"{PROVENANCE}solution"):
        files[SOLUTION_FILE] = json.dumps(json.loads(solution), indent=2) + "\n"
    return files


def _dtype(stored: Mapping[str, Any]) -> str:
    """Of the matrices if they are of one kind and not quantised; of numbers that were quantised it is fp32."""
    kinds = {tensor.tensor_type.name for tensor in stored.values() if len(tensor.shape) > 1}
    return _PLAIN.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"


def _check_tensors(shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Any]) -> None:
    for name, shape in shapes.items():
        if (tensor := stored.get(gguf_name(name))) is None:
            raise ValueError(f"it has no tensor {gguf_name(name)}")
        if (found := tuple(int(size) for size in reversed(tensor.shape))) != shape:
            raise ValueError(f"its tensor {gguf_name(name)} is {list(found)}, and its layers ask for {list(shape)}")
    known = {gguf_name(name) for name in shapes} | {ROPE_FACTORS}
    if unknown := sorted(set(stored) - known):
        raise ValueError(f"it has {len(unknown)} tensors that its layers have not, the first is {unknown[0]}")


def _weights(
    spec: ModelSpec, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Any], dtype: str
) -> Iterator[tuple[str, Tensor]]:
    import torch

    for name in shapes:
        tensor = _as_torch(stored[gguf_name(name)])
        yield name, to_halves(spec, name, tensor).to(getattr(torch, dtype)).contiguous()


def _as_torch(tensor: Any) -> Tensor:
    """A copy: the file is only mapped."""
    import numpy as np
    import torch
    from gguf import quants

    kind = tensor.tensor_type.name
    if kind == "BF16":
        return torch.from_numpy(np.array(tensor.data).view(np.int16)).view(torch.bfloat16)
    if kind in _PLAIN:
        return torch.from_numpy(np.array(tensor.data))
    try:
        return torch.from_numpy(quants.dequantize(tensor.data, tensor.tensor_type))
    except NotImplementedError:
        raise ValueError(
            f"its tensor {tensor.name} is quantised as {kind}, which the gguf package cannot undo"
        ) from None


def _shortest(value: float) -> float:
    """A number in single precision as people write it: 1e-05 and not 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
