"""RoPE between a Hugging Face config and GGUF's keys: base, linear and YaRN scaling, and Llama 3's frequency factors.

Knows numbers only, no files. llama.cpp has no words for Llama 3's scaling: a tensor says by how much each frequency is
divided, and on the way back the parameters are found again from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

RopeKind: TypeAlias = Literal["default", "linear", "yarn", "llama3"]

_DEFAULT_THETA = 10000.0
_BETA_FAST, _BETA_SLOW = 32.0, 1.0  # of YaRN, both in transformers and in llama.cpp
_CLOSE = 1e-5
_LLAMA3 = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192))  # factor, low, high, original: Llama 3.1 and 3.3, Llama 3.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Rope:
    """How queries and keys are rotated.

    Attributes:
        factor: by which linear and YaRN scaling stretch the context, and Llama 3's the low frequencies.
        original_context: tokens, before the stretching; of YaRN and Llama 3.
        low_freq_factor: of Llama 3, as is `high_freq_factor`.
    """

    theta: float
    kind: RopeKind = "default"
    factor: float = 1.0
    original_context: int | None = None
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if self.kind not in get_args(RopeKind):
            raise ValueError(f"RoPE of type {self.kind!r} is not known; known are {', '.join(get_args(RopeKind))}")
        if not self.theta > 0 or not self.factor > 0:
            raise ValueError(f"RoPE needs a base and a factor above 0, not {self.theta} and {self.factor}")
        if self.kind in ("yarn", "llama3") and not (self.original_context or 0) > 0:
            raise ValueError(f"RoPE of type {self.kind} needs original_max_position_embeddings")
        if self.kind == "llama3" and not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ValueError(
                f"RoPE of type llama3 needs low_freq_factor {self.low_freq_factor} below high_freq_factor "
                f"{self.high_freq_factor}"
            )


def read_rope(config: Mapping[str, Any]) -> Rope:
    """The RoPE that a config.json states, in the words of transformers 4 (rope_theta, rope_scaling) or 5.

    Raises:
        ValueError: its type or one of its settings has no equivalent in a GGUF file.
    """
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(stated, Mapping):
        raise ValueError(f"RoPE must be an object, not {stated!r}")
    theta = float(stated.get("rope_theta") or config.get("rope_theta") or _DEFAULT_THETA)
    kind = stated.get("rope_type") or stated.get("type") or "default"
    for where in (config, stated):
        if (partial := where.get("partial_rotary_factor")) not in (None, 1, 1.0):
            raise ValueError(f"RoPE turns only {partial} of each head, and deci in llama.cpp turns whole heads")
    if kind == "default":
        return Rope(theta=theta)
    if kind not in get_args(RopeKind):
        raise ValueError(f"RoPE of type {kind!r} cannot be written as GGUF; what can: {', '.join(get_args(RopeKind))}")
    factor = stated.get("factor")
    if isinstance(factor, bool) or not isinstance(factor, int | float):
        raise ValueError(f"RoPE of type {kind} needs a factor, not {factor!r}")
    original = stated.get("original_max_position_embeddings")
    if kind == "yarn":
        _check_yarn(stated, factor)
        original = original or config.get("max_position_embeddings")
    return Rope(
        theta=theta,
        kind=cast("RopeKind", kind),
        factor=float(factor),
        original_context=original,
        low_freq_factor=float(stated.get("low_freq_factor") or 1.0),
        high_freq_factor=float(stated.get("high_freq_factor") or 4.0),
    )


def rope_scaling(rope: Rope) -> dict[str, Any] | None:
    """What changes the angles, in the words of transformers, without the base; None where nothing does."""
    if rope.kind == "default":
        return None
    stated: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind != "linear":
        stated["original_max_position_embeddings"] = rope.original_context
    if rope.kind == "llama3":
        stated |= {"low_freq_factor": rope.low_freq_factor, "high_freq_factor": rope.high_freq_factor}
    return stated


def frequency_factors(rope: Rope, head_dim: int) -> list[float]:
    """By how much each of the head_dim / 2 frequencies is divided under Llama 3's scaling."""
    assert rope.original_context is not None
    low, high = rope.low_freq_factor, rope.high_freq_factor
    factors = []
    for frequency in _frequencies(rope.theta, head_dim):
        turns = rope.original_context * frequency / (2 * math.pi)  # within the original context
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(rope.factor)
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope.factor + smooth))
    return factors


def find_llama3(factors: Sequence[float], theta: float) -> Rope:
    """Llama 3's scaling that gives these factors of the frequencies.

    The parameters of the released models are tried first. Others are solved for, with low_freq_factor 1, which is no
    loss: stretching the original context, low_freq_factor and high_freq_factor together changes nothing.

    Raises:
        ValueError: there is none.
    """
    head_dim = 2 * len(factors)
    candidates = [
        Rope(theta=theta, kind="llama3", factor=factor, low_freq_factor=low, high_freq_factor=high, original_context=n)
        for factor, low, high, n in _LLAMA3
    ]
    if solved := _solve_llama3(factors, theta):
        candidates.append(solved)
    for rope in candidates:
        again = frequency_factors(rope, head_dim)
        if all(math.isclose(one, other, rel_tol=_CLOSE) for one, other in zip(again, factors, strict=True)):
            return rope
    raise ValueError("the factors of its RoPE frequencies (rope_freqs) are not those of Llama 3's scaling")


def _solve_llama3(factors: Sequence[float], theta: float) -> Rope | None:
    """1 / factor is linear in the turns between the low and the high limit: a line through two points of it."""
    largest = max(factors)
    if largest <= 1:
        return None
    frequencies = _frequencies(theta, 2 * len(factors))
    between = [
        (frequency / (2 * math.pi), (1 / factor - 1 / largest) / (1 - 1 / largest))
        for frequency, factor in zip(frequencies, factors, strict=True)
        if 1 + _CLOSE < factor < largest * (1 - _CLOSE)
    ]
    if len(between) < 2:
        return None
    (x0, y0), (x1, y1) = between[0], between[-1]
    slope = (y1 - y0) / (x1 - x0)  # original / (high - low)
    offset = y0 - slope * x0  # -low / (high - low)
    if slope <= 0 or offset >= 0:
        return None
    spread = -1 / offset
    high = 1 + spread
    return Rope(
        theta=theta,
        kind="llama3",
        factor=float(largest),
        low_freq_factor=1.0,
        high_freq_factor=_rounded(high),
        original_context=round(slope * spread),
    )


def _rounded(value: float) -> float:
    """Without what single precision added to it."""
    near = round(value, 3)
    return near if math.isclose(value, near, rel_tol=1e-4) else value


def _frequencies(theta: float, head_dim: int) -> list[float]:
    return [theta ** (-index / head_dim) for index in range(0, head_dim, 2)]


def _check_yarn(stated: Mapping[str, Any], factor: float) -> None:
    """Raise ValueError for what llama.cpp's YaRN takes as given and a config can change."""
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    scale = stated.get("attention_factor")
    if scale is not None and not math.isclose(scale, usual, rel_tol=_CLOSE):
        raise ValueError(f"YaRN with attention_factor {scale} cannot be written as GGUF; {usual:.6g} can")
    for key, known in (("beta_fast", _BETA_FAST), ("beta_slow", _BETA_SLOW), ("truncate", True)):
        if stated.get(key, known) not in (known, None):
            raise ValueError(f"YaRN with {key} {stated[key]} cannot be written as GGUF; {known} can")
    for key in ("mscale", "mscale_all_dim"):
        if stated.get(key):
            raise ValueError(f"YaRN with {key} {stated[key]} cannot be written as GGUF; without it can")
