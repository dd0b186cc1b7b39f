"""Whole ablations of a tiny parent: what is made, what is judged, and what is not done twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from puzzlebench.ablation import seed as seeds
from puzzlebench.ablation.job import AblationJob, ablation_space, run_ablations
from puzzlebench.ablation.quality import TestText as Text
from puzzlebench.library.job import load_tokens
from puzzlebench.model.blocks import architecture_from_json
from puzzlebench.parent.open import find_parent, load_parent
from puzzlebench.profiling.cost_table import read_cost_table
from puzzlebench.scoring.metrics import metrics, reference
from puzzlebench.speed.predict import SpeedScenario, predict


def variant(result, experiment, name):
    (one,) = (one for one in result["experiments"] if one["name"] == experiment)
    (found,) = (found for found in one["variants"] if found["variant"] == name)
    return found


@pytest.fixture
def distilled(monkeypatch):
    """Distillations that were done."""
    done, real = [], seeds.run_distil_job

    def distil(job, progress):
        done.append(job)
        return real(job, progress=progress)

    monkeypatch.setattr(seeds, "run_distil_job", distil)
    return done


def test_all_ablations(job, costs, distilled):
    told = []
    result = run_ablations(job, progress=lambda share, stage: told.append(share))
    assert json.loads((job.out / "ablations.json").read_text()) == result
    assert [one["name"] for one in result["experiments"]] == ["bld", "score", "search", "space", "distil"]
    files, table = find_parent(job.parent), read_cost_table(costs)
    scenario = SpeedScenario(batch_size=2, prefill_len=8, decode_len=8)
    least = 1.3 * predict(table, files.spec, files.architecture, scenario).generated_tokens_per_s.value
    runs = [run for one in result["experiments"] for each in one["variants"] for run in each["runs"]]
    with_child = [run for run in runs if run["architecture"] is not None]
    assert len(with_child) >= 0.8 * len(runs)
    for run in with_child:
        architecture = architecture_from_json(run["architecture"])
        rate = predict(table, files.spec, architecture, scenario).generated_tokens_per_s.value
        assert rate >= least * 0.999, "every child keeps the same limit"
        assert rate == pytest.approx(run["throughput"])
        assert run["before"]["kl"] > 0
    assert len(distilled) == 2 * 7
    assert len({one.recipe.seed for one in distilled}) == 2
    assert {one.recipe.tokens for one in distilled} == {distilled[0].recipe.tokens}, "the same number of tokens for all"
    texts = [(job.out / f"seed-{seed}" / "train.jsonl").read_text() for seed in range(2)]
    assert texts[0] != texts[1]
    assert told == sorted(told)
    same = [variant(result, experiment, name)["runs"] for experiment, name in (("bld", "bld"), ("search", "mip"))]
    assert [run["before"] for run in same[0]] == [run["before"] for run in same[1]]
    assert variant(result, "distil", "none")["runs"][0]["after"] is None
    best = variant(result, "distil", "cosine+kl")["runs"][0]
    assert best["after"] != best["before"]
    before = (job.out / "ablations.json").read_bytes()
    again = run_ablations(job)
    assert again["experiments"] == result["experiments"]
    assert len(distilled) == 14, "nothing is done twice"
    assert len(before) == len((job.out / "ablations.json").read_bytes())


def test_it_goes_on_where_it_stopped_and_takes_more_seeds(job, monkeypatch):
    real, judged = Text.measure, []

    def measure(self, model):
        if len(judged) == 2:
            raise KeyboardInterrupt
        judged.append(model)
        return real(self, model)

    monkeypatch.setattr(Text, "measure", measure)
    job = replace(job, only=("score",), seeds=1)
    with pytest.raises(KeyboardInterrupt):
        run_ablations(job)
    assert not (job.out / "ablations.json").exists()
    monkeypatch.setattr(Text, "measure", real)
    built = []
    monkeypatch.setattr(seeds, "run_library", lambda *_: built.append(1))
    run_ablations(job)
    assert built == [], "the library is there"


def test_more_seeds_later_leave_the_first_as_they_are(job):
    job = replace(job, only=("space",), seeds=1)
    first = run_ablations(job)
    both = run_ablations(replace(job, seeds=2))
    for name in ("full", "no-op only"):
        assert variant(both, "space", name)["runs"][0] == variant(first, "space", name)["runs"][0]
        assert len(variant(both, "space", name)["runs"]) == 2


def test_distil_all_gives_both_stages(job, distilled):
    result = run_ablations(replace(job, only=("bld",), seeds=1, distil_all=True))
    assert result["experiments"][0]["stages"] == ["before", "after"]
    assert [one.recipe.losses.weighted for one in distilled] == [("cosine", "forward_kl")] * 2
    runs = [variant(result, "bld", name)["runs"][0] for name in ("bld", "initialised")]
    assert all(run["after"] != run["before"] for run in runs)


@pytest.mark.parametrize("half", [False, True])
def test_a_kill_before_a_distilled_child_is_judged(job, distilled, monkeypatch, half):
    job = replace(job, only=("bld",), seeds=1, distil_all=True)
    real, judged = Text.measure, []

    def measure(self, model):
        judged.append(model)
        if len(judged) == 2:  # the first distilled one
            raise KeyboardInterrupt
        return real(self, model)

    monkeypatch.setattr(Text, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        run_ablations(job)
    children = job.out / "seed-0" / "children"
    (left,) = children.glob("*-distilled")
    if half:
        (left / "model.safetensors").unlink()
    run_ablations(job)
    assert len(distilled) == (3 if half else 2), "one that is whole is judged as it is"
    assert not list(children.glob("*-distilled*"))
    assert not list(children.glob(".*"))


def test_a_kill_while_a_judged_child_is_removed(job, distilled, monkeypatch):
    job = replace(job, only=("bld",), seeds=1, distil_all=True)
    real = shutil.rmtree

    def rmtree(folder, **more):
        if folder.name.endswith("-distilled.removed.part") and folder.exists():  # what is removed is judged
            assert len(list((job.out / "seed-0" / "judged").iterdir())) == 2
            (folder / "config.json").unlink()
            raise KeyboardInterrupt
        real(folder, **more)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(KeyboardInterrupt):
        run_ablations(job)
    children = job.out / "seed-0" / "children"
    assert not list(children.glob("*-distilled")), "no half of it lies under its name"
    assert list(children.glob(".*-distilled.removed.part"))
    monkeypatch.setattr(shutil, "rmtree", real)
    run_ablations(job)
    assert len(distilled) == 2
    assert not list(children.glob(".*"))


def test_other_settings_in_the_folder_are_refused(job):
    job = replace(job, only=("space",), seeds=1)
    run_ablations(job)
    with pytest.raises(ValueError, match="holds ablations with other settings; give another folder"):
        run_ablations(replace(job, scale=0.2))


def test_a_limit_that_nothing_keeps(job):
    with pytest.raises(ValueError, match=r"no architecture of the space is 1000 times as fast .* lower --speed-up"):
        run_ablations(replace(job, speed_up=1000.0, seeds=1))


def test_a_cost_table_of_another_model(job, tmp_path):
    from puzzlebench.profiling.cost_table import CostTable, write_cost_table

    table = read_cost_table(job.costs)
    model = table.metadata["model"] | {"hidden_size": 999}
    write_cost_table(CostTable(frame=table.frame, metadata=table.metadata | {"model": model}), tmp_path / "o.parquet")
    with pytest.raises(ValueError, match="whose shapes are not those of"):
        run_ablations(replace(job, costs=tmp_path / "o.parquet"))


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seeds": 0}, "seeds must be a whole number"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"speed_up": 1.0}, "speed-up must be above 1"),
        ({"only": ("x",)}, "no ablation is named 'x'"),
        ({"parent_seeds": True, "parent": "somewhere"}, "only the embedded parent is made anew"),
    ],
)
def test_jobs_that_are_not_possible(tmp_path, changes, what):
    with pytest.raises(ValueError, match=what):
        AblationJob(**{"out": tmp_path, **changes})


def test_sizes_follow_the_scale(tmp_path):
    one, two = (AblationJob(out=tmp_path, scale=scale).settings(512) for scale in (1.0, 2.0))
    for name in ("library_sequences", "steps", "score_sequences", "test_sequences", "distil_sequences"):
        assert getattr(two, name) == 2 * getattr(one, name)
    assert AblationJob(out=tmp_path).settings(64).length == 64


@pytest.mark.parametrize("kept_bytes", [1 << 30, 0])
def test_quality_is_that_of_the_metrics(parent_folder, library_of_python, monkeypatch, kept_bytes):
    monkeypatch.setattr("puzzlebench.ablation.quality._KEPT_BYTES", kept_bytes)
    files = find_parent(str(parent_folder))
    parent = load_parent(files, torch.device("cpu"), torch.float32)
    tokens = load_tokens(files, None, "test", sequences=5, length=16)
    text = Text(parent, tokens, batch_size=2)
    own = text.measure(parent)
    assert own["kl"] == pytest.approx(0, abs=1e-9)
    assert own["top1_agreement"] == 1
    other = load_parent(files, torch.device("cpu"), torch.float32)
    for parameter in other.parameters():
        parameter.mul_(0.9)
    ids = torch.from_numpy(tokens).long()
    with torch.inference_mode():
        expected = metrics(other(ids).logits, reference(parent(ids).logits, ids)).mean(dim=0)
    for _ in range(2):
        found = text.measure(other)
        assert [found["kl"], found["lm_loss"], found["top1_agreement"]] == pytest.approx(expected.tolist(), rel=1e-5)


def test_the_space_has_every_kind(parent_folder):
    files = find_parent(str(parent_folder))
    layer = ablation_space(files).layers[0]
    assert [len(layer.attention), len(layer.ffn)] == [4, 5]
