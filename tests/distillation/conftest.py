"""A tiny parent with a tokenizer, a text, and a child of the parent with half its blocks gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

import torch

from puzzlebench.child.building import build_child
from puzzlebench.child.checkpoints import load_causal_lm, save_child
from puzzlebench.child.halves import half_state, new_sub_block
from puzzlebench.distillation.job import DistilJob
from puzzlebench.distillation.recipe import DistilRecipe, Stage
from puzzlebench.library.realise import SOLUTION_FILE
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp, architecture_to_json
from puzzlebench.parent.embedded import train_tokenizer
from puzzlebench.parent.open import find_parent, load_tokenizer
from puzzlebench.text.corpus import Document

TEXT = "".join(f"{n} times {n} is {n * n}, and {n} plus {n} is {2 * n}.\n" for n in range(1, 400))
ARCHITECTURE = Architecture(
    blocks=(
        Block(attention=NoOp(), ffn=NoOp()),
        Block(attention=GQA(num_key_value_heads=1), ffn=Linear()),
        Block(attention=GQA(num_key_value_heads=2), ffn=GatedMLP(intermediate_size=16)),
    )
)


def save_parent(folder: Path, *, seed: int = 0, **changes) -> Path:
    """A random Llama with a tokenizer: 3 layers, 4 query heads, 2 key-value heads, 48 channels, 64 positions."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = train_tokenizer([Document(name="text", text=TEXT)], 260)
    torch.manual_seed(seed)
    config = LlamaConfig(
        **{
            "num_hidden_layers": 3,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 48,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **changes,
        }
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_child_of(parent: Path, folder: Path) -> Path:
    """A child whose new blocks are random, with the file that says whose child it is."""
    files = find_parent(str(parent))
    model = load_causal_lm(parent)
    torch.manual_seed(1)
    states = {}
    for layer, block in enumerate(ARCHITECTURE.blocks):
        for part in ("attention", "ffn"):
            sub = getattr(block, part)
            if sub != getattr(files.architecture.blocks[layer], part):
                half = new_sub_block(model.model.layers[layer], model.config, layer, part, sub)
                states[layer, part] = {name: 0.1 * torch.randn_like(one) for name, one in half_state(half).items()}
    child = build_child(model, files.spec, ARCHITECTURE, states)
    facts = {
        "parent": files.name,
        "parent_fingerprint": files.fingerprint,
        "recipe": "x",
        "architecture": architecture_to_json(ARCHITECTURE),
        "parameters": 1,
        "parent_parameters": 2,
    }
    save_child(child, folder, load_tokenizer(files), extra={SOLUTION_FILE: json.dumps(facts)})
    return folder


@pytest.fixture(scope="session")
def parent(tmp_path_factory) -> Path:
    return save_parent(tmp_path_factory.mktemp("parent") / "llama", tie_word_embeddings=True)


@pytest.fixture(scope="session")
def child(parent, tmp_path_factory) -> Path:
    return save_child_of(parent, tmp_path_factory.mktemp("child") / "child")


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def job(parent, child, text, tmp_path) -> DistilJob:
    """Two stages, 8 steps."""
    recipe = DistilRecipe(
        stages=(
            Stage(length=16, sequences=20, batch_size=4),
            Stage(length=32, sequences=13, batch_size=4),
        ),
        lr=0.003,
        warmup=2,
        evaluations=2,
    )
    return DistilJob(parent=str(parent), child=child, out=tmp_path / "out", data=text, recipe=recipe)
