import json
import random

import pytest

from puzzlebench.gating import prove
from puzzlebench.gating.proof_table import BEGIN, END, proof_markdown, write_into
from puzzlebench.gating.prove import CYCLE, FACTORS, Proof, planted_cells, run_proof

CELLS = [f"block/cell_{number}" for number in range(20)]
MACHINE = {"device": "made_up", "display_name": "made up", "threads": 1, "torch": "0", "git_commit": "abc"}


class Machine:
    """Sessions without a process: every one shifts all cells by 3 %, every cell by `scatter`."""

    def __init__(self, scatter=0.004, trend=0.0):
        self.scatter, self.trend, self.ran = scatter, trend, []

    def __call__(self, program, request, file, *, threads, tell=None, slow=""):
        draw, number = random.Random(request.session), request.session
        factors = {name: float(factor) for name, factor in (one.split("=") for one in slow.split(",") if one)}
        shift = 1 + 0.03 * draw.gauss(0, 1)
        cells = {}
        for place, name in enumerate(CELLS):
            away = 1 + self.scatter * draw.gauss(0, 1) + self.trend * number * (place % 5 == 0)
            median = 100 * shift * away * factors.get(name, 1)
            cells[name] = {
                "unit": "us",
                "median": median,
                "low": median * 0.9999,
                "high": median * 1.0001,
                "samples": 9,
            }
        session = {
            "session": number,
            "started": f"2026-01-01T10:{number % 60:02d}:00+00:00",
            "seconds": request.seconds,
        }
        session |= {"others_share": 0.0, "set_aside_share": 0.0, "throttled_share": 0.0, "cells": cells}
        stated = {"schema_version": 1, "puzzlebench_version": "0", "fingerprint": MACHINE, "skipped": {}}
        file.write_text(json.dumps({**stated, "slowed": factors, "session": session}))
        self.ran.append(number)
        return stated


def proof(tmp_path, monkeypatch, machine=None, **changes):
    monkeypatch.setattr(prove, "run_fresh", machine or Machine())
    return run_proof(Proof(**{"folder": tmp_path / "pool", "suites": 20, "pairs": (5,), **changes}))


def test_equal_code_gives_no_alarm_and_planted_slow_downs_are_found(tmp_path, monkeypatch):
    result = proof(tmp_path, monkeypatch, suites=60)
    [suite] = result["suites"]
    assert suite["equal"]["suites"] >= 60
    assert suite["equal"]["disjoint"] == (suite["equal"]["suites"] - 1) // 10 + 1
    assert suite["equal"]["confirmed"]["suites"] == 0
    factors = suite["slowed"]["factors"]
    assert list(factors) == ["1.03", "1.05", "1.1"]
    for factor in ("1.05", "1.1"):
        assert factors[factor]["first"]["found"] == factors[factor]["first"]["of"] > 0
        assert factors[factor]["gate"]["found"] == factors[factor]["gate"]["of"] > 0
    assert suite["slowed"]["untouched_confirmed"]["suites"] == 0
    assert result["session_scatter"]["all_cells"] == pytest.approx(0.03, rel=0.4)
    assert result["session_scatter"]["typical_cell"] == pytest.approx(0.004, rel=0.4)
    assert result["within_session"]["cells_wrong"] > 0.9  # what sessions differ by is not in their own intervals


def test_alarms_are_counted_where_the_pool_gives_some(tmp_path, monkeypatch):
    # A fifth of the cells become slower all the time. ABBA takes that off; without it NEW is always slower.
    calm = proof(tmp_path / "a", monkeypatch, Machine(scatter=0.0002, trend=0.02))
    assert calm["suites"][0]["equal"]["alarms"]["suites"] == 0
    monkeypatch.setattr(
        prove, "_abba", lambda places: (list(places)[: len(places) // 2], list(places)[len(places) // 2 :])
    )
    alarmed = proof(tmp_path / "b", monkeypatch, Machine(scatter=0.0002, trend=0.02))
    equal = alarmed["suites"][0]["equal"]
    assert equal["alarms"]["suites"] == equal["alarms"]["of"] == equal["suites"]
    assert equal["alarms"]["upper"] is None  # its windows share sessions
    assert equal["alarms_disjoint"]["upper"] == 1.0
    assert equal["confirmed"]["suites"] == equal["confirmed"]["of"] > 0


def test_a_proof_goes_on_and_grows(tmp_path, monkeypatch):
    machine = Machine()
    with pytest.raises(ValueError, match="plain sessions are too few"):
        proof(tmp_path, monkeypatch, machine, minutes=0.0)
    assert machine.ran == []
    first = proof(tmp_path, monkeypatch, machine, suites=11)
    count = len(machine.ran)
    assert first["sessions"] == count == len(list((tmp_path / "pool").glob("session.*.json")))
    assert proof(tmp_path, monkeypatch, machine, suites=11)["suites"] == first["suites"]
    assert len(machine.ran) == count
    assert proof(tmp_path, monkeypatch, machine, suites=20)["sessions"] == len(machine.ran) > count
    assert json.loads((tmp_path / "pool/proof.json").read_text())["sessions"] == len(machine.ran)
    with pytest.raises(ValueError, match="another seconds"):
        proof(tmp_path, monkeypatch, machine, seconds=9.0)


def test_a_pool_has_as_many_plain_sessions_as_its_windows_need(tmp_path):
    for suites in (1, 20, 200):
        job = Proof(folder=tmp_path, suites=suites)
        plain = (CYCLE * 200)[: job.sessions].count("A")
        assert plain == max(suites + 9, 32)


def test_planted_cells_stay_for_a_while_and_then_are_others():
    assert planted_cells(CELLS, 0) == planted_cells(CELLS, 15) != planted_cells(CELLS, 16)
    assert sorted(planted_cells(CELLS, 3).values()) == sorted(FACTORS)
    with pytest.raises(ValueError, match="needs twice as many; 5 can be measured"):
        planted_cells(CELLS[:5], 0)


def test_planted_sessions_are_really_asked_to_be_slow_and_paired_with_a_neighbour(tmp_path, monkeypatch):
    proof(tmp_path, monkeypatch)
    files = sorted((tmp_path / "pool").glob("session.*.json"))
    slowed = [json.loads(file.read_text())["slowed"] for file in files]
    kinds = "".join("P" if one else "A" for one in slowed)
    assert kinds == (CYCLE * 20)[: len(kinds)]
    blocks = prove._blocks(kinds, slowed)
    assert all(abs(plain - planted) == 1 for block in blocks for plain, planted in block)
    assert [plain < planted for plain, planted in blocks[0][:4]] == [True, False, True, False]
    assert all(slowed[planted] == slowed[block[0][1]] for block in blocks for _, planted in block)


def test_values_that_are_not_possible(tmp_path):
    for changes, words in (
        ({"pairs": (4,)}, "pairs of a suite"),
        ({"pairs": (9,)}, "5 to 8"),
        ({"suites": 0}, "at least 1"),
    ):
        with pytest.raises(ValueError, match=words):
            Proof(folder=tmp_path, **changes)


def test_the_table_goes_between_the_marks(tmp_path, monkeypatch):
    text = proof_markdown(proof(tmp_path, monkeypatch))
    assert "| 5 | 20 | 0 of 20 | 0 of 20 | 0 of 2 (< 84.2%) |" in text
    assert "| pairs | half-width of a cell's interval | 3% | 5% | 10% |" in text
    document = tmp_path / "document.md"
    document.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_into(document, text)
    write_into(document, text)
    assert document.read_text() == f"before\n{BEGIN}\n\n{text}\n{END}\nafter\n"
    document.write_text("no marks")
    with pytest.raises(ValueError, match="does not have the lines"):
        write_into(document, text)
    with pytest.raises(ValueError, match="cannot read"):
        write_into(tmp_path / "none.md", text)
