"""What one GPU of a tensor-parallel group holds of heads, matrices and the vocabulary.

Every matrix is split evenly. Key-value heads are repeated once there are more GPUs than heads; the vocabulary is padded
to a multiple of the GPUs. Knows shapes, not bytes.
"""

import math

from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.parameters import Matrix
from puzzlebench.model.spec import ModelSpec


def padded_vocab_size(spec: ModelSpec, tensor_parallel: int) -> int:
    """The vocabulary rounded up to a multiple of the GPUs."""
    require_positive_int("tensor_parallel", tensor_parallel)
    return math.ceil(spec.vocab_size / tensor_parallel) * tensor_parallel


def split_evenly(spec: ModelSpec, field: str, value: int, tensor_parallel: int) -> int:
    """One GPU's share of `value`.

    Raises:
        ValueError: the GPUs do not divide it; the message names the field and its value.
    """
    require_positive_int("tensor_parallel", tensor_parallel)
    if value % tensor_parallel:
        raise ValueError(f"tensor_parallel {tensor_parallel} does not divide {field} {value} of {spec.name}")
    return value // tensor_parallel


def heads_per_gpu(spec: ModelSpec, heads: int, tensor_parallel: int) -> int:
    """Attention or key-value heads one GPU holds.

    Raises:
        ValueError: the GPUs do not divide the attention heads, or neither divide nor repeat the key-value heads.
    """
    if heads == spec.num_attention_heads:
        return split_evenly(spec, "num_attention_heads", heads, tensor_parallel)
    require_positive_int("tensor_parallel", tensor_parallel)
    if tensor_parallel % heads and heads % tensor_parallel:
        raise ValueError(
            f"tensor_parallel {tensor_parallel} neither divides nor is a multiple of the {heads} key-value heads "
            f"of {spec.name}"
        )
    return max(1, heads // tensor_parallel)


def split_features(spec: ModelSpec, matrix: Matrix, tensor_parallel: int) -> int:
    """Features of the matrix's split dimension that one GPU holds; the other dimension is whole."""
    if matrix.heads is not None:
        return heads_per_gpu(spec, matrix.heads, tensor_parallel) * spec.head_dim
    features = matrix.output_features if matrix.shard == "column" else matrix.input_features
    field = "hidden_size" if matrix.name == "linear" else "intermediate_size"
    return split_evenly(spec, field, features, tensor_parallel)
