"""Single decisions: one slow cell, a moved suite, few cells, few sessions, missing cells. Rates: test_validation.py."""

import numpy as np
import pytest

from puzzlebench.comparing.comparison import exit_code
from puzzlebench.comparing.verdicts import compare
from puzzlebench.comparing.words import headline, suite_line


@pytest.fixture
def judge(result, pairs):
    """Compare paired sessions with a planted log change in each cell."""

    def run(planted, *, sessions=8, seed=1, paired=True, **noise):
        planted = np.asarray(planted, dtype=np.float64)
        base, new = pairs(np.random.default_rng(seed), sessions, len(planted), own=0.006, **noise)
        return compare(result(base), result(new + planted), paired=paired)

    return run


def names(cells):
    return {int(cell.name.rpartition("_")[2]) for cell in cells}


def test_a_single_slow_cell_in_a_still_suite(judge):
    found = judge([0.0] * 12 + [0.08] + [0.0] * 12)
    assert names(found.of("SLOWER")) == {12}
    assert found.suite.verdict == "SAME"
    assert not found.relative
    assert exit_code(found) == 1
    cell = found.of("SLOWER")[0]
    assert cell.ratio.low < 1.083 < cell.ratio.high
    assert cell.sessions == 8
    assert cell.more_sessions is None


def test_what_slows_everything_is_one_finding(judge):
    found = judge([0.05] * 30)
    assert (found.suite.verdict, found.suite.cause) == ("SLOWER", "code")
    assert found.relative
    assert not found.of("SLOWER")
    assert exit_code(found) == 1
    assert "by the code" in suite_line(found)


def test_a_cell_that_is_worse_than_a_slower_suite_is_found_too(judge):
    assert names(judge([0.12] + [0.05] * 29).of("SLOWER")) == {0}


def test_a_cell_that_kept_its_time_is_not_slower_because_the_others_gained(judge):
    found = judge([0.0] + [-0.06] * 29)
    assert found.suite.verdict == "FASTER"
    assert not found.of("SLOWER")
    assert exit_code(found) == 0


@pytest.mark.parametrize("share", [0.2, 0.4])
def test_many_slow_cells_do_not_move_the_suite(judge, share):
    planted = np.where(np.arange(30) < 30 * share, 0.07, 0.0)
    found = judge(planted)
    assert names(found.of("SLOWER")) == set(np.flatnonzero(planted).tolist())
    assert not found.of("FASTER")


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8])
def test_when_most_cells_are_slower_the_suite_is(judge, share):
    found = judge(np.where(np.arange(30) < 30 * share, 0.07, 0.0))
    assert exit_code(found) == 1
    assert found.suite_slower
    assert not found.of("FASTER")


def test_two_times_cannot_tell_the_machine_from_the_code(result, times):
    base, new = times(np.random.default_rng(2), 8, 30, machine=0.0)
    found = compare(result(base), result(new + 0.08), paired=False)
    assert (found.suite.verdict, found.suite.cause) == ("SLOWER", "machine or code")
    assert not found.of("SLOWER")
    assert (exit_code(found), exit_code(found, strict=True)) == (0, 4)
    slow = new + 0.08 + np.where(np.arange(30) == 4, 0.15, 0.0)
    assert names(compare(result(base), result(slow), paired=False).of("SLOWER")) == {4}


def test_few_cells_are_judged_alone_when_paired_and_not_at_all_otherwise(judge):
    found = judge([0.1, 0.0, 0.0])
    assert found.suite is None
    assert names(found.of("SLOWER")) == {0}
    found = judge([0.1, 0.0, 0.0], paired=False)
    assert not found.of("SLOWER")
    assert "fewer than 6 cells" in found.notes[-1]


def test_one_session_judges_nothing(judge):
    for paired in (True, False):
        found = judge([1.0] + [0.0] * 19, sessions=1, paired=paired)
        assert len(found.of("AMBIGUOUS")) == 20
        assert "one session" in found.notes[0]


def test_one_wild_session_neither_makes_nor_hides_a_finding(result, pairs):
    base, new = pairs(np.random.default_rng(4), 8, 30, own=0.006)
    new[3, 5] += 0.4
    assert not compare(result(base), result(new), paired=True).of("SLOWER")
    new[:, 5] += 0.06
    assert names(compare(result(base), result(new), paired=True).of("SLOWER")) == {5}


def test_one_slow_session_of_all_cells_is_nobodys_fault(result, pairs):
    base, new = pairs(np.random.default_rng(5), 8, 30, own=0.006)
    new[2] += 0.3
    found = compare(result(base), result(new), paired=True)
    assert found.suite.verdict == "AMBIGUOUS"
    assert not found.of("SLOWER")
    assert (exit_code(found), exit_code(found, strict=True)) == (0, 4)


def test_a_suite_that_may_be_slower_is_not_the_same(result, pairs):
    base, new = pairs(np.random.default_rng(20), 8, 30, own=0.002, common=0.02)
    found = compare(result(base), result(new + 0.03), paired=True)
    assert found.suite.verdict == "AMBIGUOUS"
    assert not found.of("SAME")
    assert {cell.doubt for cell in found.cells} == {"the suite is open"}
    assert (exit_code(found), exit_code(found, strict=True)) == (0, 4)


def test_two_sessions_that_stand_far_out_may_be_the_code(result, pairs):
    base, new = pairs(np.random.default_rng(21), 8, 30, own=0.005)
    new[[1, 6], 4] += np.log(1.4)
    base[[1, 6], 5] += np.log(1.4)
    new[2, 6] += np.log(1.4)
    found = compare(result(base), result(new), paired=True)
    assert [found.cells[place].verdict for place in (4, 5, 6)] == ["AMBIGUOUS", "AMBIGUOUS", "SAME"]
    assert found.cells[4].doubt == "2 NEW sessions far out"
    assert found.cells[5].doubt == "2 BASE sessions far out"
    assert "2 cells have 2 or more sessions" in found.notes[-1]


@pytest.mark.parametrize("paired", [True, False])
def test_slow_samples_that_the_median_does_not_see_are_said(result, pairs, paired):
    generator = np.random.default_rng(22)
    base, new = pairs(generator, 8, 30, common=0.001, own=0.003)
    load = generator.uniform(0.7, 1.0, (2, 8, 1))  # of the session, common to its cells
    shares = generator.binomial(40, np.broadcast_to(load, (2, 8, 30))) / 40
    shares[1, :, 4] *= 0.4
    new[:, 7] += 0.1
    shares[1, :, 7] *= 0.4
    one, other = (
        result(logs, calm=calm, taken=np.full(calm.shape, 40.0)) for logs, calm in zip((base, new), shares, strict=True)
    )
    found = compare(one, other, paired=paired)
    assert names(cell for cell in found.cells if cell.doubt) == {4, 7}
    assert found.cells[4].verdict == "AMBIGUOUS"
    assert found.cells[4].doubt.startswith("calm samples ")
    assert found.cells[7].verdict == "SLOWER"  # a doubt does not acquit
    assert found.notes[-1].startswith("2 cells have other shares of calm samples")
    assert compare(other, one, paired=paired).cells[7].verdict == "AMBIGUOUS"


def test_as_many_more_sessions_as_advised_settle_a_cell(result, pairs):
    base, new = pairs(np.random.default_rng(6), 5, 30, common=0.003, own=0.012)
    first = compare(result(base), result(new), paired=True)
    advised = {cell.name: cell.more_sessions for cell in first.of("AMBIGUOUS") if cell.more_sessions is not None}
    assert len(advised) > 5
    for times in (2, 3, 5):  # the same sessions again and again: estimates and scatter stay as they are
        again = compare(result(np.tile(base, (times, 1))), result(np.tile(new, (times, 1))), paired=True)
        settled = [cell for cell in again.cells if advised.get(cell.name, 999) <= 5 * (times - 1)]
        settled = [cell for cell in settled if not cell.doubt]  # one session that stood far out becomes several
        assert settled
        assert sum(cell.verdict == "AMBIGUOUS" for cell in settled) <= 0.1 * len(settled)


def test_exact_values_are_compared_exactly(result):
    base = np.zeros((5, 10))
    new = base + np.where(np.arange(10) == 3, 0.03, 0.0)
    for paired in (True, False):
        found = compare(result(base), result(new), paired=paired)
        assert names(found.of("SLOWER")) == {3}
        assert len(found.of("SAME")) == 9


def test_swapping_both_sides_turns_slower_into_faster(result, pairs):
    base, new = pairs(np.random.default_rng(7), 8, 20, own=0.006)
    new[:, 3] += 0.1
    there, back = (compare(result(one), result(other), paired=True) for one, other in ((base, new), (new, base)))
    assert names(there.of("SLOWER")) == names(back.of("FASTER")) == {3}
    for one, other in zip(there.cells, back.cells, strict=True):
        assert one.ratio.value * other.ratio.value == pytest.approx(1)
        assert one.p == pytest.approx(other.p)


def test_gaps_are_passed_over(result, pairs):
    base, new = pairs(np.random.default_rng(8), 8, 20, own=0.006)
    new[:, 3] += 0.1
    base[2:4, 3] = base[5:, 4] = new[6:, 4] = np.nan
    base[1:, 5] = np.nan
    found = compare(result(base), result(new), paired=True)
    assert [cell.sessions for cell in found.cells][3:6] == [6, 5, 1]
    assert names(found.of("SLOWER")) == {3}
    assert found.cells[5].verdict == "AMBIGUOUS"


def test_a_cell_that_fails_in_some_sessions_of_new_only_is_missing(result, pairs):
    base, new = pairs(np.random.default_rng(23), 8, 10)
    new[5:, 4] = np.nan
    found = compare(result(base), result(new), paired=True)
    assert found.missing == ("block/cell_4",)
    assert found.appeared == ()
    assert len(found.cells) == 9
    assert "block/cell_4 in NEW: failed in 3 of 8 sessions" in found.notes
    assert (exit_code(found), exit_code(found, allow_missing=True)) == (1, 0)
    reasons = {"block/cell_4": "failed in 3 of 8 sessions: RuntimeError: no"}
    found = compare(result(base), result(new, skipped=reasons), paired=True)
    assert "block/cell_4 in NEW: failed in 3 of 8 sessions: RuntimeError: no" in found.notes


def test_a_cell_that_base_has_in_some_sessions_is_missing_where_only_new_failed(result, pairs):
    base, new = pairs(np.random.default_rng(23), 8, 10)
    base[6:, 4] = new[5:, 4] = np.nan
    failed = {"block/cell_4": "failed in 3 of 8 sessions: RuntimeError: no"}
    found = compare(result(base), result(new, skipped=failed), paired=True)
    assert (found.missing, exit_code(found)) == (("block/cell_4",), 1)
    for base_skipped, new_skipped in ((failed, failed), ({}, {})):
        found = compare(result(base, skipped=base_skipped), result(new, skipped=new_skipped), paired=True)
        assert (found.missing, len(found.cells)) == ((), 10)


def test_one_calm_sample_is_no_exact_time(result, pairs):
    """Errors that are unknown are taken for those of the typical cell."""
    base, new = pairs(np.random.default_rng(24), 5, 12, own=1e-6)
    errors = np.full(base.shape, 0.02)
    errors[:, 3] = np.nan
    found = compare(result(base, errors=errors), result(new, errors=errors), paired=True)
    widths = [cell.relative.high - cell.relative.low for cell in found.cells]
    assert widths[3] == pytest.approx(widths[2], rel=0.05)


def test_missing_cells_fail_unless_allowed(result, pairs):
    base, new = pairs(np.random.default_rng(9), 5, 10)
    found = compare(result(base), result(new[:, :9]), paired=True)
    assert found.missing == ("kernel/cell_9",)
    assert (exit_code(found), exit_code(found, allow_missing=True)) == (1, 0)
    assert "1 missing" in headline(found)
    back = compare(result(new[:, :9]), result(base), paired=True)
    assert (back.missing, back.appeared) == ((), ("kernel/cell_9",))
    assert exit_code(back) == 0


def test_strict_readers_are_told_when_much_is_open(judge):
    found = judge([0.0] * 20, sessions=2, common=0.03)
    assert len(found.of("AMBIGUOUS")) > 2
    assert (exit_code(found), exit_code(found, strict=True)) == (0, 4)


def test_what_cannot_be_compared(result, pairs):
    base, new = pairs(np.random.default_rng(10), 5, 10)
    one = result(base)
    for other, options, message in (
        (result(new[:4]), {"paired": True}, "5 and 4"),
        (result(new, names=[f"other/{place}" for place in range(10)]), {"paired": True}, "no cell in common"),
        (result(new, unit="ms"), {"paired": True}, "is in us in"),
        (result(new), {"paired": True, "band": 0}, "band"),
        (result(new), {"paired": True, "rate": 0.9}, "rate"),
        (result(new, fingerprint={"device": "h100"}), {"paired": True}, "--across"),
        (result(new[:1], kind="cost_table"), {"paired": False}, "of one kind"),
        (result(new, kind="pytest_benchmark"), {"paired": False, "across": True}, "of one kind"),
    ):
        with pytest.raises(ValueError, match=message):
            compare(one, other, **options)
    table = result(new[:1], kind="cost_table")
    with pytest.raises(ValueError, match="no sessions to pair"):
        compare(table, table, paired=True)
    labelled = compare(one, result(new, fingerprint={**one.fingerprint, "torch": "2.14"}), paired=True)
    assert labelled.labels == ("torch 2.13.0 in BASE, 2.14 in NEW",)
