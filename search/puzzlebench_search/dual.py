"""Lagrangian multipliers: prices of the rows under which choosing layer by layer gives the best lower bound.

bound(prices) = sum over layers of min over choices of (loss + prices . uses) - prices . room <= the optimum, for any
prices of at least 0 (Fisher 1981). The minimum is smoothed (a soft minimum at a temperature that falls), which makes
the bound differentiable, and Newton's method in the few prices maximises it. Several rooms are served at once.

Legend for shapes: L layers, J choices, M rows, Q rooms.
"""

from __future__ import annotations

import numpy as np

from puzzlebench_search.problem import BoolArray, FloatArray

TEMPERATURES = (1.0, 1e-1, 1e-2, 3e-4)
"""Of the soft minimum, in units of the objective's scale."""
_STEPS = 30
_DAMPING = 1e-4
"""Of the first Newton step, in units of the curvature, which rows that are nearly alike make singular."""
_LEAST_DAMPING = 1e-11
"""Below this, rounding undoes it where rows are quite alike."""
_ENOUGH = 1e-9


def reduced_losses(losses: FloatArray, uses: FloatArray, prices: FloatArray) -> FloatArray:
    """(L, J), loss + prices . uses, less the least of the layer: what a choice costs more than the layer's best."""
    priced = losses + uses @ prices
    return np.asarray(priced - priced.min(axis=1, keepdims=True))


def lower_bound(losses: FloatArray, uses: FloatArray, room: FloatArray, prices: FloatArray) -> float:
    """No way to keep every row has a loss below this, not even by rounding, which high prices amplify."""
    rounding = 4 * len(losses) * np.finfo(np.float64).eps * (prices @ (np.abs(uses).max(axis=(0, 1)) + np.abs(room)))
    return float((losses + uses @ prices).min(axis=1).sum() - prices @ room - rounding)


def maximise_bound(
    losses: FloatArray,
    uses: FloatArray,
    rooms: FloatArray,
    *,
    start: FloatArray,
    scale: float,
    temperatures: tuple[float, ...] = TEMPERATURES,
) -> FloatArray:
    """Prices (Q, M) that nearly maximise the bound for each of the rooms (Q, M).

    Args:
        losses: (L, J), infinite where there is no choice.
        uses: (L, J, M).
        start: prices to begin with, (M,).
        scale: of the objective, in units of loss.
    """
    prices = np.broadcast_to(start, rooms.shape).astype(np.float64)
    if prices.shape[1] == 0:
        return prices
    for temperature in temperatures:
        prices = _newton(losses, uses, rooms, prices, temperature * scale)
    return prices


def _newton(losses: FloatArray, uses: FloatArray, rooms: FloatArray, prices: FloatArray, heat: float) -> FloatArray:
    """Damped Newton steps (Levenberg 1944): a step that does not raise the bound is tried again, shorter."""
    layers, width, count = uses.shape
    flat = uses.reshape(layers * width, count)
    small = np.eye(count)
    damping = np.full(len(prices), _DAMPING)
    value, weights = _soft_bound(losses, flat, rooms, prices, heat)
    for _ in range(_STEPS):
        spread = weights.reshape(-1, layers * width)
        slope = spread @ flat - rooms  # (Q, M)
        means = np.einsum("qlj,ljm->qlm", weights, uses)
        curve = ((spread[:, None, :] * flat.T[None]) @ flat - means.transpose(0, 2, 1) @ means) / heat  # (Q, M, M)
        free = (prices > 0) | (slope > 0)
        if not (free & (np.abs(slope) > _ENOUGH)).any():
            break
        size = np.abs(curve).max(axis=(1, 2)) * damping + 1e-12
        curve = curve * (free[:, :, None] & free[:, None, :]) + small * (size[:, None] + ~free)[:, :, None]
        step = np.linalg.solve(curve, (slope * free)[:, :, None])[:, :, 0]
        tried = np.maximum(prices + step, 0.0)
        reached, spread = _soft_bound(losses, flat, rooms, tried, heat)
        gain = reached - value
        better: BoolArray = gain >= 0
        prices = np.where(better[:, None], tried, prices)
        value = np.where(better, reached, value)
        weights[better] = spread.reshape(weights.shape)[better]
        damping = np.where(better, np.maximum(damping / 10, _LEAST_DAMPING), damping * 30)
        if better.all() and gain.max() <= _ENOUGH * heat:
            break
    return prices


def _soft_bound(
    losses: FloatArray, flat: FloatArray, rooms: FloatArray, prices: FloatArray, heat: float
) -> tuple[FloatArray, FloatArray]:
    """The smoothed bounds (Q,) and the soft choices (Q, L, J)."""
    priced = losses[None] + (prices @ flat.T).reshape(-1, *losses.shape)
    least = priced.min(axis=2, keepdims=True)
    weights = np.exp((least - priced) / heat)
    total = weights.sum(axis=2, keepdims=True)
    value = (least - heat * np.log(total))[:, :, 0].sum(axis=1) - (prices * rooms).sum(axis=1)
    return value, weights / total
