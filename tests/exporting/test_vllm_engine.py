"""vLLM's engine script with a vLLM that answers as the real one does: requests, answers and how caches are read."""

import json
import sys
import types
from types import SimpleNamespace

import pytest

from puzzlebench.exporting.engine_scripts import vllm_engine
from puzzlebench.exporting.engine_scripts.vllm_engine import chosen_logprobs, describe_cache, main

REQUEST = {
    "schema": 1,
    "checkpoint": "/somewhere",
    "prompts": [[5, 6, 7], [8, 9]],
    "new_tokens": 2,
    "dtype": "float32",
    "trust_remote_code": False,
}


class Storage:
    def __init__(self, size):
        self.size = size

    def data_ptr(self):
        return id(self)

    def nbytes(self):
        return self.size


class View:
    """What a layer holds of a storage: float32 values."""

    def __init__(self, storage, size):
        self.storage, self.size = storage, size

    def untyped_storage(self):
        return self.storage

    def element_size(self):
        return 4

    def numel(self):
        return self.size // 4


class Spec:
    """Of a layer or a group: `needed` pages for the longest sequence."""

    def __init__(self, block_size, page_size_bytes, needed=3, kv_cache_specs=None):
        self.block_size, self.page_size_bytes, self.needed = block_size, page_size_bytes, needed
        if kv_cache_specs is not None:
            self.kv_cache_specs = kv_cache_specs

    def max_memory_usage_bytes(self, vllm_config):
        assert vllm_config.model_config.max_model_len == 40
        return self.needed * self.page_size_bytes


def name(layer):
    return f"model.layers.{layer}.self_attn.attn"


def worker(groups, block_bytes, *, blocks=10):
    """A worker with groups [({layer: bytes of its page}, spec)] whose blocks all lie in one storage."""
    storage = Storage(block_bytes * blocks)
    modules = {
        name(layer): SimpleNamespace(kv_cache=View(storage, page * blocks))
        for pages, _ in groups
        for layer, page in pages.items()
    }
    config = SimpleNamespace(
        num_blocks=blocks,
        kv_cache_groups=[
            SimpleNamespace(layer_names=[name(layer) for layer in pages], kv_cache_spec=spec) for pages, spec in groups
        ],
    )
    return SimpleNamespace(
        model_runner=SimpleNamespace(kv_cache_config=config),
        vllm_config=SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=40),
            compilation_config=SimpleNamespace(static_forward_context=modules),
        ),
    )


def test_layers_of_one_kind_have_pages_of_their_own_size():
    group = Spec(16, 8192 + 2048, kv_cache_specs={name(1): Spec(16, 8192), name(3): Spec(16, 2048)})
    assert describe_cache(worker([({3: 2048, 1: 8192}, group)], 8192 + 2048)) == {
        "block_size": 16,
        "num_blocks": 10,
        "layers": [{"layer": 1, "bytes_per_token": 512}, {"layer": 3, "bytes_per_token": 128}],
        "bytes_per_token": 640,
        "total_bytes": 10 * (8192 + 2048),
        "max_model_len": 40,
        "bytes_per_sequence": 3 * (8192 + 2048),
    }


def test_groups_take_blocks_of_one_size_and_their_rest_is_padding():
    groups = [({0: 4096, 2: 4096}, Spec(16, 4096)), ({1: 4096}, Spec(32, 4096, needed=2))]  # 1: half the heads
    found = describe_cache(worker(groups, 2 * 4096))
    assert found["layers"] == [
        {"layer": 0, "bytes_per_token": 256},
        {"layer": 1, "bytes_per_token": 128},
        {"layer": 2, "bytes_per_token": 256},
    ]
    assert found["bytes_per_token"] == 2 * 256 + 2 * 128  # the block of layer 1's group has room for two layers
    assert found["total_bytes"] == 10 * 2 * 4096
    assert found["bytes_per_sequence"] == (3 + 2) * 2 * 4096
    assert found["block_size"] == 16


def test_a_model_without_attention_has_an_empty_cache():
    found = describe_cache(worker([], 0, blocks=1))
    assert (found["layers"], found["bytes_per_token"], found["total_bytes"]) == ([], 0, 0)


def test_a_layer_without_a_number_is_an_error():
    odd = worker([({0: 64}, Spec(16, 64))], 64)
    odd.model_runner.kv_cache_config.kv_cache_groups[0].layer_names[0] = "head"
    odd.vllm_config.compilation_config.static_forward_context["head"] = SimpleNamespace(kv_cache=View(Storage(64), 64))
    with pytest.raises(ValueError, match="the layer 'head' of the cache has no number"):
        describe_cache(odd)


def logprob(value):
    return SimpleNamespace(logprob=value, rank=1)


def test_the_chosen_tokens_are_looked_up_and_not_the_likeliest():
    assert chosen_logprobs([4, 2], [{9: logprob(-0.1), 4: logprob(-3.0)}, {2: logprob(-1.0)}]) == [-3.0, -1.0]
    with pytest.raises(ValueError, match="shorter"):
        chosen_logprobs([4, 2], [{4: logprob(-3.0)}])


class LLM:
    """Of every prompt: its first token again and again, with what vLLM answers beside it."""

    def __init__(self, **settings):
        self.settings = settings
        if settings["model"] == "/broken":
            raise RuntimeError("Engine core initialization failed.\nSee above.")

    def generate(self, prompts, sampling, use_tqdm):
        assert sampling == {
            "temperature": 0.0,
            "max_tokens": 2,
            "ignore_eos": True,
            "logprobs": 0,
            "prompt_logprobs": 0,
            "detokenize": False,
        }
        return [
            SimpleNamespace(
                outputs=[
                    SimpleNamespace(
                        token_ids=(ids[0], ids[0]), logprobs=[{ids[0]: logprob(-0.5)}, {ids[0]: logprob(-0.25)}]
                    )
                ],
                prompt_logprobs=[None, *({token: logprob(-float(token))} for token in ids[1:])],
            )
            for ids in (prompt["prompt_token_ids"] for prompt in prompts)
        ]

    def collective_rpc(self, method):
        assert method is describe_cache
        assert self.settings["max_model_len"] == 5
        return [{"num_blocks": 7}]


@pytest.fixture
def vllm(monkeypatch):
    module = types.ModuleType("vllm")
    module.LLM, module.SamplingParams, module.__version__ = LLM, dict, "9.9"
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setattr(vllm_engine, "SETTINGS", {})
    return module


def ask(tmp_path, **changes):
    request, answer = tmp_path / "request.json", tmp_path / "answer.json"
    request.write_text(json.dumps({**REQUEST, **changes}), encoding="utf-8")
    status = main([str(request), str(answer)])
    return status, json.loads(answer.read_text(encoding="utf-8"))


def test_a_request_is_answered(vllm, tmp_path):
    assert ask(tmp_path) == (
        0,
        {
            "schema": 1,
            "engine": "vllm",
            "version": "9.9",
            "tokens": [[5, 5], [8, 8]],
            "logprobs": [[-0.5, -0.25], [-0.5, -0.25]],
            "prompt_logprobs": [[-6.0, -7.0], [-9.0]],
            "kv_cache": {"num_blocks": 7},
            "error": None,
        },
    )


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"checkpoint": "/broken"}, "RuntimeError: Engine core initialization failed. See above."),
        ({"schema": 2}, "ValueError: request schema 2 is not known; this script reads 1"),
    ],
)
def test_what_goes_wrong_is_the_answers_error_in_one_line(vllm, tmp_path, changes, error):
    status, answer = ask(tmp_path, **changes)
    assert (status, answer["error"], answer["tokens"]) == (1, error, [])


def test_an_interpreter_without_vllm_says_so(vllm, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    status, answer = ask(tmp_path)
    assert status == 1
    assert answer["error"].startswith("ModuleNotFoundError: import of vllm halted")
