from __future__ import annotations

import json
from itertools import chain, combinations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from puzzlebench.text import corpus
from puzzlebench.text.corpus import SPLITS, read_documents, standard_library


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A standard library of 200 files, and what distributions leave out beside them."""
    root = tmp_path / "lib"
    for number in range(200):
        file = root / f"package{number % 7}" / f"module{number}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"# {number}\n")
    for left_out in ("site-packages/a.py", "test/b.py", "json/tests/c.py", "encodings/d.py", "config-3.11-x/e.py"):
        (root / left_out).parent.mkdir(parents=True)
        (root / left_out).write_text("# not this\n")
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    return root


def _names(split):
    """Of the files that pieces of a split are from."""
    return [document.name.rpartition(":")[0] for document in standard_library(split)]


def test_every_file_is_in_one_split_and_tests_and_packages_of_others_are_in_none(sources):
    names = {split: _names(split) for split in SPLITS}
    assert all(not set(names[a]) & set(names[b]) for a, b in combinations(SPLITS, 2))
    assert sorted(chain(*names.values())) == sorted(f"package{number % 7}/module{number}.py" for number in range(200))
    assert len(names["train"]) > 160
    assert min(len(names["validation"]), len(names["test"])) >= 4


def test_a_file_stays_in_its_split_whatever_else_there_is(sources):
    before = {split: standard_library(split) for split in SPLITS}
    for number in range(0, 200, 2):
        (sources / f"package{number % 7}" / f"module{number}.py").unlink()
    for split in SPLITS:
        kept = [document for document in before[split] if int(document.text[2:]) % 2]
        assert standard_library(split) == kept


def test_the_order_is_shuffled_and_the_same_every_time(sources):
    names = _names("train")
    assert names != sorted(names)
    assert names == _names("train")


def test_long_files_are_in_pieces_of_whole_lines_that_lie_apart(sources):
    lines = [f"line {number} of a long file\n" for number in range(3000)]
    (sources / "long.py").write_text("".join(lines))
    (split,) = [split for split in SPLITS if "long.py" in _names(split)]
    found = standard_library(split)
    pieces = {int(one.name.rpartition(":")[2]): one.text for one in found if one.name.startswith("long.py:")}
    assert sorted(pieces) == list(range(len(pieces)))
    assert len(pieces) > 10
    assert "".join(pieces[number] for number in range(len(pieces))) == "".join(lines)
    assert all(4096 <= len(pieces[number]) < 4200 for number in range(len(pieces) - 1))
    assert all(text.endswith("\n") for text in pieces.values())
    places = [int(one.name.rpartition(":")[2]) for one in found if one.name.startswith("long.py:")]
    assert places != sorted(places)


def test_this_python_has_documents_in_every_split():
    documents = {split: standard_library(split) for split in ("validation", "test")}
    assert all(documents.values())
    names = {document.name for split in documents.values() for document in split}
    assert not any(part in ("test", "tests", "site-packages") for name in names for part in name.split("/"))
    assert sum(len(document.text) for document in documents["validation"]) > 100_000


def test_a_split_that_is_not_known_and_a_python_without_sources(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"split 'dev' is not known; use train, validation, test"):
        standard_library("dev")
    monkeypatch.setattr(corpus.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ValueError, match=r"has no library sources in .*; give text of your own with --data"):
        standard_library("train")


def test_text_files_are_one_document_each_by_name(tmp_path):
    texts = {"b.txt": "süß", "a.md": "a\n", "c/d.rst": "", "e.py": "x = 1", "f.bin": "no text", "g.csv": "nor this"}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode())
    found = [(document.name, document.text) for document in read_documents(tmp_path)]
    assert found == [("a.md", "a\n"), ("b.txt", "süß"), ("d.rst", ""), ("e.py", "x = 1")]
    assert [document.text for document in read_documents(tmp_path / "b.txt")] == ["süß"]


def test_lines_and_rows_are_documents(tmp_path):
    texts = ["one", "two\nlines", "drei ß"]
    lines = tmp_path / "x.jsonl"
    lines.write_text("\n".join(json.dumps({"text": text, "more": 1}) for text in texts) + "\n\n")
    rows = tmp_path / "x.parquet"
    pq.write_table(pa.table({"id": [1, 2, 3], "text": texts}), rows, row_group_size=2)
    assert [document.text for document in read_documents(lines)] == texts
    assert [document.text for document in read_documents(rows)] == texts
    names = [document.name for document in read_documents(tmp_path)]
    assert len(set(names)) == 6


@pytest.mark.parametrize("line", ['{"body": "x"}', "[1]", "3", '{"text": 3}', '{"text": null}', "{", '"text"'])
def test_a_line_without_text_is_named(tmp_path, line):
    file = tmp_path / "x.jsonl"
    file.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r'x\.jsonl, line 2: not a JSON object with "text"'):
        list(read_documents(file))


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl"])
def test_what_is_not_utf8_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b'{"text": "\xff\xfe"}\n')
    with pytest.raises(ValueError, match=rf"{name} is not text that can be read: .*utf-8"):
        list(read_documents(tmp_path))


def test_parquet_without_text_and_broken_parquet(tmp_path):
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet: no column 'text'; its columns are id, body"):
        list(read_documents(tmp_path / "a.parquet"))
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ValueError, match=r"b\.parquet is not a parquet file that can be read: [^\n]+$"):
        list(read_documents(tmp_path / "b.parquet"))


def test_paths_without_text(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: no such file or folder"):
        list(read_documents(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no text to read; known are files that end in \.txt, .*\.parquet"):
        list(read_documents(tmp_path))
    (tmp_path / "x.bin").write_bytes(b"")
    for path in (tmp_path, tmp_path / "x.bin"):
        with pytest.raises(ValueError, match=r"no text to read"):
            list(read_documents(path))
