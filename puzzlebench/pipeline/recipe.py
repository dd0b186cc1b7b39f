"""The recipe of a run: one typed file that says everything a run does. Unknown keys are errors. Runs nothing.

The defaults are the embedded demonstration: the parent that is trained on the spot, the device in hand, twice as fast.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from puzzlebench.distillation.recipe import DistilRecipe
from puzzlebench.library.initialise import InitRecipe
from puzzlebench.library.recipe import Mode, Training
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.dtypes import KVDtype, WeightDtype
from puzzlebench.searching.quantities import parse_bytes

_NEEDS = "runs need pydantic: pip install 'puzzlebench[run]'"
_HERE = ("local", "cpu", "cuda")

ScoreMetric: TypeAlias = Literal["kl", "lm_loss", "top1_agreement"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedScenario:
    """What the child is made for and measured in: a static batch of prompts, each answered with `decode_len` tokens.

    The batch is large enough that weights and cache of the embedded parent's children stay out of a CPU's last-level
    cache: blocks are timed with cold caches.
    """

    batch_size: int = 64
    prefill_len: int = 128
    decode_len: int = 128

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in ("batch_size", "prefill_len", "decode_len"):
            require_positive_int(name, getattr(self, name))
        if self.decode_len < 2:
            raise ValueError("decode_len must be at least 2: one generated token is no decoding")


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileSettings:
    """Where the cost table comes from.

    Attributes:
        gpu: local, cpu or cuda:N to measure the device in hand; else a GPU of `puzzlebench gpus` or a datasheet, from
            shipped kernels.
        engine: torch (default) or triton where blocks are measured here; trtllm (default), vllm or sglang elsewhere.
        weight_dtype, kv_dtype: default bf16, on a CPU fp32.
        seconds, sessions: of measuring here.
        costs: a cost table to take instead.
    """

    gpu: str = "local"
    engine: str | None = None
    weight_dtype: WeightDtype | None = None
    kv_dtype: KVDtype | None = None
    tensor_parallel: int = 1
    seconds: float = 60.0
    sessions: int = 4
    costs: Path | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        _check_time(self.sessions, self.seconds)
        require_positive_int("tensor_parallel", self.tensor_parallel)

    @property
    def is_here(self) -> bool:
        """Whether it is the device in hand that is measured."""
        return self.gpu in _HERE or self.gpu.startswith("cuda:")


@dataclass(frozen=True, kw_only=True, slots=True)
class LibrarySettings:
    """Which blocks are made, and how; see `puzzlebench library`."""

    mode: Mode = "decoupled"
    kv_heads: tuple[int, ...] | None = None
    ffn_multiple: int = 256
    sequences: int = 256
    length: int = 256
    init: InitRecipe = field(default_factory=InitRecipe)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in ("ffn_multiple", "sequences", "length"):
            require_positive_int(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """How blocks are scored; see `puzzlebench score`."""

    metric: ScoreMetric = "kl"
    sequences: int = 32
    length: int = 256
    batch_size: int = 4

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in ("sequences", "length", "batch_size"):
            require_positive_int(name, getattr(self, name))


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchTarget:
    """What the architecture must keep.

    Attributes:
        speed_up: generated tokens per second in the scenario over the parent's, by the cost table; None for no such
            limit.
        margin: that much more is asked of the search, since what is measured later has an error.
        limits: further ones as `puzzlebench search` names them, such as {"max-memory": "80GiB"}.
        engine_rules: an engine that must be able to load the child.
        time_limit: seconds for each solution.
        front_points: budgets of the front of throughput and score that the report shows; 0 draws none.
    """

    speed_up: float | None = 2.0
    margin: float = 0.05
    limits: dict[str, str] = field(default_factory=dict)
    engine_rules: str | None = None
    time_limit: float = 60.0
    front_points: int = 16

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if self.speed_up is None and not self.limits:
            raise ValueError("a search needs a target: speed_up, or limits")
        if self.speed_up is not None and not self.speed_up >= 1:
            raise ValueError(f"speed_up must be at least 1, not {self.speed_up}")
        if not 0 <= self.margin < 1:
            raise ValueError(f"margin must be at least 0 and below 1, not {self.margin}")
        if self.front_points < 0 or self.front_points == 1:
            raise ValueError(f"front_points must be 0 or at least 2, not {self.front_points}")
        if not self.time_limit > 0:
            raise ValueError(f"time_limit must be above 0, not {self.time_limit}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluateSettings:
    """What is kept; see `puzzlebench eval`.

    Attributes:
        before: evaluate the child before global distillation too.
    """

    tasks: tuple[str, ...] = ("bundled",)
    limit: int | None = None
    batch_size: int = 16
    include_path: Path | None = None
    before: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if not self.tasks:
            raise ValueError("name tasks of lm-eval, or bundled")
        require_positive_int("batch_size", self.batch_size)
        if self.limit is not None:
            require_positive_int("limit", self.limit)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedSettings:
    """How long parent and child are timed; see `puzzlebench speed`."""

    engine: Literal["torch", "transformers"] = "torch"
    sessions: int = 5
    seconds: float = 60.0

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        _check_time(self.sessions, self.seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecipe:
    """Everything that a run does.

    Attributes:
        parent: a name `find_parent` knows.
        data: text to train on and calibrate with; None for the training files of Python's standard library.
        validation_data: text for scores; None for the standard library's validation files.
        device: of training and evaluation: cpu, cuda, cuda:N, or auto.
        precision: of training; auto is what the device computes fast.
        memory_limit: for activations and training of blocks.
        micro_batch, checkpointing: of global distillation, for less memory: rows of a forward, activations made anew.
    """

    parent: str = "embedded"
    data: Path | None = None
    validation_data: Path | None = None
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_limit: str = "8GiB"
    micro_batch: int | None = None
    checkpointing: bool = False
    scenario: ServedScenario = field(default_factory=ServedScenario)
    profile: ProfileSettings = field(default_factory=ProfileSettings)
    library: LibrarySettings = field(default_factory=LibrarySettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)
    search: SearchTarget = field(default_factory=SearchTarget)
    distil: DistilRecipe = field(default_factory=DistilRecipe)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    speed: SpeedSettings = field(default_factory=SpeedSettings)

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible together."""
        if self.data is not None and self.validation_data is None:
            raise ValueError("data is text to train on; give validation_data too, or scores are of other text than it")
        parse_bytes(self.memory_limit)
        if self.micro_batch is not None:
            require_positive_int("micro_batch", self.micro_batch)


def read_recipe(path: Path | None, overrides: Iterable[str] = ()) -> RunRecipe:
    """The recipe in a YAML file (None: the default), with overrides such as `search.speed_up=1.5`.

    Raises:
        ValueError: there is no such file, or a key or a value is wrong; the message names it.
    """
    import yaml

    stated: Any = {}
    if path is not None:
        try:
            stated = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except FileNotFoundError:
            raise ValueError(f"{path}: no such file") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"{path} is no YAML that can be read: {error}") from None
    if not isinstance(stated, dict):
        raise ValueError(f"{path}: a recipe is a mapping of keys, not a {type(stated).__name__}")
    where = "" if path is None else f"{path}: "
    for text in overrides:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise ValueError(f"--set takes KEY=VALUE such as search.speed_up=1.5, not {text!r}")
        try:
            _put(stated, name.strip().split("."), yaml.safe_load(value))
        except yaml.YAMLError:
            raise ValueError(f"--set {text}: the value is no YAML") from None
    try:
        return recipe_from_json(stated)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def recipe_from_json(stated: Mapping[str, Any]) -> RunRecipe:
    """The recipe of plain values; what is not stated is the default.

    Raises:
        ValueError: a key is unknown (near names are given), or a value is not of its kind.
    """
    try:
        from pydantic import TypeAdapter, ValidationError
    except ImportError:
        raise ValueError(_NEEDS) from None
    _check_keys(RunRecipe, stated, "")
    try:
        text = json.dumps(stated)
    except TypeError as error:
        raise ValueError(f"a recipe holds text, numbers, lists and mappings: {error}") from None
    try:
        return TypeAdapter(RunRecipe).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        value = f", not {first['input']!r}" if not isinstance(first["input"], dict) else ""
        reason = first["msg"].removeprefix("Value error, ")
        raise ValueError(
            f"{name}: {reason}{value if first['type'] != 'value_error' else ''}".removeprefix(": ")
        ) from None


def recipe_to_json(recipe: RunRecipe) -> dict[str, Any]:
    """Plain values; the inverse of `recipe_from_json`."""
    stated: dict[str, Any] = plain(recipe)
    return stated


def recipe_yaml(recipe: RunRecipe) -> str:
    """The whole recipe as YAML, defaults too."""
    import yaml

    text: str = yaml.safe_dump(recipe_to_json(recipe), sort_keys=False, default_flow_style=False)
    return text


def _check_time(sessions: int, seconds: float) -> None:
    require_positive_int("sessions", sessions)
    if not seconds > 0:
        raise ValueError(f"seconds must be above 0, not {seconds}")


def plain(settings: Any) -> Any:
    """A dataclass of settings as what JSON gives back; paths are text."""
    return json.loads(json.dumps(asdict(settings), default=str))


def _put(stated: dict[str, Any], names: list[str], value: Any) -> None:
    *folders, last = names
    for name in folders:
        stated = stated.setdefault(name, {})
        if not isinstance(stated, dict):
            raise ValueError(f"--set {'.'.join(names)}: {name} is no section")
    stated[last] = value


def _check_keys(kind: Any, stated: Any, where: str) -> None:
    """Unknown keys at any depth, which would otherwise be reported in pydantic's words."""
    if not isinstance(stated, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'a recipe'} must be a section of keys, not {stated!r}")
    hints = typing.get_type_hints(kind)
    known = [one.name for one in fields(kind)]
    for key, value in stated.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {where}{near[0]}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"no key is named {where}{key}; {hint}")
        section = _section(hints[key])
        if section is not None and isinstance(value, list):
            for place, one in enumerate(value):
                _check_keys(section, one, f"{where}{key}.{place}.")
        elif section is not None:
            _check_keys(section, value, f"{where}{key}.")


def _section(hint: Any) -> Any:
    """The dataclass that a key holds, or a tuple of which it holds."""
    if is_dataclass(hint):
        return hint
    return next((one for one in typing.get_args(hint) if dataclasses.is_dataclass(one)), None)
