"""Results that lm-eval wrote."""

import pytest

from puzzlebench.evaluation.stored import is_stored, read_samples, read_side


def test_a_result_and_its_samples(tmp_path, write):
    file = write(tmp_path / "tiny", {"one": {"values": [1.0, 0.0]}})
    for place in (file, tmp_path / "tiny", tmp_path):
        assert is_stored(place)
        side = read_side(place)
        assert (side.name, side.source, list(side.tasks)) == ("tiny", str(place), ["one"])
    found = read_samples(side.tasks["one"], "acc,none")
    assert [(one.document_hash, one.requests, one.values) for one in found.values()] == [
        ("doc0", 4, {"acc": 1.0}),
        ("doc1", 4, {"acc": 0.0}),
    ]
    assert read_samples(side.tasks["one"], "acc,other") == {}


def test_the_newest_of_each_task_counts(tmp_path, write):
    write(tmp_path, {"one": {"values": [1.0]}}, date="2026-11-28T11-00-00.000000")
    write(tmp_path, {"one": {"values": [0.0]}, "two": {"values": [0.5]}}, date="2026-11-28T10-00-00.000000")
    side = read_side(tmp_path)
    assert side.tasks["one"].aggregates["acc,none"] == 1.0
    assert side.tasks["two"].aggregates["acc,none"] == 0.5


def test_runs_by_their_key(tmp_path, write):
    write(tmp_path, {"one": {"values": [1.0]}}, puzzlebench={"key": "a"})
    write(tmp_path, {"one": {"values": [0.0]}}, date="2026-11-28T11-00-00.000000", puzzlebench={"key": "b"})
    assert read_side(tmp_path, keys=["a"]).tasks["one"].aggregates["acc,none"] == 1.0
    assert read_side(tmp_path, keys=["c"]).tasks == {}


def test_what_is_no_result(tmp_path, write):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    assert not is_stored(tmp_path / "checkpoint")
    assert not is_stored(tmp_path / "nothing")
    with pytest.raises(ValueError, match="no results of lm-eval"):
        read_side(tmp_path)
    hidden = write(tmp_path / ".unfinished", {"one": {"values": [1.0]}})
    assert not is_stored(tmp_path)
    hidden.write_text("[]")
    with pytest.raises(ValueError, match="is not a result of lm-eval"):
        read_side(hidden)
    hidden.write_text("{")
    with pytest.raises(ValueError, match="not a result that can be read"):
        read_side(hidden)


def test_several_models_are_not_mixed(tmp_path, write):
    for name in ("a", "b"):
        write(tmp_path / name, {"one": {"values": [1.0]}})
    with pytest.raises(ValueError, match=r"several models; give one of .*a, .*b"):
        read_side(tmp_path)


def test_samples_that_are_missing_or_damaged(tmp_path, write):
    side = read_side(write(tmp_path, {"one": {"values": [1.0]}}))
    file = side.tasks["one"].samples
    file.write_text("{}\n")
    with pytest.raises(ValueError, match="is damaged"):
        read_samples(side.tasks["one"], "acc,none")
    file.unlink()
    with pytest.raises(ValueError, match="--log_samples"):
        read_samples(side.tasks["one"], "acc,none")
