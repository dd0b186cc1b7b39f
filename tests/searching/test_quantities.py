"""Quantities: exact, with clear refusals, and printed so that people see the size."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlebench.searching.quantities import format_value, parse_bytes, parse_count, parse_rate, parse_seconds


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (parse_bytes, "80GiB", 80 * 2**30),
        (parse_bytes, "80GB", 80_000_000_000),
        (parse_bytes, "85899345920", 80 * 2**30),
        (parse_bytes, " 1.5 gib ", 1.5 * 2**30),
        (parse_bytes, "0.1MB", 100_000),
        (parse_bytes, "2TiB", 2**41),
        (parse_bytes, "7B", 7),
        (parse_seconds, "900ms", 0.9),
        (parse_seconds, "0.9s", 0.9),
        (parse_seconds, "1.5s", 1.5),
        (parse_seconds, "250us", 250e-6),
        (parse_seconds, "250µs", 250e-6),
        (parse_seconds, "250μs", 250e-6),
        (parse_seconds, "2min", 120),
        (parse_seconds, "1e-3s", 1e-3),
        (parse_count, "40B", 40e9),
        (parse_count, "39.5e9", 39.5e9),
        (parse_count, "500M", 5e8),
        (parse_count, "0.04T", 4e10),
        (parse_count, "12k", 12e3),
        (parse_rate, "6000", 6000),
        (parse_rate, "6e3", 6000),
        (parse_rate, ".5", 0.5),
    ],
)
def test_quantities_are_exact(parse, text, value):
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_seconds, "900", "'900' has no unit; give a unit: 900ms or 0.9s"),
        (parse_seconds, "900m", "'900m' is not a duration: unknown unit 'm'; known are us, "),
        (parse_bytes, "80Gib2", "'80Gib2' is not a number of bytes; give one such as 80GiB or 80GB"),
        (parse_bytes, "80XB", "unknown unit 'XB'; known are b, kib, mib, gib, tib, kb, mb, gb, tb"),
        (parse_bytes, "0.4", "'0.4' is less than one byte"),
        (parse_bytes, "", "'' is not a number of bytes"),
        (parse_bytes, "-5GB", "'-5GB' is not a number of bytes"),
        (parse_count, "nan", "'nan' is not a count; give one such as 40B or 39.5e9"),
        (parse_count, "1_000", "'1_000' is not a count"),
        (parse_count, "1e99999999999", "'1e99999999999' is out of range"),
        (parse_count, "0.0M", "'0.0M' must be above 0"),
        (parse_rate, "6000/s", "'6000/s' is not a number of tokens per second; give one such as 6000"),
        (parse_rate, "6k", "unknown unit 'k'; known are none but the number itself"),
        (parse_rate, "0", "'0' must be above 0"),
    ],
)
def test_refusals_are_one_clear_line(parse, text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=12), st.sampled_from([parse_bytes, parse_seconds, parse_count, parse_rate]))
def test_any_text_is_a_positive_number_or_refused(text, parse):
    try:
        value = parse(text)
    except ValueError as error:
        assert repr(text) in str(error)  # noqa: PT017
        return
    assert 0 < value < math.inf


@given(st.floats(1e-3, 1e9), st.sampled_from([("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("min", 60.0)]))
def test_units_scale(number, unit):
    assert parse_seconds(f"{number!r}{unit[0]}") == pytest.approx(number * unit[1], rel=1e-15)


@pytest.mark.parametrize(
    ("resource", "value", "text"),
    [
        ("memory", 74.21 * 2**30, "74.21 GiB"),
        ("memory", 5 * 2**20, "5 MiB"),
        ("memory", 12, "12 B"),
        ("memory[chat]", 3 * 2**40, "3,072 GiB"),
        ("params", 49.87e9, "49.87 B parameters"),
        ("params", 12.5e6, "12.5 M parameters"),
        ("ttft", 0.812, "812 ms"),
        ("latency[a]", 12.3, "12.3 s"),
        ("tpot", 250e-6, "250 us"),
        ("tpot", 3e-8, "0.03 us"),
        ("throughput", 6012.4, "6,012 tokens/s"),
        ("throughput", 61.25, "61.25 tokens/s"),
    ],
)
def test_values_are_printed_with_their_unit(resource, value, text):
    assert format_value(resource, value) == text


def test_only_resources_are_printed():
    with pytest.raises(ValueError, match="no resource is named 'energy'"):
        format_value("energy", 1.0)


@given(st.sampled_from(["memory", "params", "ttft"]), st.floats(1, 1e13))
def test_printing_keeps_three_digits(resource, value):
    number, unit = format_value(resource, value).replace(",", "").split(" ", 1)
    scales = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10, "B": 1, "s": 1, "ms": 1e-3, "us": 1e-6, "parameters": 1}
    scales |= {"B parameters": 1e9, "M parameters": 1e6, "K parameters": 1e3}
    assert float(number) * scales[unit] == pytest.approx(value, rel=1e-3)
