"""One sub-block, the embedding and the head as engines run them, on any `Ops`. Knows no clock.

The residual stream is carried as (delta, residual): a sub-block adds the delta of the one before it while it norms, as
serving engines fuse it, so blocks chain into a model with nothing between them. Legend: T tokens, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from puzzlebench.measuring.ops import AttentionStep, Cache, Ops
from puzzlebench.measuring.weights import Weights
from puzzlebench.model.blocks import GQA, GatedMLP, Linear, NoOp, SubBlock
from puzzlebench.model.spec import ModelSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """The residual stream between two sub-blocks: its value is delta + residual, each [T, H]."""

    delta: torch.Tensor
    residual: torch.Tensor | None


def run_sub_block(
    ops: Ops,
    spec: ModelSpec,
    sub: SubBlock,
    weights: Weights,
    stream: Stream,
    attention: tuple[Cache, AttentionStep] | None,
) -> Stream:
    """Run one sub-block; `attention` holds the cache and the step where it is GQA."""
    if isinstance(sub, NoOp):
        return stream
    if spec.norm_placement == "post":
        residual = stream.delta if stream.residual is None else stream.delta + stream.residual
        inputs = residual
    else:
        inputs, residual = ops.add_norm(stream.delta, stream.residual, weights.norms["before"])
    match sub:
        case GQA():
            assert attention is not None
            delta = _attention(ops, spec, weights, inputs, *attention)
        case GatedMLP():
            product = ops.swiglu(ops.matmul(inputs, weights.matrices["gate_up"]))
            delta = ops.matmul(product, weights.matrices["down"])
        case Linear():
            delta = ops.matmul(inputs, weights.matrices["linear"])
    if spec.norm_placement != "pre":
        delta = ops.norm(delta, weights.norms["after"])
    return Stream(delta=delta, residual=residual)


def run_embedding(weights: Weights, tokens: torch.Tensor) -> Stream:
    """Look the tokens up, (T,)."""
    return Stream(delta=F.embedding(tokens, weights.matrices["embedding"].weight), residual=None)


def run_head(ops: Ops, weights: Weights, stream: Stream) -> torch.Tensor:
    """The next token of every row, (T,): final norm, logits, and the largest of them."""
    inputs, _ = ops.add_norm(stream.delta, stream.residual, weights.norms["before"])
    return ops.matmul(inputs, weights.matrices["head"]).argmax(dim=-1)


def _attention(
    ops: Ops, spec: ModelSpec, weights: Weights, inputs: torch.Tensor, cache: Cache, step: AttentionStep
) -> torch.Tensor:
    qkv = ops.matmul(inputs, weights.matrices["qkv"])
    if spec.qk_norm != "none":
        queries, keys = step.num_heads * step.head_dim, step.num_kv_heads * step.head_dim
        for name, first, last in (("query", 0, queries), ("key", queries, queries + keys)):
            weight = weights.norms[name]
            part = qkv[:, first:last]
            part.copy_(ops.norm(part.reshape(-1, weight.numel()), weight).view_as(part))
    return ops.matmul(ops.attend(qkv, cache, step), weights.matrices["o"])
