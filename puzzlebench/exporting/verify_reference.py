"""puzzlebench's own side of a check: the child, prompts for it, and its logits of given tokens. Knows no engine."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzlebench.exporting.kv_check import compare_kv
from puzzlebench.model.blocks import Architecture
from puzzlebench.model.catalog import load_model
from puzzlebench.model.dtypes import KVDtype
from puzzlebench.model.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

_FIRST_ORDINARY = 3  # of random prompts: lower ids are often special


@dataclass(kw_only=True, slots=True)
class Reference:
    """A child that puzzlebench loads.

    Attributes:
        text: where the prompts came from, once there are some.
    """

    folder: Path
    spec: ModelSpec
    architecture: Architecture
    text: str = ""

    def prompts(self, count: int, length: int, new_tokens: int, *, seed: int) -> list[list[int]]:
        """The first rows of the bundled validation text by the child's tokenizer; random ids where it has none.

        Raises:
            ValueError: the child has too few positions.
        """
        if length + new_tokens > self.spec.max_position_embeddings:
            raise ValueError(
                f"{self.folder} has {self.spec.max_position_embeddings} positions; prompts of {length} tokens and "
                f"{new_tokens} generated ones need {length + new_tokens}"
            )
        tokenizer = self._tokenizer()
        if tokenizer is not None:
            from puzzlebench.text.corpus import standard_library
            from puzzlebench.text.tokens import pack_documents

            self.text = "validation files of Python's standard library"
            rows = pack_documents(standard_library("validation"), tokenizer, sequences=count, length=length)
            if rows.max() < self.spec.vocab_size:
                return [[int(token) for token in row] for row in rows]
        import numpy as np

        self.text = f"random ids, seed {seed}"
        low = min(_FIRST_ORDINARY, self.spec.vocab_size - 1)
        drawn = np.random.default_rng(seed).integers(low, self.spec.vocab_size, size=(count, length))
        return [[int(token) for token in row] for row in drawn]

    def logits(self, rows: Sequence[Sequence[int]], dtype: KVDtype) -> list[Tensor]:
        """For each row of token ids [length], logits [length, vocabulary] in float32."""
        import torch

        from puzzlebench.child.checkpoints import load_causal_lm

        model = load_causal_lm(self.folder, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
        with torch.inference_mode():
            return [model(torch.tensor([list(row)]), use_cache=False).logits[0].float() for row in rows]

    def compare_cache(self, stated: Mapping[str, Any], dtype: KVDtype) -> dict[str, Any] | None:
        """The engine's key-value cache beside the prediction, JSON-ready; None where the engine says nothing of it."""
        if stated.get("kv_cache") is None:
            return None
        found = compare_kv(stated, self.spec, self.architecture, dtype)
        return asdict(found) | {
            "predicted_bytes_per_token": found.predicted_bytes_per_token,
            "allocated_bytes_per_token": found.allocated_bytes_per_token,
            "agrees": found.agrees,
        }

    def _tokenizer(self) -> Any:
        if not any((self.folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
            return None
        import transformers

        try:
            return transformers.AutoTokenizer.from_pretrained(str(self.folder))
        except (OSError, ValueError, KeyError, ImportError):
            return None  # random ids do as well


@contextlib.contextmanager
def open_reference(folder: Path) -> Iterator[Reference]:
    """The child in a folder; of a DeciLM folder or a GGUF file, what `puzzlebench import` makes of it, for as long.

    Raises:
        ValueError: there is no such child, or puzzlebench does not read it.
    """
    if not folder.exists():
        raise ValueError(f"{folder} does not exist")
    with contextlib.ExitStack() as stack:
        if not _is_ours(folder):
            from puzzlebench.exporting.importing import ImportJob, run_import

            made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="puzzlebench-verify-"))) / "child"
            run_import(ImportJob(checkpoint=str(folder), out=made))
            folder = made
        spec, architecture = load_model(str(folder))
        yield Reference(folder=folder, spec=spec, architecture=architecture)


def _is_ours(folder: Path) -> bool:
    """Whether puzzlebench loads the folder as it is."""
    from puzzlebench.child.modeling_heterogeneous import CLASSES

    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") in CLASSES
