from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from puzzlebench.child.blockwise import open_blockwise

transformers = pytest.importorskip("transformers")

LENGTH = 12
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {},
    "qwen3": {},
    "olmo2": {},
    "granite": {
        "embedding_multiplier": 3.0,
        "logits_scaling": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.3,
    },
    "smollm3": {"pad_token_id": 0, "no_rope_layers": [1, 1, 0, 1]},
    "gemma2": {"sliding_window": 5, "final_logit_softcapping": 2.0, "attn_logit_softcapping": 1.5},
    "gemma3_text": {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "phi3": {"pad_token_id": 0, "sliding_window": None},
}


def tiny_model(family: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    if family == "gemma2":
        attention = "eager"  # the newest versions refuse soft caps in sdpa
    config = transformers.AutoConfig.for_model(
        family,
        num_hidden_layers=4,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16 if family.startswith("gemma") else 8,
        intermediate_size=48,
        vocab_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
        **FAMILIES[family],
    )
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases start at one and zero, where mistakes do not show
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokens(sequences: int = 3, length: int = LENGTH) -> torch.Tensor:
    return torch.randint(0, 64, (sequences, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_embedding_layers_and_head_give_the_models_logits(family: str, attention: str) -> None:
    model = tiny_model(family, attention)
    ids = tokens()
    with torch.inference_mode():
        expected = model(ids).logits
        blockwise = open_blockwise(model, LENGTH)
        hidden = blockwise.embed(ids)
        for layer_idx, layer in enumerate(blockwise.layers):
            hidden = blockwise.run(layer_idx, layer, hidden)
        logits = blockwise.logits(hidden)
        again = model(ids).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(again, expected, rtol=0, atol=0)  # the model is as it was


@pytest.mark.parametrize("family", ["granite", "gemma2", "smollm3"])
def test_a_chunk_of_positions_has_the_logits_of_those_positions(family: str) -> None:
    model = tiny_model(family)
    blockwise = open_blockwise(model, LENGTH)
    hidden = torch.randn(2, LENGTH, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(blockwise.logits(hidden[:, 3:7]), blockwise.logits(hidden)[:, 3:7])


def test_layers_are_called_with_their_own_arguments() -> None:
    model = tiny_model("gemma3_text", "eager")
    blockwise = open_blockwise(model, LENGTH)
    hidden = blockwise.embed(tokens())
    own = blockwise.run(0, blockwise.layers[0], hidden)
    others = blockwise.run(1, blockwise.layers[0], hidden)  # layer 1 sees all tokens, layer 0 five of them
    assert not torch.allclose(own, others)


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_gradients_are_those_of_the_model_even_when_opened_in_inference_mode(family: str) -> None:
    model = tiny_model(family)
    ids = tokens()
    model(ids).logits.square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with torch.inference_mode():
        blockwise = open_blockwise(model, LENGTH)
    hidden = blockwise.embed(ids)
    for layer_idx, layer in enumerate(blockwise.layers):
        hidden = blockwise.run(layer_idx, layer, hidden)
    blockwise.logits(hidden).square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], msg=name)


def test_the_model_is_restored_after_an_error() -> None:
    model = tiny_model("llama")
    layers = model.model.layers
    blockwise = open_blockwise(model, LENGTH)
    with pytest.raises(RuntimeError):
        blockwise.logits(torch.zeros(1, LENGTH, 31))
    assert model.model.layers is layers
    assert not model.model.norm._forward_pre_hooks
    assert not any(layer._forward_pre_hooks for layer in layers)
    assert blockwise.num_layers == 4


def test_errors_say_what_would_work() -> None:
    model = tiny_model("llama")
    blockwise = open_blockwise(model, LENGTH)
    with pytest.raises(ValueError, match=r"11 tokens do not fit arguments recorded for 12"):
        blockwise.embed(tokens(length=11))
    with pytest.raises(ValueError, match=r"11 tokens do not fit"):
        blockwise.run(0, blockwise.layers[0], torch.zeros(1, 11, 32))
    with pytest.raises(ValueError, match=r"must be \[B, T\]"):
        blockwise.embed(torch.zeros(LENGTH, dtype=torch.long))
    with pytest.raises(ValueError, match=r"length 65 is more than the 64 positions of LlamaForCausalLM"):
        open_blockwise(model, 65)
    with pytest.raises(ValueError, match=r"Linear has no model\.layers"):
        open_blockwise(nn.Linear(2, 2), 4)
