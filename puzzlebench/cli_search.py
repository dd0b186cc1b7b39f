"""The commands that choose architectures: `search` and `pareto`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzlebench.cli_options import INFEASIBLE
from puzzlebench.progress import progress

if TYPE_CHECKING:
    from puzzlebench.model.spec import ModelSpec
    from puzzlebench.profiling.cost_table import CostTable
    from puzzlebench.scores import ScoreTable
    from puzzlebench.searching.costs import SearchCosts
    from puzzlebench.searching.pareto import Front
    from puzzlebench.searching.recheck import Recheck
    from puzzlebench.searching.scenarios import ResourceLimit, ServingScenario
    from puzzlebench.searching.search import Confidence

_LIMITED = ("memory", "params", "throughput", "latency", "ttft", "tpot")
_EXAMPLES = {
    "memory": "80GiB",
    "params": "40B",
    "throughput": "6000",
    "latency": "20s",
    "ttft": "900ms",
    "tpot": "25ms",
}
_USABLE_MEMORY = 0.9
_TIME_LIMIT = 60.0


def add_search_options(parser: argparse.ArgumentParser) -> None:
    """What `search` and `pareto` share: tables, scenarios, limits and candidates."""
    given = parser.add_argument_group("what is known")
    given.add_argument(
        "--costs", required=True, metavar="TABLE", help="a file that `profile` wrote, or a shipped table"
    )
    given.add_argument(
        "--scores",
        required=True,
        metavar="FILE",
        help="a score table (.parquet or .csv), or params: parameters removed, which knows nothing of quality",
    )
    given.add_argument(
        "--score-metric", metavar="NAME", help="what the scores of a .csv are: kl, lm_loss, accuracy, ..."
    )
    given.add_argument("--score-direction", choices=("minimise", "maximise"), help="which scores of a .csv are good")
    given.add_argument("--partial-scores", action="store_true", help="a .csv may lack pairs of the sub-blocks it names")
    wanted = parser.add_argument_group("what is wanted")
    wanted.add_argument(
        "--scenario",
        action="append",
        metavar="[NAME:]PROMPT+GENERATED[,max-ttft=900ms,...]",
        help="tokens of a prompt and of its answer, and limits of this scenario alone; several must all hold; "
        "default: the table's middle prompt length and a quarter of it",
    )
    for resource in _LIMITED:
        for side in ("max", "min"):
            wanted.add_argument(f"--{side}-{resource}", metavar="X", help=_limit_help(side, resource))
    wanted.add_argument("--batch-size", default="auto", metavar="auto|N,N", help="to choose among; auto: the table's")
    wanted.add_argument(
        "--confidence", type=float, metavar="P", help="hold each limit with this probability, such as 0.95"
    )
    wanted.add_argument(
        "--errors",
        choices=("correlated", "independent"),
        help="with --confidence: whether the cost table's errors are the same in all layers (correlated, the default) "
        "or each layer's own",
    )
    allowed = parser.add_argument_group("what may be chosen")
    allowed.add_argument(
        "--engine-rules", metavar="NAME", help="only what this engine loads: vllm, trtllm, sglang, ..."
    )
    allowed.add_argument(
        "--fix", action="append", default=[], metavar="LAYERS=BLOCK", help='such as "0-3=parent" or "5=gqa_8+*"; repeat'
    )
    allowed.add_argument(
        "--exclude", action="append", default=[], metavar="LAYERS=BLOCK", help='such as "*=*+linear"; repeat'
    )
    how = parser.add_argument_group("how")
    how.add_argument(
        "--solver",
        default="auto",
        choices=("auto", "highs", "cbc"),
        help="what settles the reduced problem; auto: an exhaustive walk, HiGHS where that grows too large",
    )
    how.add_argument(
        "--time-limit",
        type=float,
        default=_TIME_LIMIT,
        metavar="SECONDS",
        help="per solution; then the best so far and its gap are printed (%(default)s)",
    )


def _limit_help(side: str, resource: str) -> str:
    text = f"such as {_EXAMPLES[resource]}"
    if (side, resource) == ("max", "memory"):
        return f"{text}, per GPU; default: {_USABLE_MEMORY:.0%} of the GPU's".replace("%", "%%") + "; none lifts it"
    meaning = {
        "throughput": "generated tokens per second of the whole batch",
        "latency": "from the prompts to the last token",
        "ttft": "to the first token, the whole batch prefilled together",
        "tpot": "per token after the first",
    }
    return (
        f"{text}; {meaning[resource]}"
        if side == ("min" if resource == "throughput" else "max") and (resource in meaning)
        else text
    )


def add_search(parser: argparse.ArgumentParser) -> None:
    """Options of `search`."""
    add_search_options(parser)
    more = parser.add_argument_group("more than one answer")
    more.add_argument("--diverse", type=int, default=1, metavar="K", help="how many solutions (%(default)s)")
    more.add_argument("--alpha", type=float, default=0.8, help="part of the layers two of them may share (%(default)s)")
    more.add_argument("--compare", action="store_true", help="also run the baselines: greedy, random, max-params, ...")
    more.add_argument(
        "--scorer",
        metavar="MODULE:FUNCTION",
        help="scores a whole Architecture; the solutions are re-scored with it and improved by local search",
    )
    more.add_argument("--evaluations", type=int, default=100, help="how often the scorer is called (%(default)s)")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="write search.json and an architecture JSON per solution"
    )


def add_pareto(parser: argparse.ArgumentParser) -> None:
    """Options of `pareto`."""
    add_search_options(parser)
    parser.add_argument(
        "--x", default="throughput", metavar="WHAT", help="score, memory, params, ttft, ... (%(default)s)"
    )
    parser.add_argument("--y", default="score", metavar="WHAT", help="the same (%(default)s)")
    parser.add_argument("--points", type=int, default=20, help="budgets of x (%(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw it (.png or .svg)")
    parser.add_argument("--csv", type=Path, metavar="FILE.csv", help="write the points")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the points with their architectures")


class _Question:
    """What the shared options say, loaded."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from puzzlebench.model.engine_rules import load_engine_rules
        from puzzlebench.profiling.cost_table import open_cost_table
        from puzzlebench.searching.cells import spec_of
        from puzzlebench.searching.costs import load_costs
        from puzzlebench.searching.layer_rules import parse_layer_rule

        self.table = open_cost_table(arguments.costs)
        self.spec = spec_of(self.table)
        self.scores = _read_scores(arguments, self.table, self.spec)
        self.parent = self.scores.parent
        self.scenarios = _scenarios(arguments, self.table)
        self.limits, self.default_memory = _limits(arguments, self.table)
        self.costs: SearchCosts = load_costs(
            self.table,
            self.scores,
            self.scenarios,
            limits=self.limits,
            engine_rules=load_engine_rules(arguments.engine_rules) if arguments.engine_rules else None,
            fixes=[parse_layer_rule(text) for text in arguments.fix],
            exclusions=[parse_layer_rule(text) for text in arguments.exclude],
        )
        self.batch_sizes = _batch_sizes(arguments.batch_size, self.costs)
        self.confidence = _confidence(arguments)


def search_command(arguments: argparse.Namespace) -> int:
    """Find the best architectures and print them; `INFEASIBLE` when there are none."""
    from puzzlebench.render import print_json
    from puzzlebench.render_search import print_search, print_why_not
    from puzzlebench.searching.compare import compare
    from puzzlebench.searching.refining import load_scorer, refine_architectures
    from puzzlebench.searching.report import search_json, why_not_json, write_search
    from puzzlebench.searching.search import SearchSettings, search_architectures
    from puzzlebench.searching.why_not import why_not

    scorer = load_scorer(arguments.scorer) if arguments.scorer else None
    if arguments.evaluations < 1:
        raise ValueError(f"the number of evaluations must be at least 1, not {arguments.evaluations}")
    _check_folder(arguments.out)
    question = _Question(arguments)
    settings = SearchSettings(
        batch_sizes=question.batch_sizes,
        diverse=arguments.diverse,
        alpha=arguments.alpha,
        method=arguments.solver,
        time_limit=arguments.time_limit,
        confidence=question.confidence,
    )
    with progress() as report:
        outcome = search_architectures(question.costs, question.table, question.scores, settings, report=report)
    facts = _facts(arguments, question) | {"settings": asdict(settings)}
    if not outcome.found:
        if not outcome.proven:
            raise ValueError(
                f"the time limit of {settings.time_limit:g} s passed before any architecture was found, and there may "
                "be none; give more with --time-limit, or looser limits"
            )
        with progress() as report:
            found = why_not(question.costs, settings, report=report)
        answer = why_not_json(facts, found)
        if arguments.out:
            write_search(arguments.out, answer, [])
        if arguments.json:
            print_json(answer)
            return INFEASIBLE
        print_why_not(facts, found)
        if arguments.out:
            print(f"wrote {arguments.out}/search.json")
        return INFEASIBLE
    compared = compare(question.costs, question.parent, settings, outcome.found[0]) if arguments.compare else ()
    refined = None
    if scorer is not None:
        with progress() as report:
            refined = refine_architectures(
                question.costs,
                question.table,
                settings,
                outcome.found,
                scorer,
                evaluations=arguments.evaluations,
                report=report,
            )
    parent = _parent(question, outcome.found[0].batch_size)
    answer = search_json(facts, outcome, compared, refined, parent)
    if arguments.out:
        architectures = [one.architecture for one in outcome.found]
        write_search(arguments.out, answer, architectures, refined.architecture if refined else None)
    if arguments.json:
        print_json(answer)
        return 0
    print_search(facts, outcome, compared, refined, parent)
    if arguments.out:
        print(f"wrote {arguments.out}: search.json, architecture.json" + (", ..." if len(outcome.found) > 1 else ""))
    return 0


def _parent(question: _Question, batch_size: int) -> Recheck | None:
    """What the parent takes; None where the table lacks a cell for it, which only matters if it may be chosen."""
    from puzzlebench.searching.search import count_again

    try:
        return count_again(question.costs, question.table, question.parent, batch_size)
    except ValueError:
        return None


def pareto_command(arguments: argparse.Namespace) -> int:
    """Trace a front, print it and write what is asked for."""
    from puzzlebench.files import check_file, write_text
    from puzzlebench.render import print_json
    from puzzlebench.render_search import print_front
    from puzzlebench.searching.pareto import front_csv, front_json, pareto
    from puzzlebench.searching.plot import check_plot, plot_front
    from puzzlebench.searching.search import errors_of, parent_score
    from puzzlebench_search.robust import with_margin

    if arguments.plot:
        check_plot(arguments.plot)
    for path in (arguments.csv, arguments.out):
        if path is not None:
            check_file(path)
    question = _Question(arguments)
    confidence = question.confidence
    if confidence is not None and confidence.errors_are != "correlated":
        raise ValueError("a front takes errors as correlated; leave out --errors independent")
    with progress() as report:
        front = pareto(
            question.costs,
            question.batch_sizes,
            arguments.x,
            arguments.y,
            points=arguments.points,
            method=arguments.solver,
            time_limit=arguments.time_limit,
            margin=None
            if confidence is None
            else lambda case: with_margin(case.problem, errors_of(case), confidence.level),
            table=question.table,
            report=report,
        )
    facts = _facts(arguments, question)
    answer = facts | front_json(front)
    if arguments.csv:
        write_text(arguments.csv, front_csv(front))
    if arguments.out:
        write_text(arguments.out, json.dumps(answer, indent=1))
    if arguments.plot:
        batch_size = _batch_of_best(front)
        taken = _parent(question, batch_size)
        own = {"score": parent_score(question.scores), "batch_size": float(batch_size)}
        plot_front(front, arguments.plot, title=facts["title"], parent=None if taken is None else taken.values | own)
    if arguments.json:
        print_json(answer)
        return 0
    print_front(facts, front)
    return 0


def _batch_of_best(front: Front) -> int:
    """The batch size of the best point by y, which is the nearest to the parent."""
    return (min if front.y_better == "low" else max)(front.points, key=lambda point: point.y).batch_size


def _read_scores(arguments: argparse.Namespace, table: CostTable, spec: ModelSpec) -> ScoreTable:
    from puzzlebench.model.spec import parent_architecture
    from puzzlebench.scores import parameter_scores, read_score_table
    from puzzlebench.searching.costed_space import costed_space

    parent = parent_architecture(spec)
    if arguments.scores == "params":
        if arguments.score_metric or arguments.score_direction:
            raise ValueError("--scores params says itself what it is; leave out --score-metric and --score-direction")
        return parameter_scores(spec, costed_space(table, parent), parent)
    path = Path(arguments.scores)
    csv = path.suffix.lower() == ".csv"
    if arguments.partial_scores and not csv:
        raise ValueError("--partial-scores is for a .csv; a score table says itself whether it is partial")
    return read_score_table(
        path,
        metric=arguments.score_metric,
        direction=arguments.score_direction,
        parent=parent if csv else None,
        partial=arguments.partial_scores,
    )


def _scenarios(arguments: argparse.Namespace, table: CostTable) -> tuple[ServingScenario, ...]:
    from puzzlebench.searching.scenarios import parse_scenario

    if arguments.scenario:
        return tuple(parse_scenario(text) for text in arguments.scenario)
    prompts = sorted(table.frame.loc[table.frame["phase"] == "prefill", "context_len"].unique().tolist())
    middle = int(prompts[len(prompts) // 2])
    return (parse_scenario(f"{middle}+{max(1, middle // 4)}"),)


def _limits(arguments: argparse.Namespace, table: CostTable) -> tuple[tuple[ResourceLimit, ...], bool]:
    """The limits asked for, and whether the one of memory is our own."""
    from puzzlebench.searching.costs import device_memory_limit
    from puzzlebench.searching.scenarios import join_limits, parse_limit

    given = []
    for resource in _LIMITED:
        for side in ("max", "min"):
            text = getattr(arguments, f"{side}_{resource}")
            if text is not None and not (resource == "memory" and side == "max" and text == "none"):
                given.append(parse_limit(f"{side}-{resource}", text))
    ours = device_memory_limit(table, _USABLE_MEMORY) if arguments.max_memory is None else None
    return join_limits([*given, *([ours] if ours else [])]), ours is not None


def _batch_sizes(text: str, costs: SearchCosts) -> tuple[int, ...]:
    if text == "auto":
        return costs.batch_sizes
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--batch-size is auto or whole numbers such as 1,8,64, not {text!r}") from None
    for size in sizes:
        if size not in costs.batch_sizes:
            known = ", ".join(map(str, costs.batch_sizes))
            raise ValueError(f"the cost table has no batch size {size}; it has {known}")
    return tuple(dict.fromkeys(sizes))


def _confidence(arguments: argparse.Namespace) -> Confidence | None:
    from puzzlebench.searching.search import Confidence
    from puzzlebench_search.robust import normal_quantile

    if arguments.confidence is None:
        if arguments.errors is not None:
            raise ValueError("--errors needs --confidence, such as 0.95")
        return None
    normal_quantile(arguments.confidence)
    return Confidence(level=arguments.confidence, errors_are=arguments.errors or "correlated")


def _check_folder(path: Path | None) -> None:
    """Refuse before the work what cannot be written after it."""
    if path is None:
        return
    why = None
    if path.exists() and not path.is_dir():
        why = "it is a file"
    elif not path.parent.is_dir():
        why = "the folder it would be in does not exist"
    elif not os.access(path if path.exists() else path.parent, os.W_OK | os.X_OK):
        why = "permission denied"
    if why:
        raise ValueError(f"cannot write to {path}: {why}")


def _facts(arguments: argparse.Namespace, question: _Question) -> dict[str, Any]:
    from puzzlebench.searching.report import search_facts

    return search_facts(
        question.costs,
        question.table,
        question.scores,
        question.scenarios,
        question.limits,
        memory_is_default=question.default_memory,
        engine_rules=arguments.engine_rules,
        rules=[f"fix {text}" for text in arguments.fix] + [f"exclude {text}" for text in arguments.exclude],
        confidence=question.confidence,
        costs_from=arguments.costs,
        scores_from=arguments.scores,
    )
