from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from puzzlebench.parent.fingerprint import checkpoint_fingerprint


def _weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (64, 16), "norm": (16,), "tall": (200, 3), "wide": (3, 600), "conv": (4, 2, 3), "one": ()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def _fingerprint(folder, *shards, config=None):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "rope_theta": 1e4, **(config or {})}))
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"model-{number:05d}.safetensors")
    return checkpoint_fingerprint(folder)


def test_another_config_is_another_parent_whoever_wrote_it(tmp_path):
    one = _fingerprint(tmp_path / "one", _weights())
    assert _fingerprint(tmp_path / "rope", _weights(), config={"rope_theta": 5e5}) != one
    assert _fingerprint(tmp_path / "saved", _weights(), config={"transformers_version": "5.1.0"}) == one


def test_how_weights_are_split_into_files_does_not_matter(tmp_path):
    weights = _weights()
    one = _fingerprint(tmp_path / "one", weights)
    names = list(weights)
    split = [{name: weights[name] for name in names[part::3]} for part in range(3)]
    assert _fingerprint(tmp_path / "three", *split) == one
    assert _fingerprint(tmp_path / "reverse", *reversed(split)) == one
    assert len(one) == 64


@pytest.mark.parametrize(
    ("name", "place"), [("embed", (0, 0)), ("embed", (63, 15)), ("norm", (0,)), ("tall", (199, 2)), ("wide", (1, 511))]
)
def test_a_changed_weight_in_a_sampled_row_is_seen(tmp_path, name, place):
    weights = _weights()
    one = _fingerprint(tmp_path / "one", weights)
    weights[name][place] += 1e-3
    assert _fingerprint(tmp_path / "other", weights) != one


def test_other_dtypes_shapes_and_names_are_seen(tmp_path):
    weights = _weights()
    others = {
        "bf16": _weights(torch.bfloat16),
        "shape": weights | {"tall": weights["tall"].view(100, 6)},
        "name": {("head" if name == "embed" else name): value for name, value in weights.items()},
        "fewer": {name: value for name, value in weights.items() if name != "norm"},
        "swapped": weights | {"tall": weights["tall"].roll(1, 0)},
    }
    found = {name: _fingerprint(tmp_path / name, other) for name, other in others.items()}
    found["own"] = _fingerprint(tmp_path / "own", weights)
    assert len(set(found.values())) == 6


def test_folders_without_weights_that_can_be_read(tmp_path):
    with pytest.raises(
        ValueError, match=r"has no \.safetensors weights; convert them with transformers' save_pretrained"
    ):
        checkpoint_fingerprint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.safetensors is not a safetensors file that can be read"):
        checkpoint_fingerprint(tmp_path)
