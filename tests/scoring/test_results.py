from __future__ import annotations

import json

import pytest
import torch

from puzzlebench.scoring.results import LayerScores, read_layer, write_layer

VALUES = {name: torch.rand(4, 2, dtype=torch.float64) for name in ("gqa_4+mlp_24", "gqa_1+no_op")}


def test_results_come_back_to_the_last_bit_in_the_order_asked_for(tmp_path):
    write_layer(tmp_path, LayerScores(layer=3, metrics=("kl", "lm_loss"), values=VALUES))
    found = read_layer(tmp_path, 3, list(reversed(VALUES)))
    assert (found.layer, found.metrics) == (3, ("kl", "lm_loss"))
    assert list(found.values) == list(reversed(VALUES))
    for name, values in VALUES.items():
        assert found.values[name].dtype == torch.float64
        assert torch.equal(found.values[name], values)
    assert list(read_layer(tmp_path, 3, ["gqa_1+no_op"]).values) == ["gqa_1+no_op"]


def test_there_are_none_unless_all_blocks_are_there(tmp_path):
    assert read_layer(tmp_path, 0, []) is None
    write_layer(tmp_path, LayerScores(layer=0, metrics=("kl",), values=VALUES))
    assert read_layer(tmp_path, 1, VALUES) is None
    assert read_layer(tmp_path, 0, [*VALUES, "linear+linear"]) is None


def test_broken_files_are_named(tmp_path):
    write_layer(tmp_path, LayerScores(layer=0, metrics=("kl",), values=VALUES))
    (file,) = tmp_path.iterdir()
    whole = json.loads(file.read_text())
    for broken in ("", "{", "[]", json.dumps(whole | {"schema": 9}), json.dumps(whole | {"values": {"x": "y"}})):
        file.write_text(broken)
        with pytest.raises(ValueError, match=r"layer-000\.json holds no results that can be read \(.*\); remove it"):
            read_layer(tmp_path, 0, VALUES)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"cannot write .*nowhere/layer-000\.json"):
        write_layer(tmp_path / "nowhere", LayerScores(layer=0, metrics=("kl",), values=VALUES))
