"""Checkpoints: what they say, what they hold, what is refused and what is left after a failure."""

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from puzzlebench.measuring.stack import checkpoint
from puzzlebench.measuring.stack.checkpoint import plan_tensors, write_checkpoint
from puzzlebench.measuring.stack.layouts import checkpoint_config, ffn_mult
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.layouts import decilm_intermediate_size
from puzzlebench.model.parameters import model_parameters

BLOCK = Block(attention=GQA(num_key_value_heads=4), ffn=GatedMLP(intermediate_size=256))


def stack(*blocks):
    return Architecture(blocks=blocks)


def read(folder):
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return json.loads((folder / "config.json").read_text()), tensors


def test_every_sub_block_reads_back(tmp_path, make_stack_spec, every_sub_block):
    spec = make_stack_spec(len(every_sub_block.blocks))
    write_checkpoint(spec, every_sub_block, tmp_path / "model")
    config, tensors = read(tmp_path / "model")
    spec_read, architecture = from_hf_config(config, name="model")
    assert architecture == every_sub_block
    assert replace(
        spec_read, name="small", model_type="llama", num_key_value_heads=4, intermediate_size=256
    ) == replace(spec, torch_dtype="bfloat16")
    assert sum(tensor.numel() for tensor in tensors.values()) == model_parameters(spec, every_sub_block)
    assert tensors["model.layers.8.self_attn.linear_attn.weight"].shape == (64, 64)
    assert tensors["model.layers.2.mlp.linear_mlp.weight"].shape == (64, 64)
    assert not any(name.startswith("model.layers.15.") for name in tensors)  # both halves are no-ops


@pytest.mark.parametrize(
    "block",
    [
        Block(attention=GQA(num_key_value_heads=2), ffn=NoOp()),
        Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=512)),
        Block(attention=Linear(), ffn=NoOp()),
        Block(attention=NoOp(), ffn=Linear()),
    ],
)
def test_a_sub_block_alone_reads_back(make_stack_spec, block):
    config = checkpoint_config(make_stack_spec(2), stack(block, block), dtype="bfloat16", layout="decilm")
    assert from_hf_config(json.loads(json.dumps(config)), name="model")[1] == stack(block, block)


@given(
    hidden=st.integers(1, 512).map(lambda n: 32 * n),
    width=st.integers(1, 512).map(lambda n: 256 * n),
)
def test_ffn_mult_gives_the_width_in_the_formula_of_the_engines(hidden, width):
    multiplier = json.loads(json.dumps(ffn_mult(width, hidden)))
    assert decilm_intermediate_size(multiplier, hidden) == width


@pytest.mark.parametrize(("width", "near"), [(300, "256 or 512"), (100, "nearest: 256"), (14335, "14080 or 14336")])
def test_a_width_between_multiples_is_refused_with_its_neighbours(make_stack_spec, width, near):
    block = Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=width))
    with pytest.raises(ValueError, match=f"layer 0: an MLP width of {width} .*{near}"):
        checkpoint_config(make_stack_spec(1), stack(block), dtype="bfloat16", layout="decilm")


def test_the_llama_layout_has_any_width_and_the_same_weights(tmp_path, make_stack_spec):
    write_checkpoint(make_stack_spec(2), stack(BLOCK, BLOCK), tmp_path / "decilm")
    write_checkpoint(make_stack_spec(2), stack(BLOCK, BLOCK), tmp_path / "llama", layout="llama")
    config, tensors = read(tmp_path / "llama")
    assert from_hf_config(config, name="model")[1] == stack(BLOCK, BLOCK)
    for name, tensor in read(tmp_path / "decilm")[1].items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=0)
    odd = Block(attention=BLOCK.attention, ffn=GatedMLP(intermediate_size=300))
    assert (
        checkpoint_config(make_stack_spec(1), stack(odd), dtype="float32", layout="llama")["intermediate_size"] == 300
    )


def test_values_are_scaled_random_and_reproducible(tmp_path, make_stack_spec):
    spec = make_stack_spec(2, vocab_size=1001)
    write_checkpoint(spec, stack(BLOCK, BLOCK), tmp_path / "first", dtype="float32")
    write_checkpoint(spec, stack(BLOCK, BLOCK), tmp_path / "second", dtype="float32")
    write_checkpoint(spec, stack(BLOCK, BLOCK), tmp_path / "other", dtype="float32", seed=1)
    first, second, other = (read(tmp_path / name)[1] for name in ("first", "second", "other"))
    assert (
        first.keys() == second.keys() == other.keys() == {plan.name for plan in plan_tensors(spec, stack(BLOCK, BLOCK))}
    )
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name])
        assert not torch.equal(tensor, other[name])
        assert (tensor != 0).all()
    down = first["model.layers.1.mlp.down_proj.weight"]
    assert down.std().item() == pytest.approx(256**-0.5, rel=0.05)
    assert not torch.equal(down, first["model.layers.0.mlp.down_proj.weight"])


def test_a_longer_stack_begins_with_the_shorter_one(tmp_path, make_stack_spec):
    write_checkpoint(make_stack_spec(2), stack(BLOCK, BLOCK), tmp_path / "small")
    write_checkpoint(make_stack_spec(4), stack(*[BLOCK] * 4), tmp_path / "large")
    small, large = read(tmp_path / "small")[1], read(tmp_path / "large")[1]
    assert all(torch.equal(tensor, large[name]) for name, tensor in small.items())


def test_shards_are_indexed(tmp_path, make_stack_spec, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 100_000)
    write_checkpoint(make_stack_spec(2), stack(BLOCK, BLOCK), tmp_path / "model", vocab_size=64)
    index = json.loads((tmp_path / "model" / checkpoint.INDEX_FILE).read_text())
    files = sorted((tmp_path / "model").glob("*.safetensors"))
    assert len(files) > 1
    assert [file.name for file in files] == sorted(set(index["weight_map"].values()))
    for file in files:
        assert {name for name, place in index["weight_map"].items() if place == file.name} == load_file(file).keys()
    _, tensors = read(tmp_path / "model")
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert tensors["lm_head.weight"].shape == (64, 64)


def test_tied_embeddings_are_written_once(tmp_path, make_stack_spec):
    write_checkpoint(make_stack_spec(1, tie_word_embeddings=True), stack(BLOCK), tmp_path / "model")
    config, tensors = read(tmp_path / "model")
    assert config["tie_word_embeddings"]
    assert "lm_head.weight" not in tensors


def test_engines_read_the_config_by_attribute(tmp_path, make_stack_spec, every_sub_block, monkeypatch):
    transformers = pytest.importorskip("transformers")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    write_checkpoint(make_stack_spec(len(every_sub_block.blocks)), every_sub_block, tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model", trust_remote_code=True)
    assert (config.model_type, config.architectures) == ("nemotron-nas", ["DeciLMForCausalLM"])
    assert (config.head_dim, config.rope_theta, config.max_position_embeddings) == (16, 500000.0, 128)
    first, last = config.block_configs[0], config.block_configs[-1]
    assert (first.attention.n_heads_in_group, first.attention.no_op, first.attention.replace_with_linear) == (
        1,
        False,
        False,
    )
    assert (last.attention.no_op, last.ffn.no_op, last.ffn.ffn_mult) == (True, True, None)
    assert not hasattr(first.ffn, "hidden_act")  # vLLM asks, and then takes the model's
    config.num_key_value_heads = [1, 0]  # TensorRT-LLM sets them per layer
    assert json.loads(config.to_json_string())["block_configs"][0]["ffn"]["ffn_mult"] == 6.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qkv_bias": True}, "small has biases"),
        ({"mlp_bias": True}, "small has biases"),
        ({"qk_norm": "per_head"}, "norms on queries and keys"),
        ({"norm_placement": "post"}, "norms placed 'post'"),
    ],
)
def test_a_model_that_is_not_like_llama_is_refused(tmp_path, make_stack_spec, changes, message):
    with pytest.raises(ValueError, match=message):
        write_checkpoint(make_stack_spec(1, **changes), stack(BLOCK), tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "dtype 'fp8' is not known; use bfloat16"),
        ({"layout": "gguf"}, "layout 'gguf' is not known; use decilm, llama"),
        ({"seed": -1}, "seed must be"),
        ({"vocab_size": 0}, "vocab_size must be"),
    ],
)
def test_unknown_options_are_refused(tmp_path, make_stack_spec, options, message):
    with pytest.raises(ValueError, match=message):
        write_checkpoint(make_stack_spec(1), stack(BLOCK), tmp_path / "model", **options)
    assert not list(tmp_path.iterdir())


def test_what_a_layout_cannot_say_is_refused(make_stack_spec):
    windowed = Block(attention=GQA(num_key_value_heads=4, sliding_window=32), ffn=BLOCK.ffn)
    with pytest.raises(ValueError, match="layer 1 has a window of 32"):
        checkpoint_config(make_stack_spec(2), stack(BLOCK, windowed), dtype="bfloat16", layout="decilm")
    other = Block(attention=BLOCK.attention, ffn=NoOp())
    for blocks in ((BLOCK, other), (other, other)):
        with pytest.raises(ValueError, match="layout llama needs the same attention and MLP in every layer"):
            checkpoint_config(make_stack_spec(2), stack(*blocks), dtype="bfloat16", layout="llama")
    three = Block(attention=GQA(num_key_value_heads=3), ffn=NoOp())
    with pytest.raises(ValueError, match="3 key-value heads do not divide"):
        checkpoint_config(make_stack_spec(1), stack(three), dtype="bfloat16", layout="decilm")


def test_a_failed_write_leaves_nothing(tmp_path, make_stack_spec, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint, "_values", fail)
    with pytest.raises(ValueError, match="cannot write .*model: no space left"):
        write_checkpoint(make_stack_spec(1), stack(BLOCK), tmp_path / "deep" / "model")
    assert not list((tmp_path / "deep").iterdir())


def test_an_existing_folder_is_kept(tmp_path, make_stack_spec):
    (tmp_path / "model").mkdir()
    with pytest.raises(ValueError, match="model exists; give a new folder"):
        write_checkpoint(make_stack_spec(1), stack(BLOCK), tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())
