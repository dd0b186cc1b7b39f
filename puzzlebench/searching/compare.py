"""The paper's baselines under the same limits and at the same batch size as what the search found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from puzzlebench.model.blocks import Architecture, Block, NoOp, block_name, parse_block
from puzzlebench.model.parameters import sub_block_parameters
from puzzlebench.model.spec import ModelSpec
from puzzlebench.searching.costs import SearchCosts
from puzzlebench.searching.search import Found, SearchSettings, problem_around
from puzzlebench_search.baselines import BASELINES, ChoiceFacts, Settings, run_baseline
from puzzlebench_search.problem import Problem

_SECONDS = 5.0
"""For each baseline that is an exact search: the most parameters, of which many architectures have nearly as many, may
take for ever to prove."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One way of searching.

    Attributes:
        objective: the sum of scores; None where it found nothing within the limits.
        worse_by: than the search, in the direction of the scores; None without an objective.
    """

    name: str
    objective: float | None
    worse_by: float | None
    note: str
    seconds: float


def compare(
    costs: SearchCosts,
    parent: Architecture,
    settings: SearchSettings,
    found: Found,
    *,
    samples: int = 100,
    seed: int = 0,
) -> tuple[Compared, ...]:
    """Run every baseline on the case that the search's best is in (`problem_around`): the same batch size, limits with
    their margins, and workspace.
    """
    problem = problem_around(costs, found, settings.confidence)
    facts = choice_facts(problem, costs.spec, parent)
    run = Settings(samples=samples, seed=seed, time_limit=min(settings.time_limit or _SECONDS, _SECONDS))
    compared = []
    for name in BASELINES:
        one = run_baseline(name, problem, facts, run)
        value = None if one.solution is None else one.solution.objective
        worse_by = None if value is None else problem.sign * (value - found.objective)
        compared.append(Compared(name=name, objective=value, worse_by=worse_by, note=one.note, seconds=one.seconds))
    return tuple(compared)


def choice_facts(problem: Problem, spec: ModelSpec, parent: Architecture) -> ChoiceFacts:
    """What the choices of a problem are to the parent."""
    kinds = tuple(name.partition(":")[2] for name in problem.names)
    blocks = {kind: parse_block(kind) for kind in dict.fromkeys(kinds)}
    sizes = {
        kind: float(sub_block_parameters(spec, block.attention) + sub_block_parameters(spec, block.ffn))
        for kind, block in blocks.items()
    }
    own = [parent.blocks[layer] for layer in problem.layers.tolist()]
    return ChoiceFacts(
        parent=np.array([kind == block_name(block) for kind, block in zip(kinds, own, strict=True)]),
        no_op_or_parent=np.array(
            [_kept_or_dropped(blocks[kind], block) for kind, block in zip(kinds, own, strict=True)]
        ),
        dropped=np.array([blocks[kind] == Block(attention=NoOp(), ffn=NoOp()) for kind in kinds]),
        kind=kinds,
        params=np.array([sizes[kind] for kind in kinds]),
    )


def _kept_or_dropped(block: Block, own: Block) -> bool:
    return block.attention in (own.attention, NoOp()) and block.ffn in (own.ffn, NoOp())
