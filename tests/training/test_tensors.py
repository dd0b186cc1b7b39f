from __future__ import annotations

import errno
import os
import stat

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from puzzlebench.training.tensors import read_facts, read_tensors, write_tensors


def _content():
    return {
        "a": torch.arange(6.0).view(2, 3).T,  # not contiguous
        "b": torch.tensor(3, dtype=torch.int64),
        "c": torch.randn(4).bfloat16(),
        "empty": torch.zeros(0, 3),
    }


def test_round_trip(tmp_path):
    file = tmp_path / "x.safetensors"
    facts = {"n": 1, "text": "süß", "none": None, "list": [1.5, 2]}
    write_tensors(file, _content(), facts)
    found, read = read_tensors(file)
    assert read == facts == read_facts(file)
    torch.manual_seed(0)
    assert found.keys() == _content().keys()
    for name in ("a", "b", "empty"):
        assert found[name].dtype == _content()[name].dtype
        assert torch.equal(found[name], _content()[name])
    assert found["c"].dtype == torch.bfloat16
    assert os.listdir(tmp_path) == ["x.safetensors"]


def test_others_may_read_the_file(tmp_path):
    write_tensors(tmp_path / "x.safetensors", _content(), {})
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o644


def test_no_tensors_are_a_file_too(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {}, {"n": 1})
    assert read_tensors(tmp_path / "x.safetensors") == ({}, {"n": 1})


_FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("save_file", _FULL),
        ("save_file", SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")),
        ("replace", _FULL),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, where, error):
    file = tmp_path / "x.safetensors"
    write_tensors(file, _content(), {"n": 1})

    def fail(*args, **_kwargs):
        if where == "save_file":
            args[1].write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(*((safetensors.torch, "save_file") if where == "save_file" else (os, "replace")), fail)
    with pytest.raises(ValueError, match=r"cannot write .*x\.safetensors: .*No space left on device[^\n]*$"):
        write_tensors(file, _content(), {"n": 2})
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["x.safetensors"]
    assert read_facts(file) == {"n": 1}


@pytest.mark.parametrize("error", [KeyboardInterrupt, _FULL])
def test_an_interruption_leaves_nothing_half_written(tmp_path, monkeypatch, error):
    def fail(_tensors, path, **_kwargs):
        path.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    with pytest.raises((KeyboardInterrupt, ValueError)):
        write_tensors(tmp_path / "x.safetensors", _content(), {})
    assert os.listdir(tmp_path) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write .*nowhere/x\.safetensors: [^\n]*No such file or directory"):
        write_tensors(tmp_path / "nowhere" / "x.safetensors", _content(), {})


def test_broken_and_foreign_files_are_refused(tmp_path):
    file = tmp_path / "x.safetensors"
    for read in (read_facts, read_tensors):
        with pytest.raises(
            ValueError, match=r"x\.safetensors is not a safetensors file that can be read: No such file"
        ):
            read(file)
    for broken in (b"", b"text", b"\xff" * 100):
        file.write_bytes(broken)
        for read in (read_facts, read_tensors):
            with pytest.raises(ValueError, match=r"x\.safetensors is not a safetensors file that can be read"):
                read(file)
    write_tensors(file, _content(), {})
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"not a safetensors file that can be read"):
        read_tensors(file)
    for metadata in (None, {"format": "pt"}, {"puzzlebench": "{"}):
        safetensors.torch.save_file(_content() | {"a": torch.zeros(2)}, file, metadata=metadata)
        with pytest.raises(ValueError, match=r"x\.safetensors was not written by puzzlebench"):
            read_tensors(file)
