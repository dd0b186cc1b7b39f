from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama_biases": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {},
    "olmo2": {},
    "granite": {"residual_multiplier": 0.5, "attention_multiplier": 0.3},
    "smollm3": {"pad_token_id": 0, "no_rope_layers": [1, 0]},
    "gemma2": {"sliding_window": 5},
    "gemma3_text": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {"pad_token_id": 0, "sliding_window": None},
}
VOCAB_SIZE = 64


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def build() -> Callable[..., Any]:
    """Builds a tiny model of a family: 2 layers, hidden 32, 8 query heads, 4 key-value heads, 24 channels."""
    transformers = pytest.importorskip("transformers")

    def build(family: str, **changes: Any) -> Any:
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(
            family.removesuffix("_biases"),
            **{
                "num_hidden_layers": 2,
                "hidden_size": 32,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 8 if family.startswith("gemma") else 4,
                "intermediate_size": 24,
                "vocab_size": VOCAB_SIZE,
                "max_position_embeddings": 64,
                "initializer_range": 0.2,
                **FAMILIES[family],
                **changes,
            },
        )
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # norms and biases start at one and zero, where mistakes do not show
                    parameter.add_(0.3 * torch.randn_like(parameter))
        return model.requires_grad_(False)

    return build


@pytest.fixture
def batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, VOCAB_SIZE, shape, generator=generator) for shape in ((3, 12), (2, 12), (1, 7))]
