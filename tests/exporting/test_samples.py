"""Samples for proofs in engines: the same every time, and such that a wrong layer shows."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import torch

from puzzlebench.child.checkpoints import load_causal_lm
from puzzlebench.exporting.source import open_source
from puzzlebench.parent.fingerprint import checkpoint_fingerprint

from .samples import RECIPES, make_sample, make_samples, sample_tokenizer


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    names = ("llama-parent", "llama-skipped", "gemma2-sized", "mistral-window")
    return {sample.name: sample for sample in make_samples(tmp_path_factory.mktemp("samples"), names)}


def ids(count=3, length=24):
    return torch.randint(3, 512, (count, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ["llama-parent", "llama-skipped", "gemma2-sized", "mistral-window"])
def test_each_is_a_child_of_its_recipe(samples, name):
    sample = samples[name]
    source = open_source(sample.folder)
    if not sample.recipe.blocks:
        assert source.solution is None
        assert sample.parent == sample.folder
        return
    assert source.architecture.blocks == sample.recipe.blocks
    assert source.solution["parent_fingerprint"] == checkpoint_fingerprint(sample.parent)
    assert source.solution["parent"] == f"{name}-parent"
    assert (sample.folder / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["llama-parent", "llama-skipped", "gemma2-sized", "mistral-window"])
def test_the_likeliest_token_is_well_ahead(samples, name):
    logits = load_causal_lm(samples[name].folder)(ids()).logits
    best = logits.log_softmax(-1).topk(2, dim=-1).values
    assert (best[..., 0] - best[..., 1]).median() > 0.1


def test_every_half_is_heard(samples):
    """Without any one of them the logits are others by far more than engines may differ."""
    model = load_causal_lm(samples["llama-skipped"].folder)
    before = model(ids()).logits.log_softmax(-1)
    silent = {("1", "self_attn"), ("2", "self_attn"), ("2", "mlp")}  # the recipe left them out
    for layer, module in enumerate(model.model.layers):
        for name in ("self_attn", "mlp"):
            if (str(layer), name) in silent:
                continue
            part = module.get_submodule(name)
            hook = part.register_forward_hook(
                lambda _module, _args, out: (0 * out[0], *out[1:]) if isinstance(out, tuple) else 0 * out
            )
            changed = (model(ids()).logits.log_softmax(-1) - before).abs().max()
            hook.remove()
            assert changed > 0.5, (layer, name)


def test_the_same_every_time(samples, tmp_path):
    tokenizer = sample_tokenizer()
    again = make_sample(tmp_path, samples["llama-skipped"].recipe, tokenizer)
    for file in sorted(path.name for path in again.folder.iterdir()):
        assert (again.folder / file).read_bytes() == (samples["llama-skipped"].folder / file).read_bytes(), file
    assert tokenizer.decode(tokenizer.encode("def f(x): return x\n")) == "def f(x): return x\n"
    assert json.loads((again.folder / "config.json").read_text())["vocab_size"] == len(tokenizer) == 512


def test_names():
    names = [recipe.name for recipe in RECIPES]
    assert len(names) == len(set(names))


def test_samples_that_cannot_be_made(samples, tmp_path):
    with pytest.raises(ValueError, match="no sample is named 'llama'; known are llama-parent"):
        make_samples(tmp_path, ("llama",))
    with pytest.raises(ValueError, match="exists; samples are written to new folders"):
        make_samples(samples["llama-parent"].folder.parent, ("llama-parent",))
