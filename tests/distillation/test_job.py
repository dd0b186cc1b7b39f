from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from puzzlebench.child.checkpoints import load_causal_lm
from puzzlebench.distillation import states as states_module
from puzzlebench.distillation import trainer
from puzzlebench.distillation.job import FACTS_FILE, run_distil_job
from puzzlebench.distillation.recipe import LossWeights, Stage
from puzzlebench.library.realise import SOLUTION_FILE
from puzzlebench.parent.fingerprint import checkpoint_fingerprint

from .conftest import save_parent


def weights(folder):
    return load_file(folder / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_child_learns_and_is_written_whole(job):
    shares = []
    facts = run_distil_job(job, progress=lambda share, _stage: shares.append(share))
    assert facts == json.loads((job.out / FACTS_FILE).read_text())
    assert (facts["steps"], facts["tokens"], facts["world_size"]) == (8, 5 * 4 * 16 + 3 * 4 * 32, 1)
    assert [line["step"] for line in facts["losses"]] == list(range(1, 9))
    assert [(line["step"], line["length"]) for line in facts["held_out"]] == [(0, 16), (4, 16), (8, 32)]
    assert facts["held_out"][1]["loss"] < 0.98 * facts["held_out"][0]["loss"]
    for line in facts["losses"]:
        assert line["loss"] == pytest.approx(line["cosine"] + line["forward_kl"], rel=1e-5)
    assert facts["weights_fingerprint"] == checkpoint_fingerprint(job.out) != facts["child_fingerprint"]
    assert facts["child_fingerprint"] == checkpoint_fingerprint(job.child)
    own, written = (json.loads((folder / SOLUTION_FILE).read_text()) for folder in (job.child, job.out))
    assert written == own
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    loaded = load_causal_lm(job.out)
    assert loaded.config.to_dict()["per_layer_config"] == load_causal_lm(job.child).config.to_dict()["per_layer_config"]
    changed = weights(job.out)
    assert not any(torch.equal(changed[name], tensor) for name, tensor in weights(job.child).items())
    assert not list(job.out.parent.glob(".*"))


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop_at", [1, 4, 6])
@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_what_was_interrupted_ends_as_if_it_had_not_been(job, monkeypatch, stop_at, optimiser):
    recipe = replace(job.recipe, optimiser=optimiser)
    whole = replace(job, recipe=recipe, out=job.out.with_name("whole"))
    facts = run_distil_job(whole)
    monkeypatch.setattr(states_module.States, "due", lambda _self: True)
    real, taken = trainer._step, []

    def stop(*args):
        if len(taken) == stop_at:
            raise StoppedError
        taken.append(args[-1])
        return real(*args)

    monkeypatch.setattr(trainer, "_step", stop)
    cut = replace(whole, out=job.out)
    with pytest.raises(StoppedError):
        run_distil_job(cut)
    assert not cut.out.exists()
    stop_at = 100
    again = run_distil_job(cut)
    assert taken == list(range(8))  # no step was taken twice
    assert same(weights(cut.out), weights(whole.out))
    for key in ("losses", "held_out", "steps", "tokens"):
        assert again[key] == facts[key]


def test_another_recipe_does_not_go_on_from_it(job, monkeypatch):
    monkeypatch.setattr(states_module.States, "due", lambda _self: True)
    real = trainer._step
    monkeypatch.setattr(trainer, "_step", lambda *args: real(*args) if args[-1] < 3 else stop())

    def stop():
        raise StoppedError

    with pytest.raises(StoppedError):
        run_distil_job(job)
    steps = []
    monkeypatch.setattr(trainer, "_step", lambda *args: steps.append(args[-1]) or real(*args))
    run_distil_job(replace(job, recipe=replace(job.recipe, losses=LossWeights(cosine=0.5))))
    assert steps == list(range(8))
    assert not list(job.out.parent.glob(".*"))  # nor does its state stay


def test_micro_batches_make_the_same_step(job):
    whole, parts = replace(job, out=job.out.with_name("whole")), replace(job, micro_batch=3)
    run_distil_job(whole)
    run_distil_job(parts)
    for name, tensor in weights(whole.out).items():
        torch.testing.assert_close(weights(parts.out)[name], tensor, rtol=0, atol=2e-5)


def test_checkpointing_changes_memory_only(job):
    whole, lean = replace(job, out=job.out.with_name("whole")), replace(job, checkpointing=True)
    run_distil_job(whole)
    run_distil_job(lean)
    for name, tensor in weights(whole.out).items():
        torch.testing.assert_close(weights(lean.out)[name], tensor, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["cosine", "forward_kl", "reverse_kl", "tvd", "lm"])
def test_every_term_alone_falls(job, name):
    losses = LossWeights(**{"cosine": 0.0, "forward_kl": 0.0, name: 2.0})
    recipe = replace(job.recipe, losses=losses, stages=(Stage(length=16, sequences=60, batch_size=4),), lr=0.005)
    facts = run_distil_job(replace(job, recipe=recipe))
    first, last = facts["held_out"][0], facts["held_out"][-1]
    assert last[name] < 0.97 * first[name]
    assert last["loss"] == pytest.approx(2 * last[name], rel=1e-5)
    assert {"forward_kl", "lm"} <= last.keys()


def test_what_cosine_alone_does_not_reach_stays(job):
    run_distil_job(replace(job, recipe=replace(job.recipe, losses=LossWeights(forward_kl=0.0))))
    before, after = weights(job.child), weights(job.out)
    kept = {name for name in before if torch.equal(before[name], after[name])}
    assert kept == {"model.norm.weight"}


def test_weights_keep_the_childs_dtype(job, tmp_path):
    child = tmp_path / "half"
    shutil.copytree(job.child, child)
    model = load_causal_lm(child).to(torch.bfloat16)
    model.save_pretrained(child)
    run_distil_job(replace(job, child=child, precision="bf16"))
    assert {tensor.dtype for tensor in weights(job.out).values()} == {torch.bfloat16}


def test_what_cannot_be_is_one_line(job, tmp_path):
    def refused(match, **changes):
        with pytest.raises(ValueError, match=match) as caught:
            run_distil_job(replace(job, **changes))
        assert "\n" not in str(caught.value)
        assert not job.out.exists()

    broken = tmp_path / "broken"  # its logits overflow
    shutil.copytree(job.child, broken)
    state = weights(broken)
    state["model.norm.weight"] *= 1e38
    save_file(state, broken / "model.safetensors", metadata={"format": "pt"})

    def stages(*stages):
        return replace(job.recipe, stages=stages)

    other = save_parent(tmp_path / "other", seed=7)
    refused("is a child of .* with other weights than", parent=str(other))
    refused("no puzzle_solution.json; give a child that", child=job.child.parent)
    refused("64 positions; rows of 65", recipe=stages(Stage(length=65, sequences=4, batch_size=4)))
    refused("too little .*text.txt", recipe=stages(Stage(length=64, sequences=4000, batch_size=4)))
    refused("no such file or folder", data=tmp_path / "nowhere")
    refused("micro_batch must be", micro_batch=0)
    refused("the loss is not finite at step 1; lower the learning rate", child=broken)
    (job.out).mkdir()
    with pytest.raises(ValueError, match="exists; a distilled child is written to a new folder"):
        run_distil_job(job)


def test_two_at_once_are_refused(job):
    from puzzlebench.files import locked, make_folder

    make_folder(job.work_folder)
    with locked(job.work_folder / "lock", "x"), pytest.raises(ValueError, match="another process distils there"):
        run_distil_job(job)
