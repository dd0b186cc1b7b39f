"""Exact parameter counts: of a sub-block, the embeddings, the head and a whole model.

Knows shapes only; bytes, sharding and caches are in `memory`.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from puzzlebench.model.blocks import GQA, Architecture, GatedMLP, Linear, NoOp, SubBlock
from puzzlebench.model.spec import ModelSpec, check_architecture, check_key_value_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class Matrix:
    """One GEMM weight [output_features, input_features] of a sub-block.

    `shard` is the dimension tensor parallelism splits: column splits the outputs (and the bias), row the inputs (each
    GPU keeps the whole bias). `heads` is the number of heads the split dimension holds, where it holds heads.
    """

    name: Literal["q", "k", "v", "o", "gate", "up", "down", "linear"]
    input_features: int
    output_features: int
    bias: bool
    shard: Literal["column", "row"]
    heads: int | None = None

    @property
    def parameters(self) -> int:
        """Weights and bias."""
        return self.input_features * self.output_features + (self.output_features if self.bias else 0)


def sub_block_matrices(spec: ModelSpec, sub: SubBlock) -> tuple[Matrix, ...]:
    """The GEMM weights of a sub-block in the order they run; fused projections (Phi-3) are listed apart.

    Raises:
        ValueError: the sub-block's key-value heads do not divide the spec's attention heads.
    """
    hidden = spec.hidden_size
    match sub:
        case GQA(num_key_value_heads=kv_heads):
            check_key_value_heads(spec, kv_heads)
            heads, bias = spec.num_attention_heads, spec.qkv_bias
            query, key = heads * spec.head_dim, kv_heads * spec.head_dim
            return (
                Matrix(name="q", input_features=hidden, output_features=query, bias=bias, shard="column", heads=heads),
                Matrix(name="k", input_features=hidden, output_features=key, bias=bias, shard="column", heads=kv_heads),
                Matrix(name="v", input_features=hidden, output_features=key, bias=bias, shard="column", heads=kv_heads),
                Matrix(
                    name="o",
                    input_features=query,
                    output_features=hidden,
                    bias=spec.attention_output_bias,
                    shard="row",
                    heads=heads,
                ),
            )
        case GatedMLP(intermediate_size=width):
            bias = spec.mlp_bias
            return (
                Matrix(name="gate", input_features=hidden, output_features=width, bias=bias, shard="column"),
                Matrix(name="up", input_features=hidden, output_features=width, bias=bias, shard="column"),
                Matrix(name="down", input_features=width, output_features=hidden, bias=bias, shard="row"),
            )
        case Linear():
            return (Matrix(name="linear", input_features=hidden, output_features=hidden, bias=False, shard="column"),)
        case NoOp():
            return ()


def sub_block_norm_parameters(spec: ModelSpec, sub: SubBlock) -> int:
    """RMSNorm weights: the sub-block's own (input_layernorm with attention, post_attention_layernorm with the MLP,
    the extra ones of Gemma 2 and 3) and the norms on queries and keys.
    """
    if isinstance(sub, NoOp):
        return 0
    parameters = spec.norms_per_sub_block * spec.hidden_size
    if isinstance(sub, GQA):
        if spec.qk_norm == "per_head":
            parameters += 2 * spec.head_dim
        elif spec.qk_norm == "full":
            parameters += (spec.num_attention_heads + sub.num_key_value_heads) * spec.head_dim
    return parameters


def sub_block_parameters(spec: ModelSpec, sub: SubBlock) -> int:
    """Every parameter of an attention or FFN sub-block: matrices, biases, norms. A no-op has 0."""
    matrices = sum(matrix.parameters for matrix in sub_block_matrices(spec, sub))
    return matrices + sub_block_norm_parameters(spec, sub)


def embedding_parameters(spec: ModelSpec) -> int:
    """Token embeddings."""
    return spec.vocab_size * spec.hidden_size


def head_parameters(spec: ModelSpec) -> int:
    """The final norm, and the output matrix unless it is the embedding (tied)."""
    return spec.hidden_size + (0 if spec.tie_word_embeddings else spec.vocab_size * spec.hidden_size)


def model_parameters(spec: ModelSpec, architecture: Architecture) -> int:
    """Every parameter of the model, tied embeddings once."""
    check_architecture(spec, architecture)
    blocks = sum(count * sub_block_parameters(spec, sub) for sub, count in count_sub_blocks(architecture).items())
    return embedding_parameters(spec) + blocks + head_parameters(spec)


def count_sub_blocks(architecture: Architecture) -> Counter[SubBlock]:
    """How often each sub-block occurs. Attention and FFN share `Linear` and `NoOp`: they cost the same."""
    counts: Counter[SubBlock] = Counter()
    for block in architecture.blocks:
        counts[block.attention] += 1
        counts[block.ffn] += 1
    return counts
