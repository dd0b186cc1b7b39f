"""Markdown, JUnit, the page and the terminal say the same, whatever cells are called."""

import html
import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puzzlebench.comparing.html import render_comparison
from puzzlebench.comparing.junit import junit
from puzzlebench.comparing.markdown import comment, marker
from puzzlebench.comparing.terminal import print_comparison
from puzzlebench.comparing.verdicts import compare
from puzzlebench.comparing.words import comparison_json

from .conftest import make_result

WILD = ["block/a|b`c", "kernel/<script>alert(1)</script>", "x/é\u0000\ud800]]>&\"'", "no_group", "a/" + "long" * 40]


@pytest.fixture(scope="module")
def comparison(pairs):
    base, new = pairs(np.random.default_rng(1), 8, 12, own=0.006)
    new[:, 2] += 0.1
    new[:, 5] -= 0.1
    new[3:, 7] += 0.05
    one = make_result(base, revision="0123abc")
    other = make_result(new[:, :11], fingerprint={**one.fingerprint, "torch": "2.14"}, revision="4567def")
    return compare(one, other, paired=True)


@pytest.fixture(scope="module")
def moved(pairs):
    base, new = pairs(np.random.default_rng(2), 8, 12, own=0.006)
    return compare(make_result(base), make_result(new + 0.08), paired=True)


@pytest.fixture(scope="module")
def wild(pairs):
    base, new = pairs(np.random.default_rng(3), 5, len(WILD) + 5, own=0.006)
    names = [*WILD, *(f"g/{place}" for place in range(5))]
    new[:, 1] += 0.2
    new[:, 3] = np.nan
    return compare(make_result(base, names=names), make_result(new, names=names), paired=True)


def test_the_comment_begins_with_its_marker_and_unfolds_only_what_matters(comparison):
    text = comment(comparison)
    first, heading, *_ = text.splitlines()
    assert first == marker() == "<!-- puzzlebench benchmarks -->"
    assert "1 SLOWER" in heading
    assert "1 missing" in heading
    shown = text.partition("<details>")[0]
    assert "block/cell_2" in shown
    assert "kernel/cell_5" in shown
    assert "block/cell_0" not in shown
    assert "torch 2.13.0 in BASE, 2.14 in NEW" in shown
    assert text.count("<details>") == text.count("</details>") == 2
    assert text.count("block/cell_0</code>") == 1
    assert "0123abc" in text


def test_a_moved_suite_heads_the_comment(moved):
    text = comment(moved)
    assert "the whole suite is slower" in text.splitlines()[1]
    assert "relative to the suite" in text
    assert "| **SLOWER** |" not in text


def test_comments_of_two_suites_are_told_apart():
    assert marker("gpu") != marker("cpu-gate")
    for name in ("a -->", "a--b", ""):
        with pytest.raises(ValueError, match="name"):
            marker(name)


def test_a_comment_fits_github_however_many_cells(result, pairs):
    base, new = pairs(np.random.default_rng(4), 5, 900)
    names = [f"block/{'x' * 60}_{place}" for place in range(900)]
    text = comment(compare(result(base, names=names), result(new, names=names), paired=True))
    assert len(text) < 65_536
    assert re.search(r"\d+ cells did not fit", text)
    assert text.count("<details>") == text.count("</details>")


def test_a_comment_fits_github_however_many_findings(result, pairs):
    base, new = pairs(np.random.default_rng(5), 5, 2000, common=0.001, own=0.001)
    names = [f"block/{'x*' * 30}_{place}" for place in range(2000)]
    new[:, :900] += 0.1
    base[:, 900:1300] += 0.1
    one = result(base, names=names, notes=tuple(f"note {place} {'y' * 80}" for place in range(200)))
    text = comment(compare(one, result(new, names=names), paired=True))
    assert len(text) < 65_536
    assert re.search(r"\d+ slower or faster cells did not fit", text)
    assert re.search(r"\d+ notes did not fit", text)
    assert text.count("<details>") == text.count("</details>")
    assert "*" not in text.replace("**", "")


def test_a_name_is_no_markdown(result):
    names = ["a/*b*", "a/[c](d)", "a/_e_", "a/~f~", "a/g_h", "a/i"]
    text = comment(compare(result(np.zeros((5, 6)), names=names), result(np.zeros((5, 6)), names=names), paired=True))
    shown = [html.unescape(name) for name in re.findall("<code>(a/[^<]*)</code>", text)]
    assert sorted(shown) == sorted(names)
    assert not re.search(r"<code>[^<]*[*\[\]~][^<]*</code>", text)
    assert "a/g_h" in text


def test_names_cannot_break_the_comment(wild):
    text = comment(wild)
    rows = [line for line in text.splitlines() if line.startswith("| <code>")]
    assert len({line.count(" | ") for line in rows}) == 1
    assert all(line.count("|") == rows[0].count("|") for line in rows)
    assert "<script>" not in text
    assert "`" not in text.replace("\\`", "")


@pytest.mark.parametrize("name", ["comparison", "moved", "wild"])
def test_junit_counts_what_it_holds(name, request):
    found = request.getfixturevalue(name)
    root = ElementTree.fromstring(junit(found).encode("utf-8", "strict"))
    suite = root.find("testsuite")
    cases = suite.findall("testcase")
    assert int(suite.get("tests")) == len(cases) == len(found.cells) + len(found.missing) + 1
    failures = [case for case in cases if case.find("failure") is not None]
    assert int(suite.get("failures")) == len(failures)
    assert len(failures) == len(found.of("SLOWER")) + len(found.missing) + found.suite_slower
    skipped = sum(case.find("skipped") is not None for case in cases)
    assert int(suite.get("skipped")) == skipped >= len(found.of("AMBIGUOUS"))


def test_junit_of_a_cell(comparison):
    root = ElementTree.fromstring(junit(comparison))
    case = next(case for case in root.iter("testcase") if case.get("name") == "cell_2")
    assert case.get("classname") == "block"
    assert case.find("failure").get("message").startswith("SLOWER: +")
    new = next(cell.new for cell in comparison.cells if cell.name == "block/cell_2")
    assert float(case.get("time")) == pytest.approx(new / 1e6, rel=1e-3)
    allowed = ElementTree.fromstring(junit(comparison, allow_missing=True)).iter("testcase")
    missing = [case.get("name") for case in allowed if case.find("skipped[@message='missing in NEW']") is not None]
    assert missing == ["cell_11"]


@given(st.lists(st.text(min_size=1, max_size=12), min_size=7, max_size=9, unique=True))
def test_reports_stand_any_name(names):
    logs = np.zeros((3, len(names)))
    found = compare(make_result(logs, names=names), make_result(logs, names=names), paired=True)
    assert len(ElementTree.fromstring(junit(found).encode()).findall(".//testcase")) == len(names) + 1
    page = render_comparison(found)
    assert page.count("<main") == page.count("</main>") == 1
    comment(found).encode()


@pytest.mark.parametrize("name", ["comparison", "moved", "wild"])
def test_the_page_is_whole_and_asks_nobody(name, request):
    found = request.getfixturevalue(name)
    page = render_comparison(found, base="0123abc", new="4567def")
    assert "default-src &#x27;none&#x27;" in page
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", page)
    assert "<script>alert" not in page
    marks = re.findall(r'class="mark"', page)
    measured = [cell for cell in found.cells if np.isfinite(found.judged(cell).value)]
    assert len(marks) == 2 * (len(measured) + (not found.relative))  # drawn wide and narrow
    for cell in measured:
        assert page.count(cell.verdict) >= 2


def test_the_terminal_shows_what_matters_or_all(comparison, moved, wild, capsys):
    print_comparison(comparison)
    shown = capsys.readouterr().out
    for words in ("block/cell_2", "SLOWER", "missing in NEW: kernel/cell_11", "differs: torch", "11 cells: 1 SLOWER"):
        assert words in shown
    assert "block/cell_0" not in shown
    print_comparison(comparison, every_cell=True)
    assert "block/cell_0" in capsys.readouterr().out
    print_comparison(moved, every_cell=True)
    assert "relative to the suite" in capsys.readouterr().out
    print_comparison(compare(make_result(np.zeros((5, 8))), make_result(np.zeros((5, 8))), paired=True))
    assert "8 cells: 8 SAME" in capsys.readouterr().out


def test_json_has_no_infinities(wild, comparison):
    for found in (wild, comparison):
        stated = json.loads(json.dumps(comparison_json(found), allow_nan=False))
        assert len(stated["cells"]) == len(found.cells)
        assert sum(stated["counts"].values()) == len(found.cells)
