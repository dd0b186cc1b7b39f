"""Which layers stock engines load, as limits a search can hold to.

The rules are data: engine_rules.yaml, with where each was seen. Knows what a spec and a block hold, so what neither
does is not checked: activations, kinds of RoPE, tokenizers. A block that no rule refuses is one of which nothing
against it is known.
"""

import difflib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, TypeAlias, cast, get_args

import yaml

from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp, block_name
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.spec import ModelSpec, check_architecture

ENGINE_RULES_SCHEMA = 1

RefusalKind: TypeAlias = Literal[
    "attention_linear",
    "attention_no_op_in_first_layer",
    "kv_heads_not_parents",
    "sliding_window",
    "ffn_linear",
    "ffn_width_not_multiple",
    "ffn_no_op_in_last_layer",
    "attention_beside_ffn_no_op",
    "attention_bias",
    "mlp_bias",
    "qk_norm",
    "norm_not_before",
    "family_not_listed",
]
"""What a rule refuses. From `attention_bias` on it is the parent's, refused in each layer that keeps the part; a family
is refused in every layer."""

How: TypeAlias = Literal["read", "run"]
"""How a rule was found: read in the engine's sources, or also run."""

_VALUED: tuple[RefusalKind, ...] = ("ffn_width_not_multiple",)


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRule:
    """One thing that an engine does not load.

    Attributes:
        value: the multiple of `ffn_width_not_multiple`; None for every other kind.
        families: the model_types that `family_not_listed` does not refuse; None for every other kind.
        reason: one plain sentence.
        version: of the engine, where it was seen; a plain version or commit.
        how: whether it was read in the sources only, or run too.
        seen: repository, path and symbol, or "not verified".
    """

    refuses: RefusalKind
    value: int | None
    reason: str
    version: str
    how: How = "read"
    seen: str
    families: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if self.refuses not in get_args(RefusalKind):
            near = difflib.get_close_matches(str(self.refuses), get_args(RefusalKind), n=3)
            known = f"did you mean {', '.join(near)}?" if near else f"known are {', '.join(get_args(RefusalKind))}"
            raise ValueError(f"refuses {self.refuses!r} is not known; {known}")
        if self.refuses in _VALUED:
            require_positive_int(f"value of {self.refuses}", self.value)
        elif self.value is not None:
            raise ValueError(f"{self.refuses} takes no value, not {self.value!r}")
        if self.refuses == "family_not_listed" and not self.families:
            raise ValueError(f"{self.refuses} needs families, not {self.families!r}")
        if self.refuses != "family_not_listed" and self.families is not None:
            raise ValueError(f"families go with family_not_listed alone; {self.refuses} has {self.families!r}")
        for family in self.families or ():
            _require_line(f"a family of {self.refuses}", family)
        if self.how not in get_args(How):
            raise ValueError(f"how of {self.refuses} must be {' or '.join(get_args(How))}, not {self.how!r}")
        for field in ("reason", "version", "seen"):
            _require_line(f"{field} of {self.refuses}", getattr(self, field))


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """One layer that an engine does not load, and the rule that says so."""

    engine: str
    layer: int
    block: Block
    rule: EngineRule

    @property
    def sentence(self) -> str:
        """Without the layer: "vllm (0.32.0) does not load gqa_4+linear [ffn_linear]: its layers ..."."""
        rule = self.rule
        return f"{self.engine} ({rule.version}) does not load {block_name(self.block)} [{rule.refuses}]: {rule.reason}"

    @property
    def short(self) -> str:
        """Without engine and block, where both are known: "layer 3: its layers ... [ffn_linear]"."""
        return f"layer {self.layer}: {self.rule.reason} [{self.rule.refuses}]"

    def __str__(self) -> str:
        """All of it: "layer 3: " and the sentence."""
        return f"layer {self.layer}: {self.sentence}"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineRules:
    """What one engine does not load. Names and aliases are in lower case."""

    engine: str
    aliases: tuple[str, ...]
    rules: tuple[EngineRule, ...]

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        for name in (self.engine, *self.aliases):
            _require_line("an engine's name", name)
            if name != name.lower():
                raise ValueError(f"an engine's name must be in lower case, not {name!r}")
        kinds = [rule.refuses for rule in self.rules]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f"{self.engine} refuses {kind} in {kinds.count(kind)} rules; one is enough")

    def refusals(self, spec: ModelSpec, layer: int, block: Block) -> tuple[Refusal, ...]:
        """Every reason why the engine does not load this block in this layer; empty where it does.

        Raises:
            ValueError: the spec has no such layer.
        """
        if not 0 <= layer < spec.num_hidden_layers:
            raise ValueError(f"{spec.name} has layers 0 to {spec.num_hidden_layers - 1}, not {layer}")
        return tuple(
            Refusal(engine=self.engine, layer=layer, block=block, rule=rule)
            for rule in self.rules
            if _refused(rule, spec, layer, block)
        )

    def refusal(self, spec: ModelSpec, layer: int, block: Block) -> str | None:
        """The sentence of the first of `refusals` in the order of the rules, or None where the engine loads the block.

        Raises:
            ValueError: the spec has no such layer.
        """
        return next((refusal.sentence for refusal in self.refusals(spec, layer, block)), None)


def find_refusals(rules: EngineRules, spec: ModelSpec, architecture: Architecture) -> tuple[Refusal, ...]:
    """Every refusal, first layer first; empty where the engine loads it all.

    Raises:
        ValueError: the architecture is not one of the spec's.
    """
    check_architecture(spec, architecture)
    return tuple(
        refusal for layer, block in enumerate(architecture.blocks) for refusal in rules.refusals(spec, layer, block)
    )


def first_refusal(refusals: Sequence[Refusal | str]) -> str:
    """The first of some in full, and how many more there are."""
    return f"{refusals[0]}{f' (and {len(refusals) - 1} more)' if len(refusals) > 1 else ''}"


def load_engine_rules(name: str) -> EngineRules:
    """The rules of the engine with this name or alias; case does not matter.

    Raises:
        ValueError: no engine has that name; the message has near names.
    """
    named = _by_name(list_engine_rules())
    if found := named.get(name.lower()):
        return found
    near = difflib.get_close_matches(name.lower(), named, n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}? " if near else ""
    known = ", ".join(rules.engine for rules in list_engine_rules())
    raise ValueError(f"no engine is named {name!r}; {hint}known are {known}")


@cache
def list_engine_rules() -> tuple[EngineRules, ...]:
    """The rules of every known engine, in the order of the file."""
    file = resources.files("puzzlebench.model") / "engine_rules.yaml"
    return _parse_engine_rules(yaml.safe_load(file.read_text(encoding="utf-8")))


def _refused(rule: EngineRule, spec: ModelSpec, layer: int, block: Block) -> bool:
    attention, ffn = block.attention, block.ffn
    match rule.refuses:
        case "attention_linear":
            return isinstance(attention, Linear)
        case "attention_no_op_in_first_layer":
            return layer == 0 and isinstance(attention, NoOp)
        case "kv_heads_not_parents":
            return isinstance(attention, GQA) and attention.num_key_value_heads != spec.num_key_value_heads
        case "sliding_window":
            return isinstance(attention, GQA) and attention.sliding_window is not None
        case "ffn_linear":
            return isinstance(ffn, Linear)
        case "ffn_width_not_multiple":
            assert rule.value is not None
            return isinstance(ffn, GatedMLP) and ffn.intermediate_size % rule.value != 0
        case "ffn_no_op_in_last_layer":
            return layer == spec.num_hidden_layers - 1 and isinstance(ffn, NoOp)
        case "attention_beside_ffn_no_op":
            return isinstance(ffn, NoOp) and not isinstance(attention, NoOp)
        case "attention_bias":
            return isinstance(attention, GQA) and (spec.qkv_bias or spec.attention_output_bias)
        case "mlp_bias":
            return isinstance(ffn, GatedMLP) and spec.mlp_bias
        case "qk_norm":
            return isinstance(attention, GQA) and spec.qk_norm != "none"
        case "norm_not_before":  # a linear keeps the norms of the sub-block it replaces; a no-op has none
            return spec.norm_placement != "pre" and not (isinstance(attention, NoOp) and isinstance(ffn, NoOp))
        case "family_not_listed":
            assert rule.families is not None
            return spec.model_type not in rule.families


def _parse_engine_rules(data: object) -> tuple[EngineRules, ...]:
    """The engines in a parsed engine_rules.yaml.

    Raises:
        ValueError: another schema, unknown or missing keys, impossible values, or a name that two engines have.
    """
    top = _require_keys("engine rules", data, {"schema", "engines"})
    if top["schema"] != ENGINE_RULES_SCHEMA or isinstance(top["schema"], bool):
        raise ValueError(
            f"engine rules schema {top['schema']!r} is not known; this version reads {ENGINE_RULES_SCHEMA}"
        )
    engines = tuple(
        _parse_engine(f"engine {index}", engine)
        for index, engine in enumerate(_require_list("engines", top["engines"]))
    )
    _by_name(engines)
    return engines


def _parse_engine(where: str, data: object) -> EngineRules:
    fields = _require_keys(where, data, {"engine", "aliases", "rules"})
    rules = _require_list(f"{where}: rules", fields["rules"])
    aliases = _require_list(f"{where}: aliases", fields["aliases"])
    parsed = tuple(_parse_rule(f"{where}: rule {index}", rule) for index, rule in enumerate(rules))
    try:
        return EngineRules(engine=fields["engine"], aliases=tuple(aliases), rules=parsed)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _parse_rule(where: str, data: object) -> EngineRule:
    needed = {"refuses", "reason", "version", "how", "seen"}
    fields = _require_keys(where, data, needed, optional={"value", "families"})
    try:
        return EngineRule(
            refuses=cast("RefusalKind", fields["refuses"]),
            value=fields.get("value"),
            reason=fields["reason"],
            version=fields["version"],
            how=cast("How", fields["how"]),
            seen=fields["seen"],
            families=tuple(_require_list(f"{where}: families", fields["families"])) if "families" in fields else None,
        )
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _by_name(engines: tuple[EngineRules, ...]) -> dict[str, EngineRules]:
    named: dict[str, EngineRules] = {}
    for rules in engines:
        for name in (rules.engine, *rules.aliases):
            if name in named:
                raise ValueError(f"two engines or aliases are named {name!r}")
            named[name] = rules
    return named


def _require_keys(where: str, data: object, wanted: set[str], optional: Set[str] = frozenset()) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where}: expected a mapping with {', '.join(sorted(wanted))}, not {data!r}")
    if unknown := sorted(str(key) for key in set(data) - wanted - optional):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(sorted(wanted | optional))}")
    if missing := sorted(wanted - set(data)):
        raise ValueError(f"{where}: key {missing[0]!r} is missing")
    return data


def _require_list(where: str, data: object) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError(f"{where} must be a list, not {data!r}")
    return data


def _require_line(where: str, value: object) -> None:
    if not isinstance(value, str) or not value.strip() or "\n" in value:
        raise ValueError(f"{where} must be one line of text, not {value!r}")
