"""The commands that measure: a real CPU run that is interrupted and resumed, and what is refused in one line."""

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest

pytest.importorskip("torch", reason="needs torch")

from puzzlebench.cli import main
from puzzlebench.measuring.ceilings import Ceiling, Ceilings
from puzzlebench.measuring.device import cpu_device
from puzzlebench.measuring.measure import python_path
from puzzlebench.measuring.plan import read_plan
from puzzlebench.measuring.run_directory import RunDirectory, open_run
from puzzlebench.measuring.sensors import Reading
from puzzlebench.profiling.cost_table import read_cost_table

CONFIG = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
GRID = ["--batch-sizes", "1,2", "--prefill-lens", "8", "--context-lens", "8,16"]
PROFILE = ["profile", "--gpu", "cpu", "--model", "config.json", *GRID, "--ffn-multiple", "32", "--out", "t.parquet"]
RUN = [*PROFILE, "--sessions", "1", "--seconds", "3", "--target-width", "1e-6"]  # long enough to be interrupted


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PUZZLEBENCH_DEBUG", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def made_up_ceilings(device):
    rate = Ceiling(median=1e9, low=0.9e9, high=1.1e9, samples=(1e9,))
    return Ceilings(
        device=device.name,
        date="2026-01-02T03:04:05+00:00",
        copy_bytes_per_s=rate,
        bf16_flops=rate,
        fp8_flops=None,
        fp32_flops=rate,
        launch_us=rate,
        graph_gap_us=None,
        matrix_sizes={"bf16": 128, "fp32": 128},
        copy_buffer_bytes=1 << 20,
        before=Reading(),
        after=Reading(),
        note=None,
    )


def refuse(capsys, folder, *arguments):
    """The one line that a bad command line prints."""
    before = sorted(folder.rglob("*"))
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's own errors
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert sorted(folder.rglob("*")) == before
    return err


def wait_for(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture(scope="module")
def rough(tmp_path_factory):
    """A profile stopped by Ctrl-C in its timing, and the same command again: in the same folder, to its end."""
    folder = tmp_path_factory.mktemp("rough")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    paths = python_path()
    environment = {**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    environment.pop("PUZZLEBENCH_DEBUG", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "puzzlebench.cli", *RUN],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # its own process group, as a shell makes one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # it may be ignored, under nohup say
    )
    run = RunDirectory(folder / "t.run")
    try:
        wait_for(lambda: run.rounds(0) >= 2 or process.poll() is not None)
        sessions = psutil.Process(process.pid).children()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return SimpleNamespace(
        folder=folder,
        run=run,
        code=process.returncode,
        out=out,
        err=err,
        sessions=sessions,
        files=sorted(path.name for path in folder.iterdir()),
        before=run.samples(),
        finished=any(event["event"] == "finished" for event in run.events(0)),
    )


@pytest.fixture(scope="module")
def resumed(rough):
    """The same command again in this process; ceilings are made up."""
    patch = pytest.MonkeyPatch()
    patch.chdir(rough.folder)
    asked = []
    patch.setattr(
        "puzzlebench.measuring.live.measure_ceilings", lambda device: asked.append(1) or made_up_ceilings(device)
    )
    code = main(RUN)
    yield SimpleNamespace(**vars(rough), code_again=code, ceilings=asked)
    patch.undo()


def test_ctrl_c_says_so_and_leaves_a_folder_to_resume(rough):
    assert rough.code == 130
    assert rough.out == ""
    *progress, last = rough.err.splitlines()
    assert last == "puzzlebench: interrupted"
    assert all("session 1 of 1: " in line for line in progress)
    assert "Traceback" not in rough.err + (rough.folder / "t.run" / "session.0.log").read_text()
    assert not any(session.is_running() for session in rough.sessions)
    assert rough.files == ["config.json", "t.run"], "no table, nothing half-written"
    assert not rough.finished
    assert len(rough.before) > 0
    assert list((rough.folder / "t.run").glob("*.part")) == []


def test_the_same_command_keeps_what_there_was_and_finishes(resumed):
    assert resumed.code_again == 0
    after = resumed.run.samples()
    assert after.iloc[: len(resumed.before)].equals(resumed.before)
    assert len(after) > len(resumed.before)
    assert resumed.run.events(0)[-1]["event"] == "finished"
    assert resumed.ceilings == [1]
    names = sorted(path.name for path in (resumed.folder / "t.run").iterdir())
    assert names == ["ceilings.json", "events.0.jsonl", "lock", "plan.json", "samples.parquet", "session.0.log"]


def test_the_table_of_a_live_run(resumed):
    table = read_cost_table(resumed.folder / "t.parquet")
    frame = table.frame
    attention, ffn = ["gqa_2", "gqa_1", "linear", "no_op"], ["mlp_64", "mlp_56", "mlp_48", "mlp_32", "mlp_16", "mlp_8"]
    rows = len(attention) + len(set(frame[frame["part"] == "ffn"]["sub_block"])) + 2
    assert set(frame[frame["part"] == "attention"]["sub_block"]) == set(attention)
    assert {"mlp_64", "linear", "no_op"} < set(frame[frame["part"] == "ffn"]["sub_block"]) <= {*ffn, "linear", "no_op"}
    assert len(frame) == rows * (2 + 4)
    assert table.metadata["misses"] == []
    busy = frame[frame["sub_block"] != "no_op"]
    for column in ("latency_us", "latency_low_us", "latency_high_us", "latency_hot_us", "workspace_bytes"):
        assert (busy[column] > 0).all(), column
    raw = resumed.run.samples()
    taken = raw[raw["cache"] == "cold"].groupby(["part", "sub_block", "phase", "batch_size", "context_len"]).size()
    assert (taken >= 12).all()
    assert busy["samples"].between(1, taken.max()).all(), "rounds that something else slowed are left out"
    assert busy["energy_mj"].isna().all()
    assert set(frame["gpu"]) == {cpu_device().name}
    assert set(frame["weight_dtype"]) == set(frame["kv_dtype"]) == {"fp32"}
    assert set(frame["engine"]) == {"torch"}
    assert table.metadata["gpu"]["source"].startswith("measured by puzzlebench")
    plan = read_plan(resumed.folder / "t.run" / "plan.json")
    assert (
        len(plan.workloads)
        == resumed.run.samples().groupby(["part", "sub_block", "phase", "batch_size", "context_len"]).ngroups
    )
    own, first = table.metadata["fingerprint"], plan.fingerprint
    assert {**own, "date": "", "git_commit": ""} == {**first, "date": "", "git_commit": ""}


def test_a_finished_command_measures_nothing_and_prints(resumed, capsys, monkeypatch):
    monkeypatch.chdir(resumed.folder)

    def no_session(*arguments):
        raise AssertionError("a session was started")

    monkeypatch.setattr("puzzlebench.measuring.measure._run_session", no_session)
    before = {path: path.stat().st_mtime_ns for path in (resumed.folder / "t.run").iterdir() if path.name != "lock"}
    capsys.readouterr()
    assert main(RUN) == 0
    out, err = capsys.readouterr()
    assert err == ""
    for words in ("gqa_2", "mlp_64", "no_op", "timed pieces of work", "95 % interval", "sessions against their mean"):
        assert words in out
    assert "wrote t.parquet; raw samples are in t.run" in out
    assert before == {
        path: path.stat().st_mtime_ns for path in (resumed.folder / "t.run").iterdir() if path.name != "lock"
    }
    assert resumed.ceilings == [1]
    assert main([*RUN, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["path"], data["run_dir"]) == ("t.parquet", "t.run")
    assert len(data["cells"]) == len(read_cost_table(resumed.folder / "t.parquet").frame)
    assert data["misses"] == []
    assert main(["show", "t.parquet"]) == 0
    assert "gqa_2" in capsys.readouterr().out


def test_another_measurement_in_the_same_folder(resumed, capsys, monkeypatch):
    monkeypatch.chdir(resumed.folder)
    capsys.readouterr()
    line = refuse(capsys, resumed.folder, *RUN, "--weight-dtype", "bf16")
    assert "t.run holds a measurement with another precision.weight_dtype ('fp32', now 'bf16')" in line
    line = refuse(capsys, resumed.folder, *RUN[:-2], "--target-width", "0.5")
    assert "effort.target_width" in line


def test_a_folder_in_use(resumed, capsys, monkeypatch):
    monkeypatch.chdir(resumed.folder)
    capsys.readouterr()
    with open_run(resumed.folder / "t.run", read_plan(resumed.folder / "t.run" / "plan.json")):
        line = refuse(capsys, resumed.folder, *RUN)
    assert line == "puzzlebench: error: t.run is in use: another process is measuring there\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--source", "kernels"], "--gpu cpu is measured live; --source kernels needs a GPU from `puzzlebench gpus`"),
        (["--gpu", "h100", "--source", "live"], "this machine has no h100; --gpu local measures what it has"),
        (["--gpu", "cuda:7"], "no device 'cuda:7': torch sees"),
        (["--gpu", "cuda:x"], "unknown device 'cuda:x'; devices are local, cpu, cuda and cuda:N"),
        (["--gpu", "h10", "--source", "live"], "unknown GPU 'h10': did you mean h100"),
        (["--engine", "vllm"], "engine 'vllm' cannot be measured live; use torch, triton, trtllm"),
        (["--sessions", "0"], "sessions must be a whole number of at least 1, not 0"),
        (["--sessions", "two"], "invalid int value: 'two'"),
        (["--seconds", "-1"], "seconds must be above 0, not -1.0"),
        (["--seconds", "nan"], "seconds must be above 0, not nan"),
        (["--target-width", "0"], "target_width must be above 0, not 0.0"),
        (["--energy-seconds", "-1"], "energy_seconds must not be negative, but is -1.0"),
        (["--lock-clocks", "0"], "lock_clocks_mhz must be a whole number of at least 1, not 0"),
        (["--max-num-tokens", "0"], "max_num_tokens must be a whole number of at least 1, not 0"),
        (["--kv-heads", "3"], "kv_heads 3 does not divide the 2 key-value heads"),
        (["--batch-sizes", "0"], "batch_sizes must be a whole number of at least 1, not 0"),
        (["--tp", "0"], "tensor_parallel must be a whole number of at least 1, not 0"),
        (["--out", "no/such/t.parquet"], "cannot write no/such/t.parquet: there is no folder no/such"),
        (["--run-dir", "config.json"], "cannot write to config.json: File exists"),
        (["--source", "both"], "invalid choice: 'both'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(capsys, folder, arguments, words, monkeypatch):
    monkeypatch.setattr("puzzlebench.measuring.device.list_gpu_names", list)
    assert words in refuse(capsys, folder, *PROFILE, *arguments)


def test_two_gpus_are_refused_and_leave_nothing(capsys, folder):
    line = refuse(capsys, folder, *PROFILE, "--tp", "2", "--run-dir", "mine.run")
    assert line == "puzzlebench: error: live measurement times one GPU; --tp 2 needs --source kernels\n"


@pytest.fixture
def machine_with_h100(monkeypatch):
    """A machine whose NVML shows an H100; what would be measured is only noted."""
    device = replace(cpu_device(), name="h100_sxm")
    asked = []
    monkeypatch.setattr("puzzlebench.measuring.device.list_gpu_names", lambda: ["NVIDIA L4", "NVIDIA H100 80GB HBM3"])
    monkeypatch.setattr("puzzlebench.measuring.device.local_device", lambda name: asked.append(name) or device)
    monkeypatch.setattr("puzzlebench.cli.profile_live_command", lambda arguments, device, *rest: asked.append(device))
    return SimpleNamespace(asked=asked, device=device)


KERNELS = ["profile", *GRID, "--gpu", "h100"]


@pytest.mark.parametrize(
    "more", [[], ["--source", "live"], ["--engine", "torch"], ["--engine", "triton"]], ids=" ".join
)
def test_a_gpu_that_is_here_is_measured(folder, machine_with_h100, more):
    assert main([*KERNELS, *more]) == 0
    assert machine_with_h100.asked == ["cuda:1", machine_with_h100.device]
    assert [path.name for path in folder.iterdir()] == ["config.json"]


@pytest.mark.parametrize("more", [["--source", "kernels"], ["--engine", "vllm"]], ids=" ".join)
def test_a_gpu_that_is_here_is_not_measured_unless_it_is_asked_for(folder, machine_with_h100, more, capsys):
    assert main([*KERNELS, *more, "--out", "k.parquet"]) == 0
    assert machine_with_h100.asked == []
    assert read_cost_table(folder / "k.parquet").metadata["source"].startswith("aiconfigurator-core")


def test_a_gpu_that_is_not_here_is_looked_up(folder, machine_with_h100):
    assert main(["profile", *GRID, "--gpu", "h200", "--out", "k.parquet"]) == 0
    assert machine_with_h100.asked == []
    assert set(read_cost_table(folder / "k.parquet").frame["gpu"]) == {"h200_sxm"}


def test_kernels_have_no_fp32(capsys, folder):
    line = refuse(capsys, folder, "profile", *GRID, "--source", "kernels", "--weight-dtype", "fp32")
    assert "fp32" in line


def test_defaults_of_a_cpu_and_of_a_gpu(folder, monkeypatch):
    """What is not asked for: fp32 and a small grid on a CPU, bf16 and the usual grid on a GPU."""
    seen = []

    def profile_live(spec, architecture, space, precision, grid, device, engine, effort, run_dir, report, **options):
        seen.append(SimpleNamespace(precision=precision, grid=grid, engine=engine, effort=effort, run_dir=run_dir))
        raise ValueError("seen")

    monkeypatch.setattr("puzzlebench.measuring.live.profile_live", profile_live)
    cpu = cpu_device()
    assert main(["profile", "--gpu", "cpu", "--model", "config.json"]) == 2
    monkeypatch.setattr("puzzlebench.measuring.device.local_device", lambda name: replace(cpu, kind="cuda"))
    assert (
        main(["profile", "--gpu", "cuda", "--model", "config.json", "--weight-dtype", "fp16", "--sessions", "2"]) == 2
    )
    assert main(["profile", "--gpu", "cuda:0", "--model", "config.json", "--kv-dtype", "fp8", "--run-dir", "r"]) == 2
    on_cpu, fp16, fp8 = seen
    assert (on_cpu.precision.weight_dtype, on_cpu.precision.kv_dtype, on_cpu.engine) == ("fp32", "fp32", "torch")
    assert max(on_cpu.grid.batch_sizes) == 16
    assert str(on_cpu.run_dir).endswith(f".{cpu.name}.torch.fp32-fp32.tp1.run")
    assert (fp16.precision.weight_dtype, fp16.precision.kv_dtype, fp16.effort.sessions) == ("fp16", "fp16", 2)
    assert max(fp16.grid.batch_sizes) == 128
    assert (fp8.precision.weight_dtype, fp8.precision.kv_dtype, str(fp8.run_dir)) == ("bf16", "fp8", "r")


VALIDATE = ["validate", "--live", "--gpu", "cpu", "--model", "config.json", "--batch-sizes", "1", "--lengths", "8"]


def test_whole_models_beside_their_blocks(capsys, folder):
    """One session that is as short as can be: numbers, not their quality."""
    run = [*VALIDATE, "--sessions", "1", "--seconds", "0.01", "--run-dir", "v.run"]
    assert main([*run, "--json"]) == 0
    out, err = capsys.readouterr()
    assert "session 1 of 1: timing" in err
    data = json.loads(out)
    found = pd.DataFrame(data["comparisons"])
    assert data["misses"] == []
    assert set(found["model"]) == {"parent", "mixed-1", "mixed-2", "smallest", "dropped"}
    assert len(found) == 5 * 2
    assert found["error"].map(math.isfinite).all()
    assert found["error"].tolist() == pytest.approx((found["sum_us"] / found["whole_us"] - 1).tolist())
    assert (found[["whole_us", "sum_us"]] > 0).all(axis=None)
    assert 0 <= data["median_absolute_error"] < 1, "blocks are not twice their model"
    assert main(run) == 0
    out = capsys.readouterr().out
    assert "do blocks add up?" in out
    assert "raw samples are in v.run" in out
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "v.run"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sessions", "0"], "sessions must be a whole number of at least 1, not 0"),
        (["--lengths", "8,8"], "prefill_lens repeat a value: 8, 8"),
        (["--gpu", "h100"], "this machine has no h100; --gpu local measures what it has"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_to_validate(capsys, folder, arguments, words, monkeypatch):
    monkeypatch.setattr("puzzlebench.measuring.device.list_gpu_names", list)
    assert words in refuse(capsys, folder, *VALIDATE, *arguments)
