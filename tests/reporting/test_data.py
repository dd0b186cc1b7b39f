"""A run folder as values: whole, interrupted, broken."""

import json
import shutil

import pytest

from puzzlebench.model.blocks import architecture_from_json
from puzzlebench.reporting.data import collect
from puzzlebench.searching.pareto import front_json

from .run_folder import put

DOCUMENTS = (
    "run.json",
    "search/search.json",
    "search/front.json",
    "distilled/distillation.json",
    "evaluation/realised/retention.json",
    "evaluation/distilled/retention.json",
    "speed/speed.json",
)


def edit(path, change):
    stated = json.loads(path.read_text())
    change(stated)
    put(path, stated)


def test_reads_what_the_search_chose(run_folder, data):
    chosen = json.loads((run_folder / "search" / "architecture.json").read_text())
    assert data.search.architecture == architecture_from_json(chosen)
    stated = json.loads((run_folder / "search" / "search.json").read_text())
    assert data.search.batch_size == stated["solutions"][0]["batch_size"]
    assert data.search.values == {"score": stated["solutions"][0]["objective"], **stated["solutions"][0]["values"]}
    assert data.search.parent_values["throughput"] == stated["parent"]["values"]["throughput"]


def test_front_is_the_one_that_was_written(run_folder, data):
    stated = json.loads((run_folder / "search" / "front.json").read_text())
    again = front_json(data.front)
    assert again == {key: stated[key] for key in again}
    assert len(again["points"]) > 3


def test_errors_of_times_are_predicted_over_measured(data):
    assert data.speed.error("child", "generate") == pytest.approx(1 / 1.11 - 1)
    assert data.speed.error("parent", "prefill") == pytest.approx(1 / 1.06 - 1)
    assert data.speed.children == ("child",)


def test_last_retention_is_after_distillation(data, copy):
    assert data.retention.overall.value == 0.95
    shutil.rmtree(copy / "evaluation" / "distilled")
    assert collect(copy).retention.overall.value == 0.81


def test_scores_are_those_the_search_used(data, copy):
    assert data.scores.metric == "kl"
    edit(copy / "search" / "search.json", lambda stated: stated["scores"].update(metric="lm_loss"))
    assert collect(copy).scores.metric == "lm_loss"
    (copy / "search" / "search.json").unlink()
    assert collect(copy).scores.metric == "kl"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_missing_document_is_none_and_nothing_else_is(copy, data, name):
    (copy / name).unlink()
    found = collect(copy)
    fields = ("run", "costs", "scores", "search", "front", "distillation", "realised", "distilled", "speed")
    gone = [field for field in fields if getattr(found, field) is None]
    assert len(gone) == 1
    assert all(getattr(data, field) is not None for field in fields)


@pytest.mark.parametrize("name", DOCUMENTS)
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"schema_version": 1', "not a JSON file"),
        ("[]", "must hold a JSON object, not list"),
        ('{"schema_version": 7}', "schema version 7; this version reads 1"),
        ('{"schema_version": 1}', "lacks"),
        ('{"schema_version": 1, "stages": 3, "solutions": 3, "points": 3, "models": 3}', "lacks|not as its stage"),
    ],
)
def test_broken_document_is_one_line_with_its_path(copy, name, text, said):
    (copy / name).write_text(text)
    with pytest.raises(ValueError, match=said) as caught:
        collect(copy)
    assert str(copy / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_front_may_state_no_version_but_no_other(copy):
    edit(copy / "search" / "front.json", lambda stated: stated.pop("schema_version"))
    assert collect(copy).front is not None
    edit(copy / "run.json", lambda stated: stated.pop("schema_version"))
    with pytest.raises(ValueError, match=r"run\.json has schema version None"):
        collect(copy)


def test_curves_are_of_what_was_minimised(data, copy):
    assert [curve.name for curve in data.distillation.curves] == ["loss", "cosine", "forward_kl"]
    assert [curve.name for curve in data.distillation.others] == ["lm"]
    edit(copy / "distilled" / "distillation.json", lambda stated: stated["recipe"]["losses"].update(cosine=0.0))
    found = collect(copy).distillation
    assert [curve.name for curve in found.curves] == ["loss"]
    assert [curve.name for curve in found.others] == ["cosine", "lm"]


def test_text_for_a_number_is_refused(copy):
    edit(copy / "speed" / "speed.json", lambda stated: stated["models"][0]["prefill_ms"].update(value="fast"))
    with pytest.raises(ValueError, match=r"speed\.json is not as its stage writes it: 'fast' is no number"):
        collect(copy)


def test_search_that_found_nothing_is_said(copy):
    edit(copy / "search" / "search.json", lambda stated: stated.update(solutions=[], outcome="infeasible"))
    with pytest.raises(ValueError, match="found no architecture"):
        collect(copy)


@pytest.mark.parametrize(
    ("stage", "gone"),
    [
        ("profile", {"costs"}),
        ("score", {"scores"}),
        ("search", {"search", "front"}),
        ("distil", {"distillation"}),
        ("evaluate", {"realised", "distilled"}),
        ("speed", {"speed"}),
        ("library", set()),
    ],
)
def test_files_of_a_stage_that_run_json_does_not_know_are_missing(copy, stage, gone):
    def unfinish(stated):
        stated["begun"] = [one for one in stated["stages"] if one["name"] == stage]
        stated["stages"] = [one for one in stated["stages"] if one["name"] != stage]

    edit(copy / "run.json", unfinish)
    found = collect(copy)
    fields = ("costs", "scores", "search", "front", "distillation", "realised", "distilled", "speed")
    assert {field for field in fields if getattr(found, field) is None} == gone
    assert all(f"no finished stage {stage}" in why for why in found.passed_over.values())
    assert bool(found.passed_over) == bool(gone)
    (copy / "run.json").unlink()
    found = collect(copy)
    assert all(getattr(found, field) is not None for field in fields)
    assert not found.passed_over


def test_broken_file_of_an_earlier_run_is_not_read(copy):
    (copy / "speed" / "speed.json").write_text("{")
    edit(copy / "run.json", lambda stated: stated["stages"].pop())
    assert collect(copy).speed is None


@pytest.mark.parametrize(("asked", "shown"), [({}, True), ({"before": True}, True), ({"before": False}, False)])
def test_evaluation_before_distillation_is_shown_only_where_it_was_asked_for(copy, asked, shown):
    edit(copy / "run.json", lambda stated: stated["recipe"].update(evaluate=asked))
    found = collect(copy)
    assert (found.realised is not None) == shown
    assert found.distilled is not None
    assert list(found.passed_over) == ([] if shown else ["evaluation/realised/retention.json"])


def test_folder_without_a_run(tmp_path):
    with pytest.raises(ValueError, match="holds nothing of a run"):
        collect(tmp_path)
    with pytest.raises(ValueError, match="no folder of a run"):
        collect(tmp_path / "nowhere")


def test_costs_without_the_batch_size_say_why(copy):
    edit(copy / "search" / "search.json", lambda stated: stated["solutions"][0].update(batch_size=3))
    costs = collect(copy).costs
    assert costs.child_times is None
    assert "no batch size 3" in costs.why
