"""The facts of one decoder-only model that decide its shapes, named as Hugging Face configs name them.

Knows nothing about files (see `hf_config`), bytes (see `memory`) or what a layer computes beyond its weights.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, TypeAlias

from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP
from puzzlebench.model.checks import require_positive_int

QKNorm: TypeAlias = Literal["none", "per_head", "full"]
"""RMSNorm on queries and keys: none; one weight of head_dim each (Qwen3, Gemma 3); one of all heads (OLMo 2)."""

NormPlacement: TypeAlias = Literal["pre", "post", "both"]
"""RMSNorms of a sub-block: on its input (Llama), on its output (OLMo 2), or on both (Gemma 2 and 3)."""

_POSITIVE = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSpec:
    """A dense decoder with gated MLPs and RMSNorms that have a weight and no bias.

    For a heterogeneous model `num_key_value_heads` and `intermediate_size` are the largest of any layer; the layers
    themselves are in the `Architecture` beside the spec.

    Attributes:
        head_dim: width of one head; not always hidden_size / num_attention_heads.
        qkv_bias: the query, key and value projections have a bias.
        attention_output_bias: the attention's output projection has a bias.
        mlp_bias: gate, up and down projections have a bias.
        sliding_windows: per layer, tokens a query can see (None: all before it).
        torch_dtype: dtype of the checkpoint as its config states it; None where it does not.
    """

    name: str
    model_type: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    tie_word_embeddings: bool
    qkv_bias: bool
    attention_output_bias: bool
    mlp_bias: bool
    qk_norm: QKNorm
    norm_placement: NormPlacement
    sliding_windows: tuple[int | None, ...]
    torch_dtype: str | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for field in ("name", "model_type"):
            if not isinstance(getattr(self, field), str) or not getattr(self, field):
                raise ValueError(f"{field} must be a non-empty string, not {getattr(self, field)!r}")
        for field in _POSITIVE:
            require_positive_int(f"{self.name}: {field}", getattr(self, field))
        for field in ("tie_word_embeddings", "qkv_bias", "attention_output_bias", "mlp_bias"):
            if not isinstance(getattr(self, field), bool):
                raise ValueError(f"{self.name}: {field} must be true or false, not {getattr(self, field)!r}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.name}: num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.qk_norm not in ("none", "per_head", "full"):
            raise ValueError(f"{self.name}: qk_norm must be none, per_head or full, not {self.qk_norm!r}")
        if self.norm_placement not in ("pre", "post", "both"):
            raise ValueError(f"{self.name}: norm_placement must be pre, post or both, not {self.norm_placement!r}")
        if not isinstance(self.sliding_windows, tuple) or len(self.sliding_windows) != self.num_hidden_layers:
            raise ValueError(
                f"{self.name}: sliding_windows must be a tuple of {self.num_hidden_layers} entries, one per layer, "
                f"not {self.sliding_windows!r}"
            )
        for layer, window in enumerate(self.sliding_windows):
            if window is not None:
                require_positive_int(f"{self.name}: sliding window of layer {layer}", window)

    @property
    def norms_per_sub_block(self) -> int:
        """RMSNorms of hidden_size weights that one attention, MLP or linear sub-block owns; a no-op owns none."""
        return 2 if self.norm_placement == "both" else 1


def spec_facts(spec: ModelSpec) -> dict[str, Any]:
    """Every field, as JSON gives it back."""
    return {**asdict(spec), "sliding_windows": list(spec.sliding_windows)}


_NOT_SHAPES: Final = ("name", "torch_dtype", "max_position_embeddings", "sliding_windows")
"""Of a spec: what costs do not depend on; windows stand in the sub-blocks' names."""


def same_shapes(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two `spec_facts` agree in all that costs depend on: a Hub id and a bundled one may name one model."""
    first, second = (
        {name: value for name, value in facts.items() if name not in _NOT_SHAPES} for facts in (one, other)
    )
    return first == second


def parent_architecture(spec: ModelSpec) -> Architecture:
    """The architecture with the spec's own attention (each layer with its window) and MLP in every layer."""
    ffn = GatedMLP(intermediate_size=spec.intermediate_size)
    return Architecture(
        blocks=tuple(
            Block(attention=GQA(num_key_value_heads=spec.num_key_value_heads, sliding_window=window), ffn=ffn)
            for window in spec.sliding_windows
        )
    )


def check_architecture(spec: ModelSpec, architecture: Architecture) -> None:
    """Raise ValueError unless the architecture has the spec's layers and its heads divide the query heads."""
    if len(architecture.blocks) != spec.num_hidden_layers:
        raise ValueError(
            f"the architecture has {len(architecture.blocks)} layers but {spec.name} has {spec.num_hidden_layers}"
        )
    for layer, block in enumerate(architecture.blocks):
        if isinstance(block.attention, GQA):
            try:
                check_key_value_heads(spec, block.attention.num_key_value_heads)
            except ValueError as error:
                raise ValueError(f"layer {layer}: {error}") from None


def check_key_value_heads(spec: ModelSpec, num_key_value_heads: int) -> None:
    """Raise ValueError unless the count divides the spec's query heads; the message lists the counts that do."""
    heads = spec.num_attention_heads
    if heads % num_key_value_heads:
        fitting = ", ".join(str(count) for count in divisors(heads))
        raise ValueError(
            f"{num_key_value_heads} key-value heads do not divide the {heads} attention heads of {spec.name}; "
            f"what would: {fitting}"
        )


def divisors(value: int) -> tuple[int, ...]:
    """Every divisor of `value`, largest first."""
    return tuple(count for count in range(value, 0, -1) if value % count == 0)
