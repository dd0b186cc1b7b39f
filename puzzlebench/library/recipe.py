"""How the blocks of a library are made: initialisation, training, and the data they see. Knows no tensors."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

from puzzlebench.digest import short_digest
from puzzlebench.library.initialise import InitRecipe
from puzzlebench.model.checks import require_positive_int, require_whole_number
from puzzlebench.training.optimisers import OptimiserName, check_optimiser
from puzzlebench.training.precision import Precision

Mode: TypeAlias = Literal["decoupled", "coupled"]
"""decoupled: each half beside the parent's other half; coupled: every pair of halves trained together."""


_RATE_TIMES_WIDTH = 0.8
VERSION = 1
"""Of what is done by a recipe; another one makes other blocks of the same words."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """Blockwise local distillation of one block.

    Attributes:
        steps: optimiser steps at most; 0 leaves the initialisation as it is.
        batch_size: sequences per step.
        lr, other_lr: of matrices, and of norms and biases; None is 0.8 / hidden_size, 3e-3 for the embedded parent and
            2e-4 at 4096: what suits Adam falls with the width (arXiv 2203.03466).
        patience: stop after so many evaluations in a row that lowered the held-out loss by less than `least_gain` of
            itself; 0 never stops early.
        evaluations: evenly spread over the steps.
    """

    steps: int = 64
    batch_size: int = 4
    optimiser: OptimiserName = "adamw"
    lr: float | None = None
    other_lr: float | None = None
    warmup: int = 4
    evaluations: int = 8
    patience: int = 3
    least_gain: float = 0.005
    seed: int = 0

    def rates(self, hidden_size: int) -> tuple[float, float]:
        """Numbers for `lr` and `other_lr`."""
        usual = _RATE_TIMES_WIDTH / hidden_size
        return self.lr or usual, self.other_lr or usual

    def with_rates(self, hidden_size: int) -> Training:
        """The same with numbers for the rates."""
        lr, other_lr = self.rates(hidden_size)
        return replace(self, lr=lr, other_lr=other_lr)

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in ("batch_size", "warmup", "evaluations"):
            require_positive_int(name, getattr(self, name))
        for name in ("steps", "patience", "seed"):
            require_whole_number(name, getattr(self, name))
        check_optimiser(self.optimiser, lr=self.lr, other_lr=self.other_lr)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides what a block of a given parent becomes.

    Attributes:
        data: fingerprint of the token ids, see `data_fingerprint`.
        precision: what the blocks are trained in: fp32, or bf16 (autocast over fp32 weights).
    """

    mode: Mode = "decoupled"
    init: InitRecipe = field(default_factory=InitRecipe)
    training: Training = field(default_factory=Training)
    data: str
    sequences: int
    length: int
    precision: Precision = "fp32"
    version: int = VERSION

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object."""
        return asdict(self)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name this recipe in a library."""
        return short_digest(self.to_json())
