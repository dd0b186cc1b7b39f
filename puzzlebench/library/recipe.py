"""How the blocks of a library are made: initialisation, training, and the data they see. Knows no tensors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

from puzzlebench.library.initialise import InitRecipe
from puzzlebench.model.checks import require_positive_int
from puzzlebench.training.optimisers import OptimiserName

Mode: TypeAlias = Literal["decoupled", "coupled"]
"""decoupled: each half beside the parent's other half; coupled: every pair of halves trained together."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """Blockwise local distillation of one block.

    Attributes:
        steps: optimiser steps at most; 0 leaves the initialisation as it is.
        batch_size: sequences per step.
        lr, other_lr: of matrices, and of norms and biases.
        patience: stop after so many evaluations in a row that lowered the held-out loss by less than `least_gain` of
            itself; 0 never stops early.
        evaluations: evenly spread over the steps.
    """

    steps: int = 96
    batch_size: int = 8
    optimiser: OptimiserName = "muon"
    lr: float = 1e-3
    other_lr: float = 1e-3
    warmup: int = 4
    evaluations: int = 8
    patience: int = 3
    least_gain: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in ("batch_size", "warmup", "evaluations"):
            require_positive_int(name, getattr(self, name))
        for name in ("steps", "patience", "seed"):
            if (
                isinstance(getattr(self, name), bool)
                or not isinstance(getattr(self, name), int)
                or getattr(self, name) < 0
            ):
                raise ValueError(f"{name} must be a whole number of at least 0, not {getattr(self, name)!r}")
        for name in ("lr", "other_lr"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be above 0 and below 1, not {getattr(self, name)!r}")
        if self.optimiser not in ("muon", "adamw"):
            raise ValueError(f"optimiser must be muon or adamw, not {self.optimiser!r}")


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
    precision: Literal["fp32", "bf16"] = "fp32"

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object."""
        return asdict(self)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits that name this recipe in a library."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:12]
