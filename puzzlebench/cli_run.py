"""The command that runs the whole loop: `run`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzlebench.progress import progress

if TYPE_CHECKING:
    from puzzlebench.pipeline.driver import Planned
    from puzzlebench.pipeline.recipe import RunRecipe


def add_run(parser: argparse.ArgumentParser) -> None:
    """Options of `run`."""
    parser.add_argument(
        "recipe", nargs="?", type=Path, metavar="RECIPE.yaml", help="default: the embedded demonstration on this device"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("puzzlebench-run"), metavar="DIR", help="the run's folder (%(default)s)"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="in place of the recipe's, such as search.speed_up=1.5; repeat",
    )
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and why")
    parser.add_argument("--print-recipe", action="store_true", help="print the whole recipe as YAML, to edit")


def run_command(arguments: argparse.Namespace) -> int:
    """Run a recipe; 3 when no architecture keeps the limits."""
    from puzzlebench.cli_options import INFEASIBLE, require_models
    from puzzlebench.render import print_json

    require_models()
    from puzzlebench.pipeline.driver import plan_run, run_stages
    from puzzlebench.pipeline.recipe import read_recipe, recipe_yaml
    from puzzlebench.pipeline.search_stage import InfeasibleError

    recipe = read_recipe(arguments.recipe, arguments.overrides)
    if arguments.print_recipe:
        print(recipe_yaml(recipe), end="")
        return 0
    if arguments.dry_run:
        planned = plan_run(recipe, arguments.out, until=arguments.until)
        if arguments.json:
            print_json([asdict(one) for one in planned])
        else:
            _print_plan(recipe, planned, arguments.out)
        return 0
    try:
        with progress() as report:
            records = run_stages(recipe, arguments.out, until=arguments.until, report=report)
    except InfeasibleError as error:
        print(f"puzzlebench: {error}", file=sys.stderr)
        return INFEASIBLE
    facts = summary(arguments.out, [name for name, record in records.items() if record.output is not None])
    if arguments.json:
        print_json(facts | {"stages": [asdict(record) for record in records.values()]})
        return 0
    _print_summary(facts, arguments.out)
    return 0


def summary(folder: Path, done: Collection[str]) -> dict[str, Any]:
    """The headline figures of a run, of the stages that are done."""
    from puzzlebench.pipeline.run_folder import RunFolder

    run = RunFolder(path=folder)
    found: dict[str, Any] = {"path": str(folder)}
    for name, stage, file in (
        ("solution", "distil", run.distilled / "puzzle_solution.json"),
        ("speed", "speed", run.speed / "speed.json"),
        ("before", "evaluate", run.evaluation / "realised" / "retention.json"),
        ("after", "evaluate", run.evaluation / "distilled" / "retention.json"),
    ):
        found[name] = json.loads(file.read_text()) if stage in done and file.exists() else None
    return found | {"report": str(run.report / "report.html") if "report" in done else None}


def _print_plan(recipe: RunRecipe, planned: list[Planned], folder: Path) -> None:
    served = recipe.scenario
    print(
        f"{recipe.parent} in {folder}: batch {served.batch_size}, {served.prefill_len} prompt and {served.decode_len} "
        f"generated tokens, costs of {recipe.profile.costs or recipe.profile.gpu}"
    )
    for one in planned:
        what = ", ".join(one.outputs)
        print(f"  {one.name:9} {one.status:10} {one.why or what}")


def _print_summary(facts: dict[str, Any], folder: Path) -> None:
    from puzzlebench.render_speed import changed_machine

    if solution := facts["solution"]:
        share = solution["parameters"] / solution["parent_parameters"]
        print(f"{folder}/distilled: {solution['parameters']:,} parameters, {share:.1%} of {solution['parent']}'s")
    if speed := facts["speed"]:
        child, predicted = speed["speed_ups"][0], (speed["predicted_speed_ups"] or [None])[0]
        for phase in ("prefill", "decode", "generate"):
            measured = child[phase]
            line = f"{phase:8} {measured['value']:.2f} x as fast, measured"
            line += f" ({measured['low']:.2f} to {measured['high']:.2f})"
            if predicted:
                line += f"; predicted {predicted[phase]:.2f}, off by {predicted['error'][phase]:+.1%}"
            print(line)
        if changed := changed_machine(speed):
            print(changed)
    for when in ("before", "after"):
        if kept := facts[when]:
            overall = kept["overall"]
            tasks = ", ".join(f"{one['task']} {_percent(one['retention'])}" for one in kept["tasks"])
            print(
                f"retention {when} global distillation {_percent(overall['retention'])} "
                f"({_percent(overall['low'])} to {_percent(overall['high'])}): {tasks}"
            )
    if facts["report"]:
        print(f"report: {facts['report']}")


def _percent(value: float | None) -> str:
    """Where the parent scores nothing, or documents are too few, there is none."""
    return "unknown" if value is None else f"{value:.1%}"
