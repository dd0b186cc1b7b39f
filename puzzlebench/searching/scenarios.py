"""What is asked of an architecture: scenarios to serve and limits to keep. Knows no model, GPU or cost.

The batch size is not part of a scenario: a search sweeps it.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, get_args

from puzzlebench.model.checks import require_positive_int
from puzzlebench.searching.quantities import format_value, parse_bytes, parse_count, parse_rate, parse_seconds

Resource: TypeAlias = Literal["memory", "params", "throughput", "latency", "ttft", "tpot"]
"""What can be limited:

- memory: bytes per GPU;
- params: parameters of the whole model, whatever the scenario;
- throughput: generated tokens per second of the whole batch, over prefill and decode;
- latency: seconds from the prompts to the last token;
- ttft: seconds to the first token, the whole batch prefilled together;
- tpot: mean seconds per token after the first.
"""

RESOURCES: Final[tuple[Resource, ...]] = get_args(Resource)
_PARSERS: Final[dict[Resource, Callable[[str], float]]] = {
    "memory": parse_bytes,
    "params": parse_count,
    "throughput": parse_rate,
    "latency": parse_seconds,
    "ttft": parse_seconds,
    "tpot": parse_seconds,
}
_LIMIT_NAMES: Final = tuple(f"{side}-{resource}" for resource in RESOURCES for side in ("max", "min"))
_NAME: Final = re.compile(r"[A-Za-z0-9_.+-]+")
_LENGTHS: Final = re.compile(r"([0-9]{1,9})\+([0-9]{1,9})")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceLimit:
    """A resource must be at least `low` and at most `high`, in the units of `Resource`; None is no limit."""

    resource: Resource
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if self.resource not in RESOURCES:
            raise ValueError(f"no resource is named {self.resource!r}; known are {', '.join(RESOURCES)}")
        ends = [end for end in (self.low, self.high) if end is not None]
        if not ends:
            raise ValueError(f"a limit of {self.resource} needs a low or a high end")
        for end in ends:
            if not math.isfinite(end) or end <= 0:
                raise ValueError(f"a limit of {self.resource} must be finite and above 0, not {end}")
        if len(ends) == 2 and ends[0] > ends[1]:
            low, high = (format_value(self.resource, end) for end in ends)
            raise ValueError(f"{self.resource} cannot be at least {low} and at most {high}")

    def describe(self) -> str:
        """Its ends for people: "at most 800 ms"."""
        ends = (("at least", self.low), ("at most", self.high))
        return " and ".join(f"{side} {format_value(self.resource, end)}" for side, end in ends if end is not None)

    def describe_named(self) -> str:
        """The same with the resource: "ttft at most 800 ms", "params at least 7 B"."""
        return f"{self.resource} {self.describe().replace(' parameters', '')}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingScenario:
    """A static batch of prompts of `prefill_len` tokens, each answered with `decode_len` tokens.

    Attributes:
        limits: that hold in this scenario in place of the global ones of the same resource.
        held_len: tokens in the cache of one sequence that memory is counted with; None: all of prompt and answer.
    """

    name: str
    prefill_len: int
    decode_len: int
    limits: tuple[ResourceLimit, ...] = ()
    held_len: int | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"a scenario's name is of letters, digits and _.+-, not {self.name!r}")
        for field in ("prefill_len", "decode_len"):
            require_positive_int(f"scenario {self.name}: {field}", getattr(self, field))
        if self.held_len is not None:
            require_positive_int(f"scenario {self.name}: held_len", self.held_len)
        _check_limits(self.limits, f"scenario {self.name}: ")
        if any(limit.resource == "params" for limit in self.limits):
            raise ValueError(
                f"scenario {self.name}: parameters are the same in every scenario; give --max-params or --min-params"
            )
        self.refuse_missing(self.limits)

    @property
    def context_len(self) -> int:
        """Tokens in the cache of one sequence, at the end if `held_len` says nothing else."""
        return self.prefill_len + self.decode_len if self.held_len is None else self.held_len

    @property
    def steps(self) -> int:
        """Decode steps: the first token comes out of prefill."""
        return self.decode_len - 1

    def refuse_missing(self, limits: Iterable[ResourceLimit]) -> None:
        """Raise ValueError for a limit of what this scenario does not have: time per later token of a single one."""
        if self.decode_len == 1 and any(limit.resource == "tpot" for limit in limits):
            raise ValueError(f"scenario {self.name}: with 1 generated token there is no time per later token (tpot)")


def parse_scenario(text: str) -> ServingScenario:
    """A scenario: "2048+512", "chat:2048+512" or "chat:2048+512,max-ttft=800ms,min-throughput=6000".

    Without a name it is named after its lengths.

    Raises:
        ValueError: it is not of that form, or a limit is wrong.
    """
    head, *options = (part.strip() for part in text.split(","))
    name, colon, lengths = head.rpartition(":")
    found = _LENGTHS.fullmatch(lengths)
    if found is None:
        raise ValueError(f"scenario {text!r}: give prompt and generated tokens, such as 2048+512 or chat:2048+512")
    limits = []
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ValueError(f"scenario {text!r}: {option!r} is no limit; give one such as max-ttft=800ms")
        try:
            limits.append(parse_limit(key.strip(), value.strip()))
        except ValueError as error:
            raise ValueError(f"scenario {text!r}: {error}") from None
    return ServingScenario(
        name=name if colon else lengths,
        prefill_len=int(found[1]),
        decode_len=int(found[2]),
        limits=join_limits(limits),
    )


def parse_limit(name: str, text: str) -> ResourceLimit:
    """One end of a limit: ("max-ttft", "800ms"), ("min-throughput", "6000").

    Raises:
        ValueError: no limit has that name, or the value is not of its unit.
    """
    if name not in _LIMIT_NAMES:
        near = difflib.get_close_matches(name, _LIMIT_NAMES, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(_LIMIT_NAMES)}"
        raise ValueError(f"no limit is named {name!r}; {hint}")
    side, _, rest = name.partition("-")
    resource = cast("Resource", rest)
    try:
        value = float(_PARSERS[resource](text))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return ResourceLimit(resource=resource, **{"low" if side == "min" else "high": value})


def join_limits(limits: Iterable[ResourceLimit]) -> tuple[ResourceLimit, ...]:
    """One limit per resource, with the ends given apart put together, in order of appearance.

    Raises:
        ValueError: the same end is given twice, or the low one is above the high one.
    """
    joined: dict[Resource, ResourceLimit] = {}
    for limit in limits:
        before = joined.get(limit.resource)
        if before is None:
            joined[limit.resource] = limit
            continue
        for side, one, other in (("min", before.low, limit.low), ("max", before.high, limit.high)):
            if one is not None and other is not None:
                raise ValueError(f"{side}-{limit.resource} is given twice")
        joined[limit.resource] = ResourceLimit(
            resource=limit.resource,
            low=limit.low if before.low is None else before.low,
            high=limit.high if before.high is None else before.high,
        )
    return tuple(joined.values())


def check_scenarios(scenarios: Sequence[ServingScenario], limits: Sequence[ResourceLimit]) -> None:
    """Raise ValueError unless there are scenarios of different names, and limits of different resources they have."""
    if not scenarios:
        raise ValueError("give at least one scenario, such as 2048+512")
    names = [scenario.name for scenario in scenarios]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"two scenarios are named {name}; name them, such as chat:2048+512")
    _check_limits(limits, "")
    for scenario in scenarios:
        scenario.refuse_missing(limits_in(scenario, limits))


def limits_in(scenario: ServingScenario, limits: Iterable[ResourceLimit]) -> tuple[ResourceLimit, ...]:
    """The limits that hold in a scenario: its own, and the global ones of other resources; never that of params."""
    own = {limit.resource for limit in scenario.limits} | {"params"}
    return (*scenario.limits, *(limit for limit in limits if limit.resource not in own))


def column_name(resource: str, scenario: ServingScenario, scenarios: Sequence[ServingScenario]) -> str:
    """What a resource of one scenario is called among several: "ttft", or "ttft[chat]" where there are more."""
    return resource if len(scenarios) == 1 else f"{resource}[{scenario.name}]"


def _check_limits(limits: Sequence[ResourceLimit], where: str) -> None:
    resources = [limit.resource for limit in limits]
    for resource in resources:
        if resources.count(resource) > 1:
            raise ValueError(f"{where}{resource} has more than one limit; give one with both ends")
