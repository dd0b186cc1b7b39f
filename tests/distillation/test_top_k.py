from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from puzzlebench.distillation import top_k
from puzzlebench.distillation.job import run_distil_job
from puzzlebench.distillation.losses import FullTarget, top_k_target
from puzzlebench.distillation.ranks import Ranks
from puzzlebench.distillation.recipe import DistilRecipe, LossWeights, Stage
from puzzlebench.distillation.teacher import LiveTeacher
from puzzlebench.distillation.top_k import CachedTeacher, CacheKey, fill_cache
from puzzlebench.parent.open import find_parent, load_parent

KEY = CacheKey(teacher="t", rows="r", length=12, k=7, temperature=1.5, precision="fp32")
WEIGHTS = LossWeights(cosine=0.0, temperature=1.5)


@pytest.fixture
def rows():
    return np.random.default_rng(0).integers(0, 260, (70, 12)).astype(np.int32)


@pytest.fixture
def teacher(parent):
    return LiveTeacher(load_parent(find_parent(str(parent)), torch.device("cpu"), torch.float32), WEIGHTS, "fp32")


@pytest.fixture
def ranks():
    return Ranks("cpu", "fp32")


def test_a_cache_gives_what_the_parent_says(tmp_path, rows, teacher, ranks):
    folder = KEY.folder(tmp_path)
    shares = []
    fill_cache(folder, KEY, rows, lambda: teacher, ranks, shares.append)
    assert shares[-1] == 1.0
    assert sorted(path.name for path in folder.iterdir()) == [
        "cache.json",
        *(f"rows-{number:06d}.safetensors" for number in range(3)),
    ]
    assert json.loads((folder / "cache.json").read_text())["k"] == 7
    chosen = np.array([69, 3, 31, 32])
    found = CachedTeacher(folder).lesson(torch.from_numpy(rows[chosen]), chosen)
    assert found.layers == ()
    live = teacher.lesson(torch.from_numpy(rows[chosen]).long())
    assert isinstance(live.target, FullTarget)
    expected = top_k_target(live.target.head.logits(live.target.hidden), 7, 1.5)
    assert torch.equal(found.target.ids, expected.ids)
    torch.testing.assert_close(found.target.log_probs, expected.log_probs, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.target.rest, expected.rest, rtol=0, atol=1e-5)


def contents(folder):
    return {
        path.name: {name: tensor.tolist() for name, tensor in load_file(path).items()} for path in folder.glob("rows-*")
    }


def test_only_what_is_missing_is_made(tmp_path, rows, teacher, ranks):
    folder = KEY.folder(tmp_path)
    fill_cache(folder, KEY, rows, lambda: teacher, ranks)
    before = contents(folder)
    (folder / "rows-000001.safetensors").unlink()
    made = []
    fill_cache(folder, KEY, rows, lambda: made.append(1) or teacher, ranks)
    assert made == [1]
    assert contents(folder) == before
    fill_cache(folder, KEY, rows, lambda: pytest.fail("nothing is missing"), ranks)


@pytest.mark.parametrize(
    "change", [{"teacher": "u"}, {"rows": "s"}, {"k": 8}, {"temperature": 1.0}, {"precision": "bf16"}]
)
def test_another_key_is_another_folder(tmp_path, change):
    assert replace(KEY, **change).folder(tmp_path) != KEY.folder(tmp_path)


def test_a_broken_file_is_one_line(tmp_path, rows, teacher, ranks):
    folder = KEY.folder(tmp_path)
    fill_cache(folder, KEY, rows, lambda: teacher, ranks)
    (folder / "rows-000000.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(ValueError, match=r"rows-000000\.safetensors cannot be read: .*; remove it"):
        CachedTeacher(folder).lesson(torch.from_numpy(rows[:1]), np.array([0]))


def test_a_child_learns_from_a_cache_alone(job, tmp_path, monkeypatch):
    """With all but one token kept, what is learnt is what the parent itself teaches."""
    from puzzlebench.distillation import materials

    recipe = DistilRecipe(
        losses=LossWeights(cosine=0.0, reverse_kl=0.5),
        stages=(Stage(length=16, sequences=20, batch_size=4), Stage(length=24, sequences=8, batch_size=4)),
        lr=0.003,
        evaluations=2,
    )
    live = replace(job, recipe=recipe, out=job.out.with_name("live"))
    expected = run_distil_job(live)
    cached = replace(
        live, out=job.out, teacher_cache=tmp_path / "cache", top_k=find_parent(job.parent).spec.vocab_size - 1
    )
    facts = run_distil_job(cached)
    for line, wanted in zip(facts["losses"], expected["losses"], strict=True):
        assert line == pytest.approx(wanted, rel=1e-3)
    found = load_file(job.out / "model.safetensors")
    for name, tensor in load_file(live.out / "model.safetensors").items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=3e-4)
    assert len(list((tmp_path / "cache").iterdir())) == 2  # a folder per stage
    monkeypatch.setattr(materials, "load_parent", lambda *_: pytest.fail("the cache is whole"))
    few = run_distil_job(replace(cached, out=job.out.with_name("again")))
    assert few["losses"] == facts["losses"]


def test_k_that_does_not_fit_the_vocabulary(job, tmp_path):
    no_cosine = replace(job.recipe, losses=LossWeights(cosine=0.0))
    with pytest.raises(ValueError, match="top-k must be from 1 to 259 for this vocabulary, not 260"):
        run_distil_job(replace(job, recipe=no_cosine, teacher_cache=tmp_path / "cache", top_k=260))


def test_files_hold_a_round_number_of_rows():
    assert top_k.ROWS_OF_A_FILE == 32  # the tests above count on it
