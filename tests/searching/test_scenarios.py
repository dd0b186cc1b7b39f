"""Scenarios and limits as people write them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlebench.searching.scenarios import (
    RESOURCES,
    ResourceLimit,
    ServingScenario,
    check_scenarios,
    column_name,
    join_limits,
    limits_in,
    parse_limit,
    parse_scenario,
)


def test_lengths_alone_name_the_scenario():
    scenario = parse_scenario("2048+512")
    assert scenario == ServingScenario(name="2048+512", prefill_len=2048, decode_len=512)
    assert (scenario.context_len, scenario.steps) == (2560, 511)


def test_a_name_and_limits():
    scenario = parse_scenario("chat:2048+512, max-ttft=800ms,min-throughput=6000,min-ttft=1ms")
    assert (scenario.name, scenario.prefill_len, scenario.decode_len) == ("chat", 2048, 512)
    assert scenario.limits == (
        ResourceLimit(resource="ttft", low=1e-3, high=0.8),
        ResourceLimit(resource="throughput", low=6000.0),
    )


@pytest.mark.parametrize(
    ("name", "text", "limit"),
    [
        ("max-memory", "80GiB", ResourceLimit(resource="memory", high=80 * 2**30)),
        ("min-memory", "1GB", ResourceLimit(resource="memory", low=1e9)),
        ("max-params", "40B", ResourceLimit(resource="params", high=40e9)),
        ("max-throughput", "5", ResourceLimit(resource="throughput", high=5.0)),
        ("max-latency", "9s", ResourceLimit(resource="latency", high=9.0)),
        ("min-tpot", "9ms", ResourceLimit(resource="tpot", low=9e-3)),
    ],
)
def test_every_limit_has_its_unit(name, text, limit):
    assert parse_limit(name, text) == limit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2048", "scenario '2048': give prompt and generated tokens, such as 2048+512 or chat:2048+512"),
        ("2048+", "give prompt and generated tokens"),
        ("chat:2048+512+1", "give prompt and generated tokens"),
        ("0+5", "scenario 0+5: prefill_len must be a whole number of at least 1, not 0"),
        ("5+0", "scenario 5+0: decode_len must be a whole number of at least 1, not 0"),
        ("a b:5+5", "a scenario's name is of letters, digits and _.+-, not 'a b'"),
        (":5+5", "a scenario's name is of letters, digits and _.+-, not ''"),
        ("5+5,max-ttft", "scenario '5+5,max-ttft': 'max-ttft' is no limit; give one such as max-ttft=800ms"),
        ("5+5,max-ttft=800", "max-ttft: '800' has no unit; give a unit: 900ms or 0.9s"),
        ("5+5,max-tfft=8s", "no limit is named 'max-tfft'; did you mean max-ttft"),
        ("5+5,qqqq=8s", "no limit is named 'qqqq'; known are max-memory, min-memory, max-params"),
        ("5+5,max-ttft=8s,max-ttft=9s", "max-ttft is given twice"),
        ("5+5,max-ttft=1s,min-ttft=2s", "ttft cannot be at least 2 s and at most 1 s"),
        ("5+5,max-params=8B", "parameters are the same in every scenario; give --max-params or --min-params"),
        ("5+1,max-tpot=8ms", "scenario 5+1: with 1 generated token there is no time per later token (tpot)"),
    ],
)
def test_refused_scenarios(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_scenario(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resource": "energy", "high": 1}, "no resource is named 'energy'; known are memory, params"),
        ({"resource": "ttft"}, "a limit of ttft needs a low or a high end"),
        ({"resource": "ttft", "high": 0}, "a limit of ttft must be finite and above 0, not 0"),
        ({"resource": "ttft", "low": float("nan")}, "must be finite and above 0, not nan"),
        ({"resource": "ttft", "low": float("inf")}, "must be finite and above 0, not inf"),
    ],
)
def test_refused_limits(fields, message):
    with pytest.raises(ValueError, match=message):
        ResourceLimit(**fields)


def test_limits_say_their_ends():
    assert ResourceLimit(resource="ttft", low=0.1, high=0.8).describe() == "at least 100 ms and at most 800 ms"
    assert ResourceLimit(resource="memory", high=2.0**34).describe() == "at most 16 GiB"


def test_a_scenarios_own_limits_replace_the_global_ones():
    glob = (
        ResourceLimit(resource="memory", high=1e9),
        ResourceLimit(resource="ttft", low=0.1, high=0.5),
        ResourceLimit(resource="params", high=1e9),
    )
    plain, own = parse_scenario("5+5"), parse_scenario("a:5+5,max-ttft=2s")
    assert limits_in(plain, glob) == glob[:2]
    assert limits_in(own, glob) == (ResourceLimit(resource="ttft", high=2.0), glob[0])


def test_scenarios_of_a_search_are_checked_together():
    two = [parse_scenario("5+5"), parse_scenario("b:5+1")]
    check_scenarios(two, [])
    for scenarios, limits, message in (
        ([], [], "give at least one scenario"),
        ([two[0], two[0]], [], "two scenarios are named 5\\+5; name them"),
        (two, [parse_limit("max-tpot", "1s")], "scenario b: with 1 generated token"),
        (two[:1], [parse_limit("max-ttft", "1s"), parse_limit("min-ttft", "1ms")], "^ttft has more than one limit"),
    ):
        with pytest.raises(ValueError, match=message):
            check_scenarios(scenarios, limits)
    twice = (ResourceLimit(resource="ttft", low=0.1),) * 2
    with pytest.raises(ValueError, match="scenario a: ttft has more than one limit"):
        ServingScenario(name="a", prefill_len=1, decode_len=2, limits=twice)
    assert column_name("ttft", two[1], two) == "ttft[b]"
    assert column_name("ttft", two[1], two[1:]) == "ttft"


@given(
    name=st.none() | st.from_regex(r"[A-Za-z0-9_.+-]{1,12}", fullmatch=True),
    prefill=st.integers(1, 10**6),
    decode=st.integers(2, 10**6),
    limits=st.dictionaries(
        st.tuples(st.sampled_from(["max", "min"]), st.sampled_from([name for name in RESOURCES if name != "params"])),
        st.integers(1, 10**6),
    ),
)
def test_any_scenario_survives_being_written(name, prefill, decode, limits):
    units = {"latency": "ms", "ttft": "ms", "tpot": "ms"}
    options = "".join(f",{side}-{what}={value}{units.get(what, '')}" for (side, what), value in limits.items())
    text = f"{f'{name}:' if name else ''}{prefill}+{decode}{options}"
    crossed = any(limits.get(("min", what), 0) > limits.get(("max", what), 10**7) for what in RESOURCES)
    if crossed:
        with pytest.raises(ValueError, match="cannot be at least"):
            parse_scenario(text)
        return
    scenario = parse_scenario(text)
    assert (scenario.prefill_len, scenario.decode_len) == (prefill, decode)
    assert scenario.name == (name or f"{prefill}+{decode}")
    found = {}
    for limit in scenario.limits:
        scale = 1e3 if limit.resource in units else 1
        found |= {("min", limit.resource): limit.low, ("max", limit.resource): limit.high}
        for side in ("min", "max"):
            if found[side, limit.resource] is not None:
                found[side, limit.resource] = round(found[side, limit.resource] * scale)
    assert {key: value for key, value in found.items() if value is not None} == limits


def test_ends_given_apart_are_joined():
    ends = [parse_limit("max-ttft", "2s"), parse_limit("max-params", "2B"), parse_limit("min-ttft", "1s")]
    assert join_limits(ends) == (
        ResourceLimit(resource="ttft", low=1.0, high=2.0),
        ResourceLimit(resource="params", high=2e9),
    )
