"""The layers of `model`, out of vLLM's own: every half is attention or MLP, one matrix, or nothing.

Tensor parallelism is vLLM's: heads, widths and the outputs of the one matrix are split over the GPUs, as puzzlebench
counts them. Legend: T tokens of this step, of all sequences; H hidden size.
"""
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

from typing import Any, TypeAlias

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.models.llama import LlamaMLP
from vllm.model_executor.models.utils import extract_layer_index

from puzzlebench.model.blocks import GQA, AttentionSubBlock, FFNSubBlock, GatedMLP, Linear, NoOp
from puzzlebench.vllm_plugin.configs import LayerPlan, read_plan

Stream: TypeAlias = tuple[Tensor, Tensor | None]
"""What runs from layer to layer: two tensors [T, H] whose sum is the residual stream; None for zero.

vLLM's norms add the second to the first on the way, so a sub-block's output is added by the norm after it.
"""


class PuzzlebenchAttention(nn.Module):
    """Grouped-query attention with this layer's own key-value heads and window, [T, H] to the same."""

    def __init__(self, config: Any, plan: LayerPlan, sub: GQA, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        gpus = get_tensor_model_parallel_world_size()
        heads, kv_heads, self.head_dim = config.num_attention_heads, sub.num_key_value_heads, config.head_dim
        if heads % gpus or (kv_heads % gpus and gpus % kv_heads):
            raise ValueError(f"{prefix}: {heads} heads with {kv_heads} key-value heads do not split over {gpus} GPUs")
        self.q_size = heads // gpus * self.head_dim
        self.kv_size = max(1, kv_heads // gpus) * self.head_dim
        quant_config = vllm_config.quant_config
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            self.head_dim,
            heads,
            kv_heads,
            bias=plan.qkv_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            heads * self.head_dim,
            config.hidden_size,
            bias=plan.output_bias,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.rotary_emb = get_rope(
            self.head_dim, max_position=config.max_position_embeddings, rope_parameters=config.rope_parameters
        )
        self.q_norm = self.k_norm = None
        if plan.qk_norm == "per_head":
            self.q_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, eps=config.rms_norm_eps)
        self.attn = Attention(
            heads // gpus,
            self.head_dim,
            self.head_dim**-0.5,
            num_kv_heads=max(1, kv_heads // gpus),
            cache_config=vllm_config.cache_config,
            quant_config=quant_config,
            per_layer_sliding_window=sub.sliding_window,
            prefix=f"{prefix}.attn",
        )

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        """Attention over the tokens and what is cached of their sequences."""
        qkv, _ = self.qkv_proj(hidden_states)
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q = self.q_norm(q.unflatten(-1, (-1, self.head_dim))).flatten(-2)
            k = self.k_norm(k.unflatten(-1, (-1, self.head_dim))).flatten(-2)
        q, k = self.rotary_emb(positions, q, k)
        out: Tensor = self.o_proj(self.attn(q, k, v))[0]
        return out


class PuzzlebenchLinear(nn.Module):
    """One matrix in place of attention or MLP, [T, H] to the same; `name` is its name in the checkpoint."""

    def __init__(self, name: str, config: Any, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        self.name = name
        matrix = ColumnParallelLinear(
            config.hidden_size,
            config.hidden_size,
            bias=False,
            gather_output=True,
            quant_config=vllm_config.quant_config,
            prefix=f"{prefix}.{name}",
        )
        setattr(self, name, matrix)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The product."""
        out: Tensor = getattr(self, self.name)(hidden_states)[0]
        return out


class PuzzlebenchLayer(nn.Module):
    """One block. A half that is a no-op has neither module nor norm."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config = vllm_config.model_config.hf_config
        plan = read_plan(config)
        block = plan.architecture.blocks[extract_layer_index(prefix)]
        self.self_attn = _attention(config, plan, block.attention, vllm_config, f"{prefix}.self_attn")
        self.mlp = _ffn(config, plan, block.ffn, vllm_config, f"{prefix}.mlp")
        self.positional = isinstance(block.attention, GQA)
        for half, norm in (("self_attn", "input_layernorm"), ("mlp", "post_attention_layernorm")):
            kept = getattr(self, half) is not None
            setattr(self, norm, RMSNorm(config.hidden_size, eps=config.rms_norm_eps) if kept else None)

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Stream:
        """The stream after this layer."""
        if self.self_attn is not None:
            hidden_states, residual = normed(self.input_layernorm, hidden_states, residual)
            if self.positional:
                hidden_states = self.self_attn(positions, hidden_states)
            else:
                hidden_states = self.self_attn(hidden_states)
        if self.mlp is not None:
            hidden_states, residual = normed(self.post_attention_layernorm, hidden_states, residual)
            hidden_states = self.mlp(hidden_states)
        return hidden_states, residual


def normed(norm: Any, hidden_states: Tensor, residual: Tensor | None) -> Stream:
    """The norm of the stream, and the stream."""
    if residual is None:
        return norm(hidden_states), hidden_states
    normed, summed = norm(hidden_states, residual)
    return normed, summed


def _attention(config: Any, plan: LayerPlan, sub: AttentionSubBlock, vllm_config: VllmConfig, prefix: str) -> Any:
    match sub:
        case GQA():
            return PuzzlebenchAttention(config, plan, sub, vllm_config, prefix)
        case Linear():
            return PuzzlebenchLinear("linear_attn", config, vllm_config, prefix)
        case NoOp():
            return None


def _ffn(config: Any, plan: LayerPlan, sub: FFNSubBlock, vllm_config: VllmConfig, prefix: str) -> Any:
    match sub:
        case GatedMLP(intermediate_size=width):
            return LlamaMLP(
                hidden_size=config.hidden_size,
                intermediate_size=width,
                hidden_act=config.hidden_act,
                quant_config=vllm_config.quant_config,
                bias=plan.mlp_bias,
                prefix=prefix,
            )
        case Linear():
            return PuzzlebenchLinear("linear_mlp", config, vllm_config, prefix)
        case NoOp():
            return None
