"""Cost tables: what is refused, and what a file survives."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puzzlebench.profiling.cost_table import SCHEMA_VERSION, CostTable, read_cost_table, write_cost_table

METADATA = {"model": {"name": "m"}, "gpu": {"name": "g"}, "settings": {}, "source": "a test"}


@pytest.fixture
def frame():
    rows = [
        ("attention", "gqa_8", "prefill", 10.0),
        ("attention", "no_op", "decode", 0.0),
        ("ffn", "linear", "decode", 5.0),
    ]
    return pd.DataFrame(
        {
            "gpu": "g",
            "engine": "e",
            "engine_version": "1",
            "part": [part for part, *_ in rows],
            "sub_block": [name for _, name, *_ in rows],
            "weight_dtype": "bf16",
            "kv_dtype": "bf16",
            "tensor_parallel": 1,
            "phase": [phase for _, _, phase, _ in rows],
            "batch_size": 4,
            "context_len": 128,
            "latency_us": [latency for *_, latency in rows],
            "latency_low_us": [0.9 * latency for *_, latency in rows],
            "latency_high_us": [1.1 * latency for *_, latency in rows],
            "latency_hot_us": np.nan,
            "samples": 6,
            "throttled_share": np.nan,
            "energy_mj": np.nan,
            "weight_bytes": 100,
            "kv_bytes_per_token": 8,
            "workspace_bytes": 0,
            "modelled_share": 0.1,
            "provenance": "measured",
            "source": "a test",
        }
    )


@pytest.fixture
def path(tmp_path, frame):
    path = tmp_path / "table.parquet"
    write_cost_table(CostTable(frame=frame, metadata=METADATA), path)
    return path


def test_a_round_trip(path, frame):
    table = read_cost_table(path)
    pd.testing.assert_frame_equal(table.frame, frame)
    assert table.metadata == METADATA
    assert [entry.name for entry in path.parent.iterdir()] == ["table.parquet"]


def test_writing_replaces_the_file(path, frame):
    frame["latency_us"] = frame["latency_us"] * 1.05
    write_cost_table(CostTable(frame=frame, metadata=METADATA), path)
    assert read_cost_table(path).frame["latency_us"].iloc[0] == 10.5


def test_an_energy_may_be_there_or_not(frame):
    frame.loc[0, "energy_mj"] = 3.5
    CostTable(frame=frame, metadata=METADATA)
    frame.loc[0, "energy_mj"] = -1.0
    with pytest.raises(ValueError, match=r"energy_mj must be finite and not negative, not -1.0"):
        CostTable(frame=frame, metadata=METADATA)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "latency_us",
            np.nan,
            "latency_us must be finite and not negative, not nan .attention gqa_8, prefill, batch 4",
        ),
        ("latency_us", 0.0, "latency_us must be above 0, not 0.0"),
        ("latency_us", -1.0, "latency_us must be finite and not negative, not -1.0"),
        ("latency_us", np.inf, "latency_us must be finite and not negative, not inf"),
        ("latency_low_us", 10.1, "latency_low_us must not exceed latency_us, not 10.1"),
        ("latency_high_us", 9.9, "latency_high_us must not be below latency_us, not 9.9"),
        ("modelled_share", 1.5, "modelled_share must be at most 1, not 1.5"),
        ("provenance", "guessed", "provenance must be one of measured, .*, not 'guessed'"),
        ("phase", "train", "phase must be one of prefill, decode, not 'train'"),
        ("part", "moe", "part must be one of attention, ffn, embedding, head, not 'moe'"),
        ("gpu", "", "gpu must be text, not ''"),
        ("batch_size", 0, "batch_size must be a whole number of at least 1, not 0"),
        ("weight_bytes", -1, "weight_bytes must be a whole number of at least 0, not -1"),
    ],
)
def test_a_bad_value_is_named_with_its_row(frame, column, value, message):
    frame.loc[0, column] = value
    with pytest.raises(ValueError, match=message) as caught:
        CostTable(frame=frame, metadata=METADATA)
    assert "\n" not in str(caught.value)
    assert "np." not in str(caught.value)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("batch_size", [1.5, 1.0, 1.0], "batch_size must be a whole number of at least 1, not 1.5"),
        ("latency_us", ["a", "b", "c"], "column 'latency_us' must hold numbers"),
        ("samples", [True, True, True], "column 'samples' must hold numbers, not bool"),
        ("engine", ["trtllm", None, "trtllm"], "engine must be text, not (None|nan)"),
    ],
)
def test_a_column_of_the_wrong_kind(frame, column, values, message):
    frame[column] = values
    with pytest.raises(ValueError, match=message):
        CostTable(frame=frame, metadata=METADATA)


def test_a_no_op_costs_nothing(frame):
    frame.loc[1, ["latency_us", "latency_high_us"]] = 1.0
    with pytest.raises(ValueError, match=r"latency_us must be 0 for a no-op, not 1.0"):
        CostTable(frame=frame, metadata=METADATA)


def test_a_key_that_stands_twice(frame):
    twice = pd.concat([frame, frame.iloc[[2]]])  # the index repeats too
    with pytest.raises(ValueError, match=r"context_len stands twice .*, not 128 .ffn linear, decode"):
        CostTable(frame=twice, metadata=METADATA)


def test_columns_must_be_those_of_the_schema(frame):
    with pytest.raises(ValueError, match="unknown column 'speed'; schema 2 has: gpu, "):
        CostTable(frame=frame.assign(speed=1), metadata=METADATA)
    with pytest.raises(ValueError, match="column 'phase' is missing; schema 2 has: gpu, "):
        CostTable(frame=frame.drop(columns="phase"), metadata=METADATA)
    with pytest.raises(ValueError, match="it has no rows"):
        CostTable(frame=frame.iloc[:0], metadata=METADATA)


def test_a_truncated_file(path):
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"is not a readable cost table .truncated or not parquet"):
        read_cost_table(path)


def test_files_that_are_not_parquet(tmp_path):
    for content in (b"", b"batch,latency\n1,2\n", b"PAR1"):
        path = tmp_path / "x.parquet"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a readable cost table"):
            read_cost_table(path)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"none.parquet: no such cost table"):
        read_cost_table(tmp_path / "none.parquet")
    with pytest.raises(ValueError, match=str(tmp_path)):
        read_cost_table(tmp_path)


@pytest.mark.parametrize("metadata", [None, b"not json", b"[1]", b"null", b"{}"])
def test_a_parquet_file_of_another_program(tmp_path, metadata):
    path = tmp_path / "x.parquet"
    table = pa.table({"a": [1]})
    pq.write_table(table.replace_schema_metadata({"puzzlebench": metadata} if metadata else None), path)
    with pytest.raises(ValueError, match="is a parquet file but not a puzzlebench cost table"):
        read_cost_table(path)


def rewrite(path, *, frame=None, **metadata):
    table = pq.read_table(path)
    kept = json.loads(table.schema.metadata[b"puzzlebench"]) | metadata
    if frame is not None:
        table = pa.Table.from_pandas(frame, preserve_index=False)
    pq.write_table(table.replace_schema_metadata({"puzzlebench": json.dumps(kept)}), path)


def test_another_schema_version(path):
    rewrite(path, schema_version=99)
    with pytest.raises(ValueError, match=f"has cost table schema 99; this version reads {SCHEMA_VERSION}"):
        read_cost_table(path)


def test_a_bad_value_in_a_file_names_the_file(path, frame):
    frame.loc[0, "latency_us"] = np.nan
    rewrite(path, frame=frame)
    with pytest.raises(ValueError, match=f"^{path}: cost table: latency_us"):
        read_cost_table(path)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_write_leaves_nothing(tmp_path, frame, monkeypatch, error):
    def stop(_table, where, **_options):
        where.write_bytes(b"PAR1 half a file")
        raise error

    monkeypatch.setattr(pq, "write_table", stop)
    with pytest.raises((KeyboardInterrupt, ValueError)) as caught:
        write_cost_table(CostTable(frame=frame, metadata=METADATA), tmp_path / "x.parquet")
    assert list(tmp_path.iterdir()) == []
    if caught.type is ValueError:
        assert str(caught.value).endswith("x.parquet: No space left on device")


def test_an_interrupted_write_keeps_the_file_that_was_there(path, frame, monkeypatch):
    before = path.read_bytes()

    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", stop)
    with pytest.raises(KeyboardInterrupt):
        write_cost_table(CostTable(frame=frame, metadata=METADATA), path)
    assert path.read_bytes() == before
    assert len(list(path.parent.iterdir())) == 1


def test_places_that_cannot_be_written_to(path, frame):
    table = CostTable(frame=frame, metadata=METADATA)
    for where in (
        path.parent / "no" / "x.parquet",
        path / "x.parquet",
        path.parent / ("x" * 300),
        path.parent,
        Path("/"),
    ):
        with pytest.raises(ValueError, match="cannot write "):
            write_cost_table(table, where)
