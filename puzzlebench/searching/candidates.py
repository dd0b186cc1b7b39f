"""The choices of a search: which scored blocks are left in which layer after fixes, exclusions and an engine's rules.

Knows scores and names, no costs and no limits.

Legend for shapes: N choices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puzzlebench.model.blocks import Part, block_name, parse_block
from puzzlebench.model.engine_rules import EngineRules
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.arrays import BoolArray, FloatArray, IntArray, StrArray
from puzzlebench.scores import Direction, ScoreTable
from puzzlebench.searching.layer_rules import LayerRule


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """How many choices were taken out, and why."""

    reason: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What may be chosen, ordered by layer and within one as the score table is.

    Attributes:
        layers: (N,), from 0.
        blocks: N names, such as gqa_8+mlp_14336.
        scores: (N,).
        direction: whether low or high scores are good.
        removed: what was taken out, in the order of the rules.
    """

    layers: IntArray
    blocks: tuple[str, ...]
    scores: FloatArray
    direction: Direction
    removed: tuple[Removal, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """N names that say the layer too: 3:gqa_8+mlp_14336."""
        return tuple(f"{layer}:{block}" for layer, block in zip(self.layers.tolist(), self.blocks, strict=True))

    def halves(self) -> tuple[list[tuple[Part, str]], list[tuple[Part, str]]]:
        """The attention and the FFN sub-block of every choice, as cost tables name them."""
        split = {block: block.split("+") for block in dict.fromkeys(self.blocks)}
        attention: list[tuple[Part, str]] = [("attention", split[block][0]) for block in self.blocks]
        ffn: list[tuple[Part, str]] = [("ffn", split[block][1]) for block in self.blocks]
        return attention, ffn

    def only(self, keep: BoolArray, removed: Sequence[Removal]) -> Candidates:
        """Those that `keep` (N,) marks."""
        places = np.flatnonzero(keep)
        return Candidates(
            layers=self.layers[places],
            blocks=tuple(self.blocks[place] for place in places),
            scores=self.scores[places],
            direction=self.direction,
            removed=(*self.removed, *removed),
        )


def scored_candidates(scores: ScoreTable) -> Candidates:
    """Every scored block of every layer."""
    frame = scores.frame
    layers = frame["layer"].to_numpy(dtype=np.int64)
    order = np.argsort(layers, kind="stable")
    blocks = frame["block"].tolist()
    return Candidates(
        layers=layers[order],
        blocks=tuple(blocks[place] for place in order),
        scores=frame["score"].to_numpy(dtype=np.float64)[order],
        direction=scores.direction,
    )


def select_candidates(
    scores: ScoreTable,
    spec: ModelSpec,
    *,
    engine_rules: EngineRules | None = None,
    fixes: Sequence[LayerRule] = (),
    exclusions: Sequence[LayerRule] = (),
) -> Candidates:
    """What is left of the scored blocks.

    Args:
        fixes: in their layers only what matches stays.
        exclusions: what matches is left out.
        engine_rules: what the engine does not load is left out.

    Raises:
        ValueError: a rule names a layer that is not there, a rule matches nothing, or a layer is left with no choice;
            the message names the rule and the layer.
    """
    found = scored_candidates(scores)
    own = np.array([block_name(block) for block in scores.parent.blocks])
    keep = np.ones(len(found.blocks), dtype=bool)
    removed = []
    rules = [(True, rule) for rule in fixes] + [(False, rule) for rule in exclusions]
    for is_fix, rule in rules:
        covered, matched = _match(rule, found, own)
        if is_fix:
            _check_every_layer(rule, found.layers, covered & matched)
        elif not (covered & matched).any():
            raise ValueError(f"exclusion {rule.text!r} matches no scored block {_where(rule, len(own))}")
        out = covered & (~matched if is_fix else matched)
        kind = "fix" if is_fix else "exclusion"
        removed.append(Removal(reason=f"{kind} {rule.text}", count=int((keep & out).sum())))
        keep &= ~out
        left = np.bincount(found.layers[keep], minlength=len(own))
        if not left.all():
            raise ValueError(f"{kind} {rule.text!r} leaves layer {int(np.argmin(left))} without a choice")
    found = found.only(keep, removed)
    return found if engine_rules is None else _loadable(found, spec, engine_rules)


def _match(rule: LayerRule, found: Candidates, own: StrArray) -> tuple[BoolArray, BoolArray]:
    """Which choices stand in the rule's layers, and which match its block, both (N,)."""
    layers = rule.layers(len(own))
    covered = (found.layers >= layers.start) & (found.layers < layers.stop)
    names = np.array(found.blocks)
    if rule.block is None:
        return covered, names == own[found.layers]
    matching = [name for name in dict.fromkeys(found.blocks) if rule.block.matches(name)]
    return covered, np.isin(names, matching)


def _check_every_layer(rule: LayerRule, layers: IntArray, fixed: BoolArray) -> None:
    """Raise ValueError for the first of the rule's layers in which nothing matches."""
    num_layers = int(layers[-1]) + 1
    matches = np.bincount(layers[fixed], minlength=num_layers)
    for layer in rule.layers(num_layers):
        if not matches[layer]:
            raise ValueError(f"fix {rule.text!r} matches no scored block of layer {layer}")


def _where(rule: LayerRule, num_layers: int) -> str:
    layers = rule.layers(num_layers)
    return f"of layer {layers[0]}" if len(layers) == 1 else f"of layers {layers[0]} to {layers[-1]}"


def _loadable(found: Candidates, spec: ModelSpec, rules: EngineRules) -> Candidates:
    """The choices that an engine loads."""
    blocks = {name: parse_block(name) for name in dict.fromkeys(found.blocks)}
    keep = np.ones(len(found.blocks), dtype=bool)
    reasons: Counter[str] = Counter()
    first: dict[int, str] = {}
    for place, (layer, name) in enumerate(zip(found.layers.tolist(), found.blocks, strict=True)):
        refusal = rules.refusal(spec, layer, blocks[name])
        if refusal is not None:
            keep[place] = False
            first.setdefault(layer, refusal)
            reasons[refusal.replace(f" {name} ", " ", 1)] += 1  # one reason for all blocks
    left = np.bincount(found.layers[keep], minlength=spec.num_hidden_layers)
    if not left.all():
        layer = int(np.argmin(left))
        raise ValueError(f"layer {layer} is left without a choice: {first[layer]}")
    return found.only(keep, [Removal(reason=reason, count=count) for reason, count in reasons.items()])
