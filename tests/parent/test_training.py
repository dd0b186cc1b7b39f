from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

transformers = pytest.importorskip("transformers")
from puzzlebench.parent.embedded import ParentRecipe  # noqa: E402
from puzzlebench.parent.training import evaluate, train  # noqa: E402

RECIPE = ParentRecipe(tokens=16 * 4 * 30, length=16, batch_size=4, warmup=3, lr=0.05, other_lr=0.01)


def _model():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    return transformers.LlamaForCausalLM(config).eval()


def _rows(count):
    """Every token is the one before it plus three."""
    start = np.random.default_rng(0).integers(0, 32, (count, 1))
    return ((start + 3 * np.arange(16)) % 32).astype(np.int32)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_can_be_learned_is_learned(tmp_path, precision):
    model, shares = _model(), []
    rows = _rows(RECIPE.steps * RECIPE.batch_size)
    before, _ = evaluate(model, rows[:8], 4)
    train(
        model,
        rows,
        RECIPE,
        precision,
        checkpoint=tmp_path / "t.safetensors",
        report=lambda share, _: shares.append(share),
    )
    loss, accuracy = evaluate(model, rows[:8], 4)
    assert loss < 0.5 * before
    assert accuracy > 0.5
    assert shares == pytest.approx([(step + 1) / 30 for step in range(30)])
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not (tmp_path / "t.safetensors").exists()  # it took no 30 seconds


def test_evaluation_is_cross_entropy_over_all_rows_however_they_are_batched():
    model, rows = _model(), _rows(7)
    ids = torch.from_numpy(rows).long()
    with torch.no_grad():
        logits = model(ids).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
    hits = (logits.argmax(-1) == ids[:, 1:]).float().mean().item()
    for batch_size in (1, 3, 7):
        assert evaluate(model, rows, batch_size) == pytest.approx((expected, hits), rel=1e-5)
