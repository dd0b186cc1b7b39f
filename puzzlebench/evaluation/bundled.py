"""Three tasks that need no download: documents cut from files of Python's standard library that nothing is trained on.

Made for parents as small as the embedded one: no context is longer than about 150 of its tokens. Knows no model.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import puzzlebench.evaluation.bundled_task as task_module
from puzzlebench.digest import short_digest
from puzzlebench.files import make_folder, unfinished
from puzzlebench.text.corpus import Document, Split, standard_library

_T = TypeVar("_T")

BUNDLED: Final = ("puzzlebench_choice", "puzzlebench_perplexity", "puzzlebench_generation")
GROUP: Final = "bundled"

_CHOICES: Final = 4
_CONTEXT: Final = 200  # characters, at whole lines
_LINE: Final = (24, 64)  # characters of a line that is asked for, its indentation aside
_PIECE: Final = 480  # characters of a text whose loss is taken
_TARGET: Final = 8  # characters to be written
_DOCUMENTS: Final = {"puzzlebench_choice": 400, "puzzlebench_perplexity": 300, "puzzlebench_generation": 400}

_CHOICE_YAML: Final = """task: puzzlebench_choice
custom_dataset: !function puzzlebench_task.choice_documents
test_split: test
output_type: multiple_choice
doc_to_text: context
doc_to_choice: choices
doc_to_target: gold
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
_PERPLEXITY_YAML: Final = """task: puzzlebench_perplexity
custom_dataset: !function puzzlebench_task.perplexity_documents
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: bits_per_byte
  - metric: byte_perplexity
  - metric: word_perplexity
metadata:
  version: 1.0
"""
_GENERATION_YAML: Final = """task: puzzlebench_generation
custom_dataset: !function puzzlebench_task.generation_documents
test_split: test
output_type: generate_until
doc_to_text: context
doc_to_target: target
target_delimiter: ""
process_results: !function puzzlebench_task.judge_generation
generation_kwargs:
  until: ["<|endoftext|>"]
  max_gen_toks: 10
  do_sample: false
metric_list:
  - metric: prefix_match
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
_YAMLS: Final = dict(zip(BUNDLED, (_CHOICE_YAML, _PERPLEXITY_YAML, _GENERATION_YAML), strict=True))


def bundled_folder(cache: Path, split: Split = "test") -> Path:
    """A folder of the three tasks for the harness's include_path, made in the cache where it is not there yet.

    Its name is a digest of the documents, which differ from one version of Python to another.

    Raises:
        ValueError: this Python comes without sources, or the cache cannot be written to.
    """
    documents = bundled_documents(split)
    source = Path(task_module.__file__).read_text()
    folder = cache / f"tasks-{short_digest([documents, _YAMLS, source])}"
    if folder.is_dir():
        return folder
    partial = unfinished(folder)
    make_folder(partial)
    try:
        (partial / "puzzlebench_task.py").write_text(source)
        for task, rows in documents.items():
            (partial / f"{task}.yaml").write_text(_YAMLS[task])
            (partial / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.rename(partial, folder)
    except OSError as error:
        if not folder.is_dir():  # else another process made it meanwhile
            raise ValueError(f"cannot write {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


@functools.cache
def bundled_documents(split: Split) -> dict[str, list[dict[str, Any]]]:
    """The documents of each task, the same at every call. Their places are spread evenly over the split's text.

    Raises:
        ValueError: this Python comes without sources.
    """
    pieces = standard_library(split)
    return {
        "puzzlebench_choice": _choice_documents(pieces),
        "puzzlebench_perplexity": _perplexity_documents(pieces),
        "puzzlebench_generation": _generation_documents(pieces),
    }


def _choice_documents(pieces: list[Document]) -> list[dict[str, Any]]:
    """Some lines, and which of four comes next: the line, or one of three in which two of its words changed places.

    Lines from elsewhere instead are too hard for a small model: it finds a common line likelier than the true one
    whatever stands before.
    """
    draw = random.Random("puzzlebench_choice")  # noqa: S311
    found = []
    for piece in pieces:
        end = 0
        for line in piece.text.splitlines(keepends=True):
            start, end = end, end + len(line)
            if _LINE[0] <= len(line.strip()) <= _LINE[1] and start >= _CONTEXT:
                exchanged = _exchanged(line.strip())
                if len(exchanged) >= _CHOICES - 1:
                    found.append((piece, start, line, exchanged))
    documents = []
    for piece, start, line, exchanged in _spread(found, "puzzlebench_choice", draw):
        true = line.strip()
        choices = [true, *draw.sample(exchanged, _CHOICES - 1)]
        draw.shuffle(choices)
        context = _before(piece.text, start) + line[: len(line) - len(line.lstrip())]
        documents.append({"source": piece.name, "context": context, "choices": choices, "gold": choices.index(true)})
    return documents


def _exchanged(line: str) -> list[str]:
    """The line with any two of its words exchanged."""
    words = list(re.finditer(r"\w+", line))
    found = {
        line[: one.start()] + other[0] + line[one.end() : other.start()] + one[0] + line[other.end() :]
        for one, other in itertools.combinations(words, 2)
    }
    return sorted(found - {line})


def _perplexity_documents(pieces: list[Document]) -> list[dict[str, Any]]:
    """Stretches of whole lines, as many from a text as its length allows."""
    found = []
    for piece in pieces:
        held: list[str] = []
        for line in piece.text.splitlines(keepends=True):
            held.append(line)
            if sum(map(len, held)) >= _PIECE:
                found.append({"source": piece.name, "text": "".join(held)[:_PIECE]})
                held = []
    wanted = min(_DOCUMENTS["puzzlebench_perplexity"], len(found))
    return [found[number * len(found) // wanted] for number in range(wanted)]


def _generation_documents(pieces: list[Document]) -> list[dict[str, Any]]:
    """Text up to a place where something comes again: what follows, and some of what is before it, is in the context
    already. A model too weak for anything new still gets some of that right."""
    draw = random.Random("puzzlebench_generation")  # noqa: S311
    found = []
    for piece in pieces:
        end = 0
        for line in piece.text.splitlines(keepends=True):
            start, end = end, end + len(line)
            if places := [place for place in range(start, end) if _comes_again(piece.text, place)]:
                found.append((piece, draw.choice(places)))
    documents = []
    for piece, place in _spread(found, "puzzlebench_generation", draw):
        target = piece.text[place : place + 4 * _TARGET].lstrip(" ")[:_TARGET]
        documents.append({"source": piece.name, "context": _before(piece.text, place), "target": target})
    return documents


def _comes_again(text: str, place: int) -> bool:
    """Whether a word or sign ends here, and the text around was in the context before."""
    if not _CONTEXT <= place <= len(text) - 4 * _TARGET or text[place - 1].isspace():
        return False
    if text[place - 1].isalnum() and text[place].isalnum():
        return False
    target = text[place : place + 4 * _TARGET].lstrip(" ")[:_TARGET]
    end = text.index(target, place) + len(target)
    return len(target) == _TARGET and text[place - _TARGET : end] in _before(text, place)


def _before(text: str, place: int) -> str:
    """The context of a place, from the beginning of a line on."""
    cut = text[place - _CONTEXT : place]
    return cut[cut.find("\n") + 1 :]


def _spread(found: list[_T], task: str, draw: random.Random) -> Iterator[_T]:
    """As many as the task has documents, one from each of as many equal parts."""
    step = max(len(found) / _DOCUMENTS[task], 1.0)
    for number in range(min(_DOCUMENTS[task], len(found))):
        yield found[min(int((number + draw.random()) * step), len(found) - 1)]
