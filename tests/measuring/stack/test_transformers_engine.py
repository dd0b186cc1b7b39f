"""The stack on transformers against transformers' own Llama, and against itself without a cache."""

import json

import pytest
import torch

from puzzlebench.measuring.stack.checkpoint import write_checkpoint
from puzzlebench.measuring.stack.transformers_engine import TransformersEngine
from puzzlebench.measuring.stack.transformers_model import load_model, new_cache
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, NoOp

transformers = pytest.importorskip("transformers")

BLOCKS = Architecture(blocks=(Block(attention=GQA(num_key_value_heads=2), ffn=GatedMLP(intermediate_size=256)),) * 3)
CPU = torch.device("cpu")


@pytest.fixture
def both_layouts(tmp_path, make_stack_spec):
    for layout in ("llama", "decilm"):
        write_checkpoint(make_stack_spec(3), BLOCKS, tmp_path / layout, dtype="float32", layout=layout)
    return tmp_path / "llama", tmp_path / "decilm"


@torch.inference_mode()
def test_both_layouts_give_the_logits_of_stock_llama(both_layouts):
    llama, decilm = both_layouts
    ids = torch.randint(97, (3, 17), generator=torch.Generator().manual_seed(0))
    stock = transformers.LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32, attn_implementation="sdpa")
    wanted = stock(ids).logits
    assert wanted.std() > 0.1
    for folder in both_layouts:
        model = load_model(folder, CPU)
        # The same operations in the same order: rounding alone, in float32.
        torch.testing.assert_close(model.logits(model(ids)), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(load_model(llama, CPU)(ids), load_model(decilm, CPU)(ids), rtol=0, atol=0)


@torch.inference_mode()
def test_generation_is_that_of_stock_llama(both_layouts):
    llama, decilm = both_layouts
    ids = torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(1))
    stock = transformers.LlamaForCausalLM.from_pretrained(llama, dtype=torch.float32, attn_implementation="sdpa")
    stock.generation_config.eos_token_id = None
    wanted = stock.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[:, 9:]
    loaded = TransformersEngine().load(decilm, max_batch_size=2, max_seq_len=32)
    assert torch.equal(loaded.generate(ids, 12), wanted)


@torch.inference_mode()
@pytest.mark.parametrize("tied", [False, True])
def test_a_heterogeneous_stack_with_a_cache_equals_itself_without(tmp_path, make_stack_spec, every_sub_block, tied):
    spec = make_stack_spec(len(every_sub_block.blocks), tie_word_embeddings=tied)
    write_checkpoint(spec, every_sub_block, tmp_path / "model", dtype="float32")
    model = load_model(tmp_path / "model", CPU)
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(2))
    whole = model(ids)
    assert torch.isfinite(whole).all()
    cache = new_cache()
    parts = [model(ids[:, :7], cache=cache)]
    parts += [model(ids[:, step : step + 1], start=step, cache=cache) for step in range(7, 12)]
    # Attention over a cache sums in another order.
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-4)
    layers = [model.model["layers"].get_submodule(str(layer)) for layer in range(len(every_sub_block.blocks))]
    assert [hasattr(layer, "self_attn") for layer in layers] == [
        block.attention != NoOp() for block in every_sub_block.blocks
    ]
    assert not list(layers[-1].parameters())
    assert (model.lm_head.weight.data_ptr() == model.model["embed_tokens"].weight.data_ptr()) == tied


def test_deep_stacks_stay_finite_in_half_precision(tmp_path, make_stack_spec):
    blocks = Architecture(blocks=BLOCKS.blocks[:1] * 48)
    write_checkpoint(make_stack_spec(48), blocks, tmp_path / "model", dtype="float16")
    model = load_model(tmp_path / "model", CPU)
    with torch.inference_mode():
        hidden = model(torch.randint(97, (1, 16)))
    assert hidden.dtype == torch.float16
    assert torch.isfinite(hidden).all()


def test_a_run_is_timed_by_the_clock_on_fresh_prompts(both_layouts, monkeypatch):
    ticks = iter(range(100))
    loaded = TransformersEngine(clock=lambda: float(next(ticks))).load(
        both_layouts[1], max_batch_size=4, max_seq_len=16
    )
    seen = []
    monkeypatch.setattr(loaded, "generate", lambda prompts, new_tokens: seen.append((prompts, new_tokens)))
    assert loaded.generate_seconds(batch_size=4, prompt_len=8, new_tokens=3) == 1.0
    loaded.generate_seconds(batch_size=4, prompt_len=8, new_tokens=3)
    (first, tokens), (second, _) = seen
    assert first.shape == second.shape == (4, 8)
    assert tokens == 3
    assert not torch.equal(first, second)
    assert len({tuple(row) for row in torch.cat([first, second]).tolist()}) == 8
    assert 0 <= int(first.min()) <= int(first.max()) < 97


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"batch_size": 3}, "batch_size 3 is over the 2 sequences"),
        ({"new_tokens": 30}, "8 prompt and 30 new tokens are over the 32"),
        ({"new_tokens": 0}, "new_tokens must be"),
    ],
)
def test_a_run_that_was_not_loaded_for_is_refused(both_layouts, size, message):
    loaded = TransformersEngine().load(both_layouts[0], max_batch_size=2, max_seq_len=32)
    with pytest.raises(ValueError, match=message):
        loaded.generate_seconds(**{"batch_size": 2, "prompt_len": 8, "new_tokens": 1, **size})


def test_a_closed_model_says_so(both_layouts):
    loaded = TransformersEngine().load(both_layouts[0], max_batch_size=2, max_seq_len=32)
    loaded.close()
    with pytest.raises(ValueError, match="closed"):
        loaded.generate_seconds(batch_size=1, prompt_len=8, new_tokens=1)


def test_what_is_not_a_checkpoint_is_refused(tmp_path, both_layouts):
    with pytest.raises(ValueError, match="is not a checkpoint written by write_checkpoint"):
        load_model(tmp_path, CPU)
    config = json.loads((both_layouts[1] / "config.json").read_text())
    config["block_configs"][0]["attention"]["n_heads_in_group"] = 8
    (both_layouts[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="its tensors are not those of its config"):
        load_model(both_layouts[1], CPU)
