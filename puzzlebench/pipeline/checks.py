"""What can be known to be wrong before the first stage runs: hours of work should not end at a misspelt task."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from puzzlebench.evaluation.bundled import BUNDLED, GROUP
from puzzlebench.harness import NEEDS_HARNESS, find_tasks
from puzzlebench.model.catalog import load_model
from puzzlebench.model.engine_rules import load_engine_rules
from puzzlebench.pipeline.recipe import RunRecipe
from puzzlebench.profiling.cost_table import open_cost_table
from puzzlebench.profiling.sources import open_kernels
from puzzlebench.searching.scenarios import parse_limit
from puzzlebench.speed.loading import TORCH_FAMILIES

_T = TypeVar("_T")


def check_recipe(recipe: RunRecipe, *, tasks: bool) -> None:
    """Look up everything that a recipe names.

    Args:
        tasks: those of evaluation too; the harness needs some time to know its own.

    Raises:
        ValueError: something is not there; the message begins with its key.
    """
    for key, path in (
        ("data", recipe.data),
        ("validation_data", recipe.validation_data),
        ("evaluate.include_path", recipe.evaluate.include_path),
    ):
        if path is not None and not path.exists():
            raise ValueError(f"{key}: {path}: no such file or folder")
    spec, _ = _of("parent", partial(load_model, recipe.parent))
    for key, length in (
        ("scenario", recipe.scenario.prefill_len + recipe.scenario.decode_len),
        ("library.length", recipe.library.length),
        ("score.length", recipe.score.length),
        *((f"distil.stages.{place}.length", stage.length) for place, stage in enumerate(recipe.distil.stages)),
    ):
        if length > spec.max_position_embeddings:
            raise ValueError(f"{key}: {length} tokens, and {spec.name} has {spec.max_position_embeddings} positions")
    for name, text in recipe.search.limits.items():
        _of("search.limits", partial(parse_limit, name, text))
    if (rules := recipe.search.engine_rules) is not None:
        _of("search.engine_rules", lambda: load_engine_rules(rules))
    profile = recipe.profile
    if profile.costs is not None:
        _of("profile.costs", lambda: open_cost_table(str(profile.costs)))
    elif profile.is_here:
        from puzzlebench.measuring.device import local_device
        from puzzlebench.measuring.engines import check_engine_name

        _of("profile.gpu", lambda: local_device(profile.gpu))
        _of("profile.engine", lambda: check_engine_name(profile.engine or "torch"))
        if recipe.speed.engine == "torch" and spec.model_type not in TORCH_FAMILIES:
            known = ", ".join(TORCH_FAMILIES)
            raise ValueError(f"speed.engine: torch runs {known}, not {spec.model_type}; set speed.engine=transformers")
    else:
        _of("profile.gpu", lambda: open_kernels(profile.gpu, profile.engine or "trtllm", None))
    named = tuple(task for task in recipe.evaluate.tasks if task not in (GROUP, *BUNDLED))
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError(NEEDS_HARNESS)
    if named and tasks:
        include = recipe.evaluate.include_path
        _of("evaluate.tasks", lambda: find_tasks(named, () if include is None else (include,)))


def _of(key: str, look: Callable[[], _T]) -> _T:
    try:
        return look()
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
