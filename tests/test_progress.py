"""Progress on standard error: lines where there is no terminal, a bar where there is one."""

import io
import sys
from types import SimpleNamespace

import pytest

from puzzlebench import progress as module
from puzzlebench.progress import progress


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: found.now))
    return found


def test_quiet(capsys):
    with progress(quiet=True) as report:
        report(0.5, "working")
    assert capsys.readouterr() == ("", "")


def test_a_line_for_each_stage_and_now_and_then(capsys, clock):
    with progress() as report:
        report(0.0, "preparing")
        for step in range(1, 41):
            clock.now += 1
            report(step / 100, "timing")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0] == "  0% preparing"
    assert lines[1] == "  1% timing", "too early to say how long"
    assert lines[2] == " 16% timing, about 84 s left"
    assert lines[3] == " 31% timing, about 69 s left"
    assert len(lines) == 4


def test_a_resumed_run_does_not_count_what_was_done_before(capsys, clock):
    with progress() as report:
        report(0.8, "timing")
        clock.now += 20
        report(0.9, "timing")
    assert capsys.readouterr().err.splitlines()[1] == " 90% timing, about 20 s left"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress() as report:
        report(0.25, "session 1 of 2: timing")
        report(1.0, "session 2 of 2: timing")
    monkeypatch.undo()
    assert "session 2 of 2: timing" in terminal.getvalue()
    assert capsys.readouterr().out == ""


def test_a_bar_is_taken_away_when_something_goes_wrong(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())

    def go_wrong():
        with progress() as report:
            report(0.25, "timing")
            raise ValueError("no such device")

    with pytest.raises(ValueError, match="no such device"):
        go_wrong()
