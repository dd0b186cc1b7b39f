"""Which metric counts, and how documents make it."""

import math
from pathlib import Path

import numpy as np
import pytest

from puzzlebench.evaluation.metrics import column_of, is_better_higher, main_metric
from puzzlebench.evaluation.stored import StoredTask


def task(better=None, **aggregates):
    found = {key.replace("__", ","): value for key, value in aggregates.items()}
    return StoredTask(name="t", file=Path("r.json"), header={}, aggregates=found, better=better or {})


@pytest.mark.parametrize(
    ("aggregates", "expected"),
    [
        ({"acc__none": 0.5, "acc_norm__none": 0.6}, "acc_norm,none"),
        ({"f1__none": 0.5, "acc__none": 0.6, "acc_stderr__none": 0.1}, "acc,none"),
        ({"exact_match__strict": 0.2, "exact_match__flexible": 0.3}, "exact_match,strict"),
        ({"word_perplexity__none": 9.0, "bits_per_byte__none": 0.7}, "bits_per_byte,none"),
        ({"rouge__none": 0.3, "bleu__none": 0.2}, "bleu,none"),  # the first that is declared
    ],
)
def test_the_main_metric(aggregates, expected):
    assert main_metric(task({"bleu": True, "rouge": True}, sample_len=3, **aggregates)) == expected


def test_a_wanted_metric():
    found = task(exact_match__strict=0.2, exact_match__flexible=0.3)
    assert main_metric(found, "exact_match,flexible") == "exact_match,flexible"
    assert main_metric(found, "exact_match") == "exact_match,strict"
    with pytest.raises(ValueError, match=r"t has no metric 'f1'; it has exact_match,strict"):
        main_metric(found, "f1")
    with pytest.raises(ValueError, match="no metric"):
        main_metric(task(sample_len=3))


def test_better_is_said_by_the_result():
    assert is_better_higher(task({"acc": True}), "acc,none")
    with pytest.raises(ValueError, match="whether higher"):
        is_better_higher(task({"acc": None}), "acc,none")


def test_shares_and_means():
    found = column_of(task(acc__none=0.75), "acc,none", [1.0, "True", True, 0])
    assert (found.label, found.binary, found.numerator.tolist()) == ("acc", True, [1, 1, 1, 0])
    found = column_of(task(f__none=0.5), "f,none", [0.25, 0.75])
    assert not found.binary


def test_bits_and_perplexities_become_bits():
    values = [[-8 * math.log(2), 4], [-2 * math.log(2), 6]]  # 10 bits in 10 bytes
    found = column_of(task(bits_per_byte__none=1.0), "bits_per_byte,none", values)
    assert (found.label, found.numerator.tolist(), found.size.tolist()) == ("bits_per_byte", [8, 2], [4, 6])
    found = column_of(task(word_perplexity__none=2.0), "word_perplexity,none", values)
    assert found.label == "log2 word_perplexity"
    assert found.numerator == pytest.approx(np.array([8, 2]))
    found = column_of(task(perplexity__none=8.0), "perplexity,none", [-2 * math.log(2), -4 * math.log(2)])
    assert (found.label, found.numerator.tolist()) == ("log2 perplexity", pytest.approx([2, 4]))


@pytest.mark.parametrize(
    ("stored", "values"),
    [
        (0.9, [1.0, 0.0]),  # a mean it is not
        (0.5, [[1, 0], [0, 1]]),  # F1 of gold and guess
        (0.5, ["no number", 1.0]),
        (0.5, [None, None]),
        ("N/A", [1.0, 0.0]),
        (0.5, [[1, 2, 3], [1, 2, 3]]),
        (0.5, []),
    ],
)
def test_what_is_no_known_mean(stored, values):
    assert column_of(task(m__none=stored), "m,none", values) is None
