"""What two kinds of table share: neither is taken for the other."""

import pandas as pd
import pytest

from puzzlebench.parquet import TableFormat, read_table, write_table

FRUIT = TableFormat(name="fruit table", schema_version=3, metadata_key="fruit")
FRAME = pd.DataFrame({"name": ["fig", "plum"], "mass_g": [50.0, float("nan")]})


def test_a_round_trip(tmp_path):
    path = tmp_path / "fruit.parquet"
    write_table(FRUIT, FRAME, {"season": "autumn", "sizes": [1, 2]}, path)
    frame, metadata = read_table(FRUIT, path)
    pd.testing.assert_frame_equal(frame, FRAME)
    assert metadata == {"season": "autumn", "sizes": [1, 2]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["fruit.parquet"]


def test_another_kind_of_table(tmp_path):
    path = tmp_path / "fruit.parquet"
    write_table(FRUIT, FRAME, {}, path)
    nuts = TableFormat(name="nut table", schema_version=3, metadata_key="nuts")
    with pytest.raises(ValueError, match=r"fruit.parquet is a parquet file but not a puzzlebench nut table$"):
        read_table(nuts, path)


def test_another_schema_version(tmp_path):
    path = tmp_path / "fruit.parquet"
    write_table(FRUIT, FRAME, {}, path)
    newer = TableFormat(name="fruit table", schema_version=4, metadata_key="fruit")
    with pytest.raises(ValueError, match=r"fruit.parquet has fruit table schema 3; this version reads 4$"):
        read_table(newer, path)


def test_messages_say_what_was_looked_for(tmp_path):
    path = tmp_path / "fruit.parquet"
    with pytest.raises(ValueError, match="no such fruit table"):
        read_table(FRUIT, path)
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is not a readable fruit table"):
        read_table(FRUIT, path)
