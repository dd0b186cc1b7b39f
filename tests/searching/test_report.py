"""Searches as JSON, and the folder they are written to."""

import json
import math

import pytest

import puzzlebench.searching.report as module
from puzzlebench.model.blocks import architecture_from_json, architecture_to_json
from puzzlebench.searching.compare import compare
from puzzlebench.searching.recheck import recheck
from puzzlebench.searching.refining import refine_architectures
from puzzlebench.searching.report import search_facts, search_json, why_not_json, write_search
from puzzlebench.searching.search import Confidence, SearchSettings, search_architectures
from puzzlebench.searching.why_not import why_not

from .conftest import limits, load
from .world import scored

SETTINGS = SearchSettings(batch_sizes=(1, 4, 16), diverse=2, confidence=Confidence(level=0.9, errors_are="independent"))


def strict(answer):
    """As a reader that knows no NaN and no infinity gets it."""
    return json.loads(json.dumps(answer, allow_nan=False))


def facts_of(llama, costs, scores, asked):
    return search_facts(
        costs,
        llama.table,
        scores,
        costs.scenarios,
        asked,
        memory_is_default=False,
        engine_rules=None,
        rules=["fix 0=parent"],
        confidence=SETTINGS.confidence,
        costs_from="t.parquet",
        scores_from="s.csv",
    )


@pytest.fixture(scope="module")
def searched(llama):
    scores, asked = scored(llama), limits("max-memory=3.4GiB", "min-throughput=2500")
    costs = load(llama, "512+100", scores=scores, limits=asked)
    outcome = search_architectures(costs, llama.table, scores, SETTINGS)
    compared = compare(costs, llama.parent, SETTINGS, outcome.found[0], samples=5)
    refined = refine_architectures(costs, llama.table, SETTINGS, outcome.found, lambda _: 1.0, evaluations=3)
    parent = recheck(llama.table, llama.spec, llama.parent, costs.scenarios, outcome.found[0].batch_size, asked)
    answer = search_json(facts_of(llama, costs, scores, asked), outcome, compared, refined, parent)
    return outcome, refined, answer


def test_a_search_as_json(llama, searched):
    outcome, refined, answer = searched
    data = strict(answer)
    assert data["schema_version"] == 1
    assert data["outcome"] == "optimal"
    assert data["model"] == llama.spec.name
    assert (data["bound"], data["gap"]) == (pytest.approx(outcome.found[0].objective), 0)
    assert data["limits"][0] == {"resource": "memory", "low": None, "high": float(round(3.4 * 2**30))}
    assert data["confidence"] == {"level": 0.9, "errors_are": "independent"}
    assert data["scenarios"][0] == {
        "name": "512+100",
        "prefill_len": 512,
        "decode_len": 100,
        "limits": [],
        "held_len": None,
    }
    assert data["solutions_wanted"] == len(data["solutions"]) == 2
    for found, one in zip(outcome.found, data["solutions"], strict=True):
        assert architecture_from_json(one["architecture"]) == found.architecture
        assert one["objective"] == found.objective
        assert one["values"] == found.check.values
        assert all(limit["holds"] for limit in one["limits"])
        (margin,) = one["at_confidence"]
        assert (margin["column"], margin["end"]) == ("throughput", "low")
        assert 2500 <= margin["value"] < one["values"]["throughput"]
    assert data["solutions"][1]["shared_layers"] == list(outcome.found[1].shared)
    assert [batch["batch_size"] for batch in data["batches"]] == [1, 4, 16]
    assert all((batch["bound"] is None) == (batch["status"] == "infeasible") for batch in data["batches"])
    assert architecture_from_json(data["refined"]["architecture"]) == refined.architecture
    assert data["refined"]["evaluations"] == 3
    assert {row["name"] for row in data["baselines"]} >= {"greedy", "random"}
    assert data["parent"]["batch_size"] == outcome.found[0].batch_size
    assert {limit["column"]: limit["holds"] for limit in data["parent"]["limits"]}["memory"] is False


def test_an_explanation_as_json(llama):
    scores, asked = scored(llama), limits("max-memory=1GiB", "max-ttft=1s")
    costs = load(llama, "512+100", scores=scores, limits=asked)
    found = why_not(costs, SETTINGS)
    data = strict(why_not_json(facts_of(llama, costs, scores, asked), found))
    assert (data["outcome"], data["solutions"]) == ("infeasible", [])
    explanation = data["explanation"]
    memory = next(one for one in explanation["limits"] if one["asked"]["column"] == "memory")
    assert memory["asked"] == {"column": "memory", "side": "max", "value": 2**30, "with_margin": False}
    assert memory["clashes"] is True
    assert memory["relaxed"]["value"] == memory["alone"] > 2**30
    assert [batch["batch_size"] for batch in explanation["batches"]] == [1, 4, 16]
    assert explanation["errors_taken_as"] == "correlated"


def test_what_is_not_finite_is_null():
    assert [module._finite(value) for value in (1.5, math.inf, -math.inf, math.nan)] == [1.5, None, None, None]


def test_a_folder_is_written_whole_and_what_is_stale_goes(tmp_path, llama, searched):
    _, refined, answer = searched
    folder = tmp_path / "out"
    write_search(folder, answer, [llama.parent] * 11, refined.architecture)
    ours = {"search.json", "architecture.json", "architecture.refined.json"}
    ours |= {f"architecture.{place}.json" for place in range(2, 12)}
    assert {path.name for path in folder.iterdir()} == ours
    assert json.loads((folder / "search.json").read_text()) == strict(answer)
    assert json.loads((folder / "architecture.11.json").read_text()) == architecture_to_json(llama.parent)
    kept = {"architecture.mine.json", "architecture.1.json", "notes.txt"}
    for name in kept:
        (folder / name).write_text("mine")
    write_search(folder, answer, [llama.parent])
    assert {path.name for path in folder.iterdir()} == kept | {"search.json", "architecture.json"}
    write_search(folder, answer, [])
    assert {path.name for path in folder.iterdir()} == kept | {"search.json"}


def test_an_interrupted_write_leaves_no_summary(tmp_path, llama, monkeypatch):
    folder = tmp_path / "out"
    write_search(folder, {"of": "before"}, [llama.parent] * 3)
    real, written = module.write_text, []

    def interrupted(path, text):
        if written:
            raise KeyboardInterrupt
        written.append(path)
        real(path, text)

    monkeypatch.setattr(module, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_search(folder, {"of": "now"}, [llama.parent] * 2)
    assert [path.name for path in folder.iterdir()] == ["architecture.json"]


def test_a_folder_that_cannot_be_written(tmp_path, llama):
    (tmp_path / "file").write_text("")
    for folder, words in ((tmp_path / "file", "File exists"), (tmp_path / "no" / "out", "No such file or directory")):
        with pytest.raises(ValueError, match=f"cannot write to {folder}: {words}"):
            write_search(folder, {}, [llama.parent])
