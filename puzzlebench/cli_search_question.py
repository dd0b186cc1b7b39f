"""What `search` and `pareto` are asked: their shared options, and what these say, loaded."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzlebench.cli_options import add_scheduler_options, scheduler_of, whole_numbers

if TYPE_CHECKING:
    from puzzlebench.model.spec import ModelSpec
    from puzzlebench.profiling.cost_table import CostTable
    from puzzlebench.scores import ScoreTable
    from puzzlebench.searching.costs import SearchCosts
    from puzzlebench.searching.scenarios import ResourceLimit, ServingScenario
    from puzzlebench.searching.search import Confidence
    from puzzlebench.searching.serving_costs import ServedSpace
    from puzzlebench.searching.serving_search import ServedOutcome

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
_USERS = tuple(2**power for power in range(10))
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
    served = parser.add_argument_group(
        "in-flight batching",
        "Limits are of requests as they are served: waiting counts, times are means, throughput is per GPU. The table "
        "says what is served where; its latencies are not used.",
    )
    served.add_argument("--serving", action="store_true", help="serve requests as they come, not in static batches")
    served.add_argument(
        "--concurrency",
        metavar="auto|N,N",
        help=f"users, each with one request at a time, all of them in flight; auto: {_USERS[0]} to {_USERS[-1]}",
    )
    served.add_argument(
        "--tp", type=whole_numbers, metavar="N,N", help="tensor-parallel GPUs to choose among; default: the table's"
    )
    add_scheduler_options(served)
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


class SearchQuestion:
    """What the shared options say, loaded; under in-flight batching for one degree of tensor parallelism.

    `costs` and `table` are then those at the parent's operating points, until `took` puts others in their place.
    """

    def __init__(self, arguments: argparse.Namespace, tensor_parallel: int | None = None) -> None:
        from puzzlebench.profiling.cost_table import open_cost_table
        from puzzlebench.searching.cells import spec_of

        self._arguments = arguments
        self.table = open_cost_table(arguments.costs)
        self.spec = spec_of(self.table)
        self.scores = _read_scores(arguments, self.table, self.spec)
        self.parent = self.scores.parent
        self.scenarios = _scenarios(arguments, self.table)
        self.limits, self.default_memory = _limits(arguments, self.table)
        self.confidence = _confidence(arguments)
        self.served: ServedSpace | None = None
        if tensor_parallel is None:
            self.costs: SearchCosts = self.load(self.table)
            self.batch_sizes = _batch_sizes(arguments.batch_size, self.costs)
        else:
            self._serve(tensor_parallel)

    def load(self, table: CostTable) -> SearchCosts:
        """A table's costs beside the scores."""
        from puzzlebench.model.engine_rules import load_engine_rules
        from puzzlebench.searching.costs import load_costs
        from puzzlebench.searching.layer_rules import parse_layer_rule

        arguments = self._arguments
        paged = {} if self.served is None else {"tokens_per_block": self.served.scheduler.tokens_per_block}
        return load_costs(
            table,
            self.scores,
            self.scenarios,
            limits=self.limits,
            engine_rules=load_engine_rules(arguments.engine_rules) if arguments.engine_rules else None,
            fixes=[parse_layer_rule(text) for text in arguments.fix],
            exclusions=[parse_layer_rule(text) for text in arguments.exclude],
            **paged,
        )

    def _serve(self, tensor_parallel: int) -> None:
        from puzzlebench.searching.serving_costs import ServedSpace, engine_of
        from puzzlebench.serving.workload import Lengths

        if len(self.scenarios) > 1:
            raise ValueError("--serving takes one --scenario; search for each by itself")
        scenario, prompt = self.scenarios[0], self.scenarios[0].prefill_len
        scheduler = scheduler_of(self._arguments, engine_of(self.table), Lengths(prompt, prompt))
        self.served = ServedSpace(self.table, scenario, tensor_parallel=tensor_parallel, scheduler=scheduler)
        own = _of_group(self.served.scenario.limits, tensor_parallel)
        self.scenarios = (replace(self.served.scenario, limits=own),)
        self.limits = _of_group(self.limits, tensor_parallel)
        self.batch_sizes = _users(self._arguments, self.served)

    def at_parent(self) -> None:
        """Take the costs at the parent's operating points."""
        assert self.served is not None
        self.table = self.served.table(self.served.points(self.parent, self.batch_sizes))
        self.costs = self.load(self.table)

    def took(self, found: ServedOutcome) -> None:
        """Take the costs of a finished search."""
        self.costs, self.table, self.batch_sizes = found.costs, found.table, found.settings.batch_sizes


def search_question_facts(arguments: argparse.Namespace, question: SearchQuestion) -> dict[str, Any]:
    """The head of every report: what was asked, of which tables."""
    from puzzlebench.searching.report import search_facts

    facts = search_facts(
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
    if question.served is None:
        return facts
    more = {"title": f"{facts['title']}, in-flight batching", "scheduler": asdict(question.served.scheduler)}
    return facts | more


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


def tensor_parallel_of(arguments: argparse.Namespace) -> tuple[int, ...]:
    """GPUs of the groups to choose among, ascending."""
    from puzzlebench.profiling.cost_table import open_cost_table

    if arguments.tp is None:
        return (int(open_cost_table(arguments.costs).frame["tensor_parallel"].iloc[0]),)
    return tuple(sorted(set(arguments.tp)))


def _users(arguments: argparse.Namespace, served: ServedSpace) -> tuple[int, ...]:
    if arguments.batch_size != "auto":
        raise ValueError("--batch-size is of static batches; with --serving give --concurrency")
    if arguments.concurrency in (None, "auto"):
        return tuple(users for users in _USERS if users <= served.most_users)
    try:
        users = tuple(int(part) for part in arguments.concurrency.split(","))
    except ValueError:
        users = ()
    if not users or min(users) < 1:
        raise ValueError(f"--concurrency is auto or whole numbers such as 16,64,128, not {arguments.concurrency!r}")
    return tuple(dict.fromkeys(users))


def _of_group(limits: tuple[ResourceLimit, ...], gpus: int) -> tuple[ResourceLimit, ...]:
    """Limits of throughput are given per GPU, and kept by the group."""

    def grown(limit: ResourceLimit) -> ResourceLimit:
        low, high = (None if end is None else gpus * end for end in (limit.low, limit.high))
        return replace(limit, low=low, high=high)

    return tuple(grown(limit) if limit.resource == "throughput" else limit for limit in limits)


def refuse_serving(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options that say nothing about static batches."""
    for name in ("concurrency", "tp", "chunked_prefill", "max_num_tokens", "max_batch_size"):
        if getattr(arguments, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')} needs --serving")


def _confidence(arguments: argparse.Namespace) -> Confidence | None:
    from puzzlebench.searching.search import Confidence
    from puzzlebench_search.robust import normal_quantile

    if arguments.confidence is None:
        if arguments.errors is not None:
            raise ValueError("--errors needs --confidence, such as 0.95")
        return None
    normal_quantile(arguments.confidence)
    return Confidence(level=arguments.confidence, errors_are=arguments.errors or "correlated")
