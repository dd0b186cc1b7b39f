"""Imported checkpoints are children that every command takes, and compute what they computed."""

import json
import weakref

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file

from puzzlebench.child.checkpoints import load_causal_lm
from puzzlebench.exporting import importing
from puzzlebench.exporting.importing import ImportJob, run_import
from puzzlebench.exporting.job import ExportJob, run_export
from puzzlebench.model.catalog import load_model
from puzzlebench.parent.fingerprint import checkpoint_fingerprint
from puzzlebench.parent.open import find_parent, load_tokenizer

from .children import MIXED, architecture_of, logits, read_json, save_model


def export(tmp_path, kind="decilm", **changes):
    run_export(ExportJob(child=str(tmp_path / "child"), out=tmp_path / "released", format=kind, engines=(), **changes))


def import_it(tmp_path, name="released", **changes):
    return run_import(ImportJob(checkpoint=str(tmp_path / name), out=tmp_path / "back", **changes))


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4}),
        ("qwen2", {}),
        ("mistral", {"sliding_window": None, "head_dim": 16}),
        ("phi3", {"sliding_window": None}),
    ],
)
def test_decilm_and_back_computes_the_same(tmp_path, family, changes):
    model = save_model(tmp_path / "child", family=family, **changes)
    export(tmp_path)
    facts = import_it(tmp_path)
    assert (facts["format"], facts["tokenizer"]) == ("decilm", True)
    assert load_model(str(tmp_path / "back"))[1] == architecture_of(*MIXED)
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "back")), logits(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma3_text", "olmo2", "qwen3", "smollm3"])
def test_hf_and_back_computes_the_same(tmp_path, family):
    model = save_model(tmp_path / "child", ("gqa_2_w4+mlp_256", *MIXED[1:3], "gqa_1_w4+no_op"), family)
    export(tmp_path, "hf")
    assert import_it(tmp_path)["format"] == "hf"
    assert torch.equal(logits(load_causal_lm(tmp_path / "back")), logits(model))


def test_a_stock_checkpoint_stays_one(tmp_path):
    model = save_model(tmp_path / "released", None)
    import_it(tmp_path)
    assert read_json(tmp_path / "back" / "config.json")["architectures"] == ["LlamaForCausalLM"]
    assert torch.equal(logits(load_causal_lm(tmp_path / "back")), logits(model))


def test_gguf_and_back_computes_the_same(tmp_path):
    pytest.importorskip("gguf")
    names = ("gqa_2+mlp_256", "no_op+mlp_512", "linear+mlp_40", "gqa_1+mlp_512")
    model = save_model(tmp_path / "child", names)
    export(tmp_path, "gguf")
    facts = import_it(tmp_path)
    assert facts["format"] == "gguf"
    assert load_model(str(tmp_path / "back"))[1] == architecture_of(*names)
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "back")), logits(model), rtol=0, atol=1e-5)
    again = ImportJob(checkpoint=str(tmp_path / "released" / "model.gguf"), out=tmp_path / "second")
    assert run_import(again)["parameters"] == facts["parameters"]


def released_decilm(folder, **changes):
    """A checkpoint in the words of the released ones: as they write their layers, in two files."""
    model = save_model(folder / "child", ("gqa_2+mlp_256", "no_op+mlp_512", "gqa_1+mlp_512", "gqa_2+no_op"))
    export(folder, shard_bytes=80_000)
    config = read_json(folder / "released" / "config.json")
    for block in config["block_configs"]:
        block["attention"] |= {"num_sink_tokens": None, "sparsify": None, "unshifted_sink": False}
        block["ffn"] |= {"sparsify": None}
    theta = config.pop("rope_parameters")["rope_theta"]
    config |= {"rope_theta": theta, "rope_scaling": None, "intermediate_size": None, **changes}
    (folder / "released" / "config.json").write_text(json.dumps(config))
    for name in ("puzzle_solution.json", "README.md"):
        (folder / "released" / name).unlink()
    return model


def test_a_released_checkpoint_is_taken_as_it_is(tmp_path):
    model = released_decilm(tmp_path)
    facts = import_it(tmp_path)
    assert facts["parent"] is None
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "back")), logits(model), rtol=0, atol=1e-5)
    solution = read_json(tmp_path / "back" / "puzzle_solution.json")
    assert solution["imported"]["format"] == "decilm"
    assert str(tmp_path) not in json.dumps(solution)
    assert load_tokenizer(find_parent(str(tmp_path / "back"))).vocab_size > 0


def test_the_first_decilm_is_taken(tmp_path):
    names = ("gqa_4+mlp_512", "gqa_1+mlp_512", "gqa_2+mlp_512", "gqa_4+mlp_512")
    model = save_model(tmp_path / "child", names, num_key_value_heads=4)
    export(tmp_path)
    config = read_json(tmp_path / "released" / "config.json")
    del config["block_configs"], config["rope_parameters"]
    config |= {"model_type": "deci", "num_key_value_heads_per_layer": [4, 1, 2, 4], "intermediate_size": 512}
    (tmp_path / "released" / "config.json").write_text(json.dumps(config))
    import_it(tmp_path)
    torch.testing.assert_close(logits(load_causal_lm(tmp_path / "back")), logits(model), rtol=0, atol=1e-5)


def test_a_parent_makes_it_a_child_to_distil(tmp_path):
    released_decilm(tmp_path)
    save_model(tmp_path / "parent", None)
    facts = import_it(tmp_path, parent=str(tmp_path / "parent"))
    solution = read_json(tmp_path / "back" / "puzzle_solution.json")
    assert solution["parent_fingerprint"] == checkpoint_fingerprint(tmp_path / "parent")
    assert solution["parent_parameters"] > solution["parameters"] == facts["parameters"]


def test_an_export_keeps_its_parent(tmp_path):
    save_model(tmp_path / "child")
    export(tmp_path)
    assert import_it(tmp_path)["parent"] == "some/parent"
    assert read_json(tmp_path / "back" / "puzzle_solution.json")["parent_fingerprint"] == "0" * 64


def test_another_models_parent_is_refused(tmp_path):
    released_decilm(tmp_path)
    save_model(tmp_path / "parent", None, hidden_size=64)
    with pytest.raises(ValueError, match="is not the parent: its hidden_size is 64, and the checkpoint's is 32"):
        import_it(tmp_path, parent=str(tmp_path / "parent"))
    assert not (tmp_path / "back").exists()


def test_no_more_is_held_than_a_shard(tmp_path, monkeypatch):
    """Tensors are read one by one, and each is let go with its shard: a model need not fit into memory."""
    released_decilm(tmp_path)
    read, held = [], []
    real = importing.counted

    def counted(*arguments):
        for name, tensor in real(*arguments):
            read.append(weakref.ref(tensor))
            yield name, tensor
            del tensor
            held.append(sum(one.nbytes for one in (reference() for reference in read) if one is not None))

    monkeypatch.setattr(importing, "counted", counted)
    import_it(tmp_path, shard_bytes=80_000)
    files = sorted((tmp_path / "back").glob("*.safetensors"))
    assert len(files) > 3
    for file in files:
        assert sum(tensor.nbytes for tensor in load_file(file).values()) <= 80_000
    largest = max(tensor.nbytes for file in files for tensor in load_file(file).values())
    assert len(held) > 10
    assert max(held) <= 80_000 + largest  # a shard, and the tensor that did not fit into it


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "no model is named|does not exist|no such"), ("file.bin", "is no folder and no .gguf file")],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, name, message):
    (tmp_path / "file.bin").touch()
    with pytest.raises(ValueError, match=message):
        import_it(tmp_path, name)
    assert not (tmp_path / "back").exists()


def test_what_lies_there_is_kept(tmp_path):
    (tmp_path / "back").mkdir()
    with pytest.raises(ValueError, match="back exists"):
        import_it(tmp_path)
    with pytest.raises(ValueError, match="shard_bytes must be"):
        ImportJob(checkpoint="x", out=tmp_path, shard_bytes=-1)


def test_an_imported_child_is_distilled_further(tmp_path):
    """The whole way round: export, import, and what `distil` checks of a child."""
    from puzzlebench.distillation.job import DistilJob, run_distil_job
    from puzzlebench.distillation.recipe import DistilRecipe, Stage

    (tmp_path / "text.txt").write_text("".join(f"{n} times {n} is {n * n}.\n" for n in range(1, 400)))
    save_model(tmp_path / "parent", None)
    released_decilm(tmp_path)
    import_it(tmp_path, parent=str(tmp_path / "parent"))
    recipe = DistilRecipe(stages=(Stage(length=16, sequences=4, batch_size=2),), evaluations=1, warmup=1)
    job = DistilJob(
        parent=str(tmp_path / "parent"),
        child=tmp_path / "back",
        out=tmp_path / "distilled",
        data=tmp_path / "text.txt",
        recipe=recipe,
    )
    assert run_distil_job(job)["steps"] == 2
    export_again = ExportJob(child=str(tmp_path / "distilled"), out=tmp_path / "again", format="decilm", engines=())
    assert run_export(export_again)["parameters"] == read_json(tmp_path / "back" / "puzzle_solution.json")["parameters"]
