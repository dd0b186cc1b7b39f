"""The shipped kernel data: what the manifest says of it is true."""

import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from puzzlebench_profiles.datasheets import bundled_datasheets
from puzzlebench_profiles.kernel_tables import (
    KERNEL_DIR,
    TABLE_COLUMNS,
    KernelTableId,
    find_kernel_table,
    list_kernel_tables,
    manifest,
    read_kernel_table,
)


def test_the_checksum_and_row_count_of_every_file():
    assert manifest()["files"]
    for name, facts in manifest()["files"].items():
        path = KERNEL_DIR / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == facts["sha256"], name
        assert pq.read_metadata(path).num_rows == facts["rows"], name


def test_no_file_is_left_out_of_the_manifest():
    on_disk = {str(path.relative_to(KERNEL_DIR)) for path in KERNEL_DIR.rglob("*.parquet")}
    assert on_disk == set(manifest()["files"])


def test_the_source_and_its_licence_are_named():
    assert (manifest()["source"], manifest()["licence"]) == ("aiconfigurator-core", "Apache-2.0")
    assert "Apache License" in (KERNEL_DIR / "LICENSE-aiconfigurator-core").read_text()


def test_every_measured_gpu_has_a_datasheet():
    assert {table.gpu for table in list_kernel_tables()} <= bundled_datasheets().keys()


@pytest.mark.parametrize("table", list_kernel_tables(), ids=lambda table: f"{table.gpu}-{table.engine}")
def test_tables_hold_positive_numbers_and_each_shape_once(table):
    for kind in ("gemm", "prefill_attention", "decode_attention", "all_reduce"):
        columns = pq.read_table(KERNEL_DIR / table.folder / f"{kind}.parquet", partitioning=None)
        assert tuple(columns.column_names) == TABLE_COLUMNS[kind]
        keys = [column for column in columns.column_names if column != "latency_us"]
        assert columns.group_by(keys).aggregate([]).num_rows == columns.num_rows
        for column in columns.select([c for c in columns.column_names if c not in ("dtype", "kv_dtype")]).columns:
            values = column.to_numpy()
            assert np.isfinite(values).all()
            assert (values > 0).all()


def test_reading_filters_by_text_columns():
    table = find_kernel_table("h100_sxm", "trtllm")
    both = [read_kernel_table(table, "gemm", dtype=dtype) for dtype in ("bf16", "fp8")]
    assert [len(rows["m"]) for rows in both] == [35700, 35700]
    assert "dtype" not in both[0]
    assert read_kernel_table(table, "gemm", dtype="int3") is None


def test_what_was_not_measured_reads_as_nothing():
    assert read_kernel_table(find_kernel_table("a100_sxm", "trtllm"), "compute_scale") is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("tpu", "trtllm"), "no kernels were measured on tpu; measured GPUs: a100_sxm, b200_sxm"),
        (("l40s", "tgi"), "engine 'tgi' was not measured on l40s; engines: sglang, trtllm, vllm"),
        (("a100_sxm", "trtllm", "1.3"), "trtllm 1.3 was not measured on a100_sxm; measured versions: 1.0.0"),
    ],
)
def test_unknown_tables_list_what_exists(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_kernel_table(*arguments)


def test_a_version_can_be_asked_for():
    wanted = KernelTableId(gpu="a100_sxm", engine="vllm", engine_version="0.14.0")
    assert find_kernel_table("a100_sxm", "vllm") == find_kernel_table("a100_sxm", "vllm", "0.14.0") == wanted
