"""The command line: what it prints, and that bad input is one line on stderr, exit code 2 and no file."""

import json
import os
import signal

import pandas as pd
import pytest
import yaml

from puzzlebench.cli import main
from puzzlebench.model.blocks import architecture_to_json
from puzzlebench.profiling.cost_table import read_cost_table
from puzzlebench_profiles.datasheets import GPU_DIR

GRID = ["--batch-sizes", "1,8", "--prefill-lens", "256", "--context-lens", "256,1024"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PUZZLEBENCH_DEBUG", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def table(folder, capsys):
    assert main(["profile", *GRID, "--out", "t.parquet"]) == 0
    capsys.readouterr()
    return folder / "t.parquet"


@pytest.fixture
def child(folder, llama_8b):
    """An architecture file: Llama 8B with no attention in its last layer."""
    data = architecture_to_json(llama_8b[1])
    data["blocks"][-1]["attention"] = "no_op"
    path = folder / "child.json"
    path.write_text(json.dumps(data))
    return path


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def refuse(capsys, folder, *arguments):
    """The one line that a bad command line prints."""
    before = sorted(folder.iterdir())
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's own errors
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert sorted(folder.iterdir()) == before
    return err


def test_profile_writes_and_prints_a_table(capsys, folder):
    out = run(capsys, "profile", *GRID)
    path = folder / "llama-3.1-8b.h100_sxm.trtllm.bf16-bf16.tp1.parquet"
    assert f"wrote {path.name} in " in out
    for word in ("llama-3.1-8b", "h100_sxm", "gqa_8", "mlp_14336", "no_op", "1,024", "aiconfigurator-core"):
        assert word in out
    assert max(len(line) for line in out.splitlines() if not line.startswith(("source", "wrote"))) <= 120
    assert set(read_cost_table(path).frame["batch_size"]) == {1, 8}


def test_profile_takes_every_option(capsys):
    options = ["--model", "meta-llama/Llama-3.1-70B", "--gpu", "h200", "--engine", "vllm", "--weight-dtype", "fp8"]
    options += [
        "--kv-dtype",
        "bf16",
        "--tp",
        "2",
        "--kv-heads",
        "8,2",
        "--ffn-multiple",
        "1024",
        "--max-num-tokens",
        "512",
    ]
    cells = pd.DataFrame(json.loads(run(capsys, "profile", *GRID, *options, "--json"))["cells"])
    assert set(cells["gpu"]) == {"h200_sxm"}
    assert set(cells["kv_dtype"]) == {"bf16"}
    attention = cells[cells["part"] == "attention"]
    assert set(attention["sub_block"]) == {"gqa_8", "gqa_2", "linear", "no_op"}
    assert "mlp_25600" in set(cells["sub_block"])


def test_profile_as_json_is_the_file(capsys, folder):
    data = json.loads(run(capsys, "profile", *GRID, "--out", "x.parquet", "--json"))
    assert data["path"] == "x.parquet"
    assert data["model"]["name"] == "llama-3.1-8b"
    frame = read_cost_table(folder / "x.parquet").frame
    cells = pd.DataFrame(data["cells"])
    assert len(cells) == len(frame)
    assert cells["latency_us"].to_numpy() == pytest.approx(frame["latency_us"].to_numpy())
    assert cells["energy_mj"].isna().all()


def test_show_prints_one_batch(capsys, table):
    out = run(capsys, "show", table, "--batch-size", "1", "--phase", "decode")
    assert "batch 1: decode" in out
    assert "prefill" not in out
    assert "batch sizes 1, 8" in out


def test_show_as_json(capsys, table):
    data = json.loads(run(capsys, "show", table, "--json"))
    assert len(data["cells"]) == len(read_cost_table(table).frame)
    assert data["source"].startswith("aiconfigurator-core")


def test_estimate_prints_latency_memory_and_shares(capsys):
    out = run(capsys, "estimate", "--batch", "4", "--prefill", "256", "--decode", "16")
    for words in ("time to first token", "time per output token", "KV cache", "largest batch that fits", "mlp_14336"):
        assert words in out
    assert "speed-up" not in out


def test_estimate_as_json(capsys):
    data = json.loads(run(capsys, "estimate", "--prefill", "256", "--decode", "16", "--json"))
    assert data["ttft_ms"]["low"] < data["ttft_ms"]["value"] < data["ttft_ms"]["high"]
    assert sum(data["provenance"].values()) == pytest.approx(1)
    assert "speed_up" not in data


def test_estimate_of_an_architecture_file(capsys, child):
    arguments = ["estimate", "--architecture", child, "--prefill", "256", "--decode", "16"]
    assert "speed-up over llama-3.1-8b" in run(capsys, *arguments)
    data = json.loads(run(capsys, *arguments, "--json"))
    assert 1 < data["speed_up"] < 1.1
    assert data["baseline"]["total_ms"]["value"] / data["total_ms"]["value"] == pytest.approx(data["speed_up"])


def test_estimate_of_a_heterogeneous_model_whose_parent_does_not_fit(capsys):
    arguments = ["--model", "llama-3.1-70b", "--architecture", "nvidia/Llama-3_3-Nemotron-Super-49B-v1"]
    arguments += ["--weight-dtype", "fp8", "--memory-fraction", "0.8", "--prefill", "256", "--decode", "16", "--json"]
    data = json.loads(run(capsys, "estimate", *arguments))
    assert data["memory"]["weights_bytes"] < data["usable_bytes"] < data["baseline"]["memory"]["weights_bytes"]
    assert data["speed_up"] > 1.2


def test_a_datasheet_of_ones_own(capsys, folder):
    facts = yaml.safe_load((GPU_DIR / "h100_sxm.yaml").read_text()) | {"name": "mine", "memory_bandwidth": 3.6e12}
    (folder / "mine.yaml").write_text(yaml.safe_dump(facts))
    data = json.loads(run(capsys, "estimate", "--gpu", "mine.yaml", "--prefill", "256", "--decode", "16", "--json"))
    assert data["provenance"] == {"modelled": pytest.approx(1)}
    assert data["source"].startswith("modelled: datasheet mine, carried over from")


def test_gpus(capsys):
    sheets = {sheet["name"]: sheet for sheet in json.loads(run(capsys, "gpus", "--json"))}
    assert {"engine": "trtllm", "engine_version": "1.3.0rc20"} in sheets["h100_sxm"]["measured"]
    out = run(capsys, "gpus")
    assert all(name in out for name in sheets)


def test_models(capsys):
    rows = {row["id"]: row for row in json.loads(run(capsys, "models", "--json"))}
    out = run(capsys, "models")
    assert all(f" {name} " in out for name in rows), "an id that is cut cannot be typed"
    assert rows["llama-3.1-70b"]["parameters"] == 70_553_706_496


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("puzzlebench 0.")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["profile", "--gpu", "h10"], "unknown GPU 'h10': did you mean h100"),
        (["estimate", "--gpu", "none.yaml"], "cannot read datasheet none.yaml: No such file"),
        (["profile", "--model", "lama-3.1-8b"], "did you mean llama-3.1-8b"),
        (["profile", "--model", "no/such-model"], "'no/such-model' is not bundled and could not be loaded"),
        (
            ["profile", "--kv-heads", "3"],
            "kv_heads 3 does not divide the 8 key-value heads of a layer; what would: 8, 4, 2, 1",
        ),
        (["profile", "--kv-heads", "0"], "kv_heads must be a whole number of at least 1, not 0"),
        (["profile", "--ffn-multiple", "0"], "ffn_multiple must be a whole number of at least 1, not 0"),
        (["profile", "--max-num-tokens", "-1"], "max_num_tokens must be a whole number of at least 1, not -1"),
        (["profile", "--batch-sizes", "1,x"], "'1,x' is not a list of whole numbers such as 1,8,64"),
        (["profile", "--batch-sizes", "1,,2"], "'1,,2' is not a list of whole numbers"),
        (["profile", "--batch-sizes", "1.5"], "'1.5' is not a list of whole numbers"),
        (["profile", "--batch-sizes", "0,1"], "batch_sizes must be a whole number of at least 1, not 0"),
        (["profile", "--context-lens", "8,8"], "context_lens repeat a value: 8, 8"),
        (["profile", "--engine", "tgi"], "engine 'tgi' was not measured on h100_sxm; engines: sglang, trtllm, vllm"),
        (
            ["profile", "--engine-version", "9.9"],
            "trtllm 9.9 was not measured on h100_sxm; measured versions: 1.3.0rc20",
        ),
        (["profile", "--tp", "3"], "tensor_parallel 3 does not divide num_attention_heads 32"),
        (["profile", "--tp", "0"], "tensor_parallel must be a whole number of at least 1, not 0"),
        (["profile", "--tp", "two"], "invalid int value: 'two'"),
        (
            ["profile", "--gpu", "a100", "--weight-dtype", "fp8"],
            "trtllm 1.0.0 has no measured gemm with fp8 on a100_sxm",
        ),
        (["profile", "--weight-dtype", "int4"], "invalid choice: 'int4'"),
        (["profile", "--out", "no/such/folder/x.parquet"], "cannot write no/such/folder/x.parquet: "),
        (["profile", "--out", "."], "puzzlebench: error: "),
        (["estimate", "--batch", "100000"], "the largest batch that fits is "),
        (["estimate", "--model", "llama-3.1-70b"], "use fewer bytes per weight or more GPUs (--tp)"),
        (["estimate", "--batch", "0"], "batch_size must be a whole number of at least 1, not 0"),
        (["estimate", "--decode", "0"], "decode_len must be a whole number of at least 1, not 0"),
        (["estimate", "--memory-fraction", "2"], "the memory fraction must be above 0 and at most 1, not 2.0"),
        (["estimate", "--memory-fraction", "nan"], "the memory fraction must be above 0 and at most 1, not nan"),
        (["estimate", "--architecture", "runs/none.json"], "runs/none.json: no such file"),
        (["show", "none.parquet"], "none.parquet: no such cost table"),
        (["show", "."], "puzzlebench: error: ."),
        (["show"], "the following arguments are required: TABLE"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "the following arguments are required: COMMAND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(capsys, folder, arguments, words):
    extra = GRID if arguments[:1] == ["profile"] and not {"--batch-sizes", "--context-lens"} & set(arguments) else []
    assert words in refuse(capsys, folder, *arguments, *extra)


def test_a_corrupt_table(capsys, folder, table):
    table.write_bytes(table.read_bytes()[: table.stat().st_size // 2])
    assert "t.parquet is not a readable cost table (truncated or not parquet)" in refuse(capsys, folder, "show", table)


def test_a_text_file_for_a_table(capsys, folder):
    (folder / "t.parquet").write_text("batch,latency\n")
    assert "t.parquet is not a readable cost table" in refuse(capsys, folder, "show", "t.parquet")


def test_a_batch_size_that_the_table_lacks(capsys, table, folder):
    line = refuse(capsys, folder, "show", table, "--batch-size", "3")
    assert line == "puzzlebench: error: the table has no batch size 3; it has 1, 8\n"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["blocks"].pop(), "the architecture has 31 layers but llama-3.1-8b has 32"),
        (lambda data: data.update(schema=7), "architecture schema 7 is not known; this version reads 1"),
        (lambda data: data["blocks"][3].update(attention="gqa_5"), "layer 3: 5 key-value heads do not divide"),
        (lambda data: data["blocks"][3].update(ffn="moe_8"), "layer 3: 'moe_8' is not an ffn sub-block"),
        (lambda data: data["blocks"][3].pop("ffn"), "layer 3: key 'ffn' is missing"),
    ],
)
def test_an_architecture_file_that_does_not_fit_the_parent(capsys, folder, child, change, words):
    data = json.loads(child.read_text())
    change(data)
    child.write_text(json.dumps(data))
    assert words in refuse(capsys, folder, "estimate", "--architecture", child)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00", b"[1, 2]", b'"text"', b"{}"])
def test_an_architecture_file_that_is_none(capsys, folder, content):
    (folder / "x.json").write_bytes(content)
    assert "x.json" in refuse(capsys, folder, "estimate", "--architecture", "x.json") or content in (
        b"[1, 2]",
        b'"text"',
        b"{}",
    )


def test_a_folder_that_cannot_be_written_to(capsys, folder):
    (folder / "file").write_text("")
    assert "cannot write file/x.parquet" in refuse(capsys, folder, "profile", *GRID, "--out", "file/x.parquet")


def test_an_interrupt_is_one_line_too(capsys, monkeypatch):
    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr("puzzlebench_profiles.kernel_tables.list_kernel_tables", stop)
    assert main(["gpus"]) == 130
    assert capsys.readouterr().err == "puzzlebench: interrupted\n"


def test_a_termination_is_an_interrupt(capsys, monkeypatch):
    def stop():
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("puzzlebench_profiles.kernel_tables.list_kernel_tables", stop)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["gpus"]) == 130
    assert capsys.readouterr().err == "puzzlebench: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_debug_variable_keeps_the_traceback(monkeypatch):
    monkeypatch.setenv("PUZZLEBENCH_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown GPU"):
        main(["estimate", "--gpu", "h10"])
