"""Another machine is refused, another library is labelled, another commit is neither."""

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlebench.comparing.fingerprints import check_comparable, comparable_digest, find_differences

BASE = {
    "device": "h100_sxm",
    "date": "2026-11-28",
    "git_commit": "a",
    "torch": "2.13.0",
    "cuda": None,
    "threads": 2,
    "engine": "torch",
    "suite": "0a1b2c",
    "gpu": {"name": "NVIDIA H100 80GB HBM3", "driver_version": "560", "power_limit_w": 700.0, "mig_mode": False},
    "cpu": {"model": "AMD EPYC", "usable_cores": 2, "cache_bytes": {"L3": 1}, "flags": ["avx2"]},
}


def changed(**values):
    new = copy.deepcopy(BASE)
    for key, value in values.items():
        *groups, last = key.split("__")
        place = new
        for group in groups:
            place = place[group]
        place[last] = value
    return new


@pytest.mark.parametrize(
    "values",
    [
        {"device": "h200_sxm"},
        {"gpu__name": "NVIDIA H200"},
        {"gpu__mig_mode": True},
        {"cpu__model": "Intel"},
        {"cpu__usable_cores": 4},
        {"cpu__cache_bytes": {"L3": 2}},
        {"threads": 1},
        {"engine": "triton"},
        {"suite": "4c5d6e"},
    ],
)
def test_another_machine_or_engine_is_refused_unless_asked_for(values):
    with pytest.raises(ValueError, match="--across") as caught:
        check_comparable(BASE, changed(**values))
    assert "\n" not in str(caught.value)
    assert len(check_comparable(BASE, changed(**values), across=True)) == 1
    assert comparable_digest(BASE) != comparable_digest(changed(**values))


@pytest.mark.parametrize(
    ("values", "label"),
    [
        ({"torch": "2.14.0"}, "torch 2.13.0 in BASE, 2.14.0 in NEW"),
        ({"gpu__driver_version": "570"}, "gpu.driver_version 560 in BASE, 570 in NEW"),
        ({"gpu__power_limit_w": 500.0}, "gpu.power_limit_w 700.0 in BASE, 500.0 in NEW"),
        ({"governor": "powersave"}, "governor unknown in BASE, powersave in NEW"),
        ({"engine": None}, "engine torch in BASE, unknown in NEW"),
    ],
)
def test_what_may_be_the_cause_is_labelled(values, label):
    assert check_comparable(BASE, changed(**values)) == (label,)


def test_a_driver_does_not_end_a_series_and_a_commit_is_no_difference():
    assert comparable_digest(BASE) == comparable_digest(changed(gpu__driver_version="570", torch="2.14.0"))
    assert check_comparable(BASE, changed(date="2026-11-29", git_commit="b", puzzlebench="0.2")) == ()


def test_the_refusal_names_all_that_differs():
    with pytest.raises(ValueError, match=r"device h100_sxm in BASE, h200_sxm in NEW \(and 1 more: threads\)"):
        check_comparable(BASE, changed(device="h200_sxm", threads=7))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.lists(st.text(max_size=3), max_size=2),
    lambda inner: st.dictionaries(st.text("abc", min_size=1, max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text("abcg", min_size=1, max_size=4), VALUES, max_size=4))
def test_any_fingerprint_equals_itself(fingerprint):
    found = find_differences(fingerprint, copy.deepcopy(fingerprint))
    assert not found.refused
    assert not found.labelled
