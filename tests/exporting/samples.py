"""Tiny random models for proofs in engines: a parent of several families, and children that engines differ on.

Weights are random, of such sizes that every layer is heard in the logits and the most likely token is well ahead, so
that a wrong layer shows and rounding does not. The same at every call. Nobody learns anything from what they say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from puzzlebench.model.blocks import (
    GQA,
    Architecture,
    AttentionSubBlock,
    Block,
    FFNSubBlock,
    GatedMLP,
    Linear,
    NoOp,
    architecture_to_json,
)
from puzzlebench.model.parameters import model_parameters
from puzzlebench.model.spec import parent_architecture

if TYPE_CHECKING:
    from torch import nn

_VOCABULARY: Final = 512
_DOCUMENTS: Final = 24  # of the standard library, for the tokenizer: enough for a vocabulary this small
_SIZES: Final[Mapping[str, Any]] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A child to make.

    Attributes:
        family: model_type of its parent.
        settings: of the parent's config, beside the usual sizes.
        blocks: the child's; empty for the parent itself.
        shows: what it is there for, in a few words.
    """

    name: str
    family: str
    shows: str
    blocks: tuple[Block, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A child on disk, with its tokenizer, its parent and its puzzle_solution.json."""

    recipe: Recipe
    folder: Path
    parent: Path

    @property
    def name(self) -> str:
        """Of the recipe."""
        return self.recipe.name


def _block(attention: AttentionSubBlock | int, ffn: FFNSubBlock | int) -> Block:
    """With numbers for the usual kinds: key-value heads, and width."""
    return Block(
        attention=GQA(num_key_value_heads=attention) if isinstance(attention, int) else attention,
        ffn=GatedMLP(intermediate_size=ffn) if isinstance(ffn, int) else ffn,
    )


_SIZED: Final = (_block(4, 512), _block(2, 256), _block(1, 512), _block(4, 256))
_SKIPPED: Final = (_block(2, 512), _block(NoOp(), 256), _block(NoOp(), NoOp()), _block(1, 512))

RECIPES: Final[tuple[Recipe, ...]] = (
    Recipe(name="llama-parent", family="llama", shows="the parent, all layers alike"),
    Recipe(name="llama-sized", family="llama", blocks=_SIZED, shows="other heads and widths in each layer"),
    Recipe(name="llama-skipped", family="llama", blocks=_SKIPPED, shows="no attention in a layer, nothing in another"),
    Recipe(
        name="llama-no-ffn",
        family="llama",
        blocks=(_block(4, 512), _block(2, NoOp()), _block(4, 256), _block(1, 512)),
        shows="attention without an FFN beside it",
    ),
    Recipe(
        name="llama-last-empty",
        family="llama",
        blocks=(_block(4, 512), _block(2, 256), _block(1, 512), _block(NoOp(), NoOp())),
        shows="nothing in the last layer",
    ),
    Recipe(
        name="llama-first-no-attention",
        family="llama",
        blocks=(_block(NoOp(), 512), _block(2, 256), _block(1, 512), _block(4, 256)),
        shows="no attention in the first layer",
    ),
    Recipe(
        name="llama-linear-attention",
        family="llama",
        blocks=(_block(4, 512), _block(Linear(), 256), _block(1, 512), _block(4, 256)),
        shows="one matrix in place of attention",
    ),
    Recipe(
        name="llama-linear-ffn",
        family="llama",
        blocks=(_block(4, 512), _block(2, Linear()), _block(1, 512), _block(4, 256)),
        shows="one matrix in place of an FFN",
    ),
    Recipe(
        name="llama-odd-width",
        family="llama",
        blocks=(_block(4, 512), _block(2, 160), _block(1, 320), _block(4, 256)),
        shows="widths that are no multiples of 256",
    ),
    Recipe(
        name="llama-wide-heads",
        family="llama",
        settings={"head_dim": 96},
        blocks=_SIZED,
        shows="heads wider than hidden size / heads",
    ),
    Recipe(
        name="llama-tied",
        family="llama",
        settings={"tie_word_embeddings": True, "rope_theta": 500000.0},
        blocks=_SIZED,
        shows="tied embeddings, another RoPE base",
    ),
    Recipe(
        name="llama3-rope",
        family="llama",
        settings={
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        blocks=_SIZED,
        shows="Llama 3's RoPE scaling",
    ),
    Recipe(
        name="llama-attention-bias",
        family="llama",
        settings={"attention_bias": True},
        blocks=_SIZED,
        shows="biases on all four projections of attention",
    ),
    Recipe(
        name="llama-mlp-bias",
        family="llama",
        settings={"mlp_bias": True},
        blocks=_SIZED,
        shows="biases in the FFN",
    ),
    Recipe(name="qwen2-sized", family="qwen2", blocks=_SIZED, shows="biases on query, key and value"),
    Recipe(name="qwen2-skipped", family="qwen2", blocks=_SKIPPED, shows="those biases, and layers left out"),
    Recipe(
        name="qwen3-sized", family="qwen3", settings={"head_dim": 64}, blocks=_SIZED, shows="norms on query and key"
    ),
    Recipe(
        name="mistral-sized",
        family="mistral",
        settings={"sliding_window": None, "head_dim": 64},
        blocks=_SIZED,
        shows="Mistral without windows",
    ),
    Recipe(
        name="mistral-window",
        family="mistral",
        settings={"sliding_window": 16, "head_dim": 64},
        blocks=tuple(
            _block(GQA(num_key_value_heads=heads, sliding_window=16), width)
            for heads, width in ((4, 512), (2, 256), (1, 512), (4, 256))
        ),
        shows="a window of 16 tokens",
    ),
    Recipe(name="phi-fused", family="phi3", blocks=_SIZED, shows="projections that are fused in the checkpoint"),
    Recipe(
        name="smollm3-sized",
        family="smollm3",
        settings={"no_rope_layers": [1, 1, 1, 0]},
        blocks=_SIZED,
        shows="a layer without RoPE",
    ),
    Recipe(
        name="granite-sized",
        family="granite",
        settings={"residual_multiplier": 0.5, "embedding_multiplier": 3.0, "logits_scaling": 2.0},
        blocks=_SIZED,
        shows="multipliers of embeddings, residuals and logits",
    ),
    Recipe(name="olmo2-sized", family="olmo2", blocks=_SIZED, shows="norms after, and on all of query and key"),
    Recipe(
        name="gemma2-sized",
        family="gemma2",
        settings={"head_dim": 64, "sliding_window": 128, "query_pre_attn_scalar": 64},
        blocks=tuple(
            _block(GQA(num_key_value_heads=heads, sliding_window=window), width)
            for heads, window, width in ((4, 128, 512), (2, None, 256), (1, 128, 512), (4, None, 256))
        ),
        shows="norms before and after, soft caps",
    ),
)
"""In the order of the table in docs/engines.md."""


def make_samples(folder: Path, names: tuple[str, ...] = ()) -> list[Sample]:
    """Write the samples, each with its parent beside it.

    Args:
        folder: must exist; gets a folder for each sample.
        names: of recipes; empty for all.

    Raises:
        ValueError: no recipe has that name, or a folder exists.
    """
    known = {recipe.name: recipe for recipe in RECIPES}
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"no sample is named {unknown[0]!r}; known are {', '.join(known)}")
    tokenizer = sample_tokenizer()
    return [make_sample(folder, recipe, tokenizer) for recipe in RECIPES if not names or recipe.name in names]


def make_sample(folder: Path, recipe: Recipe, tokenizer: Any) -> Sample:
    """One of them: NAME and NAME-parent in the folder; one folder where it is the parent."""
    from puzzlebench.child.building import build_child
    from puzzlebench.child.checkpoints import save_child
    from puzzlebench.child.configs import read_spec
    from puzzlebench.library.realise import SOLUTION_FILE
    from puzzlebench.parent.fingerprint import checkpoint_fingerprint

    parent = random_parent(recipe.family, tokenizer, recipe.settings)
    own = folder / recipe.name
    place = own if not recipe.blocks else folder / f"{recipe.name}-parent"
    if place.exists() or own.exists():
        raise ValueError(f"{own if own.exists() else place} exists; samples are written to new folders")
    parent.save_pretrained(place)
    tokenizer.save_pretrained(place)
    if not recipe.blocks:
        return Sample(recipe=recipe, folder=own, parent=own)
    spec = read_spec(parent.config)
    architecture = Architecture(blocks=recipe.blocks)
    child = build_child(parent, spec, architecture, _random_states(parent, spec, architecture))
    facts = {
        "parent": place.name,
        "parent_fingerprint": checkpoint_fingerprint(place),
        "recipe": "random",
        "architecture": architecture_to_json(architecture),
        "parameters": model_parameters(spec, architecture),
        "parent_parameters": model_parameters(spec, parent_architecture(spec)),
    }
    save_child(child, own, tokenizer, extra={SOLUTION_FILE: json.dumps(facts, indent=1) + "\n"})
    return Sample(recipe=recipe, folder=own, parent=place)


def sample_tokenizer() -> Any:
    """Byte-level BPE with 512 tokens, from a few files of the standard library, and a chat template."""
    from puzzlebench.parent.embedded import train_tokenizer
    from puzzlebench.text.corpus import standard_library

    tokenizer = train_tokenizer(standard_library("train")[:_DOCUMENTS], _VOCABULARY)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    )
    return tokenizer


def random_parent(family: str, tokenizer: Any, settings: Mapping[str, Any]) -> Any:
    """A causal LM of the family with random weights and the tokenizer's vocabulary, in evaluation mode."""
    import torch
    import transformers

    from puzzlebench.child.modeling_heterogeneous import CLASSES

    end = tokenizer.eos_token_id
    sizes = {**_SIZES, "vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}
    config = transformers.CONFIG_MAPPING[family](**{**sizes, **settings})
    model = getattr(transformers, CLASSES[family])(config).eval()
    randomise(model, torch.Generator().manual_seed(0))
    model.tie_weights()
    return model


def randomise(module: nn.Module, generator: Any) -> None:
    """Draw all parameters anew: matrices keep the size of what goes through them, norms lie around what they have.

    The output matrix is five times as large, and tied or not gives logits some 3 nats apart.
    """
    import torch

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim < 2:
                parameter.add_(0.2 * noise)
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(noise * 0.2)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)


def _random_states(parent: Any, spec: Any, architecture: Architecture) -> dict[Any, Any]:
    """Random weights for every half that is not the parent's."""
    import torch

    from puzzlebench.child.halves import half_state, new_sub_block
    from puzzlebench.model.blocks import PARTS

    generator = torch.Generator().manual_seed(1)
    states = {}
    for layer, (block, own) in enumerate(zip(architecture.blocks, parent_architecture(spec).blocks, strict=True)):
        for part in PARTS:
            sub = getattr(block, part)
            if sub != getattr(own, part):
                half = new_sub_block(parent.model.layers[layer], parent.config, layer, part, sub)
                randomise(half, generator)
                states[layer, part] = half_state(half)
    return states
