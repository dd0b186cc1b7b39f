"""A decoder whose layers differ, from the Llama parts of transformers. Knows tensors, no clock.

transformers has no model for layers without attention or with linear sub-blocks, so the layers are put together here
from its own attention, MLP, norm and rotary embedding. Module names are those of the checkpoint's tensors. Legend:
B sequences, T tokens, H hidden size.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from puzzlebench.measuring.stack.checkpoint import DTYPES, INDEX_FILE
from puzzlebench.model.blocks import GQA, Architecture, AttentionSubBlock, FFNSubBlock, GatedMLP, Linear
from puzzlebench.model.hf_config import from_hf_config

_LLAMA_KEYS = (
    "hidden_size",
    "num_attention_heads",
    "head_dim",
    "vocab_size",
    "max_position_embeddings",
    "attention_bias",
    "mlp_bias",
    "hidden_act",
    "rms_norm_eps",
    "rope_theta",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


class StackModel(nn.Module):
    """Embedding, layers, norm and head, with a key-value cache of the layers that have attention."""

    def __init__(self, config: dict[str, Any], architecture: Architecture) -> None:
        super().__init__()
        llama = _llama_parts()
        shared = _llama_config(config, GQA(num_key_value_heads=config["num_attention_heads"]), None)
        cached = 0
        layers = []
        for block in architecture.blocks:
            layers.append(_Layer(config, block.attention, block.ffn, cache_index=cached))
            cached += isinstance(block.attention, GQA)
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config["vocab_size"], config["hidden_size"]),
                "layers": nn.ModuleList(layers),
                "norm": llama.LlamaRMSNorm(config["hidden_size"], eps=config["rms_norm_eps"]),
            }
        )
        self.lm_head = nn.Linear(config["hidden_size"], config["vocab_size"], bias=False)
        with torch.device("cpu"):  # its buffer is in no checkpoint
            self.rotary = llama.LlamaRotaryEmbedding(config=shared)

    def forward(self, ids: torch.Tensor, *, start: int = 0, cache: Any = None) -> torch.Tensor:
        """Hidden states [B, T, H] after the last norm, of token ids [B, T] that begin at position `start`."""
        hidden: torch.Tensor = self.model["embed_tokens"](ids)
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)[None]
        rotation = self.rotary(hidden, positions)
        for layer in self.model["layers"].children():
            hidden = layer(hidden, rotation, cache)
        normed: torch.Tensor = self.model["norm"](hidden)
        return normed

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [..., vocabulary]."""
        out: torch.Tensor = self.lm_head(hidden)
        return out


class _Layer(nn.Module):
    """One block; what is a no-op is not there."""

    def __init__(
        self, config: dict[str, Any], attention: AttentionSubBlock, ffn: FFNSubBlock, *, cache_index: int
    ) -> None:
        super().__init__()
        llama = _llama_parts()
        hidden, eps = config["hidden_size"], config["rms_norm_eps"]
        own = _llama_config(config, attention, ffn)
        match attention:
            case GQA():
                self.self_attn = llama.LlamaAttention(own, layer_idx=cache_index)
            case Linear():
                self.self_attn = nn.ModuleDict({"linear_attn": nn.Linear(hidden, hidden, bias=False)})
        match ffn:
            case GatedMLP():
                self.mlp = llama.LlamaMLP(own)
            case Linear():
                self.mlp = nn.ModuleDict({"linear_mlp": nn.Linear(hidden, hidden, bias=False)})
        if hasattr(self, "self_attn"):
            self.input_layernorm = llama.LlamaRMSNorm(hidden, eps=eps)
        if hasattr(self, "mlp"):
            self.post_attention_layernorm = llama.LlamaRMSNorm(hidden, eps=eps)
        self._cache_argument = _cache_argument()

    def forward(self, hidden: torch.Tensor, rotation: Any, cache: Any) -> torch.Tensor:
        if hasattr(self, "self_attn"):
            hidden = hidden + self._attend(self.input_layernorm(hidden), rotation, cache)
        if hasattr(self, "mlp"):
            normed = self.post_attention_layernorm(hidden)
            mlp = self.mlp["linear_mlp"] if isinstance(self.mlp, nn.ModuleDict) else self.mlp
            hidden = hidden + mlp(normed)
        return hidden

    def _attend(self, normed: torch.Tensor, rotation: Any, cache: Any) -> torch.Tensor:
        if isinstance(self.self_attn, nn.ModuleDict):
            linear: torch.Tensor = self.self_attn["linear_attn"](normed)
            return linear
        # Prompts are of one length and whole, so the causal mask of the kernel itself is the right one.
        arguments = {"position_embeddings": rotation, "attention_mask": None, self._cache_argument: cache}
        out: torch.Tensor = self.self_attn(normed, **arguments)[0]
        return out


def load_model(checkpoint: Path, device: torch.device) -> StackModel:
    """The model of a checkpoint, ready to run.

    Raises:
        ValueError: there is no readable checkpoint, or its tensors are not those of its config.
    """
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        files = set(json.loads((checkpoint / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{checkpoint} is not a checkpoint written by write_checkpoint: {error}") from None
    _, architecture = from_hf_config(config, name=checkpoint.name)
    with torch.device("meta"):
        model = StackModel(config, architecture)
    tensors = _read_tensors((checkpoint / file for file in sorted(files)), device)
    if config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{checkpoint}: its tensors are not those of its config: {error}") from None
    model.rotary.to(device)
    return model.to(DTYPES[config["torch_dtype"]]).eval().requires_grad_(requires_grad=False)


def new_cache() -> Any:
    """An empty key-value cache."""
    return _parts("transformers").DynamicCache()


def _read_tensors(files: Iterable[Path], device: torch.device) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file in files:
        tensors |= load_file(file, device=str(device))
    return tensors


def _llama_config(config: dict[str, Any], attention: AttentionSubBlock, ffn: FFNSubBlock | None) -> Any:
    """A LlamaConfig of one layer; what the layer lacks has a size that nothing uses."""
    heads = attention.num_key_value_heads if isinstance(attention, GQA) else config["num_attention_heads"]
    width = ffn.intermediate_size if isinstance(ffn, GatedMLP) else config["hidden_size"]
    return _parts("transformers").LlamaConfig(
        **{key: config[key] for key in _LLAMA_KEYS},
        num_key_value_heads=heads,
        intermediate_size=width,
        attn_implementation="sdpa",
    )


def _llama_parts() -> Any:
    return _parts("transformers.models.llama.modeling_llama")


def _parts(module: str) -> Any:
    return importlib.import_module(module)


def _cache_argument() -> str:
    """What this transformers calls the cache of an attention layer: past_key_values, in newer ones cache."""
    parameters = inspect.signature(_llama_parts().LlamaAttention.forward).parameters
    return next(name for name in ("cache", "past_key_values", "past_key_value") if name in parameters)
