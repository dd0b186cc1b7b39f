import json
import tempfile
from dataclasses import replace

import pytest

from puzzlebench.comparing.words import comparison_json
from puzzlebench.gating import gate as module
from puzzlebench.gating.gate import Gate, run_gate
from puzzlebench.gating.outcome import confirm

from .conftest import CELLS


def slower(*names, factor=1.2):
    return {name: cost * (factor if name in names else 1) for name, cost in CELLS.items()}


def gate(checkout, **changes):
    return Gate(**{"repository": checkout.root, "base": "main", "sessions": 5, "seconds": 10, **changes})


def verdicts(result):
    return {cell.name: cell.verdict for cell in result.comparison.cells}


def test_a_slower_cell_fails_after_a_second_look_and_the_others_do_not(checkout, stages):
    checkout.costs(cells=slower("block/cell_3"))
    result = run_gate(gate(checkout), progress=stages[1])
    assert result.code() == 1
    assert result.confirmed == ("block/cell_3",)
    assert verdicts(result) == {name: "SLOWER" if name == "block/cell_3" else "SAME" for name in CELLS}
    assert not result.suite_slower
    assert result.again.startswith("1 of 1 slower cells were slower again")
    assert result.new.name.startswith(checkout.git("rev-parse", "HEAD")[:12] + "+")
    assert any("working tree" in note and "1 changed" in note for note in result.comparison.notes)
    assert any(stage == "again, pair 5 of 5" for stage in stages[0])
    json.dumps(result.to_json(), allow_nan=False)


def test_equal_code_passes_without_a_second_look(checkout):
    result = run_gate(gate(checkout, new="main"))
    assert (result.code(), result.code(strict=True), result.second) == (0, 0, None)
    assert set(verdicts(result).values()) == {"SAME"}
    assert "both revisions are the same code" in result.comparison.notes[0]


def test_all_cells_slower_is_one_finding_of_the_suite(checkout):
    checkout.costs(cells=slower(*CELLS))
    result = run_gate(gate(checkout))
    assert result.code() == 1
    assert result.suite_slower
    assert result.confirmed == ()
    assert "suite was slower again" in result.again


def test_a_finding_that_does_not_come_again_does_not_fail(checkout):
    first = run_gate(gate(checkout, new="main")).first
    name = first.cells[2].name
    suspect = replace(
        first, cells=tuple(replace(cell, verdict="SLOWER") if cell.name == name else cell for cell in first.cells)
    )
    judged, confirmed, not_confirmed = confirm(suspect, first)
    assert (confirmed, not_confirmed) == ((), (name,))
    assert {cell.name: cell.verdict for cell in judged.cells}[name] == "SAME"
    judged, confirmed, not_confirmed = confirm(suspect, suspect)
    assert (confirmed, not_confirmed) == ((name,), ())
    assert confirm(suspect, None)[:2] == (suspect, (name,))
    assert confirm(first, suspect)[0] is first


def test_what_is_slower_twice_in_any_form_fails_with_the_second_looks_numbers(checkout):
    first = run_gate(gate(checkout, new="main")).first
    names = [cell.name for cell in first.cells]

    def slow(*chosen):
        cells = (replace(cell, verdict="SLOWER") if cell.name in chosen else cell for cell in first.cells)
        return replace(first, cells=tuple(cells))

    moved = replace(first, relative=True, suite=replace(first.suite, verdict="SLOWER", p=0.0))
    assert not confirm(moved, first)[0].suite_slower
    again = replace(moved, suite=replace(moved.suite, p=0.001))
    assert confirm(moved, again)[0].suite == again.suite
    assert confirm(moved, slow(names[1]))[:2] == (slow(names[1]), (names[1],))
    found = confirm(slow(names[1]), moved)[0]
    assert (found.suite_slower, found.relative) == (True, True)
    found, confirmed, _ = confirm(slow(names[1]), slow(names[1], names[2]))
    assert confirmed == (names[1],)
    assert {cell.name: cell.verdict for cell in found.cells}[names[2]] == "AMBIGUOUS"
    lost = replace(first, cells=first.cells[2:])
    assert confirm(slow(names[1]), lost)[0].missing == (names[1],)


def test_without_a_second_look_the_first_one_fails(checkout, stages):
    checkout.costs(cells=slower("block/cell_3"))
    result = run_gate(gate(checkout, rerun=False), progress=stages[1])
    assert (result.code(), result.second, result.again) == (1, None, "")
    assert not any("again" in stage for stage in stages[0])


def test_pairs_are_abba_and_both_sides_of_a_pair_are_alike(checkout, tmp_path):
    run_gate(gate(checkout, work=tmp_path / "work"))
    began = {
        (side, pair): json.loads((tmp_path / f"work/first/{side}.{pair:03d}.json").read_text())["session"]
        for side in ("base", "next")
        for pair in range(5)
    }
    order = sorted(began, key=lambda one: began[one]["started"])
    sides = [side for side, _ in order]
    assert sides == ["base", "next", "next", "base", "base", "next", "next", "base", "base", "next"]
    assert [pair for _, pair in order] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert {session["seconds"] for session in began.values()} == {1.0}


def test_a_killed_gate_goes_on_with_whole_pairs(checkout, tmp_path, monkeypatch):
    work, kept, scratch = tmp_path / "work", [], tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    run = module.run_fresh

    def dies(program, request, file, **rest):
        if file.name == "base.003.json" and not kept:  # the second of its pair
            kept.append(file)
            raise KeyboardInterrupt
        return run(program, request, file, **rest)

    monkeypatch.setattr(module, "run_fresh", dies)
    with pytest.raises(KeyboardInterrupt):
        run_gate(gate(checkout, work=work))
    assert not list(scratch.iterdir())
    whole = {file.name: file.stat().st_mtime_ns for file in (work / "first").glob("*.00[0-2].json")}
    assert len(whole) == 6
    stamp = (work / "first/next.003.json").stat().st_mtime_ns
    assert run_gate(gate(checkout, work=work)).code() == 0
    assert {name: (work / "first" / name).stat().st_mtime_ns for name in whole} == whole
    assert (work / "first/next.003.json").stat().st_mtime_ns != stamp


@pytest.fixture
def interrupted(checkout, monkeypatch):
    """A gate with a kept folder in its checkout that is interrupted in its third pair."""
    checkout.costs(cells=slower("block/cell_3"))
    work, run = checkout.root / "work", module.run_fresh

    def dies(program, request, file, **rest):
        if file.name == "base.002.json":
            raise KeyboardInterrupt
        return run(program, request, file, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(module, "run_fresh", dies)
        with pytest.raises(KeyboardInterrupt):
            run_gate(gate(checkout, work=work))
    return work


def test_a_killed_gate_goes_on_with_the_code_that_it_began_with(checkout, interrupted, stages):
    began = json.loads((interrupted / "job.json").read_text())["new"]
    checkout.costs(cells=slower("block/cell_5"), more="# a comment")
    result = run_gate(gate(checkout, work=interrupted), progress=stages[1])
    assert result.confirmed == ("block/cell_3",)
    assert result.new.name == began
    assert stages[0][0].startswith("going on with")
    [note] = [note for note in result.comparison.notes if note.startswith("NEW is the working tree")]
    assert "1 changed file(s), as it was when this measurement began: it was edited since" in note
    assert sorted(file.name for file in interrupted.iterdir() if "probe" not in file.name) == [
        "first",
        "job.json",
        "lock",
        "second",
    ]


def test_what_was_unpacked_is_of_one_gate_and_whole(checkout, interrupted):
    assert sorted(file.name for file in (interrupted / "trees").iterdir()) == ["base", "next", "pair.json"]
    for changes in ({"new": "main"}, {"only": ("pack_text",)}, {"sessions": 6}):
        with pytest.raises(ValueError, match=r"holds a measurement with another (new|measurement)"):
            run_gate(gate(checkout, work=interrupted, **changes))
    checkout.commit()
    with pytest.raises(ValueError, match="holds a measurement with another base"):
        run_gate(gate(checkout, work=interrupted))
    assert run_gate(gate(checkout, base="main~1", work=interrupted)).confirmed == ("block/cell_3",)


def test_a_finished_gate_tells_its_result_again_and_takes_no_other_code(checkout):
    work = checkout.root / "work"
    first = run_gate(gate(checkout, work=work))
    stamps = {file: file.stat().st_mtime_ns for file in work.glob("first/*.00?.json")}
    assert run_gate(gate(checkout, work=work)).comparison == first.comparison
    assert {file: file.stat().st_mtime_ns for file in stamps} == stamps
    checkout.costs(cells=slower("block/cell_3"))
    with pytest.raises(ValueError, match="another new"):
        run_gate(gate(checkout, work=work))
    assert not (work / "trees").exists()


def test_code_that_cannot_run_is_not_kept(checkout):
    work = checkout.root / "work"
    checkout.costs(error="no such device")
    with pytest.raises(ValueError, match="NEW cannot run the suite"):
        run_gate(gate(checkout, work=work))
    checkout.costs(cells=slower("block/cell_3"))
    assert run_gate(gate(checkout, work=work)).confirmed == ("block/cell_3",)


def test_a_cell_that_is_gone_fails_and_a_new_one_is_listed(checkout):
    cells = {name: cost for name, cost in CELLS.items() if name != "block/cell_0"} | {"block/more": 5.0}
    checkout.costs(cells=cells, skipped={"block/cell_0": "failed: ValueError: no"})
    result = run_gate(gate(checkout))
    assert result.code() == 1
    assert (result.comparison.missing, result.comparison.appeared) == (("block/cell_0",), ("block/more",))
    told = [note for note in result.comparison.notes if "block/cell_0" in note]
    assert told == ["block/cell_0 in NEW: failed: ValueError: no"]


def test_a_cell_that_fails_in_some_sessions_of_new_only_is_missing(checkout, monkeypatch):
    run = module.run_fresh

    def fails(program, request, file, **rest):
        run(program, request, file, **rest)
        found = json.loads(file.read_text())
        found["skipped"] = {"kernel/gpu": "is for GPUs"}
        if file.name in ("next.001.json", "next.002.json"):
            del found["session"]["cells"]["block/cell_1"]
            found["skipped"]["block/cell_1"] = "failed: RuntimeError: no luck"
        file.write_text(json.dumps(found))
        return found

    monkeypatch.setattr(module, "run_fresh", fails)
    result = run_gate(gate(checkout, new="main"))
    assert (result.code(), result.comparison.missing) == (1, ("block/cell_1",))
    assert "block/cell_1" not in verdicts(result)
    told = [note for note in result.comparison.notes if "block/cell_1" in note]
    assert told == ["block/cell_1 in NEW: failed in 2 of 5 sessions: RuntimeError: no luck"]
    assert "1 benchmarks not run: is for GPUs (1)" in result.comparison.notes


def test_a_side_that_cannot_run_the_suite_is_named(checkout):
    checkout.costs(error="no such device")
    checkout.commit()
    with pytest.raises(ValueError, match="NEW cannot run the suite: no such device"):
        run_gate(gate(checkout, base="HEAD~1"))
    checkout.costs()
    with pytest.raises(ValueError, match="BASE cannot run the suite: no such device"):
        run_gate(gate(checkout))
    checkout.git("rm", "-q", "--cached", "puzzlebench/costs.py")
    checkout.git("commit", "-q", "-m", "old")
    with pytest.raises(ValueError, match=r"BASE cannot run the suite: .*No module named 'puzzlebench.costs'"):
        run_gate(gate(checkout))


def test_other_dependencies_are_said(checkout):
    checkout.write("pyproject.toml", '[project]\nname = "puzzlebench"\ndependencies = ["numpy>=9"]\n')
    result = run_gate(gate(checkout))
    assert any("other dependencies" in note and "--venv" in note for note in result.comparison.notes)


def test_values_that_are_not_possible():
    with pytest.raises(ValueError, match="at least 5 sessions"):
        Gate(base="main", sessions=4)
    with pytest.raises(ValueError, match="no benchmark matches"):
        Gate(base="main", only=("nothing like it",))


def test_the_comparison_in_the_json_is_the_one_that_counts(checkout):
    checkout.costs(cells=slower("block/cell_3"))
    result = run_gate(gate(checkout))
    stated = result.to_json()
    assert stated["comparison"] == comparison_json(result.comparison)
    assert stated["exit_code"] == 1
    assert {stated["base"]["name"], stated["new"]["name"]} == set(result.comparison.revisions)
