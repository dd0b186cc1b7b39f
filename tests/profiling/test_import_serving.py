"""Which rows of the source become serving runs, and how they are split."""

import csv

import pytest

from puzzlebench.profiling.import_serving import COLUMNS, import_serving_runs, split_of

PLAIN = {
    "id": "a",
    "silicon_data_source": "file; silicon_concurrency=16; more",
    "backend": "trtllm",
    "backend_version": "",
    "model_path": "meta-llama/Llama-3.1-70B",
    "system": "h200_sxm",
    "precision": "fp8",
    "mode": "agg",
    "isl": "1024",
    "osl": "1024",
    "batch_size": "4",
    "tp_size": "2",
    "pp_size": "1",
    "attention_dp_size": "1",
    "silicon_ttft_ms": "100.12345",
    "silicon_tpot_ms": "10.123456",
}


def imported(tmp_path, *changes):
    source, out = tmp_path / "source.csv", tmp_path / "out" / "runs.csv"
    with source.open("w", newline="") as file:
        writer = csv.DictWriter(file, PLAIN)
        writer.writeheader()
        writer.writerows({**PLAIN, **change} for change in changes)
    count = import_serving_runs(source, out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == count
    return rows


def test_a_row_is_brought_over(tmp_path):
    (row,) = imported(tmp_path, {})
    assert tuple(row) == COLUMNS
    assert row == {
        "id": "a",
        "benchmark": "inferencemax_trtllm",
        "gpu": "h200_sxm",
        "engine": "trtllm",
        "engine_version": "",
        "model": "llama-3.1-70b",
        "weight_dtype": "fp8",
        "kv_dtype": "fp8",
        "tensor_parallel": "2",
        "prefill_len": "1024",
        "decode_len": "1024",
        "concurrency": "16",
        "ttft_ms": "100.123",
        "tpot_ms": "10.1235",
        "split": split_of("a"),
    }


def test_users_are_the_batch_size_where_nothing_else_is_stated(tmp_path):
    (row,) = imported(tmp_path, {"silicon_data_source": "file"})
    assert row["concurrency"] == "4"


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "disagg"},
        {"precision": "fp4"},
        {"system": "gb200"},
        {"backend": "sglang"},
        {"backend_version": "0.12.0"},
        {"model_path": "Qwen/Qwen3-32B"},
    ],
)
def test_other_rows_are_left_out(tmp_path, change):
    assert imported(tmp_path, {"id": "b"} | change, {}) == imported(tmp_path, {})


def test_the_format_of_the_8b_model_is_the_one_it_was_served_in(tmp_path):
    change = {
        "model_path": "meta-llama/Llama-3.1-8B-Instruct",
        "system": "h100_sxm",
        "precision": "",
        "backend_version": "1.0.0rc3",
        "pp_size": "",
    }
    (row,) = imported(tmp_path, change)
    assert (row["model"], row["weight_dtype"], row["kv_dtype"], row["benchmark"]) == (
        "llama-3.1-8b",
        "bf16",
        "bf16",
        "aic_gap",
    )


def test_runs_split_in_other_ways_are_refused(tmp_path):
    with pytest.raises(ValueError, match="a: pp_size is 2"):
        imported(tmp_path, {"pp_size": "2"})


def test_a_missing_source_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"cannot read .*nothing\.csv"):
        import_serving_runs(tmp_path / "nothing.csv", tmp_path / "out.csv")


def test_rows_are_sorted_by_number_so_that_a_new_import_changes_little(tmp_path):
    rows = imported(
        tmp_path,
        *({"id": str(users), "silicon_data_source": f"silicon_concurrency={users}"} for users in (128, 8, 16)),
    )
    assert [row["concurrency"] for row in rows] == ["8", "16", "128"]


def test_the_split_is_of_the_id_alone():
    assert {split_of(str(number)) for number in range(50)} == {"develop", "report"}
    assert split_of("2026_04_06_llama_3_1_70b_h100_sxm_vllm_fp8_agg_1024x1024_c4_tp2_ep1_738") == "develop"
