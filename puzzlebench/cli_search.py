"""The commands that choose architectures: `search` and `pareto`."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from puzzlebench.cli_options import INFEASIBLE
from puzzlebench.cli_search_question import (
    SearchQuestion,
    add_search_options,
    refuse_serving,
    search_question_facts,
    tensor_parallel_of,
)
from puzzlebench.progress import progress

if TYPE_CHECKING:
    from puzzlebench.searching.pareto import Front
    from puzzlebench.searching.recheck import Recheck
    from puzzlebench.searching.search import SearchOutcome, SearchSettings
    from puzzlebench.searching.serving_search import ServedCheck, ServedOutcome


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


def _settings(arguments: argparse.Namespace, question: SearchQuestion) -> SearchSettings:
    from puzzlebench.searching.search import SearchSettings

    return SearchSettings(
        batch_sizes=question.batch_sizes,
        diverse=arguments.diverse,
        alpha=arguments.alpha,
        method=arguments.solver,
        time_limit=arguments.time_limit,
        confidence=question.confidence,
    )


def _solve(arguments: argparse.Namespace) -> tuple[SearchQuestion, SearchSettings, SearchOutcome, list[ServedOutcome]]:
    """The answer, and under in-flight batching one for each degree of tensor parallelism, the best of them first."""
    from puzzlebench.searching.search import search_architectures
    from puzzlebench.searching.serving_search import search_served

    if not arguments.serving:
        refuse_serving(arguments)
        question = SearchQuestion(arguments)
        settings = _settings(arguments, question)
        with progress() as report:
            outcome = search_architectures(question.costs, question.table, question.scores, settings, report=report)
        return question, settings, outcome, []
    tried = []
    for gpus in tensor_parallel_of(arguments):
        question = SearchQuestion(arguments, gpus)
        assert question.served is not None
        with progress() as report:
            found = search_served(
                question.served, question.load, question.scores, _settings(arguments, question), report=report
            )
        question.took(found)
        tried.append((question, found))

    sign = 1.0 if tried[0][0].scores.direction == "minimise" else -1.0
    tried.sort(key=lambda one: served_loss(one[1], sign))
    question, best = tried[0]
    return question, best.settings, best.outcome, [found for _, found in tried]


def served_loss(found: ServedOutcome, sign: float) -> tuple[bool, bool, float]:
    """Orders the degrees of tensor parallelism, the best first: answers that keep their limits, then by score.

    Without an answer the most GPUs come first: they are the nearest to one.

    Args:
        sign: 1 where a low objective is good, else -1.
    """
    best = found.outcome.found
    return (not best, not found.keeps, sign * best[0].objective if best else -found.tensor_parallel)


def search_command(arguments: argparse.Namespace) -> int:
    """Find the best architectures and print them.

    `INFEASIBLE` when there are none, and when the best, served by itself, does not keep the limits.
    """
    from puzzlebench.render import print_json
    from puzzlebench.render_search import print_search, print_why_not
    from puzzlebench.render_serving import print_served_search, served_search_json
    from puzzlebench.searching.compare import compare
    from puzzlebench.searching.refining import load_scorer, refine_architectures
    from puzzlebench.searching.report import search_json, why_not_json, write_search
    from puzzlebench.searching.why_not import why_not

    scorer = load_scorer(arguments.scorer) if arguments.scorer else None
    if arguments.evaluations < 1:
        raise ValueError(f"the number of evaluations must be at least 1, not {arguments.evaluations}")
    _check_folder(arguments.out)
    question, settings, outcome, served = _solve(arguments)
    facts = search_question_facts(arguments, question) | {"settings": asdict(settings)}
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
    checks = _serve_alone(question, outcome) if served else None
    if checks:
        answer["serving"] = served_search_json(served, *checks)
    code = INFEASIBLE if checks and not (served[0].keeps and checks[0].keeps) else 0
    if arguments.out:
        architectures = [one.architecture for one in outcome.found]
        write_search(arguments.out, answer, architectures, refined.architecture if refined else None)
    if arguments.json:
        print_json(answer)
        return code
    print_search(facts, outcome, compared, refined, parent)
    if checks:
        print_served_search(served, *checks)
    if arguments.out:
        print(f"wrote {arguments.out}: search.json, architecture.json" + (", ..." if len(outcome.found) > 1 else ""))
    return code


def _serve_alone(question: SearchQuestion, outcome: SearchOutcome) -> tuple[ServedCheck, ServedCheck]:
    """The best and the parent, each in its own steady state with as many users."""
    from puzzlebench.searching.serving_search import check_served

    assert question.served is not None
    best = outcome.found[0]
    own, parent = (
        check_served(question.served, question.costs, architecture, best.batch_size)
        for architecture in (best.architecture, question.parent)
    )
    return own, parent


def _parent(question: SearchQuestion, batch_size: int) -> Recheck | None:
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
    question = _front_question(arguments)
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
    facts = search_question_facts(arguments, question)
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


def _front_question(arguments: argparse.Namespace) -> SearchQuestion:
    if not arguments.serving:
        refuse_serving(arguments)
        return SearchQuestion(arguments)
    degrees = tensor_parallel_of(arguments)
    if len(degrees) > 1:
        raise ValueError("a front is of one degree of tensor parallelism; give one with --tp")
    question = SearchQuestion(arguments, degrees[0])
    question.at_parent()
    return question


def _batch_of_best(front: Front) -> int:
    """The batch size of the best point by y, which is the nearest to the parent."""
    return (min if front.y_better == "low" else max)(front.points, key=lambda point: point.y).batch_size


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
