"""RoPE in configs and in GGUF's words, and Llama 3's scaling found again from its factors."""

from __future__ import annotations

import pytest

from puzzlebench.exporting.gguf_rope import Rope, find_llama3, frequency_factors, read_rope, rope_scaling

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}


@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 2.5}, LLAMA3, YARN])
def test_both_generations_of_configs_are_read_and_written_back(scaling):
    old = {"rope_theta": 5e5, "rope_scaling": scaling}
    new = {"rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": 5e5}}
    assert read_rope(old) == read_rope(new)
    assert read_rope(old).theta == 5e5
    assert rope_scaling(read_rope(old)) == scaling


def test_what_a_config_leaves_out():
    assert read_rope({}) == Rope(theta=10000.0)
    assert read_rope({"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 4}}) == Rope(
        theta=1e6, kind="linear", factor=4.0
    )
    yarn = {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "max_position_embeddings": 128}
    assert read_rope(yarn).original_context == 128


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' cannot be written as GGUF; what can"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "'longrope' cannot be written"),
        ({"rope_scaling": {"rope_type": "linear"}}, "linear needs a factor, not None"),
        ({"partial_rotary_factor": 0.5}, "turns only 0.5 of each head"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "turns only 0.5"),
        (
            {"rope_scaling": {**YARN, "attention_factor": 1.5}},
            "attention_factor 1.5 cannot be written as GGUF; 1.13863",
        ),
        ({"rope_scaling": {**YARN, "beta_fast": 16}}, "beta_fast 16 cannot be written as GGUF; 32.0 can"),
        ({"rope_scaling": {**YARN, "truncate": False}}, "truncate False"),
        ({"rope_scaling": {**YARN, "mscale": 0.7}}, "mscale 0.7"),
        ({"rope_scaling": {**LLAMA3, "original_max_position_embeddings": None}}, "needs original_max_position"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor 4.0 below high_freq_factor 4.0"),
        ({"rope_scaling": [1]}, "must be an object"),
    ],
)
def test_what_a_file_cannot_say_is_refused(config, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_rope(config)
    assert "\n" not in str(caught.value)


def test_yarns_usual_attention_factor_is_fine():
    assert read_rope({"rope_scaling": {**YARN, "attention_factor": 1.1386294361, "beta_fast": 32}}).kind == "yarn"


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
@pytest.mark.parametrize("head_dim", [16, 64, 128])
def test_factors_are_those_of_transformers(theta, head_dim):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_theta=theta,
        rope_scaling=dict(LLAMA3),  # which transformers writes to
    )
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    ours = frequency_factors(read_rope({"rope_theta": theta, "rope_scaling": LLAMA3}), head_dim)
    torch.testing.assert_close(plain / theirs.double(), torch.tensor(ours, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"factor": 32.0},
        {"factor": 4.0, "original_max_position_embeddings": 2048},
        {"factor": 16.0, "high_freq_factor": 8.0, "original_max_position_embeddings": 1000},
    ],
)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_llama3_is_found_again_from_single_precision(changes, head_dim):
    import numpy as np

    rope = read_rope({"rope_theta": 500000.0, "rope_scaling": {**LLAMA3, **changes}})
    stored = [float(np.float32(factor)) for factor in frequency_factors(rope, head_dim)]
    assert find_llama3(stored, rope.theta) == rope


def test_a_low_frequency_factor_other_than_one_is_found_as_the_same_scaling():
    rope = read_rope(
        {"rope_theta": 500000.0, "rope_scaling": {**LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 8.0}}
    )
    found = find_llama3(frequency_factors(rope, 128), rope.theta)
    assert found == Rope(theta=500000.0, kind="llama3", factor=8.0, original_context=4096, high_freq_factor=4.0)


@pytest.mark.parametrize("factors", [[1.0] * 8, [1.0, 2.0, 1.0, 3.0] * 2, [4.0, 3.0, 2.0, 1.0] * 8])
def test_other_factors_are_refused(factors):
    with pytest.raises(ValueError, match="not those of Llama 3's scaling"):
        find_llama3(factors, 10000.0)
