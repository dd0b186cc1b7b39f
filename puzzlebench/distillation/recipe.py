"""How a child is distilled: which losses, on rows of which length, by which optimiser. Knows no tensors."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from puzzlebench.model.checks import require_positive_int, require_whole_number
from puzzlebench.training.optimisers import OptimiserName, check_optimiser

TERMS: Final = ("cosine", "forward_kl", "reverse_kl", "tvd", "lm")
"""Names of the losses, in the order in which they are kept."""
_RATE_TIMES_WIDTH: Final[dict[str, float]] = {"adamw": 0.256, "muon": 0.512}
_OTHER_RATE_TIMES_WIDTH: Final = 0.0256


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeights:
    """The loss is the sum of weight times term. The paper's best is cosine and forward KL, without LM loss.

    Attributes:
        cosine: of the sum over layers of 1 - cos(child's output, parent's output), mean over tokens.
        forward_kl: of KL(parent || child), nats per token.
        reverse_kl: of KL(child || parent), nats per token.
        tvd: of the total variation distance of the two distributions, mean over tokens.
        lm: of the cross-entropy of the text, nats per token.
        temperature: by which logits are divided in the two KL and in TVD. There is no factor temperature^2.
    """

    cosine: float = 1.0
    forward_kl: float = 1.0
    reverse_kl: float = 0.0
    tvd: float = 0.0
    lm: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in TERMS:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"the weight of {name} must be a finite number of at least 0, not {getattr(self, name)!r}"
                )
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, not {self.temperature!r}")
        if not self.weighted:
            raise ValueError("all loss weights are 0, so there is nothing to train for; weigh cosine or forward_kl")

    @property
    def weighted(self) -> tuple[str, ...]:
        """Names of the terms that count."""
        return tuple(name for name in TERMS if getattr(self, name) > 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Rows of one length; stages follow one another.

    Attributes:
        length: tokens of a row.
        sequences: rows to train on; what is left over of the last batch is not used.
        batch_size: rows per optimiser step, of all processes together.
    """

    length: int
    sequences: int
    batch_size: int

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in ("length", "sequences", "batch_size"):
            require_positive_int(name, getattr(self, name))
        if self.length < 2:
            raise ValueError(f"length must be at least 2, not {self.length}: a row has tokens that follow others")
        if self.sequences < self.batch_size:
            raise ValueError(f"{self.sequences} sequences are less than one step of {self.batch_size}; ask for more")

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return self.sequences // self.batch_size

    @property
    def tokens(self) -> int:
        """Tokens of all steps."""
        return self.steps * self.batch_size * self.length


@dataclass(frozen=True, kw_only=True, slots=True)
class DistilRecipe:
    """Everything that decides what a child of a given parent becomes, but data and precision.

    Attributes:
        lr, other_lr: of matrices, and of embeddings, head, norms and biases; None: see `with_rates`.
        warmup: steps over which rates rise; half a cosine follows, over the steps of all stages together.
        evaluations: on held-out rows, evenly spread over the steps, beside the one before the first step.
        clip: the largest norm of the gradient.
        seed: of the order of the rows.
    """

    losses: LossWeights = field(default_factory=LossWeights)
    stages: tuple[Stage, ...] = (Stage(length=256, sequences=1200, batch_size=4),)
    optimiser: OptimiserName = "adamw"
    lr: float | None = None
    other_lr: float | None = None
    warmup: int = 20
    weight_decay: float = 0.0
    clip: float = 1.0
    evaluations: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not self.stages:
            raise ValueError("a recipe needs at least one stage of sequences to train on")
        for name in ("warmup", "evaluations"):
            require_positive_int(name, getattr(self, name))
        require_whole_number("seed", self.seed)
        check_optimiser(self.optimiser, lr=self.lr, other_lr=self.other_lr)
        if not 0 <= self.weight_decay < 1:
            raise ValueError(f"weight_decay must be at least 0 and below 1, not {self.weight_decay!r}")
        if not 0 < self.clip < math.inf:
            raise ValueError(f"clip must be positive and finite, not {self.clip!r}")

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    @property
    def tokens(self) -> int:
        """Tokens of all stages."""
        return sum(stage.tokens for stage in self.stages)

    def with_rates(self, hidden_size: int) -> DistilRecipe:
        """The same with numbers for the rates.

        Where none is stated: 0.256 / hidden size for matrices (0.512 with Muon), 1e-3 for the embedded parent and 6e-5
        at 4096, since what suits Adam falls with the width (arXiv 2203.03466). Everything else takes a tenth of what
        AdamW's matrices would: embeddings and norms are the parent's already.
        """
        lr = self.lr or _RATE_TIMES_WIDTH[self.optimiser] / hidden_size
        usual = _OTHER_RATE_TIMES_WIDTH / hidden_size
        if self.lr is not None and self.optimiser == "adamw":
            usual = self.lr / 10
        return replace(self, lr=lr, other_lr=self.other_lr or usual)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready object."""
        return {**asdict(self), "stages": [asdict(stage) for stage in self.stages]}
