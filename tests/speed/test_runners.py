"""Both engines against transformers' own greedy generation, in float32."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from puzzlebench.child.configs import read_spec  # noqa: E402
from puzzlebench.measuring import ops  # noqa: E402
from puzzlebench.model.spec import parent_architecture  # noqa: E402
from puzzlebench.speed.loading import TORCH_FAMILIES, check_expressible, take_weights  # noqa: E402
from puzzlebench.speed.runners import ENGINES, engine_version, greedy_tokens, open_runner  # noqa: E402

from ..child.conftest import make_child, make_parent, mixed_architecture, tokens  # noqa: E402

ROPES = {
    "llama3": {
        "rope_type": "llama3",
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
        "rope_theta": 1000.0,
    },
    "linear": {"rope_type": "linear", "factor": 3.0, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 10000.0},
}


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


def generated(engine, model, architecture, prompts, decode_len):
    spec = read_spec(model.config)
    return open_runner(engine, model, spec, architecture, prompts, decode_len).generate()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", TORCH_FAMILIES)
def test_a_parent_gives_the_tokens_of_transformers(engine, family):
    model, prompts = make_parent(family), tokens(3, 9)
    expected = greedy_tokens(model, prompts, 12)
    timed = generated(engine, model, parent_architecture(read_spec(model.config)), prompts, 12)
    assert torch.equal(timed.tokens, expected)
    assert expected.unique().numel() > 4, "a model that repeats itself would prove little"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", ["llama", "mistral", "olmo2", "qwen3"])
def test_a_child_with_windows_linear_layers_and_no_ops_does_too(engine, family):
    with torch.inference_mode(mode=False):
        parent = make_parent(family)
        architecture = mixed_architecture(read_spec(parent.config))
        child = make_child(parent, architecture)
    prompts = tokens(2, 9)
    expected = greedy_tokens(child, prompts, 12)
    spec = read_spec(parent.config)
    runner = open_runner(engine, child, spec, architecture, prompts, 12)
    assert torch.equal(runner.generate().tokens, expected)
    runner.prefill()
    assert torch.equal(runner.generate().tokens, expected), "a second run starts afresh"


@pytest.mark.parametrize("rope", sorted(ROPES))
def test_scaled_rope_and_the_configs_own_theta_and_epsilon(rope):
    model = make_parent("llama", rope_parameters=ROPES[rope], rms_norm_eps=0.05)
    prompts = tokens(2, 20)
    expected = greedy_tokens(model, prompts, 12)
    spec = read_spec(model.config)
    assert torch.equal(generated("torch", model, parent_architecture(spec), prompts, 12).tokens, expected)
    plain = make_parent("llama")
    plain.config.rms_norm_eps = 0.05
    differ = take_weights(model, spec, parent_architecture(spec))
    assert differ.norm_epsilon == 0.05
    assert not torch.equal(differ.frequencies, take_weights(plain, spec, parent_architecture(spec)).frequencies)


def test_tied_embeddings_are_one_tensor():
    model = make_parent("llama", tie_word_embeddings=True)
    spec = read_spec(model.config)
    loaded = take_weights(model, spec, parent_architecture(spec))
    head, table = loaded.head.matrices["head"].weight, loaded.embedding.matrices["embedding"].weight
    assert head.data_ptr() == table.data_ptr()


def test_end_tokens_end_nothing():
    model, prompts = make_parent("llama"), tokens(1, 9)
    first = greedy_tokens(model, prompts, 12)
    model.generation_config.eos_token_id = int(first[0, 2])
    assert torch.equal(greedy_tokens(model, prompts, 12), first)
    assert model.generation_config.eos_token_id == int(first[0, 2])


def test_a_decode_step_sees_its_window_and_no_more():
    """With the operations of the table, on a cache of the engine's layout."""
    with torch.inference_mode(mode=False):
        parent = make_parent("llama")
        architecture = mixed_architecture(read_spec(parent.config))
        child = make_child(parent, architecture)
    runner = open_runner("torch", child, read_spec(parent.config), architecture, tokens(2, 9), 5)
    windowed = [attentions[0][0] for attentions in runner._steps]
    assert [cache.keys.shape[2] for cache in windowed] == [4] * 5
    whole = [attentions[1][0] for attentions in runner._steps]
    assert [cache.keys.shape[2] for cache in whole] == [9, 10, 11, 12, 13]
    assert isinstance(whole[0], ops.DenseCache)


def test_times_add_up():
    model, prompts = make_parent("llama"), tokens(2, 9)
    timed = generated("torch", model, parent_architecture(read_spec(model.config)), prompts, 4)
    assert timed.prefill_ms + timed.decode_ms == pytest.approx(timed.generate_ms)
    assert min(timed.prefill_ms, timed.decode_ms) > 0


@pytest.mark.parametrize("family", ["gemma", "gemma2", "granite", "smollm3", "phi3"])
def test_what_the_operations_do_not_express_is_refused(family):
    model = make_parent(family)
    with pytest.raises(ValueError, match=f"not {family} .*use --engine transformers"):
        check_expressible(model.config, read_spec(model.config))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"hidden_act": "gelu"}, "silu, not gelu"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "type dynamic"),
    ],
)
def test_other_activations_and_ropes_are_refused(changes, what):
    model = make_parent("llama", **changes)
    with pytest.raises(ValueError, match=f"{what}.*use --engine transformers"):
        open_runner("torch", model, read_spec(model.config), parent_architecture(read_spec(model.config)), tokens(), 3)


@pytest.mark.parametrize("family", ["gemma2", "granite", "phi3"])
def test_transformers_runs_what_torch_refuses(family):
    model, prompts = make_parent(family), tokens(2, 9)
    expected = greedy_tokens(model, prompts, 5)
    timed = generated("transformers", model, parent_architecture(read_spec(model.config)), prompts, 5)
    assert torch.equal(timed.tokens, expected)


def test_versions():
    assert engine_version("torch") == torch.__version__
    assert engine_version("transformers").endswith(f"+torch{torch.__version__}")
