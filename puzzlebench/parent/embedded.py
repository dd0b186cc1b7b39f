"""The embedded parent: a small Llama trained on the spot on Python's standard library, for machines without downloads.

Deterministic for a recipe, a machine and its thread count. Made once it is cached; training that was interrupted goes
on where it stopped. Knows nothing of blocks.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import torch

from puzzlebench.digest import short_digest
from puzzlebench.files import locked, make_folder, write_text
from puzzlebench.model.catalog import bundled_models
from puzzlebench.model.checks import require_positive_int
from puzzlebench.parent.training import evaluate, train
from puzzlebench.progress import progress
from puzzlebench.text.corpus import Document, standard_library
from puzzlebench.text.tokens import Tokens, pack_documents
from puzzlebench.training.precision import fast_precision

FACTS_FILE: Final = "puzzlebench_parent.json"
END_TOKEN: Final = "<|endoftext|>"  # noqa: S105, it is no password
CACHE_VARIABLE: Final = "PUZZLEBENCH_CACHE"
TEST_SEQUENCES: Final = 128


@dataclass(frozen=True, kw_only=True, slots=True)
class ParentRecipe:
    """How the embedded parent is made.

    Attributes:
        tokens: to train on, rounded down to whole steps.
        length: of the packed sequences.
        batch_size: sequences per step.
        lr, other_lr: of matrices (Muon), and of embeddings and norms (AdamW).
    """

    tokens: int = 300_000
    length: int = 256
    batch_size: int = 4
    lr: float = 0.01
    other_lr: float = 0.012
    warmup: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in ("tokens", "length", "batch_size", "warmup"):
            require_positive_int(name, getattr(self, name))
        if self.steps < 1:
            raise ValueError(f"{self.tokens} tokens are less than one step of {self.batch_size * self.length}")

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.tokens // (self.batch_size * self.length)


def cache_folder() -> Path:
    """Where what is made once is kept: PUZZLEBENCH_CACHE, else puzzlebench in the user's cache folder."""
    if stated := os.environ.get(CACHE_VARIABLE):
        return Path(stated)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puzzlebench"


def embedded_folder(recipe: ParentRecipe) -> Path:
    """Where the parent of this recipe is kept; another Python has another standard library, so another parent."""
    return cache_folder() / f"embedded-{_digest(recipe)}"


def make_embedded(
    recipe: ParentRecipe | None = None,
    folder: Path | None = None,
    *,
    quiet: bool = False,
    report: Callable[[float, str], None] | None = None,
) -> Path:
    """The folder of the embedded parent, a Hugging Face checkpoint with tokenizer; trained where it is not there yet.

    Args:
        folder: where to put it; the cache by default.
        report: called with the share done and what is going on, in place of a bar of its own.

    Raises:
        ValueError: this Python comes without sources, or the folder cannot be written to.
    """
    from safetensors import SafetensorError

    recipe = recipe or ParentRecipe()
    folder = folder or embedded_folder(recipe)
    if _is_made(folder, recipe):
        return folder
    make_folder(folder.parent)
    lock = folder.with_name(f".{folder.name}.lock")
    try:
        with locked(lock, "makes it", wait=True), progress(quiet=quiet) as bar:
            if not _is_made(folder, recipe):  # by another process, while this one waited
                _train_into(folder, recipe, report or bar)
        lock.unlink(missing_ok=True)  # those that wait find the parent made
    except OSError as error:
        raise ValueError(f"cannot write to {folder.parent}: {error.strerror or error}") from None
    except SafetensorError as error:  # its writer wraps the system's errors
        raise ValueError(f"cannot write to {folder.parent}: {error}") from None
    return folder


def read_facts(folder: Path) -> dict[str, Any]:
    """How an embedded parent was made, and what it reached."""
    try:
        facts: dict[str, Any] = json.loads((folder / FACTS_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} is not an embedded parent: {error}") from None
    return facts


def train_tokenizer(documents: list[Document], vocab_size: int) -> Any:
    """A byte-level BPE tokenizer: every text has tokens, and they give the text back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=END_TOKEN, eos_token=END_TOKEN, pad_token=END_TOKEN
    )


def _digest(recipe: ParentRecipe) -> str:
    return short_digest({**asdict(recipe), "python": platform.python_version()})


def _is_made(folder: Path, recipe: ParentRecipe) -> bool:
    """Whether the folder holds the parent of this recipe; ValueError where it holds something else."""
    if not folder.exists():
        return False
    if not (folder / FACTS_FILE).exists():
        raise ValueError(f"{folder} exists and is no embedded parent; give another folder")
    if read_facts(folder).get("recipe") != asdict(recipe):
        raise ValueError(f"{folder} holds a parent of another recipe; give another folder, or remove it")
    return True


def _train_into(folder: Path, recipe: ParentRecipe, report: Any) -> None:
    """Train in a folder beside the wanted one, and put it in place when it is whole."""
    from transformers import LlamaConfig, LlamaForCausalLM

    report(0.0, "tokenizer")
    unfinished = folder.with_name(f".{folder.name}.{_digest(recipe)}.part")  # another recipe does not go on from it
    unfinished.mkdir(exist_ok=True)
    entry = next(entry for entry in bundled_models() if entry.id == "embedded")
    tokenizer = train_tokenizer(standard_library("train"), entry.config["vocab_size"])
    sizes = {key: value for key, value in entry.config.items() if key != "model_type"}
    end = tokenizer.eos_token_id
    config = LlamaConfig(**sizes, bos_token_id=end, eos_token_id=end, pad_token_id=end, rms_norm_eps=1e-5)
    torch.manual_seed(recipe.seed)
    model: Any = LlamaForCausalLM(config)
    for layer in model.model.layers:  # every block begins as nothing, which trains faster
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = fast_precision(device)
    sequences = recipe.steps * recipe.batch_size
    rows = pack_documents(standard_library("train"), tokenizer, sequences=sequences, length=recipe.length)
    order = torch.randperm(sequences, generator=torch.Generator().manual_seed(recipe.seed)).numpy()
    checkpoint = unfinished / "training.safetensors"
    model.to(device)
    train(model, rows[order], recipe, precision, checkpoint=checkpoint, report=report)
    report(1.0, "test")
    loss, accuracy = evaluate(model, report_tokens(tokenizer, recipe.length), recipe.batch_size)
    model.to("cpu").save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    facts = {
        "recipe": asdict(recipe),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "precision": precision,
        "test_loss": loss,
        "test_accuracy": accuracy,
        "test_tokens": TEST_SEQUENCES * recipe.length,
    }
    checkpoint.unlink(missing_ok=True)
    write_text(unfinished / FACTS_FILE, json.dumps(facts, indent=1) + "\n")
    os.replace(unfinished, folder)


def report_tokens(tokenizer: Any, length: int) -> Tokens:
    """Sequences of files on which nothing is trained and nothing is chosen."""
    return pack_documents(standard_library("test"), tokenizer, sequences=TEST_SEQUENCES, length=length, spread=True)
