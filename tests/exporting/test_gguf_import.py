"""GGUF files as checkpoints again: what was written comes back, and what llama.cpp's tools write is read."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from puzzlebench.child.checkpoints import load_causal_lm  # noqa: E402
from puzzlebench.exporting.gguf_file import write_gguf  # noqa: E402
from puzzlebench.exporting.gguf_import import read_gguf  # noqa: E402
from puzzlebench.exporting.gguf_layers import gguf_name, to_neighbours  # noqa: E402
from puzzlebench.exporting.gguf_pretokenizers import PRE_TOKENIZERS  # noqa: E402
from puzzlebench.exporting.gguf_rope import read_rope  # noqa: E402
from puzzlebench.exporting.gguf_tokenizer_import import NOTE_FILE  # noqa: E402
from puzzlebench.exporting.source import open_source, read_config  # noqa: E402
from puzzlebench.model.hf_config import from_hf_config  # noqa: E402

from ..child.conftest import tokens  # noqa: E402
from .gguf_models import HELD, save_model  # noqa: E402
from .gguf_tokenizers import byte_level  # noqa: E402
from .gguf_tokenizers import save as save_tokenizer  # noqa: E402
from .test_gguf_file import CASES, logits  # noqa: E402


def model_of(imported, folder):
    """The checkpoint that an import amounts to, loaded."""
    import json

    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(imported.config))
    save_file(dict(imported.tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return load_causal_lm(folder)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_was_written_comes_back(tmp_path, case):
    model = save_model(tmp_path / "model", **{"names": HELD, **case})
    source = open_source(tmp_path / "model")
    write_gguf(source, tmp_path / "m.gguf")
    imported = read_gguf(tmp_path / "m.gguf")
    spec, architecture = from_hf_config(imported.config, name="again")
    assert architecture == source.architecture
    for key in ("hidden_size", "head_dim", "vocab_size", "max_position_embeddings", "tie_word_embeddings", "qkv_bias"):
        assert getattr(spec, key) == getattr(source.spec, key)
    settings, own = read_config(imported.config).to_dict(), source.settings()
    assert settings["rms_norm_eps"] == own["rms_norm_eps"]
    assert read_rope(settings) == read_rope(own)
    assert ("per_layer_config" in imported.config) == (case.get("names", HELD) is not None)
    again = model_of(imported, tmp_path / "again")
    ids = tokens(1, 24)[0]
    torch.testing.assert_close(logits(again, ids), logits(model, ids), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_dtypes_come_back_as_they_are(tmp_path, dtype):
    save_model(tmp_path / "model")
    write_gguf(open_source(tmp_path / "model"), tmp_path / "m.gguf", dtype=dtype)
    imported = read_gguf(tmp_path / "m.gguf")
    wanted = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    own = dict(open_source(tmp_path / "model").tensors())
    for name, tensor in imported.tensors:
        assert tensor.dtype == wanted
        assert torch.equal(tensor, own[name].to(wanted))
    assert from_hf_config(imported.config, name="again")[0].torch_dtype == str(wanted).removeprefix("torch.")


def test_the_solution_and_the_ids_of_special_tokens_come_along(tmp_path):
    import json

    own = byte_level(PRE_TOKENIZERS[0])
    save_model(tmp_path / "model", vocab_size=own.get_vocab_size(), eos_token_id=[0, 5])
    save_tokenizer(own, tmp_path / "model", bos="<|end|>", eos="<|end|>")
    solution = {"parent": "somebody/parent", "note": "ä"}
    (tmp_path / "model" / "puzzle_solution.json").write_text(json.dumps(solution))
    assert write_gguf(open_source(tmp_path / "model"), tmp_path / "m.gguf") == ()
    files = read_gguf(tmp_path / "m.gguf").files
    assert set(files) == {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "puzzle_solution.json"}
    assert json.loads(files["puzzle_solution.json"]) == solution
    assert json.loads(files["generation_config.json"]) == {
        "bos_token_id": 0,
        "eos_token_id": [0, 5],
        "pad_token_id": 0,
    }


def write_llama(file, model, *, kind=None, changes=None, extra=(), split=0, arch="llama"):
    """A file of the `llama` architecture, as llama.cpp's converter writes it (numbers, not lists), or quantised."""
    config, spec = model.config, from_hf_config(model.config.to_dict(), name="own")[0]
    writer = gguf.GGUFWriter(file, arch, split_max_tensors=split)
    values = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
    } | (changes or {})
    for key, value in values.items():
        (writer.add_array if isinstance(value, list) else writer.add_uint32)(f"{arch}.{key}", value)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    written = {}
    for name, tensor in model.state_dict().items():
        data = to_neighbours(spec, name, tensor).contiguous().numpy()
        if kind is not None and data.ndim > 1:
            data = gguf.quants.quantize(data, kind)
            written[name] = gguf.quants.dequantize(data, kind)
            writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), data)
    for name, data in extra:
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return written


def stock(tmp_path, **changes):
    return save_model(tmp_path / "model", None, **changes)


def test_a_plain_llama_file_is_a_stock_checkpoint(tmp_path):
    model = stock(tmp_path)
    write_llama(tmp_path / "m.gguf", model)
    imported = read_gguf(tmp_path / "m.gguf")
    assert imported.config["architectures"] == ["LlamaForCausalLM"]
    assert not {"per_layer_config", "auto_map"} & imported.config.keys()
    assert list(imported.files) == [NOTE_FILE]
    ids = tokens(1, 24)[0]
    torch.testing.assert_close(
        logits(model_of(imported, tmp_path / "again"), ids), logits(model, ids), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_quantised_tensors_are_the_numbers_they_stand_for(tmp_path, kind):
    model = stock(tmp_path, intermediate_size=64)
    written = write_llama(tmp_path / "m.gguf", model, kind=gguf.GGMLQuantizationType[kind])
    imported = read_gguf(tmp_path / "m.gguf")
    assert from_hf_config(imported.config, name="again")[0].torch_dtype == "float32"
    spec = open_source(tmp_path / "model").spec
    seen = 0
    for name, tensor in imported.tensors:
        if name in written:
            assert torch.equal(to_neighbours(spec, name, tensor), torch.from_numpy(written[name]))
            seen += 1
        else:
            assert torch.equal(tensor, model.state_dict()[name])
    assert seen == len(written) > 20


def test_the_gguf_packages_own_k_quants_are_read(tmp_path):
    """Which the package undoes but does not make: any bytes are some numbers."""
    from gguf.quants import dequantize

    from puzzlebench.exporting.gguf_import import _as_torch

    class Stored:
        name = "blk.0.ffn_up.weight"
        tensor_type = gguf.GGMLQuantizationType.Q4_K
        data = np.random.default_rng(0).integers(0, 60, size=(3, 144), dtype=np.uint8)

    assert torch.equal(_as_torch(Stored), torch.from_numpy(dequantize(Stored.data, Stored.tensor_type)))


def test_a_split_file_is_read_from_any_part(tmp_path):
    model = stock(tmp_path)
    write_llama(tmp_path / "m.gguf", model, split=16)
    parts = sorted(tmp_path.glob("m-*.gguf"))
    assert len(parts) == 3
    for part in parts:
        own = model.state_dict()
        for name, tensor in read_gguf(part).tensors:
            assert torch.equal(tensor, own.pop(name))
        assert not own
    parts[1].unlink()
    with pytest.raises(ValueError, match=r"is one of 3 parts, and m-00002-of-00003\.gguf is not beside it"):
        read_gguf(parts[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"changes": {"expert_count": 8}}, "mixture of 8 experts"),
        ({"changes": {"attention.head_count": [4, 4, 2, 4]}}, r"layers have \[2, 4\] attention heads"),
        ({"changes": {"attention.head_count_kv": [2, 2]}}, "head_count_kv has 2 entries for 4 layers"),
        ({"changes": {"attention.value_length": 16}}, "keys have 8 numbers a head and its values 16"),
        ({"changes": {"rope.dimension_count": 4}}, "RoPE turns 4 of the 8 numbers"),
        (
            {"changes": {"feed_forward_length": 40}},
            r"blk.0.ffn_gate.weight is \[48, 32\], and its layers ask for \[40, 32\]",
        ),
        ({"changes": {"block_count": 5}}, "no tensor blk.4.attn_norm.weight"),
        ({"changes": {"block_count": 3}}, "9 tensors that its layers have not, the first is blk.3.attn_k.weight"),
        ({"extra": [("blk.0.attn_q.bias", np.zeros(32, dtype=np.float32))]}, "no tensor blk.0.attn_k.bias"),
        ({"extra": [("blk.0.attn_output.bias", np.zeros(32, dtype=np.float32))]}, "only output have biases"),
        ({"extra": [("rope_freqs.weight", np.arange(1, 5, dtype=np.float32))]}, "not those of Llama 3"),
        ({"extra": [("rope_factors_long.weight", np.ones(4, dtype=np.float32))]}, "longrope"),
        ({"arch": "qwen2"}, "architecture is 'qwen2'; read are deci, llama"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path, options, message):
    write_llama(tmp_path / "m.gguf", stock(tmp_path), **options)
    with pytest.raises(ValueError, match=message) as caught:
        read_gguf(tmp_path / "m.gguf")
    assert str(caught.value).startswith(str(tmp_path / "m.gguf"))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(ValueError, match=r"none.gguf cannot be read: No such file"):
        read_gguf(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("This is no GGUF file, though it is long enough to be one.")
    with pytest.raises(ValueError, match=r"text.gguf is not a GGUF file that can be read"):
        read_gguf(tmp_path / "text.gguf")
    (tmp_path / "short.gguf").write_bytes(b"GGUF\x03\0\0\0")
    with pytest.raises(ValueError, match=r"short.gguf is not a GGUF file that can be read"):
        read_gguf(tmp_path / "short.gguf")


def test_a_cut_file_is_no_checkpoint(tmp_path):
    write_llama(tmp_path / "m.gguf", stock(tmp_path))
    whole = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="is not a GGUF file that can be read"):
        read_gguf(tmp_path / "m.gguf")
