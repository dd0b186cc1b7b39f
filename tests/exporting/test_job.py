"""Exports as a whole: what lies in the folder, what is refused before anything is written, what a failure leaves."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("transformers")

import torch
from safetensors.torch import load_file

from puzzlebench.exporting import job as job_module
from puzzlebench.exporting.evidence import EvidenceFiles
from puzzlebench.exporting.hub import check_repo
from puzzlebench.exporting.job import ExportJob, run_export
from puzzlebench.exporting.sidecars import without_folders
from puzzlebench.exporting.source import open_source

from .children import MIXED, read_json, save_model

LOADS = ("gqa_2+mlp_256", "no_op+mlp_512", "gqa_1+mlp_512", "gqa_2+no_op")
"""Layers that vLLM loads."""


def job_for(tmp_path, **changes):
    settings = {"child": str(tmp_path / "child"), "out": tmp_path / "out", "format": "decilm", "engines": ("vllm",)}
    return ExportJob(**settings | changes)


def test_the_folder_is_complete(tmp_path):
    save_model(tmp_path / "child", LOADS)
    (tmp_path / "child" / "chat_template.jinja").write_text("{{ messages }}\n")
    (tmp_path / "child" / "LICENSE").write_text("MIT License\n\nPermission is hereby granted\n")
    (tmp_path / "child" / "README.md").write_text("---\nlicense: mit\n---\n# child\n")
    seen = []
    facts = run_export(job_for(tmp_path), progress=lambda share, stage: seen.append((share, stage)))
    out = tmp_path / "out"
    assert sorted(facts["files"]) == sorted(path.name for path in out.iterdir())
    assert set(facts["files"]) == {
        "LICENSE",
        "README.md",
        "chat_template.jinja",
        "config.json",
        "configuration_decilm.py",
        "generation_config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "modeling_decilm.py",
        "modeling_heterogeneous.py",
        "puzzle_solution.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json", "LICENSE"):
        assert (out / name).read_bytes() == (tmp_path / "child" / name).read_bytes()
    assert facts["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert (facts["licence"], facts["dtype"], facts["pushed"]) == ("mit", "float32", None)
    assert facts["engines"]["vllm"] == facts["engines"]["transformers"] == []
    assert any("kv_heads_not_parents" in reason for reason in facts["engines"]["sglang"])
    assert "sglang" in (out / "README.md").read_text()
    assert all(0 <= share <= 1 for share, _ in seen)
    assert {"reading", "weights", "card"} <= {stage for _, stage in seen}
    assert all(path.stat().st_mode & 0o044 for path in out.iterdir())


def test_puzzle_solution_keeps_the_childs_keys(tmp_path):
    save_model(tmp_path / "child", LOADS)
    run_export(job_for(tmp_path))
    own, written = (read_json(tmp_path / name / "puzzle_solution.json") for name in ("child", "out"))
    assert {key: written[key] for key in own} == own
    assert written["export"]["format"] == "decilm"
    assert written["export"]["weights_fingerprint"] == open_source(tmp_path / "child").fingerprint
    assert written["parameters"] == sum(
        tensor.numel() for tensor in load_file(tmp_path / "out" / "model-00001-of-00001.safetensors").values()
    )


def test_evidence_goes_into_the_solution(tmp_path, monkeypatch):
    from puzzlebench.estimate import Interval
    from puzzlebench.exporting.evidence_values import Evidence, RetentionEvidence

    save_model(tmp_path / "child", LOADS)
    kept = RetentionEvidence(
        overall=Interval(value=0.9, low=0.8, high=float("nan")),
        tasks=(),
        lm_eval_version="0.4.13",
        notes=(f"documents of {tmp_path}/tasks/one.yaml",),
        created="2026-11-28T13:50:40+00:00",
    )
    monkeypatch.setattr(job_module, "read_evidence", lambda *_: Evidence(retention=kept))
    run_export(job_for(tmp_path))
    found = read_json(tmp_path / "out" / "puzzle_solution.json")["retention"]
    assert found["overall"] == {"value": 0.9, "low": 0.8, "high": None}
    assert found["notes"] == ["documents of one.yaml"]
    run_export(job_for(tmp_path, child=str(tmp_path / "out"), out=tmp_path / "again"))
    assert read_json(tmp_path / "again" / "puzzle_solution.json")["retention"] == found


def test_a_model_of_the_hub_is_named_as_there(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from puzzlebench.parent import open as opened

    save_model(tmp_path / "snapshots" / "5f0b02c7", None)
    found = SimpleNamespace(folder=tmp_path / "snapshots" / "5f0b02c7")
    monkeypatch.setattr(opened, "find_parent", lambda name, **_: found)
    run_export(job_for(tmp_path, child="some/model"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model: some/model" in card
    assert "5f0b02c7" not in card


def test_shards_are_no_larger_than_asked(tmp_path):
    save_model(tmp_path / "child", LOADS)
    run_export(job_for(tmp_path, shard_bytes=60_000))
    index = read_json(tmp_path / "out" / "model.safetensors.index.json")
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert {file.name for file in files} == set(index["weight_map"].values())
    weights = {file.name: load_file(file) for file in files}
    for held in weights.values():
        assert len(held) == 1 or sum(tensor.nbytes for tensor in held.values()) <= 60_000
    for name, place in index["weight_map"].items():
        assert name in weights[place]
    assert index["metadata"]["total_size"] == sum(t.nbytes for held in weights.values() for t in held.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_weights_are_cast(tmp_path, dtype):
    save_model(tmp_path / "child", LOADS)
    run_export(job_for(tmp_path, dtype=dtype, format="hf", engines=()))
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    own = dict(open_source(tmp_path / "child").tensors())
    for name, tensor in open_source(tmp_path / "out").tensors():
        assert tensor.dtype == wanted
        assert torch.equal(tensor, own[name].to(wanted))


def test_values_that_fp16_does_not_hold_are_named(tmp_path):
    from safetensors.torch import save_file

    save_model(tmp_path / "child", LOADS)
    state = load_file(tmp_path / "child" / "model.safetensors")
    state["model.norm.weight"][0] = 1e6
    save_file(state, tmp_path / "child" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"model.norm.weight has values that fp16 does not hold \(up to 1e\+06\)"):
        run_export(job_for(tmp_path, dtype="fp16"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child"]


@pytest.mark.parametrize(
    ("names", "engines", "message"),
    [
        (MIXED, ("vllm",), r"child: layer 2: vllm .*\[attention_linear\].*and 1 more.*--engine-rules vllm"),
        (("no_op+mlp_512", *LOADS[1:]), ("vllm",), r"layer 0: vllm .*attention_no_op_in_first_layer"),
        (("gqa_2+mlp_40", *LOADS[1:]), ("transformers", "trtllm"), r"layer 0: tensorrt_llm .*ffn_width_not_multiple"),
        (LOADS, ("sglang",), r"layer 2: sglang .*kv_heads_not_parents"),
    ],
)
def test_an_engine_that_cannot_load_it_is_named_with_layer_and_rule(tmp_path, names, engines, message):
    save_model(tmp_path / "child", names)
    with pytest.raises(ValueError, match=message):
        run_export(job_for(tmp_path, engines=engines))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child"]


def test_without_an_engine_nothing_is_asked(tmp_path):
    save_model(tmp_path / "child", MIXED)
    facts = run_export(job_for(tmp_path, engines=()))
    assert len(facts["engines"]["vllm"]) == 2


def test_what_lies_there_is_kept(tmp_path):
    save_model(tmp_path / "child", LOADS)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists; an export is written to a new folder"):
        run_export(job_for(tmp_path))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing(tmp_path, monkeypatch, error):
    save_model(tmp_path / "child", LOADS)

    def fail(*_args, **_settings):
        raise error

    monkeypatch.setattr(job_module, "write_solution", fail)
    with pytest.raises((ValueError, KeyboardInterrupt)):
        run_export(job_for(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child"]


def test_the_child_alone_is_enough(tmp_path):
    """Its parent is gone, it was never searched for, and it has no tokenizer, solution or generation config."""
    save_model(tmp_path / "child", LOADS, tokenizer=False, solution=False)
    (tmp_path / "child" / "generation_config.json").unlink()
    facts = run_export(job_for(tmp_path))
    assert "there is no tokenizer beside the weights, so none was written" in facts["notes"]
    assert facts["licence"] is None
    generation = read_json(tmp_path / "out" / "generation_config.json")
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)


def test_the_parents_folder_gives_the_tokenizer_and_the_licence(tmp_path):
    from puzzlebench.parent.fingerprint import checkpoint_fingerprint

    save_model(tmp_path / "parent", None)
    (tmp_path / "parent" / "NOTICE").write_text("Made by somebody.\n")
    save_model(tmp_path / "child", LOADS, tokenizer=False)
    solution = read_json(tmp_path / "child" / "puzzle_solution.json")
    solution |= {"parent": str(tmp_path / "parent"), "parent_fingerprint": checkpoint_fingerprint(tmp_path / "parent")}
    (tmp_path / "child" / "puzzle_solution.json").write_text(json.dumps(solution))
    run_export(job_for(tmp_path))
    out = tmp_path / "out"
    assert (out / "tokenizer.json").read_bytes() == (tmp_path / "parent" / "tokenizer.json").read_bytes()
    assert (out / "NOTICE").read_text() == "Made by somebody.\n"
    assert read_json(out / "puzzle_solution.json")["parent"] == "parent"
    solution["parent_fingerprint"] = "of other weights"
    (tmp_path / "child" / "puzzle_solution.json").write_text(json.dumps(solution))
    run_export(job_for(tmp_path, out=tmp_path / "other"))
    assert not (tmp_path / "other" / "tokenizer.json").exists()


def test_no_folder_of_this_machine_goes_along(tmp_path):
    save_model(tmp_path / "child", LOADS)
    for name, changes in (
        ("config.json", {"_name_or_path": str(tmp_path / "child")}),
        ("puzzle_solution.json", {"parent": str(tmp_path / "parent"), "costs": {"from": f"{tmp_path}/costs.parquet"}}),
    ):
        path = tmp_path / "child" / name
        path.write_text(json.dumps(read_json(path) | changes))
    run_export(job_for(tmp_path))
    for path in (tmp_path / "out").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name
    assert read_json(tmp_path / "out" / "puzzle_solution.json")["costs"] == {"from": "costs.parquet"}


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("/home/me/models/llama", "llama"),
        ("/home/me/my models/llama", "llama"),
        ("~/models/llama", "llama"),
        ("replace-1-block of /home/me/llama by recipe a/b", "replace-1-block of llama by recipe a/b"),
        ("https://example.org/a/b and tokens/s, ~0.1 of 1 / 2", "https://example.org/a/b and tokens/s, ~0.1 of 1 / 2"),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B"),
    ],
)
def test_paths_are_their_last_part(text, without):
    assert without_folders({"a": [text]}) == {"a": [without]}


class FakeApi:
    def __init__(self, error=None):
        self.error, self.calls = error, []

    def create_repo(self, repo, **settings):
        self.calls.append(("create_repo", repo, settings))
        return f"https://huggingface.co/{repo}"

    def upload_folder(self, **settings):
        if self.error is not None:
            raise self.error
        self.calls.append(("upload_folder", settings))


def test_the_folder_is_pushed(tmp_path):
    save_model(tmp_path / "child", LOADS)
    api = FakeApi()
    facts = run_export(job_for(tmp_path, push_to="me/Small-Llama", private=True), api=api)
    assert facts["pushed"] == "https://huggingface.co/me/Small-Llama"
    made, uploaded = api.calls
    assert made == ("create_repo", "me/Small-Llama", {"repo_type": "model", "private": True, "exist_ok": True})
    assert uploaded[1]["folder_path"] == str(tmp_path / "out")
    assert uploaded[1]["repo_id"] == "me/Small-Llama"
    assert "# Small-Llama" in (tmp_path / "out" / "README.md").read_text()


class Answer:
    def __init__(self, status):
        self.status_code = status


def answered(status):
    error = OSError(f"{status} Client Error\nurl")
    error.response = Answer(status)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (answered(401), "the Hub does not know the token; log in"),
        (answered(403), "the token may not write there"),
        (answered(500), "the Hub answered 500: 500 Client Error$"),
        (ConnectionError("no route to host"), "the Hub cannot be reached"),
    ],
)
def test_a_push_that_fails_is_one_line_and_keeps_the_folder(tmp_path, error, message):
    save_model(tmp_path / "child", LOADS)
    with pytest.raises(ValueError, match=f"out is written, but pushing it to me/small failed: .*{message}"):
        run_export(job_for(tmp_path, push_to="me/small"), api=FakeApi(error))
    assert (tmp_path / "out" / "config.json").is_file()


def test_a_push_needs_a_token_and_a_name_before_the_work(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    save_model(tmp_path / "child", LOADS)
    with pytest.raises(ValueError, match="there is no token of the Hub to push to me/small with; log in"):
        run_export(job_for(tmp_path, push_to="me/small"))
    with pytest.raises(ValueError, match="cannot be a repository of the Hub"):
        check_repo("a/b/c")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["child"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "onnx"}, "format 'onnx' is not known; use decilm, hf, gguf"),
        ({"dtype": "fp8"}, "dtype 'fp8' is not known; use fp32, bf16, fp16"),
        ({"engines": ("llama.cpp",)}, "llama_cpp does not read format decilm; it reads gguf"),
        ({"engines": ("vlm",)}, "did you mean vllm"),
        ({"shard_bytes": 0}, "shard_bytes must be"),
        ({"private": True}, "private is for a repository"),
    ],
)
def test_jobs_that_are_not_possible_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        job_for(tmp_path, **changes)


def test_evidence_of_another_child_is_refused_before_anything_is_written(tmp_path):
    save_model(tmp_path / "child", LOADS)
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="is not the run of"):
        run_export(replace(job_for(tmp_path), evidence=EvidenceFiles(run=tmp_path / "run")))
    assert not (tmp_path / "out").exists()


def test_a_gguf_file_has_its_card_beside_it(tmp_path):
    pytest.importorskip("gguf")
    save_model(tmp_path / "child", ("gqa_2+mlp_256", "no_op+mlp_512", "linear+mlp_512", "gqa_1+mlp_512"))
    facts = run_export(job_for(tmp_path, format="gguf", engines=("llama_cpp",)))
    assert set(facts["files"]) == {"README.md", "model.gguf", "puzzle_solution.json"}
    assert (tmp_path / "out" / "model.gguf").read_bytes()[:4] == b"GGUF"
