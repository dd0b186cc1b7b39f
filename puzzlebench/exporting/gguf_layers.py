"""The layers of a model in llama.cpp's words: its names of tensors, the order of their rows, and numbers per layer.

Knows tensors and no files. Facts of llama.cpp's `deci` architecture: a layer without attention has 0 heads, one with a
linear attention has heads but 0 key-value heads and its matrix under the name of the output projection, one without MLP
has a feed-forward length of 0; a part that is not there has no norm either. RoPE turns neighbouring numbers of a head
where transformers turns those half a head apart, so the rows of query and key projections stand in another order.
"""

from __future__ import annotations

from typing import Any

from puzzlebench.model.blocks import GQA, Architecture, GatedMLP, Linear, NoOp
from puzzlebench.model.spec import ModelSpec

Shape = tuple[int, ...]

_WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
_HEAD = ("lm_head.weight", "output.weight")
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LINEAR = "self_attn.linear_attn"  # is called attn_output too
ROPE_FACTORS = "rope_freqs.weight"


def head_counts(spec: ModelSpec, architecture: Architecture) -> tuple[list[int], list[int]]:
    """Query heads and key-value heads per layer, 0 as llama.cpp means it."""
    heads = [0 if isinstance(block.attention, NoOp) else spec.num_attention_heads for block in architecture.blocks]
    key_value_heads = [
        block.attention.num_key_value_heads if isinstance(block.attention, GQA) else 0 for block in architecture.blocks
    ]
    return heads, key_value_heads


def feed_forward_lengths(architecture: Architecture) -> list[int]:
    """Widths of the MLPs per layer, 0 where there is none."""
    return [block.ffn.intermediate_size if isinstance(block.ffn, GatedMLP) else 0 for block in architecture.blocks]


def tensor_shapes(spec: ModelSpec, architecture: Architecture, *, tied: bool) -> dict[str, Shape]:
    """Every tensor by its Hugging Face name, in the order of the layers, and its shape (rows first)."""
    shapes: dict[str, Shape] = {"model.embed_tokens.weight": (spec.vocab_size, spec.hidden_size)}
    for layer in range(spec.num_hidden_layers):
        for name, shape in _layer_shapes(spec, architecture, layer).items():
            shapes[f"model.layers.{layer}.{name}"] = shape
    shapes["model.norm.weight"] = (spec.hidden_size,)
    if not tied:
        shapes[_HEAD[0]] = (spec.vocab_size, spec.hidden_size)
    return shapes


def _layer_shapes(spec: ModelSpec, architecture: Architecture, layer: int) -> dict[str, Shape]:
    block, hidden = architecture.blocks[layer], spec.hidden_size
    shapes: dict[str, Shape] = {}
    if not isinstance(block.attention, NoOp):
        shapes["input_layernorm.weight"] = (hidden,)
    if isinstance(block.attention, Linear):
        shapes[f"{_LINEAR}.weight"] = (hidden, hidden)
    if isinstance(block.attention, GQA):
        queries = spec.num_attention_heads * spec.head_dim
        keys = block.attention.num_key_value_heads * spec.head_dim
        for name, rows in (("q", queries), ("k", keys), ("v", keys)):
            shapes[f"self_attn.{name}_proj.weight"] = (rows, hidden)
            if spec.qkv_bias:
                shapes[f"self_attn.{name}_proj.bias"] = (rows,)
        shapes["self_attn.o_proj.weight"] = (hidden, queries)
        if spec.attention_output_bias:
            shapes["self_attn.o_proj.bias"] = (hidden,)
    if isinstance(block.ffn, GatedMLP):
        width = block.ffn.intermediate_size
        shapes["post_attention_layernorm.weight"] = (hidden,)
        for name, rows, columns in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
            shapes[f"mlp.{name}_proj.weight"] = (rows, columns)
            if spec.mlp_bias:
                shapes[f"mlp.{name}_proj.bias"] = (rows,)
    return shapes


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor of `tensor_shapes`."""
    if name in _WHOLE:
        return _WHOLE[name]
    if name == _HEAD[0]:
        return _HEAD[1]
    layer, part, kind = _layer_part_kind(name)
    return f"blk.{layer}.{'attn_output' if part == _LINEAR else _LAYER[part]}.{kind}"


def _layer_part_kind(name: str) -> tuple[int, str, str]:
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, kind = rest.rpartition(".")
    return int(layer), part, kind


def to_neighbours(spec: ModelSpec, name: str, tensor: Any) -> Any:
    """A tensor with the rows of its heads as llama.cpp turns them; only those of queries and keys change."""
    if not _is_rotated(name):
        return tensor
    rows = tensor.reshape(-1, 2, spec.head_dim // 2, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)


def to_halves(spec: ModelSpec, name: str, tensor: Any) -> Any:
    """The inverse of `to_neighbours`."""
    if not _is_rotated(name):
        return tensor
    rows = tensor.reshape(-1, spec.head_dim // 2, 2, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)


def _is_rotated(name: str) -> bool:
    return ".self_attn.q_proj." in name or ".self_attn.k_proj." in name
