"""Which files of a run folder are not of the run that run.json states: left by an earlier recipe, or not finished.

Goes by the names of finished stages. It does not compare contents: whether a finished stage is up to date, `puzzlebench
run` decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

SEARCH: Final = "search/search.json"
FRONT: Final = "search/front.json"
COSTS: Final = "costs.parquet"
DISTILLATION: Final = "distilled/distillation.json"
REALISED: Final = "evaluation/realised/retention.json"
DISTILLED: Final = "evaluation/distilled/retention.json"
SPEED: Final = "speed/speed.json"

_STAGES: Final[Mapping[str, str]] = {
    COSTS: "profile",
    "scores/*.parquet": "score",
    SEARCH: "search",
    FRONT: "search",
    DISTILLATION: "distil",
    REALISED: "evaluate",
    DISTILLED: "evaluate",
    SPEED: "speed",
}
"""Files by pattern, and the stage that writes them."""


def passed_over(folder: Path, run: Mapping[str, Any] | None) -> dict[str, str]:
    """Files that are there and not to be shown, by their path in the folder, and why; none without a run.json."""
    if run is None:
        return {}
    finished = {stage["name"] for stage in run["stages"]}
    before = (run["recipe"].get("evaluate") or {}).get("before", True)
    found: dict[str, str] = {}
    for pattern, stage in _STAGES.items():
        if stage not in finished:
            why = f"run.json has no finished stage {stage}, so it is of an earlier or interrupted run"
        elif pattern == REALISED and not before:
            why = "the recipe asks for no evaluation before distillation, so it is of an earlier run"
        else:
            continue
        found |= {path.relative_to(folder).as_posix(): why for path in sorted(folder.glob(pattern))}
    return found
