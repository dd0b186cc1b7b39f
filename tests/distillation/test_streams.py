from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from puzzlebench.distillation import states, trainer
from puzzlebench.distillation.data import HELD_OUT, pack_stages
from puzzlebench.distillation.job import DistilJob, run_distil_job
from puzzlebench.distillation.recipe import Stage
from puzzlebench.distillation.streams import HubText, Stream, StreamedRows
from puzzlebench.text.tokens import pack_documents

STAGE = Stage(length=5, sequences=40, batch_size=4)


class Numbers:
    """A text of numbers is those tokens; 0 ends a document."""

    eos_token_id = 0

    def __init__(self):
        self.seen = []

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        self.seen.append(text)
        return [int(part) for part in text.split()]


def texts(count=400):
    """Document n holds 1 to 11 times the token n + 1."""
    return [" ".join([str(n + 1)] * (n * 7 % 11 + 1)) for n in range(count)]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts()))
    return path


@pytest.fixture
def stream(lines):
    return Stream(source=lines)


def opened(stream, rank=0, ranks=1, **more):
    return StreamedRows(stream, Numbers(), (STAGE,), 0, rank=rank, ranks=ranks, **more)


def test_every_row_of_a_batch_follows_its_own_documents(stream):
    rows = opened(stream)
    held = rows.held_out
    assert held.shape == (HELD_OUT, 5)
    batches = np.stack([rows.batch(step).ids for step in range(8)])  # [8, 4, 5]
    first = rows.position()["begin"]
    assert batches.max() > held.max()
    for slot in range(4):
        own = [int(token) for token in batches[:, slot].flatten()]
        expected = []
        for number in range(first + slot, 400, 4):
            expected += [number + 1] * (number * 7 % 11 + 1) + [0]
        assert own == expected[: len(own)]
    assert not set(held.flatten()) & set(batches.flatten()) - {0}


def test_processes_share_a_batch_and_tokenise_only_their_own_documents(stream):
    whole = opened(stream)
    halves = [opened(stream, rank, 2) for rank in range(2)]
    for half in halves:
        half._tokenizer.seen.clear()
    for step in range(6):
        together = np.concatenate([half.batch(step).ids for half in halves])
        assert np.array_equal(whole.batch(step).ids, together)
    assert not set(halves[0]._tokenizer.seen) & set(halves[1]._tokenizer.seen)


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 7])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_goes_on_where_it_was_with_any_number_of_processes(stream, steps, ranks):
    whole = opened(stream)
    before = [opened(stream, rank, 2) for rank in range(2)]
    for step in range(steps):
        whole.batch(step)
        for one in before:
            one.batch(step)
    positions = json.loads(json.dumps([one.position() for one in before]))
    after = [opened(stream, rank, ranks) for rank in range(ranks)]
    for one in after:
        one.go_to(positions)
    for step in range(steps, steps + 5):
        together = np.concatenate([one.batch(step).ids for one in after])
        assert np.array_equal(whole.batch(step).ids, together)


def test_a_stream_is_read_lazily_and_may_end(stream, monkeypatch):
    rows = opened(stream)
    rows.batch(0)
    assert rows._next < 60  # of 400

    def go_on():
        for step in range(1, 200):
            rows.batch(step)

    with pytest.raises(ValueError, match="the stream ends after 400 documents, before training does; ask for fewer"):
        go_on()


def test_too_short_for_what_is_held_out(tmp_path):
    (tmp_path / "a.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match="too little text: the stream has 4 tokens, and 160 are held out"):
        opened(Stream(source=tmp_path / "a.txt"))


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_data_set_is_the_same_as_its_file(tmp_path, lines, stream, kind):
    pytest.importorskip("datasets")
    file = lines
    if kind == "parquet":
        import pandas as pd

        file = tmp_path / "text.parquet"
        pd.DataFrame({"text": texts()}).to_parquet(file)
    hub = Stream(source=HubText(name=kind, files=(str(file),)))
    assert list(hub.texts()) == texts()
    assert list(hub.texts(skip=390)) == texts()[390:] == list(stream.texts(skip=390))
    assert hub.fingerprint != stream.fingerprint
    with pytest.raises(ValueError, match="data set json: no text in column 'body'; its columns are text"):
        list(Stream(source=HubText(name="json", files=(str(lines),), column="body")).texts())


def test_a_data_set_that_is_not_there_is_one_line(tmp_path):
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match="data set json: ") as caught:
        list(Stream(source=HubText(name="json", files=(str(tmp_path / "nothing.jsonl"),))).texts())
    assert "\n" not in str(caught.value)


class StoppedError(Exception):
    pass


def test_a_streamed_training_goes_on_exactly(job, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    lines = job.data.read_text().splitlines(keepends=True)
    file = tmp_path / "text.jsonl"
    file.write_text("".join(json.dumps({"text": "".join(lines[n : n + 3])}) + "\n" for n in range(0, len(lines), 3)))
    recipe = replace(
        job.recipe, stages=(Stage(length=8, sequences=12, batch_size=4), Stage(length=16, sequences=12, batch_size=4))
    )
    whole = replace(job, data=file, stream=True, recipe=recipe, out=job.out.with_name("whole"))
    facts = run_distil_job(whole)
    assert facts["data"] == str(file)
    monkeypatch.setattr(states.States, "due", lambda _self: True)
    real = trainer._step
    for stop_at in (2, 3, 4):  # the second stage begins with step 3

        def stop(*args, stop_at=stop_at):
            if args[-1] == stop_at:
                raise StoppedError
            return real(*args)

        monkeypatch.setattr(trainer, "_step", stop)
        with pytest.raises(StoppedError):
            run_distil_job(replace(whole, out=job.out))
    monkeypatch.setattr(trainer, "_step", real)
    again = run_distil_job(replace(whole, out=job.out))
    assert again["losses"] == facts["losses"]
    one, other = (load_file(folder / "model.safetensors") for folder in (whole.out, job.out))
    assert all((one[name] == other[name]).all() for name in one)


def test_packed_rows_are_in_an_order_that_the_seed_decides(text, parent):
    from puzzlebench.parent.open import find_parent, load_tokenizer

    tokenizer = load_tokenizer(find_parent(str(parent)))
    stage = Stage(length=16, sequences=40, batch_size=8)
    (rows,) = pack_stages([stage], tokenizer, text, 0)
    own = np.concatenate([rows.batch(step).ids for step in range(5)])
    every = rows.all_rows
    assert len(rows.held_out) == 5  # a ninth of 40, so the last tenth of all
    assert np.array_equal(every[rows.held_out_rows], rows.held_out)
    assert sorted(map(tuple, own)) == sorted(map(tuple, every[:40]))
    assert not np.array_equal(own, every[:40])
    assert np.array_equal(own[:8], every[rows.batch(0).rows])
    (other,) = pack_stages([stage], tokenizer, text, 1)
    assert not np.array_equal(other.batch(0).ids, own[:8])
    assert other.fingerprint == rows.fingerprint
    halves = [pack_stages([stage], tokenizer, text, 0, rank=rank, ranks=2)[0] for rank in range(2)]
    assert np.array_equal(np.concatenate([half.batch(3).ids for half in halves]), own[24:32])
    with pytest.raises(ValueError, match="a batch of 8 rows cannot be shared evenly by 3 processes"):
        pack_stages([stage], tokenizer, text, 0, rank=0, ranks=3)


@pytest.mark.parametrize(
    "stages",
    [
        ((16, 400, 4), (32, 100, 4)),
        ((32, 100, 4), (16, 400, 4), (8, 20, 4)),
        ((8, 1500, 4), (16, 9, 4), (16, 300, 4)),
    ],
)
def test_no_stage_trains_on_what_any_holds_out(tmp_path, stages):
    """Every token of the text is another number, so that the same number is the same place in it."""
    file = tmp_path / "text.txt"
    file.write_text(" ".join(map(str, range(1, 20_001))))
    stages = [Stage(length=length, sequences=count, batch_size=size) for length, count, size in stages]
    packed = pack_stages(stages, Numbers(), file, 0)
    trained, held_out = set(), set()
    for stage, rows in zip(stages, packed, strict=True):
        own = np.concatenate([rows.batch(step).ids for step in range(stage.steps)])
        assert own.shape == (stage.steps * stage.batch_size, stage.length)
        assert not trained & set(own.flat), "a stage begins where the one before ended"
        trained |= set(own.flat)
        held_out |= set(rows.held_out.flat)
    assert not trained & held_out
    assert min(held_out) == 1 + sum(stage.sequences * stage.length for stage in stages)
    for length in {stage.length for stage in stages}:
        same = [rows.held_out for stage, rows in zip(stages, packed, strict=True) if stage.length == length]
        wanted = max(min(128, -(-stage.sequences // 9)) for stage in stages if stage.length == length)
        assert all(np.array_equal(one, same[0]) for one in same), "losses on rows of one length compare"
        assert same[0].shape == (wanted, length)


def test_without_data_validation_files_are_held_out(parent, monkeypatch):
    from puzzlebench.distillation import data
    from puzzlebench.parent.open import find_parent, load_tokenizer
    from puzzlebench.text.corpus import Document

    asked = []

    def documents(split):
        asked.append(split)
        return [Document(name="x", text=f"{split} words " * 2000)]

    monkeypatch.setattr(data, "standard_library", documents)
    tokenizer = load_tokenizer(find_parent(str(parent)))
    (rows,) = pack_stages([STAGE], tokenizer, None, 0)
    assert asked == ["train", "validation"]
    assert rows.held_out.shape == (HELD_OUT, 5)
    train, validation = (
        pack_documents(documents(split), tokenizer, sequences=count, length=5, spread=split == "validation")
        for split, count in (("train", STAGE.sequences), ("validation", HELD_OUT))
    )
    assert np.array_equal(rows.all_rows, np.concatenate([train, validation]))
    longer = Stage(length=7, sequences=8, batch_size=4)
    first, second = pack_stages([STAGE, longer], tokenizer, None, 0)
    assert first.fingerprint == rows.fingerprint
    assert second.held_out.shape == (HELD_OUT, 7)
    text = pack_documents(documents("train"), tokenizer, sequences=1, length=40 * 5 + 8 * 7)
    assert np.array_equal(second.all_rows[:8].flatten(), text[0, 40 * 5 :])


def test_what_does_not_go_together(job):
    from puzzlebench.distillation.recipe import LossWeights

    def refused(match, **changes):
        with pytest.raises(ValueError, match=match):
            replace(job, **changes)

    no_cosine = replace(job.recipe, losses=LossWeights(cosine=0.0))
    refused("either of files .* or a data set", dataset=HubText(name="x"))
    refused("only text of one's own can be streamed", data=None, stream=True)
    refused("holds no hidden states, so cosine must have weight 0", teacher_cache=job.out)
    refused("so the text cannot be streamed", teacher_cache=job.out, stream=True, recipe=no_cosine)
    refused("top_k must be", top_k=0)
    assert isinstance(replace(job, teacher_cache=job.out, recipe=no_cosine), DistilJob)
