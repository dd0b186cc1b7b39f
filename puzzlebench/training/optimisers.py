"""Optimisers of one set of weights, their learning-rate schedule, and their state as plain tensors.

Matrices inside the model go to Muon (or AdamW where that is asked), everything else to AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch

from puzzlebench.training.muon import Muon

OptimiserName: TypeAlias = Literal["muon", "adamw"]
_BETAS = (0.9, 0.95)


def check_optimiser(name: str, **rates: float | None) -> None:
    """Raise ValueError unless there is such an optimiser and each rate, where it is given, is above 0 and below 1."""
    for rate, value in rates.items():
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{rate} must be above 0 and below 1, not {value!r}")
    if name not in get_args(OptimiserName):
        raise ValueError(f"optimiser must be muon or adamw, not {name!r}")


class Optimisers:
    """Muon for matrices and AdamW for the rest, stepped together.

    Args:
        named: parameters by name; a name says where the state of each is kept.
        name: "adamw" gives the matrices to AdamW too.
        lr: of the matrices.
        other_lr: of everything else, and of names that hold `not_matrices`.
        not_matrices: parts of names whose tensors are tables of vectors rather than matrices (embeddings, heads).
    """

    def __init__(
        self,
        named: Mapping[str, torch.nn.Parameter],
        *,
        name: OptimiserName,
        lr: float,
        other_lr: float,
        not_matrices: Iterable[str] = (),
        weight_decay: float = 0.0,
    ) -> None:
        self._named = dict(named)
        apart = tuple(not_matrices)
        matrices = [
            parameter
            for key, parameter in named.items()
            if parameter.ndim == 2 and not any(part in key for part in apart)
        ]
        chosen = {id(parameter) for parameter in matrices}
        others = [parameter for parameter in named.values() if id(parameter) not in chosen]
        self._optimisers: list[torch.optim.Optimizer] = []
        if matrices and name == "muon":
            self._optimisers.append(Muon(matrices, lr=lr, weight_decay=weight_decay))
        elif matrices:
            self._optimisers.append(torch.optim.AdamW(matrices, lr=lr, betas=_BETAS, weight_decay=weight_decay))
        if others:
            self._optimisers.append(torch.optim.AdamW(others, lr=other_lr, betas=_BETAS, weight_decay=0.0))
        self._rates = [group["lr"] for optimiser in self._optimisers for group in optimiser.param_groups]

    def step(self, share: float) -> None:
        """One step at this share of the full learning rates; the gradients are gone afterwards."""
        groups = [group for optimiser in self._optimisers for group in optimiser.param_groups]
        for group, rate in zip(groups, self._rates, strict=True):
            group["lr"] = rate * share
        for optimiser in self._optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)

    def state(self) -> dict[str, torch.Tensor]:
        """Every tensor of the optimisers' state by parameter and name; numbers become tensors."""
        tensors = {}
        for key, parameter in self._named.items():
            for optimiser in self._optimisers:
                for field, value in optimiser.state.get(parameter, {}).items():
                    tensors[f"{key}/{field}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
        return tensors

    def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state` gave."""
        owner = {
            id(parameter): optimiser
            for optimiser in self._optimisers
            for group in optimiser.param_groups
            for parameter in group["params"]
        }
        for key, parameter in self._named.items():
            prefix = f"{key}/"
            fields = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            if fields:
                state: dict[str, Any] = owner[id(parameter)].state[parameter]
                for field, value in fields.items():  # torch keeps numbers on the CPU, wherever the parameter is
                    state[field] = value.to(parameter.device if value.ndim else "cpu", copy=True)


def warm_then_cosine(step: int, steps: int, warmup: int, floor: float = 0.02) -> float:
    """Share of the learning rate at a step: linear up over `warmup` steps, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
