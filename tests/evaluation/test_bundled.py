"""The tasks that need no download."""

import itertools
import json

import pytest

from puzzlebench.evaluation.bundled import BUNDLED, bundled_documents, bundled_folder
from puzzlebench.evaluation.bundled_task import judge_generation
from puzzlebench.text.corpus import standard_library


@pytest.fixture(scope="module")
def documents():
    return bundled_documents("validation")


@pytest.fixture(scope="module")
def texts():
    return {piece.name: piece.text for piece in standard_library("validation")}


def test_there_are_enough_of_them_of_many_files_and_always_the_same(documents):
    assert tuple(documents) == BUNDLED
    for rows in documents.values():
        assert len(rows) >= 300
        assert len({row["source"].split(":")[0] for row in rows}) > 15
    assert bundled_documents.__wrapped__("validation") == documents
    other = {row["source"] for rows in bundled_documents("test").values() for row in rows}
    assert not other & {row["source"] for rows in documents.values() for row in rows}


def test_a_choice_is_between_the_next_line_and_lines_with_two_words_exchanged(documents, texts):
    rows = documents["puzzlebench_choice"]
    for row in rows:
        true = row["choices"][row["gold"]]
        assert row["context"] + true in texts[row["source"]]
        assert len(set(row["choices"])) == 4
        assert all(sorted(choice) == sorted(true) for choice in row["choices"])
    places = [row["gold"] for row in rows]
    assert all(places.count(place) > len(rows) / 6 for place in range(4))


def test_texts_are_of_the_split_and_do_not_overlap(documents, texts):
    rows = documents["puzzlebench_perplexity"]
    assert all(row["text"] in texts[row["source"]] for row in rows)
    begins = sorted((row["source"], texts[row["source"]].find(row["text"]), len(row["text"])) for row in rows)
    for one, other in itertools.pairwise(begins):
        assert one[0] != other[0] or one[1] + one[2] <= other[1]


def test_what_is_to_be_written_was_in_the_context(documents, texts):
    for row in documents["puzzlebench_generation"]:
        assert len(row["target"]) == 8
        assert row["target"] in row["context"]
        text = texts[row["source"]]
        assert any(row["context"] + " " * spaces + row["target"] in text for spaces in range(25))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("self.name = 3", 1.0), (" self.nam", 1.0), ("self.n_m", 0.75), ("elf.nam", 0.0), ("", 0.0), ("self", 0.5)],
)
def test_what_an_answer_is_worth(answer, expected):
    assert judge_generation({"target": "self.nam"}, [answer]) == {"prefix_match": expected}


def test_the_folder_runs_with_plain_lm_eval_and_is_made_once(tmp_path, documents):
    pytest.importorskip("lm_eval")
    from puzzlebench.harness import find_tasks

    folder = bundled_folder(tmp_path, "validation")
    stamps = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert bundled_folder(tmp_path, "validation") == folder
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == stamps
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]
    assert "import puzzlebench" not in (folder / "puzzlebench_task.py").read_text()
    tasks = find_tasks(BUNDLED, [folder]).load(list(BUNDLED))["tasks"]
    for name, rows in documents.items():
        assert [json.loads(json.dumps(one)) for one in tasks[name].eval_docs] == rows
    better = {name: next(iter(task.higher_is_better().items())) for name, task in tasks.items()}
    assert list(better.values()) == [("acc", True), ("bits_per_byte", False), ("prefix_match", True)]
