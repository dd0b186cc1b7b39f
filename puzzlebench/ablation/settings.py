"""Sizes of an ablation's pieces, the same for all seeds. Knows nothing of what is done with them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from puzzlebench.training.precision import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class SeedSettings:
    """Sizes of everything, the same for all seeds.

    Attributes:
        length: tokens of a sequence.
        library_sequences: blocks are trained on, and calibrated with.
        steps: of each block's training.
        score_sequences, test_sequences: scores are taken on, and results reported on.
        distil_sequences: of a global distillation; each is seen once.
    """

    length: int
    library_sequences: int
    steps: int
    score_sequences: int
    test_sequences: int
    distil_sequences: int
    speed_up: float
    distil_all: bool
    batch_size: int
    prefill_len: int
    decode_len: int
    device: str
    precision: Precision

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object."""
        return asdict(self)
