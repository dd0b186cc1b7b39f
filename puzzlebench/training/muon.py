"""Muon: momentum, orthogonalised by Newton-Schulz steps (Keller Jordan, kellerjordan.github.io/posts/muon).

torch has one (torch.optim.Muon), but it takes the steps in bfloat16, which a CPU without units for it multiplies eight
times slower than float32, and one matrix at a time. Here matrices of one shape are stepped together, and in float32
on CPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

# Slopes that bring singular values to between about 0.7 and 1.2 in five steps; they are Jordan's.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_RMS_OF_ADAMW = 0.2  # an update of this size per element lets AdamW's learning rates be used (arXiv 2502.16982)


class Muon(torch.optim.Optimizer):
    """For matrices only; give everything else (embeddings, heads, norms, biases) to AdamW.

    Args:
        params: tensors of two dimensions, or groups of them with their own `lr` and `weight_decay`.
        lr: learning rate; an update has the root mean square that AdamW's would have.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, Any]],
        *,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        steps: int = 5,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices, not a tensor of shape {tuple(parameter.shape)}")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step; parameters without a gradient stay."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        alike: dict[tuple[Any, ...], list[tuple[torch.Tensor, torch.Tensor, dict[str, Any]]]] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
                buffer = state["momentum_buffer"]
                buffer.lerp_(parameter.grad, 1 - group["momentum"])
                update = parameter.grad.lerp(buffer, group["momentum"])  # Nesterov's
                key = (parameter.shape, parameter.device, group["steps"])
                alike.setdefault(key, []).append((parameter, update, group))
        for (shape, _, steps), entries in alike.items():
            updates = orthogonalise(torch.stack([update for _, update, _ in entries]), steps)
            scale = _RMS_OF_ADAMW * max(shape) ** 0.5
            for (parameter, _, group), update in zip(entries, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * scale)
        return loss


def orthogonalise(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Each matrix of [n, rows, columns] with its singular values moved to about 1."""
    dtype = torch.bfloat16 if matrices.is_cuda else torch.float32
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
