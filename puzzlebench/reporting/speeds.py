"""What was timed of parent and children, and what the cost table said before: speed.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from puzzlebench.estimate import Interval
from puzzlebench.reporting.documents import interval, number

MEASURES: Final = ("prefill", "decode", "generate")
TITLES: Final = {"prefill": "Prefill", "decode": "Time per output token", "generate": "Generate"}
_COLUMNS: Final = {"prefill": "prefill_ms", "decode": "tpot_ms", "generate": "generate_ms"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Times:
    """One model's milliseconds by `MEASURES` (decode: per token after the first), and generated tokens per second."""

    model: str
    milliseconds: dict[str, Interval]
    tokens_per_s: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Speed:
    """Measured speeds; the first model is the parent.

    Attributes:
        speed_ups: of children, by `MEASURES`.
        predicted: by model; empty without a cost table.
        predicted_speed_ups: by child and measure.
        errors: of those, predicted / measured - 1.
        tokens_agree: by model, share of generated tokens that transformers' own greedy search gives for the same
            checkpoint.
        stated: the document.
    """

    models: tuple[Times, ...]
    speed_ups: dict[str, dict[str, Interval]]
    predicted: dict[str, Times]
    predicted_speed_ups: dict[str, dict[str, float]]
    errors: dict[str, dict[str, float]]
    tokens_agree: dict[str, float]
    stated: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Raise ValueError without a parent."""
        if not self.models:
            raise ValueError("it has no models")

    @property
    def children(self) -> tuple[str, ...]:
        """Names of all models but the parent."""
        return tuple(times.model for times in self.models[1:])

    def error(self, model: str, measure: str) -> float | None:
        """Predicted over measured time less 1; None without a prediction."""
        measured = next(times for times in self.models if times.model == model)
        predicted = self.predicted.get(model)
        if predicted is None:
            return None
        return predicted.milliseconds[measure].value / measured.milliseconds[measure].value - 1

    @property
    def other_setup(self) -> tuple[str, ...]:
        """In what the cost table behind the predictions is of something else than was measured, a sentence each."""
        costs, measured = self.stated.get("costs") or {}, self.stated
        found = []
        if costs.get("same_device") is False:
            found.append(f"The cost table is of {costs['gpu']}: its times are not of this device.")
        if costs.get("same_precision") is False:
            found.append(f"The cost table is of {costs['weight_dtype']} weights, measured was {measured['precision']}.")
        if costs.get("engine", measured["engine"]) != measured["engine"]:
            found.append(f"The cost table is of the engine {costs['engine']}, measured was {measured['engine']}.")
        return tuple(found)

    @property
    def scenario_text(self) -> str:
        """What was generated, for people."""
        asked = self.stated["scenario"]
        return (
            f"batch {asked['batch_size']}, prompts of {asked['prefill_len']} tokens, "
            f"{asked['decode_len']} tokens generated"
        )


def parse_speed(stated: Mapping[str, Any]) -> Speed:
    """The document as values; see the module's errors in `documents.read_document`."""
    predicted = [_times(row) for row in stated.get("predictions") or ()]
    ratios = stated.get("predicted_speed_ups") or ()
    scenario = stated["scenario"]
    for key in ("batch_size", "prefill_len", "decode_len"):
        number(scenario[key])
    return Speed(
        models=tuple(_times(row) for row in stated["models"]),
        speed_ups={
            row["model"]: {measure: interval(row[measure]) for measure in MEASURES} for row in stated["speed_ups"]
        },
        predicted={times.model: times for times in predicted},
        predicted_speed_ups={
            row["model"]: {measure: interval(row[measure]).value for measure in MEASURES} for row in ratios
        },
        errors={row["model"]: {measure: number(row["error"][measure]) for measure in MEASURES} for row in ratios},
        tokens_agree={name: number(share) for name, share in (stated.get("tokens_agree") or {}).items()},
        stated=stated,
    )


def _times(row: Mapping[str, Any]) -> Times:
    return Times(
        model=str(row["model"]),
        milliseconds={measure: interval(row[column]) for measure, column in _COLUMNS.items()},
        tokens_per_s=interval(row["generated_tokens_per_s"]),
    )
