"""What is compared with what, and which side the paper found better (arXiv 2411.19146). Data only.

The first variant of an experiment is the paper's choice; `claimed` are the variants that the paper says it is better
than. The others are ours, and nothing is expected of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from puzzlebench.distillation.recipe import LossWeights

Measure: TypeAlias = Literal["lm_loss", "kl", "top1_agreement"]
MEASURES: Final[tuple[Measure, ...]] = ("lm_loss", "kl", "top1_agreement")
"""On test text: cross-entropy and KL(parent || child), nats per token, and the share of tokens that both put first."""
HIGHER_IS_BETTER: Final = ("top1_agreement",)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """One ablation.

    Attributes:
        reference: the variant that the others are compared with.
        others: in the order of tables.
        claimed: those of them that the paper found worse.
    """

    name: str
    question: str
    reference: str
    others: tuple[str, ...]
    claimed: tuple[str, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        """All, the reference first."""
        return (self.reference, *self.others)


EXPERIMENTS: Final[dict[str, Experiment]] = {
    one.name: one
    for one in (
        Experiment(
            name="bld",
            question="Are blocks trained by blockwise local distillation better than blocks as initialised?",
            reference="bld",
            others=("initialised",),
            claimed=("initialised",),
        ),
        Experiment(
            name="score",
            question="Which replace-1-block score finds the best architecture?",
            reference="kl",
            others=("lm_loss", "top1_agreement", "params"),
            claimed=("lm_loss", "params"),
        ),
        Experiment(
            name="search",
            question="Is the exact search (MIP) better than simpler ones under the same limit?",
            reference="mip",
            others=("greedy", "max-params", "random", "homogeneous"),
            claimed=("greedy", "max-params", "random"),
        ),
        Experiment(
            name="space",
            question="Is the full space better than no-ops as the only alternatives?",
            reference="full",
            others=("no-op only",),
            claimed=("no-op only",),
        ),
        Experiment(
            name="distil",
            question="Which losses serve global distillation best, with the same tokens?",
            reference="cosine+kl",
            others=("none", "cosine", "kl", "lm", "cosine+kl+lm", "reverse_kl", "tvd"),
            claimed=("none", "cosine", "kl", "lm", "cosine+kl+lm"),
        ),
    )
}

_OFF: Final = {"cosine": 0.0, "forward_kl": 0.0}
LOSSES: Final[dict[str, LossWeights]] = {
    "cosine+kl": LossWeights(),
    "cosine": LossWeights(forward_kl=0.0),
    "kl": LossWeights(cosine=0.0),
    "lm": LossWeights(**_OFF, lm=1.0),
    "cosine+kl+lm": LossWeights(lm=1.0),
    "reverse_kl": LossWeights(**_OFF, reverse_kl=1.0),
    "tvd": LossWeights(**_OFF, tvd=1.0),
}
"""Of the variants of `distil`; `none` is not distilled."""


def chosen_experiments(names: tuple[str, ...]) -> tuple[Experiment, ...]:
    """Those of these names, or all, in the order of `EXPERIMENTS`.

    Raises:
        ValueError: there is none of a name.
    """
    for name in names:
        if name not in EXPERIMENTS:
            raise ValueError(f"no ablation is named {name!r}; there are {', '.join(EXPERIMENTS)}")
    return tuple(one for one in EXPERIMENTS.values() if not names or one.name in names)
