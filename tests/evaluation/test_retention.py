"""What a child keeps, from results made by hand."""

import math

import pytest

from puzzlebench.evaluation.records import retention_json
from puzzlebench.evaluation.retention import compare
from puzzlebench.evaluation.stored import read_side

BITS = {
    "metric": "bits_per_byte",
    "higher": False,
    "output_type": "loglikelihood_rolling",
    "aggregate": lambda values: -sum(v for v, _ in values) / sum(n for _, n in values) / math.log(2),
}


def bits(*pairs):
    return BITS | {"values": [[-bit * math.log(2), size] for bit, size in pairs]}


@pytest.fixture
def compared(tmp_path, write):
    def compared(parent, child, tasks=(), *, header=None, **options):
        groups = options.pop("groups", ({}, {}))
        sides = []
        for place, (name, found) in enumerate((("parent", parent), ("child", child))):
            told = (header or {}) if name == "child" else {}
            sides.append(read_side(write(tmp_path / name, found, groups=groups[place], name=name, **told)))
        return compare(*sides, tasks, **options)

    return compared


def test_tasks_and_their_mean_by_hand(compared):
    found = compared(
        {"choice": {"values": [1.0] * 8 + [0.0] * 2}, "text": bits((10, 10), (30, 20))},
        {"choice": {"values": [1.0] * 5 + [0.0] * 4 + [1.0]}, "text": bits((15, 10), (33, 20))},
    )
    choice, text = found.tasks
    assert (choice.task, choice.metric, choice.parent, choice.child) == ("choice", "acc", 0.8, 0.6)
    assert (choice.lost, choice.gained, choice.mcnemar_p) == (3, 1, 0.625)
    assert choice.retention.value == pytest.approx(0.75)
    assert choice.retention.low < 0.75 < choice.retention.high
    assert choice.chance == 0.25
    assert choice.above_chance.value == pytest.approx(0.35 / 0.55)
    assert (text.parent, text.child) == pytest.approx((40 / 30, 48 / 30))
    assert text.retention.value == pytest.approx(40 / 48)
    assert (text.binary, text.lost, text.mcnemar_p, text.chance) == (False, None, None, None)
    assert found.overall.value == pytest.approx((0.75 + 40 / 48) / 2)
    assert found.overall.low < found.overall.value < found.overall.high
    assert found.notes == ()


def test_the_same_for_a_seed_whatever_other_tasks_there_are(compared):
    one = {"values": [1.0, 0.7, 0.2, 0.8, 0.1, 1.0] * 6}, {"values": [1.0, 0.4, 0.3, 0.9, 0.5, 0.1] * 6}
    both = compared({"b": one[0], "a": one[0]}, {"b": one[1], "a": one[1]}, ("a", "b"))
    alone = compared({"b": one[0]}, {"b": one[1]}, ("b",))
    assert both.tasks[1] == alone.tasks[0]
    assert both.tasks[0].retention != both.tasks[1].retention  # not the same draws
    other = compared({"b": one[0]}, {"b": one[1]}, ("b",), seed=5)
    assert other.tasks[0].retention.value == alone.tasks[0].retention.value
    assert other != alone


def test_json_has_what_the_contract_says(compared):
    stated = retention_json(compared({"a": {"values": [1.0, 0.0, 1.0]}}, {"a": {"values": [1.0, 0.0, 0.0]}}))
    assert stated["parent"]["name"] == "parent"
    assert stated["parent"]["fingerprint"] is None  # results of lm-eval itself do not say
    assert set(stated["overall"]) == {"retention", "low", "high"}
    assert set(stated["tasks"][0]) == {
        *("task", "metric", "higher_is_better", "parent", "child", "retention", "retention_low", "retention_high"),
        *("difference", "difference_low", "difference_high", "documents", "binary", "mcnemar_p", "lost", "gained"),
        *("chance", "retention_above_chance", "retention_above_chance_low", "retention_above_chance_high", "subtasks"),
    }


def test_documents_that_differ_are_refused(compared):
    with pytest.raises(ValueError, match=r"a: 2 of 2 documents differ .* first is document 0"):
        compared({"a": {"values": [1.0, 0.0]}}, {"a": {"values": [1.0, 0.0], "hash": "other"}})
    with pytest.raises(ValueError, match="no document in common"):
        compared({"a": {"values": [1.0, 0.0]}}, {"a": {"values": [1.0, 0.0], "ids": [7, 8]}})


@pytest.mark.parametrize(("what", "message"), [({"version": 2.0}, "version is 1.0"), ({"shots": 5}, "shots is 0")])
def test_other_tasks_are_refused(compared, what, message):
    with pytest.raises(ValueError, match=message):
        compared({"a": {"values": [1.0, 0.0]}}, {"a": {"values": [1.0, 0.0]} | what})


def test_documents_of_one_side_are_left_out_and_it_says_so(compared):
    found = compared({"a": {"values": [1.0, 1.0, 0.0, 1.0]}}, {"a": {"values": [0.0, 1.0, 1.0], "ids": [2, 0, 1]}})
    row = found.tasks[0]
    assert (row.documents, row.parent, row.child) == (3, pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert (row.lost, row.gained) == (0, 0)  # joined by id, not by place
    assert "the parent has 4 documents and the child 3" in found.notes[0]


def test_other_settings_are_said(compared):
    found = compared(
        {"a": {"values": [1.0, 0.0]}},
        {"a": {"values": [1.0, 0.0], "prompt": "chat"}},
        header={"lm_eval_version": "0.4.9", "config": {"model": "vllm", "model_dtype": "torch.float32"}},
    )
    assert found.lm_eval_version == "0.4.13 and 0.4.9"
    assert found.notes == (
        "lm-eval differs: 0.4.13 for the parent, 0.4.9 for the child",
        "backend differs: hf for the parent, vllm for the child",
        "a: 2 of 2 prompts differ between the sides",
    )


GROUP_PARENT = {"a": {"values": [1.0, 1.0, 1.0, 0.0]}, "b": {"values": [1.0, 0.0]}}
GROUP_CHILD = {"a": {"values": [1.0, 1.0, 0.0, 0.0]}, "b": {"values": [1.0, 0.0]}}


@pytest.mark.parametrize(
    ("aggregates", "expected"),
    [((4 / 6, 3 / 6), 0.75), ((0.625, 0.5), 0.8)],  # by documents, and all alike
)
def test_a_group_counts_once_by_its_own_aggregate(compared, aggregates, expected):
    groups = tuple({"ab": (["a", "b"], aggregate)} for aggregate in aggregates)
    found = compared(
        GROUP_PARENT | {"c": {"values": [1.0, 1.0]}}, GROUP_CHILD | {"c": {"values": [1.0, 1.0]}}, groups=groups
    )
    assert [row.task for row in found.tasks] == ["c", "ab"]
    group = found.tasks[1]
    assert group.retention.value == pytest.approx(expected)
    assert group.retention.low < expected < group.retention.high
    assert [row.task for row in group.subtasks] == ["a", "b"]
    assert (group.documents, group.lost, group.gained) == (6, 1, 0)
    assert found.overall.value == pytest.approx((1 + expected) / 2)


def test_a_group_whose_aggregate_is_something_else_has_no_interval(compared):
    groups = {"ab": (["a", "b"], 0.9)}, {"ab": (["a", "b"], 0.6)}
    found = compared(GROUP_PARENT, GROUP_CHILD, ("ab",), groups=groups)
    assert found.tasks[0].retention.value == pytest.approx(0.6 / 0.9)
    assert found.tasks[0].retention.low is found.overall.low is None
    assert "no mean of its tasks" in found.notes[0]


def test_a_group_without_aggregate_is_its_tasks(compared):
    groups = {"ab": (["a", "b"], None)}, {"ab": (["a", "b"], None)}
    for tasks in ((), ("ab",)):
        found = compared(GROUP_PARENT, GROUP_CHILD, tasks, groups=groups)
        assert [row.task for row in found.tasks] == ["a", "b"]


def test_a_metric_over_all_documents_has_no_interval(compared):
    told = {"metric": "f1", "aggregate": lambda _: 0.8, "values": [[1, 0], [1, 1]]}
    found = compared({"a": told}, {"a": told | {"aggregate": lambda _: 0.6}})
    row = found.tasks[0]
    assert row.retention.value == pytest.approx(0.75)
    assert row.retention.low is row.difference.low is found.overall.low is None
    assert "no mean over documents" in found.notes[0]


def test_a_parent_at_zero_is_left_out_of_the_mean(compared):
    found = compared(
        {"a": {"values": [0.0, 0.0]}, "b": {"values": [1.0, 0.5]}},
        {"a": {"values": [1.0, 0.0]}, "b": {"values": [1.0, 0.0]}},
    )
    assert found.tasks[0].retention.value is None
    assert found.tasks[0].above_chance is None
    assert found.overall.value == pytest.approx(1 / 1.5)
    assert found.notes == ("not in the overall retention, which needs a ratio: a",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ("b",)}, "have no task b; they have a"),
        ({"metrics": {"b": "acc"}}, "metric is given for b"),
        ({"metrics": {"a": "f1"}}, "no metric 'f1'"),
    ],
)
def test_what_is_wrong_is_one_line(compared, options, message):
    with pytest.raises(ValueError, match=message):
        compared({"a": {"values": [1.0, 0.0]}}, {"a": {"values": [1.0, 0.0]}}, **options)


def test_nothing_in_common(compared):
    with pytest.raises(ValueError, match="no task in common"):
        compared({"a": {"values": [1.0, 0.0]}}, {"b": {"values": [1.0, 0.0]}})


def test_guessing_among_choices_that_are_asked_for_twice(compared):
    told = {"metric": "acc_mutual_info", "values": [1.0, 0.0]}  # with and without context: 4 requests for 2 choices
    assert compared({"a": told}, {"a": told}).tasks[0].chance == 0.5
