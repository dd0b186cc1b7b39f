"""GGUF files, computed by a reference of llama.cpp's graph, give the model's own logits; others are refused."""

from __future__ import annotations

import json
import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from puzzlebench.exporting import gguf_file  # noqa: E402
from puzzlebench.exporting.gguf_file import write_gguf  # noqa: E402
from puzzlebench.exporting.source import open_source  # noqa: E402
from puzzlebench.model.blocks import architecture_to_json  # noqa: E402

from ..child.conftest import tokens  # noqa: E402
from .deci_reference import deci_logits, read  # noqa: E402
from .gguf_models import HELD, architecture_of, save_model  # noqa: E402

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = {
    "llama": {},
    "tied": {"tie_word_embeddings": True},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 12},
    "another base": {"rope_theta": 500.0, "rms_norm_eps": 0.05},
    "llama3": {"head_dim": 32, "rope_theta": 500.0, "rope_scaling": {**LLAMA3}},
    "linear": {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "alike": {"names": None},
    "qwen2": {"family": "qwen2", "tie_word_embeddings": False},
    "mistral": {"family": "mistral", "sliding_window": None},
    "phi3": {"family": "phi3", "sliding_window": None},
}


def save(folder, *, names=HELD, **case):
    """A model of a case, in a folder."""
    return save_model(folder, names, **case)


def logits(model, ids):
    with torch.no_grad():
        return model(ids[None]).logits[0]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_file_says_what_the_model_computes(tmp_path, case):
    model = save(tmp_path / "model", **case)
    ids = tokens(1, 24)[0]
    write_gguf(open_source(tmp_path / "model"), tmp_path / "model.gguf")
    torch.testing.assert_close(deci_logits(tmp_path / "model.gguf", ids), logits(model, ids), atol=2e-4, rtol=1e-4)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "model.gguf"]


@pytest.mark.parametrize(("dtype", "own"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_matrices_are_rounded_as_asked_for_and_vectors_are_not(tmp_path, dtype, own):
    save(tmp_path / "model", attention_bias=True)
    source = open_source(tmp_path / "model")
    for name in ("fp32", dtype):
        write_gguf(source, tmp_path / f"{name}.gguf", dtype=name)
    keys, rounded = read(tmp_path / f"{dtype}.gguf")
    exact = read(tmp_path / "fp32.gguf")[1]
    assert rounded.keys() == exact.keys()
    for name, tensor in exact.items():
        wanted = tensor if tensor.ndim == 1 else tensor.to(own).float()
        torch.testing.assert_close(rounded[name], wanted, atol=0, rtol=0)
    stored = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / f"{dtype}.gguf").tensors}
    assert {kind for name, kind in stored.items() if "norm" in name or name.endswith(".bias")} == {"F32"}
    assert {kind for name, kind in stored.items() if not ("norm" in name or name.endswith(".bias"))} == {
        dtype.upper().replace("FP", "F")
    }
    assert keys["general.file_type"] == {"fp16": 1, "bf16": 32}[dtype]


def test_the_checkpoints_own_dtype_is_kept(tmp_path):
    save(tmp_path / "model", dtype=torch.bfloat16)
    write_gguf(open_source(tmp_path / "model"), tmp_path / "model.gguf")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    assert {tensor.tensor_type.name for tensor in reader.tensors} == {"BF16", "F32"}


def test_keys_say_what_the_layers_are_and_where_they_come_from(tmp_path):
    save(tmp_path / "model")
    solution = {"parent": "somebody/parent", "note": "ä"}
    (tmp_path / "model" / "puzzle_solution.json").write_text(json.dumps(solution))
    source = open_source(tmp_path / "model")
    write_gguf(source, tmp_path / "m.gguf", title="My child", base_model="somebody/parent", licence="apache-2.0")
    keys, tensors = read(tmp_path / "m.gguf")
    assert keys["deci.attention.head_count"] == [4, 0, 4, 4, 0, 4]
    assert keys["deci.attention.head_count_kv"] == [4, 0, 1, 0, 0, 2]
    assert keys["deci.feed_forward_length"] == [48, 24, 40, 48, 0, 7]
    assert keys["deci.context_length"] == 128
    assert keys["deci.vocab_size"] == 64
    assert keys["general.type"] == "model"
    assert (keys["general.name"], keys["general.license"]) == ("My child", "apache-2.0")
    assert (keys["general.base_model.0.name"], keys["general.base_model.0.organization"]) == ("parent", "somebody")
    assert json.loads(keys["puzzlebench.architecture"]) == architecture_to_json(architecture_of(*HELD))
    assert json.loads(keys["puzzlebench.solution"]) == solution
    assert (keys["puzzlebench.fingerprint"], keys["puzzlebench.model_type"]) == (source.fingerprint, "llama")
    assert not [name for name in tensors if name.startswith("blk.4.")]
    assert {name for name in tensors if name.startswith("blk.3.attn")} == {
        "blk.3.attn_norm.weight",
        "blk.3.attn_output.weight",
    }


def test_weights_are_read_one_by_one(tmp_path, monkeypatch):
    """No list of all of them: each is gone when the next but one comes."""
    import weakref

    save(tmp_path / "model")
    source, alive, most = open_source(tmp_path / "model"), weakref.WeakSet(), 0
    original = gguf_file.decilm_tensors

    def watched(of):
        nonlocal most
        for name, tensor in original(of):
            alive.add(tensor)
            most = max(most, len(alive))
            yield name, tensor

    monkeypatch.setattr(gguf_file, "decilm_tensors", watched)
    write_gguf(source, tmp_path / "model.gguf")
    assert 0 < most <= 2


REFUSED = [
    ({"names": ("gqa_4+mlp_48", "gqa_4+linear")}, "layer 1: llama_cpp .*ffn_linear"),
    (
        {"names": ("gqa_4+mlp_48", "gqa_4+no_op", "gqa_4+linear", "gqa_4+mlp_48")},
        r"layer 1: .*attention_beside_ffn_no_op.* \(and 1 more\)",
    ),
    ({"names": ("gqa_4+mlp_48", "no_op+no_op")}, "layer 1: .*ffn_no_op_in_last_layer"),
    ({"names": ("no_op+mlp_48", "gqa_4+mlp_48")}, "layer 0: .*attention_no_op_in_first_layer"),
    ({"names": ("linear+mlp_48", "no_op+mlp_48")}, "no layer has attention with keys and values"),
    ({"names": ("gqa_4_w4+mlp_48",) * 2}, "layer 0: .*sliding_window"),
    ({"names": None, "family": "qwen3"}, "layer 0: .*qk_norm"),
    ({"names": None, "family": "olmo2"}, "layer 0: .*"),
    ({"names": None, "family": "gemma"}, "layer 0: .*family_not_listed"),
    ({"names": None, "family": "granite"}, "layer 0: .*family_not_listed.*Llama.s do, and this family scales"),
    ({"names": None, "family": "smollm3"}, "layer 1 has no RoPE"),
    ({"names": None, "hidden_act": "gelu"}, "its activation is gelu, and deci's is silu"),
    ({"names": None, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' cannot be written"),
]


@pytest.mark.parametrize(("case", "message"), REFUSED)
def test_what_deci_cannot_hold_is_refused_in_one_line_before_anything_is_written(tmp_path, case, message):
    save(tmp_path / "model", **case)
    source = open_source(tmp_path / "model")
    with pytest.raises(ValueError, match=message) as caught:
        write_gguf(source, tmp_path / "model.gguf")
    assert str(caught.value).startswith("model cannot be written as GGUF: ")
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_weight_that_fp16_cannot_hold_is_named_and_nothing_is_left(tmp_path):
    model = save(tmp_path / "model")
    del model
    from safetensors.torch import load_file, save_file

    file = tmp_path / "model" / "model.safetensors"
    state = load_file(file)
    state["model.layers.2.mlp.up_proj.weight"][0, 0] = 70000.0
    save_file(state, file, metadata={"format": "pt"})
    (tmp_path / "m.gguf").write_text("the old one")
    with pytest.raises(ValueError, match=r"layers\.2\.mlp\.up_proj\.weight has a weight of 7e\+04.*use bf16 or fp32"):
        write_gguf(open_source(tmp_path / "model"), tmp_path / "m.gguf", dtype="fp16")
    assert (tmp_path / "m.gguf").read_text() == "the old one"
    assert len(list(tmp_path.iterdir())) == 2


def test_wrong_arguments(tmp_path):
    save(tmp_path / "model")
    source = open_source(tmp_path / "model")
    with pytest.raises(ValueError, match="dtype 'q4_0' cannot be written as GGUF here; use fp32, fp16, bf16"):
        write_gguf(source, tmp_path / "m.gguf", dtype="q4_0")
    with pytest.raises(ValueError, match=r"cannot write .*nowhere"):
        write_gguf(source, tmp_path / "nowhere" / "m.gguf")


def test_the_reference_tells_layers_apart(tmp_path):
    """Attention beside no FFN is dropped by llama.cpp: a file that was written all the same computes otherwise."""
    model = save(tmp_path / "model", names=("gqa_4+mlp_48", "gqa_4+no_op", "gqa_4+mlp_48"))
    write_gguf(open_source(tmp_path / "model"), tmp_path / "m.gguf", loads=False)
    ids = tokens(1, 24)[0]
    difference = (deci_logits(tmp_path / "m.gguf", ids) - logits(model, ids)).abs().max()
    assert math.isfinite(difference)
    assert difference > 0.1


@pytest.mark.parametrize("names", [("no_op+mlp_48", "gqa_4+mlp_48"), ("linear+mlp_48", "no_op+no_op")])
def test_what_llama_cpp_does_not_load_can_be_written_where_it_is_asked_for(tmp_path, names):
    save(tmp_path / "model", names=names)
    source = open_source(tmp_path / "model")
    with pytest.raises(ValueError, match="cannot be written as GGUF"):
        write_gguf(source, tmp_path / "m.gguf")
    write_gguf(source, tmp_path / "m.gguf", loads=False)
    assert [len(read(tmp_path / "m.gguf")[0]["deci.attention.head_count"])] == [2]


def test_what_a_file_has_no_words_for_is_refused_all_the_same(tmp_path):
    save(tmp_path / "model", names=("gqa_4+linear", "gqa_4+mlp_48"))
    with pytest.raises(ValueError, match=r"layer 0: .*ffn_linear"):
        write_gguf(open_source(tmp_path / "model"), tmp_path / "m.gguf", loads=False)
