"""`estimate --serving`: a model under in-flight batching."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from puzzlebench.cli_options import INFEASIBLE, add_scheduler_options, lengths_of, scheduler_of

if TYPE_CHECKING:
    from puzzlebench.model.blocks import Architecture
    from puzzlebench.model.spec import ModelSpec
    from puzzlebench.profiling.timings import KernelTimings
    from puzzlebench.scenario import Precision
    from puzzlebench.serving.estimating import ServingEstimate
    from puzzlebench.serving.served_model import ServedModel
    from puzzlebench.serving.workload import Lengths, Workload
    from puzzlebench_profiles.datasheets import Datasheet

    Model = tuple[ModelSpec, Architecture]

_OPTIONS = (
    "concurrency",
    "request_rate",
    "max_ttft",
    "max_tpot",
    "chunked_prefill",
    "max_num_tokens",
    "max_batch_size",
    "check",
)


def add_serving_options(parser: argparse.ArgumentParser) -> None:
    """Options of `estimate --serving`."""
    serving = parser.add_argument_group(
        "in-flight batching", "Without users and a rate: all numbers of users, and the best of them within the limits."
    )
    serving.add_argument("--serving", action="store_true", help="serve requests as they come, not one static batch")
    load = serving.add_mutually_exclusive_group()
    load.add_argument("--concurrency", type=int, metavar="N", help="users, each with one request at a time")
    load.add_argument("--request-rate", type=float, metavar="R", help="requests per second, at random times")
    serving.add_argument("--max-ttft", metavar="MS", help="most time to first token: 900, 900ms or 0.9s")
    serving.add_argument("--max-tpot", metavar="MS", help="most time per output token: 25, 25ms")
    add_scheduler_options(serving)
    serving.add_argument("--check", action="store_true", help="also simulate it request by request")


def refuse_serving_options(arguments: argparse.Namespace) -> None:
    """Raise ValueError for options that say nothing about a static batch."""
    for name in _OPTIONS:
        given = getattr(arguments, name) is not None if name != "check" else arguments.check
        if given:
            raise ValueError(f"--{name.replace('_', '-')} needs --serving")


def serving_command(
    arguments: argparse.Namespace,
    model: Model,
    parent: Model | None,
    gpu: Datasheet,
    kernels: KernelTimings,
    precision: Precision,
) -> int:
    """Print a steady state or a sweep; `INFEASIBLE` where the limits on times do not hold.

    Args:
        parent: to compare with; None where the model is not a variant.
    """
    from puzzlebench.render import print_json
    from puzzlebench.render_serving import print_broken, print_serving, print_sweep, serving_json
    from puzzlebench.serving.check import simulate_warm, why_apart
    from puzzlebench.serving.estimating import best_concurrency, estimate_workload, open_served, sweep

    if arguments.batch is not None:
        raise ValueError("--batch is of a static batch; with --serving give --concurrency or --request-rate")
    prefill, decode = lengths_of(arguments.prefill, "--prefill"), lengths_of(arguments.decode, "--decode")
    workload = _workload(arguments, prefill, decode)
    limits = {f"{name}_ms": _milliseconds(getattr(arguments, name), name) for name in ("max_ttft", "max_tpot")}
    scheduler = scheduler_of(arguments, kernels.engine, prefill)

    def opened(spec: ModelSpec, architecture: Architecture) -> ServedModel:
        return open_served(
            kernels,
            gpu,
            spec,
            architecture,
            precision,
            prefill,
            decode,
            scheduler=scheduler,
            memory_fraction=arguments.memory_fraction,
        )

    def settled(served: ServedModel, points: Sequence[ServingEstimate] = ()) -> ServingEstimate:
        if workload is not None:
            return estimate_workload(served, workload)
        ttft, tpot = limits["max_ttft_ms"], limits["max_tpot_ms"]
        return best_concurrency(served, prefill, decode, max_ttft_ms=ttft, max_tpot_ms=tpot, points=points)

    served, points = opened(*model), []
    if workload is None:
        points = sweep(served, prefill, decode)
        estimate = min(points, key=lambda point: _excess(point, limits))  # the nearest, where none keeps them
        broken = _broken(estimate, limits)
        if not broken:
            estimate = settled(served, points)
    else:
        estimate = settled(served)
        broken = _broken(estimate, limits)
    baseline: ServingEstimate | str | None = None
    if parent is not None:
        try:
            baseline = settled(opened(*parent))
        except ValueError as error:  # it may be too large for the GPU that its child fits on
            baseline = str(error)
    simulated = simulate_warm(served, estimate) if arguments.check and not (broken and points) else None
    code = INFEASIBLE if broken else 0
    if arguments.json:
        found: dict[str, Any] = {"keeps_limits": not broken, "limits": limits, "source": kernels.source}
        found |= serving_json(estimate) | {"scheduler": asdict(scheduler)}
        found |= {"sweep": [serving_json(point) for point in points]} if points else {}
        found |= {"simulated": asdict(simulated)} if simulated else {}
        found |= {"kernels_version": kernels.engine_version}
        if baseline is not None:
            found["baseline"] = {"why_not": baseline} if isinstance(baseline, str) else serving_json(baseline)
        print_json(found)
        return code
    spec = model[0]
    title = (
        f"{spec.name} on {precision.tensor_parallel} x {gpu.name} ({kernels.engine} {kernels.engine_version}, weights "
        f"{precision.weight_dtype}, KV cache {precision.kv_dtype}), in-flight batching: prompts of {prefill}, {decode} "
        "generated"
    )
    if points:
        print_sweep(title, points, None if broken else estimate)
    if broken and points:
        print_broken([f"no number of users keeps the limits; with {_asked(estimate)} {' and '.join(broken)}"])
        return code
    remarks = [why_apart(served, estimate, simulated)] if simulated else []
    if estimate.state.limit == "cache" and not scheduler.reserves:
        remarks.append(
            f"the cache is full, and {kernels.engine} then evicts sequences and repeats their work, which the steady "
            "state does not count" + ("" if simulated else "; --check does")
        )
    print_serving(
        f"the best: {_asked(estimate)}" if points else f"{title}; {_asked(estimate)}",
        estimate,
        kernels=kernels.engine_version,
        baseline=None if baseline is None or parent is None else (_named(parent[0].name, baseline, points), baseline),
        simulated=simulated,
        remarks=[remark for remark in remarks if remark],
    )
    print_broken(broken)
    print(f"source: {kernels.source}")
    return code


def _named(name: str, baseline: ServingEstimate | str, points: Sequence[ServingEstimate]) -> str:
    """The parent; after a sweep with its own number of users."""
    return name if isinstance(baseline, str) or not points else f"{name}, {_asked(baseline)}"


def _workload(arguments: argparse.Namespace, prefill: Lengths, decode: Lengths) -> Workload | None:
    from puzzlebench.serving.workload import Workload

    if arguments.concurrency is None and arguments.request_rate is None:
        return None
    return Workload(
        prefill=prefill, decode=decode, concurrency=arguments.concurrency, request_rate=arguments.request_rate
    )


def _asked(estimate: ServingEstimate) -> str:
    workload = estimate.workload
    if workload.concurrency is None:
        return f"{workload.request_rate:g} requests per second"
    return f"{workload.concurrency:,} user{'s' if workload.concurrency > 1 else ''}"


def _milliseconds(text: str | None, name: str) -> float | None:
    """A duration: a bare number of milliseconds, or one with a unit as `search` takes it."""
    from puzzlebench.searching.quantities import parse_seconds

    if text is None:
        return None
    try:
        return 1e3 * parse_seconds(text if text.strip()[-1:].isalpha() else f"{text}ms")
    except ValueError as error:
        raise ValueError(f"--{name.replace('_', '-')}: {error}") from None


def _pairs(estimate: ServingEstimate, limits: Mapping[str, float | None]) -> list[tuple[str, float, float]]:
    """(name, predicted, limit) of the times that have one."""
    times = (
        ("time to first token", limits["max_ttft_ms"], estimate.ttft_ms.value),
        ("time per output token", limits["max_tpot_ms"], estimate.tpot_ms.value),
    )
    return [(name, value, limit) for name, limit, value in times if limit is not None]


def _excess(estimate: ServingEstimate, limits: Mapping[str, float | None]) -> float:
    """The worst time over its limit; 1 where all are kept."""
    return max([1.0, *(value / limit for _, value, limit in _pairs(estimate, limits))])


def _broken(estimate: ServingEstimate, limits: Mapping[str, float | None]) -> list[str]:
    """The limits that a steady state does not keep, as sentences."""
    return [
        f"{name} is {value:.4g} ms, and at most {limit:.4g} ms was asked for"
        for name, value, limit in _pairs(estimate, limits)
        if value > limit
    ]
