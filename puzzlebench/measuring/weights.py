"""Random weights of one sub-block, the embedding or the head, laid out as serving engines fuse them.

Values are scaled so that activations keep their size, never zeros: matrix units run faster on zeros. Knows no engine.
Legend: H hidden size; a matrix is [output features, input features].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from puzzlebench.model.blocks import GQA, SubBlock
from puzzlebench.model.dtypes import WeightDtype
from puzzlebench.model.parameters import Matrix, sub_block_matrices
from puzzlebench.model.spec import ModelSpec

ACTIVATION_DTYPES: dict[WeightDtype, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp8": torch.bfloat16,
}
_FUSED = {"q": "qkv", "k": "qkv", "v": "qkv", "gate": "gate_up", "up": "gate_up"}
_FP8_LARGEST = 448.0
_INPUT_SCALE = 8.0 / _FP8_LARGEST  # activations here stay within 8
_BANK_HALF = 2**22


@dataclass(frozen=True, kw_only=True, slots=True)
class Dense:
    """A matrix in the activations' dtype."""

    weight: torch.Tensor
    bias: torch.Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8:
    """A matrix in float8_e4m3fn with one scale for it and one, static, for its input, also as a number."""

    weight: torch.Tensor
    scale: torch.Tensor
    input_scale: torch.Tensor
    input_scale_value: float
    bias: torch.Tensor | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Weights:
    """Matrices by fused name (qkv, o, gate_up, down, linear, head, embedding) and norm weights by name."""

    matrices: Mapping[str, Dense | Fp8] = field(default_factory=dict)
    norms: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes held."""
        tensors = list(self.norms.values())
        for matrix in self.matrices.values():
            tensors.append(matrix.weight)
            if matrix.bias is not None:
                tensors.append(matrix.bias)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def sub_block_weights(
    spec: ModelSpec, sub: SubBlock, weight_dtype: WeightDtype, device: torch.device, generator: torch.Generator
) -> Weights:
    """Fresh random weights of an attention or FFN sub-block; a no-op has none."""
    dtype = ACTIVATION_DTYPES[weight_dtype]
    fused: dict[str, list[Matrix]] = {}
    for matrix in sub_block_matrices(spec, sub):
        fused.setdefault(_FUSED.get(matrix.name, matrix.name), []).append(matrix)
    matrices = {
        name: _matrix(
            sum(part.output_features for part in parts),
            parts[0].input_features,
            bias=parts[0].bias,
            weight_dtype=weight_dtype,
            device=device,
            generator=generator,
        )
        for name, parts in fused.items()
    }
    norms: dict[str, torch.Tensor] = {}
    if matrices:
        names = {"pre": ("before",), "post": ("after",), "both": ("before", "after")}[spec.norm_placement]
        norms = {name: _norm(spec.hidden_size, dtype, device, generator) for name in names}
    if isinstance(sub, GQA) and spec.qk_norm != "none":
        per_head = spec.qk_norm == "per_head"
        for name, heads in (("query", spec.num_attention_heads), ("key", sub.num_key_value_heads)):
            norms[name] = _norm(spec.head_dim * (1 if per_head else heads), dtype, device, generator)
    return Weights(matrices=matrices, norms=norms)


def embedding_weights(
    spec: ModelSpec, weight_dtype: WeightDtype, device: torch.device, generator: torch.Generator
) -> Weights:
    """The token embeddings, never quantised."""
    shape = (spec.vocab_size, spec.hidden_size)
    table = random_normal(shape, ACTIVATION_DTYPES[weight_dtype], device, generator)
    return Weights(matrices={"embedding": Dense(weight=table, bias=None)})


def head_weights(
    spec: ModelSpec, weight_dtype: WeightDtype, device: torch.device, generator: torch.Generator
) -> Weights:
    """The final norm and the output matrix, never quantised."""
    unquantised: WeightDtype = "bf16" if weight_dtype == "fp8" else weight_dtype
    matrix = _matrix(
        spec.vocab_size,
        spec.hidden_size,
        bias=False,
        weight_dtype=unquantised,
        device=device,
        generator=generator,
    )
    norm = _norm(spec.hidden_size, ACTIVATION_DTYPES[weight_dtype], device, generator)
    return Weights(matrices={"head": matrix}, norms={"before": norm})


def random_normal(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    *,
    scale: float = 1.0,
) -> torch.Tensor:
    """Normal numbers, copied from random places of a bank that is drawn once: gigabytes of them cost a memory copy."""
    bank, count = _bank(dtype, device), math.prod(shape)
    values = torch.empty(count, dtype=dtype, device=device)
    for start in range(0, count, _BANK_HALF):
        part = values[start : start + _BANK_HALF]
        offset = int(torch.randint(_BANK_HALF, (), device=device, generator=generator))
        torch.mul(bank[offset : offset + len(part)], scale, out=part)
    return values.view(shape)


@functools.cache
def _bank(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    generator = torch.Generator(device=device).manual_seed(0)
    return torch.randn(2 * _BANK_HALF, dtype=dtype, device=device, generator=generator)


def _norm(width: int, dtype: torch.dtype, device: torch.device, generator: torch.Generator) -> torch.Tensor:
    return (1 + 0.1 * torch.randn(width, device=device, generator=generator)).to(dtype)


def _matrix(
    outputs: int,
    inputs: int,
    *,
    bias: bool,
    weight_dtype: WeightDtype,
    device: torch.device,
    generator: torch.Generator,
) -> Dense | Fp8:
    dtype = ACTIVATION_DTYPES[weight_dtype]
    weight = random_normal((outputs, inputs), dtype, device, generator, scale=inputs**-0.5)
    added = torch.randn(outputs, dtype=dtype, device=device, generator=generator).mul_(0.1) if bias else None
    if weight_dtype != "fp8":
        return Dense(weight=weight, bias=added)
    scale = (weight.abs().amax().float() / _FP8_LARGEST).reshape(1)
    return Fp8(
        weight=(weight / scale).to(torch.float8_e4m3fn),
        scale=scale,
        input_scale=torch.full((1,), _INPUT_SCALE, device=device),
        input_scale_value=_INPUT_SCALE,
        bias=added,
    )
