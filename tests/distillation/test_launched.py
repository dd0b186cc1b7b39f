"""Two processes that `accelerate launch` starts with the configurations that are shipped, on CPUs over gloo: with DDP,
and with FSDP2 by accelerate's own preparation.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import puzzlebench.distillation
from puzzlebench.distillation.job import run_distil_job
from puzzlebench.distillation.recipe import DistilRecipe, LossWeights, Stage

# Takes a job as JSON, and at which step the process of which number is killed. It saves after every step then.
WORKER = """
import json, os, signal, sys
from pathlib import Path
from puzzlebench.distillation import states, trainer
from puzzlebench.distillation.job import DistilJob, run_distil_job
from puzzlebench.distillation.recipe import DistilRecipe, LossWeights, Stage

stated = json.loads(sys.argv[1])
kill_rank, kill_step = stated.pop("kill", (None, None))
save = stated.pop("save", False)
recipe = stated.pop("recipe")
recipe["losses"] = LossWeights(**recipe["losses"])
recipe["stages"] = tuple(Stage(**stage) for stage in recipe["stages"])
paths = {key: Path(stated.pop(key)) for key in ("child", "out", "data")}
if save:
    states.States.due = lambda self: True
real, steps, kinds = trainer._step, [], set()
def step(*args):
    if args[-1] == kill_step and os.environ["RANK"] == str(kill_rank):
        os.kill(os.getpid(), signal.SIGKILL)
    steps.append(args[-1])
    kinds.update(type(one).__name__ for one in args[3].values())
    return real(*args)
trainer._step = step
rank = os.environ["RANK"]
try:
    facts = run_distil_job(DistilJob(recipe=DistilRecipe(**recipe), **paths, **stated))
except ValueError as error:
    sys.exit(f"rank {rank} refused: {error}")
print(f"rank {rank}: steps {steps} of {sorted(kinds)}, world {facts['world_size']}", flush=True)
"""
CONFIGS = Path(puzzlebench.distillation.__file__).parent / "configs"


@pytest.fixture
def launch(tmp_path):
    """Runs a job in two processes; one that hangs fails the test."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)

    def run(job, *, sharded=False, **more):
        stated = {key: value for key, value in asdict(job).items() if value is not None}
        stated |= {key: str(stated[key]) for key in ("child", "out", "data")} | more
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        config = CONFIGS / ("one_node_fsdp2.yaml" if sharded else "one_node_ddp.yaml")
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        command += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", str(port)]
        command += [str(worker), json.dumps(stated)]
        paths = os.pathsep.join([str(Path.cwd()), *filter(None, sys.path)])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)

    return run


@pytest.fixture
def small(job):
    """Every loss, two lengths, 5 steps."""
    recipe = DistilRecipe(
        losses=LossWeights(reverse_kl=0.5, tvd=0.5, lm=0.5, temperature=1.5),
        stages=(Stage(length=16, sequences=12, batch_size=4), Stage(length=24, sequences=8, batch_size=4)),
        lr=0.003,
        warmup=2,
        evaluations=2,
    )
    return replace(job, recipe=recipe)


def assert_close(one, other, atol):
    expected, found = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("sharded", [False, True], ids=["ddp", "fsdp2"])
def test_two_processes_make_what_one_makes_and_go_on_after_a_kill(small, launch, sharded):
    if not sharded:  # each process then reads its own documents of a stream
        lines = small.data.read_text().splitlines(keepends=True)
        file = small.out.with_name("text.jsonl")
        texts = ["".join(lines[n : n + 3]) for n in range(0, len(lines), 3)]
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        small = replace(small, data=file, stream=True)
    alone = replace(small, out=small.out.with_name("alone"))
    expected = run_distil_job(alone)
    if sharded:
        small = replace(small, micro_batch=1, checkpointing=True)
    killed = launch(small, sharded=sharded, save=True, kill=(1, 4))
    assert killed.returncode != 0
    assert not small.out.exists()
    done = launch(small, sharded=sharded)
    assert done.returncode == 0, done.stderr
    assert f"rank 0: steps [4] of ['{'DTensor' if sharded else 'Parameter'}'], world 2" in done.stdout
    # Adam's first steps divide by the gradient's own size, so sums in another order may show as 1e-4 of the rate.
    assert_close(alone.out, small.out, atol=3e-5)
    facts = json.loads((small.out / "distillation.json").read_text())
    for kind in ("losses", "held_out"):
        assert len(facts[kind]) == len(expected[kind])
        for line, wanted in zip(facts[kind], expected[kind], strict=True):
            assert line == pytest.approx(wanted, rel=1e-4)
    assert not list(small.out.parent.glob(".out*"))


def test_bf16_under_fsdp2_is_bf16_of_products_only(small, launch):
    alone = replace(small, precision="bf16", out=small.out.with_name("alone"))
    expected = run_distil_job(alone)
    done = launch(replace(small, precision="bf16"), sharded=True)
    assert done.returncode == 0, done.stderr
    facts = json.loads((small.out / "distillation.json").read_text())
    for line, wanted in zip(facts["losses"], expected["losses"], strict=True):
        assert line == pytest.approx(wanted, rel=0.03)
    # a loss that was rounded to bf16 would have 16 bits of zeros in its float32
    assert any(struct.unpack("<I", struct.pack("<f", line["loss"]))[0] & 0xFFFF for line in facts["losses"])
    assert {tensor.dtype for tensor in load_file(small.out / "model.safetensors").values()} == {torch.float32}
