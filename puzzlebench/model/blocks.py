"""The words for one architecture: sub-blocks, blocks, and the stable names tables use for them.

Knows no model: whether 8 key-value heads fit one is decided by `spec`, what they cost by `parameters` and `memory`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, overload

from puzzlebench.model.checks import require_positive_int

ARCHITECTURE_SCHEMA = 1

Part: TypeAlias = Literal["attention", "ffn"]
PARTS: tuple[Part, ...] = ("attention", "ffn")


@dataclass(frozen=True, kw_only=True, slots=True)
class GQA:
    """Grouped-query attention. `sliding_window` is in tokens, the current one included; None attends to all."""

    num_key_value_heads: int
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        require_positive_int("num_key_value_heads", self.num_key_value_heads)
        if self.sliding_window is not None:
            require_positive_int("sliding_window", self.sliding_window)


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMLP:
    """A feed-forward network of gate, up and down projections (SwiGLU, GeGLU)."""

    intermediate_size: int

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        require_positive_int("intermediate_size", self.intermediate_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class Linear:
    """One hidden x hidden matrix in place of the sub-block; keeps the sub-block's norms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoOp:
    """Nothing: the residual stream passes by, norms included."""


AttentionSubBlock: TypeAlias = GQA | Linear | NoOp
FFNSubBlock: TypeAlias = GatedMLP | Linear | NoOp
SubBlock: TypeAlias = GQA | GatedMLP | Linear | NoOp


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """One decoder layer."""

    attention: AttentionSubBlock
    ffn: FFNSubBlock

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not isinstance(self.attention, GQA | Linear | NoOp):
            raise ValueError(f"attention must be GQA, Linear or NoOp, not {self.attention!r}")
        if not isinstance(self.ffn, GatedMLP | Linear | NoOp):
            raise ValueError(f"ffn must be GatedMLP, Linear or NoOp, not {self.ffn!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """One block per layer, first layer first."""

    blocks: tuple[Block, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not isinstance(self.blocks, tuple) or not self.blocks:
            raise ValueError(f"blocks must be a tuple of at least one Block, not {self.blocks!r}")


_GQA_NAME = re.compile(r"gqa_([1-9][0-9]*)(?:_w([1-9][0-9]*))?")
_MLP_NAME = re.compile(r"mlp_([1-9][0-9]*)")
_FORMS = {
    "attention": "gqa_<kv heads>, gqa_<kv heads>_w<window>, linear or no_op",
    "ffn": "mlp_<intermediate size>, linear or no_op",
}


def sub_block_name(sub: SubBlock) -> str:
    """The name that tables use as a key: gqa_8, gqa_8_w4096, mlp_14336, linear, no_op."""
    match sub:
        case GQA(num_key_value_heads=heads, sliding_window=None):
            return f"gqa_{heads}"
        case GQA(num_key_value_heads=heads, sliding_window=window):
            return f"gqa_{heads}_w{window}"
        case GatedMLP(intermediate_size=width):
            return f"mlp_{width}"
        case Linear():
            return "linear"
        case NoOp():
            return "no_op"


@overload
def parse_sub_block(part: Literal["attention"], name: str) -> AttentionSubBlock: ...
@overload
def parse_sub_block(part: Literal["ffn"], name: str) -> FFNSubBlock: ...
def parse_sub_block(part: Part, name: str) -> SubBlock:
    """The sub-block with this name; the inverse of `sub_block_name`.

    Raises:
        ValueError: `part` is unknown, or `name` is not a name of that part.
    """
    if part not in _FORMS:
        raise ValueError(f"part must be 'attention' or 'ffn', not {part!r}")
    if name == "linear":
        return Linear()
    if name == "no_op":
        return NoOp()
    if isinstance(name, str):
        if part == "attention" and (found := _GQA_NAME.fullmatch(name)):
            window = found[2]
            return GQA(num_key_value_heads=int(found[1]), sliding_window=None if window is None else int(window))
        if part == "ffn" and (found := _MLP_NAME.fullmatch(name)):
            return GatedMLP(intermediate_size=int(found[1]))
    raise ValueError(f"{name!r} is not an {part} sub-block; expected {_FORMS[part]}")


def block_name(block: Block) -> str:
    """The names of a block's two halves: gqa_8+mlp_14336."""
    return f"{sub_block_name(block.attention)}+{sub_block_name(block.ffn)}"


def parse_block(name: str) -> Block:
    """The block with this name; the inverse of `block_name`.

    Raises:
        ValueError: it is not two names of sub-blocks with a + between them.
    """
    attention, plus, ffn = name.partition("+")
    if not plus:
        raise ValueError(f"{name!r} is not a block; expected attention+ffn, such as gqa_8+mlp_14336 or no_op+linear")
    return Block(attention=parse_sub_block("attention", attention), ffn=parse_sub_block("ffn", ffn))


def architecture_to_json(architecture: Architecture) -> dict[str, Any]:
    """A JSON-ready dict: the schema version and one pair of sub-block names per layer."""
    return {
        "schema": ARCHITECTURE_SCHEMA,
        "blocks": [
            {"attention": sub_block_name(block.attention), "ffn": sub_block_name(block.ffn)}
            for block in architecture.blocks
        ],
    }


def architecture_from_json(data: object) -> Architecture:
    """The architecture in a dict written by `architecture_to_json`.

    Raises:
        ValueError: another schema version, unknown or missing keys, or a name that is not a sub-block; the message
            names the layer.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"an architecture is a JSON object with 'schema' and 'blocks', not {type(data).__name__}")
    _require_keys("an architecture", data, {"schema", "blocks"})
    if data["schema"] != ARCHITECTURE_SCHEMA or isinstance(data["schema"], bool):
        raise ValueError(
            f"architecture schema {data['schema']!r} is not known; this version reads {ARCHITECTURE_SCHEMA}"
        )
    if not isinstance(data["blocks"], list):
        raise ValueError(f"'blocks' must be a list, not {type(data['blocks']).__name__}")
    return Architecture(blocks=tuple(_block_from_json(layer, block) for layer, block in enumerate(data["blocks"])))


def _block_from_json(layer: int, data: object) -> Block:
    if not isinstance(data, Mapping):
        raise ValueError(f"layer {layer}: a block is a JSON object with 'attention' and 'ffn', not {data!r}")
    _require_keys(f"layer {layer}", data, {"attention", "ffn"})
    try:
        return Block(
            attention=parse_sub_block("attention", cast("str", data["attention"])),
            ffn=parse_sub_block("ffn", cast("str", data["ffn"])),
        )
    except ValueError as error:
        raise ValueError(f"layer {layer}: {error}") from None


def _require_keys(what: str, data: Mapping[str, Any], wanted: set[str]) -> None:
    if unknown := sorted(str(key) for key in set(data) - wanted):
        raise ValueError(f"{what}: unknown key {unknown[0]!r}; known are {', '.join(sorted(wanted))}")
    if missing := sorted(wanted - set(data)):
        raise ValueError(f"{what}: key {missing[0]!r} is missing")
