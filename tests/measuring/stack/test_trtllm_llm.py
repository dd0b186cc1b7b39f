"""The LLM API adapter against a stand-in with the real signatures. Nothing here needs TensorRT-LLM."""

import sys
import types
from dataclasses import dataclass, field

import pytest
import torch

from puzzlebench.measuring.stack.checkpoint import write_checkpoint
from puzzlebench.measuring.stack.measure import measure_stack
from puzzlebench.measuring.stack.trtllm_llm import TrtllmLLMEngine
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp

BLOCK = Block(attention=GQA(num_key_value_heads=2), ffn=GatedMLP(intermediate_size=256))
NO_ATTENTION = Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=256))


@dataclass(kw_only=True)
class SamplingParams:  # the fields used; as in the real one, anything else is a TypeError
    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    ignore_eos: bool = False
    detokenize: bool = True


@dataclass(kw_only=True)
class KvCacheConfig:
    enable_block_reuse: bool = True
    max_tokens: int | None = None
    free_gpu_memory_fraction: float | None = 0.9
    dtype: str = "auto"
    tokens_per_block: int = 32


@dataclass(kw_only=True)
class CudaGraphConfig:
    batch_sizes: list[int] | None = None
    max_batch_size: int = 0
    enable_padding: bool = False


class FakeTrtllm:
    """tensorrt_llm as far as the adapter goes, on a clock of its own."""

    def __init__(self):
        self.now = 0.0
        self.llms = []
        self.error = None
        self.short_answers = False

    def build(self, version="1.2.1", graphs="CudaGraphConfig"):
        fake = self

        class LLM:
            def __init__(
                self,
                model,
                tokenizer=None,
                tokenizer_mode="auto",
                skip_tokenizer_init=False,
                trust_remote_code=False,
                tensor_parallel_size=1,
                dtype="auto",
                revision=None,
                tokenizer_revision=None,
                **kwargs,
            ):
                if fake.error:
                    raise fake.error
                self.model, self.trust_remote_code = model, trust_remote_code
                self.args = TorchLlmArgs(**kwargs)
                assert skip_tokenizer_init
                self.calls, self.shut_down = [], False
                fake.llms.append(self)

            def generate(self, inputs, sampling_params=None, use_tqdm=True, lora_request=None):
                assert not self.shut_down
                assert isinstance(inputs, list)
                assert all(isinstance(token, int) for prompt in inputs for token in prompt)
                assert sampling_params.end_id is not None  # the real one asks a tokenizer otherwise
                self.calls.append((inputs, sampling_params, use_tqdm))
                layers = 2 if self.model.endswith("large") else 1
                fake.now += sampling_params.max_tokens * (1.0 + 0.25 * layers)
                length = sampling_params.max_tokens - fake.short_answers
                answer = types.SimpleNamespace(token_ids=[0] * length)
                return [types.SimpleNamespace(outputs=[answer]) for _ in inputs]

            def shutdown(self):
                self.shut_down = True

        package = types.ModuleType("tensorrt_llm")
        package.__version__, package.LLM, package.SamplingParams = version, LLM, SamplingParams
        api = types.ModuleType("tensorrt_llm.llmapi")
        api.KvCacheConfig = KvCacheConfig
        setattr(api, graphs, CudaGraphConfig)
        return {"tensorrt_llm": package, "tensorrt_llm.llmapi": api}


@dataclass(kw_only=True)
class TorchLlmArgs:
    max_batch_size: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = 8192
    cuda_graph_config: CudaGraphConfig | None = None
    kv_cache_config: KvCacheConfig = field(default_factory=KvCacheConfig)


@pytest.fixture
def trtllm(monkeypatch):
    fake = FakeTrtllm()
    for name, module in fake.build().items():
        monkeypatch.setitem(sys.modules, name, module)
    return fake


@pytest.fixture
def checkpoint(tmp_path, make_stack_spec):
    write_checkpoint(make_stack_spec(1), Architecture(blocks=(BLOCK,)), tmp_path / "model")
    return tmp_path / "model"


def test_the_module_imports_without_tensorrt_llm_and_the_engine_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    with pytest.raises(
        ValueError, match=r"TensorRT-LLM is not installed: pip install tensorrt-llm==1.2.1 .* release image"
    ):
        TrtllmLLMEngine()


@pytest.mark.parametrize("version", ["1.1.0", "0.21.0", "nightly"])
def test_an_old_version_is_refused(monkeypatch, version):
    for name, module in FakeTrtllm().build(version).items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ValueError, match=f"TensorRT-LLM {version} is not supported; use 1.2 or newer"):
        TrtllmLLMEngine()


def test_what_the_engine_is_asked_for(trtllm, checkpoint):
    engine = TrtllmLLMEngine(free_gpu_memory_fraction=0.4, kv_dtype="fp8")
    assert (engine.name, engine.version) == ("trtllm", "1.2.1")
    engine.load(checkpoint, max_batch_size=24, max_seq_len=100)
    (llm,) = trtllm.llms
    assert (llm.model, llm.trust_remote_code) == (str(checkpoint), True)
    assert (llm.args.max_batch_size, llm.args.max_seq_len, llm.args.max_num_tokens) == (24, 100, 8192)
    assert llm.args.cuda_graph_config == CudaGraphConfig(batch_sizes=[24], enable_padding=False)
    cache = llm.args.kv_cache_config
    assert (cache.enable_block_reuse, cache.free_gpu_memory_fraction, cache.dtype) == (False, 0.4, "fp8")
    assert cache.max_tokens == 24 * 5 * 32  # four blocks hold 101 tokens, and one is spare


def test_the_newer_name_of_the_graph_config(monkeypatch, checkpoint):
    fake = FakeTrtllm()
    for name, module in fake.build("1.3.0rc27", graphs="DecodeCudaGraphConfig").items():
        monkeypatch.setitem(sys.modules, name, module)
    TrtllmLLMEngine().load(checkpoint, max_batch_size=2, max_seq_len=32)
    assert fake.llms[0].args.cuda_graph_config.batch_sizes == [2]


def test_a_run(trtllm, checkpoint):
    loaded = TrtllmLLMEngine(clock=lambda: trtllm.now).load(checkpoint, max_batch_size=4, max_seq_len=32)
    assert loaded.generate_seconds(batch_size=4, prompt_len=8, new_tokens=3) == 3 * 1.25
    loaded.generate_seconds(batch_size=4, prompt_len=8, new_tokens=1)
    (first, sampling, bar), (second, one, _) = trtllm.llms[0].calls
    assert sampling == SamplingParams(max_tokens=3, end_id=0, pad_id=0, ignore_eos=True, detokenize=False)
    assert one.max_tokens == 1
    assert not bar
    assert [len(prompt) for prompt in first] == [8] * 4
    assert len({tuple(prompt) for prompt in first + second}) == 8
    loaded.close()
    assert trtllm.llms[0].shut_down


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"batch_size": 5}, "over the 4 sequences"),
        ({"batch_size": 3}, "batch_size 3 is not the 4 whose CUDA graph was captured"),
        ({"prompt_len": 40}, "over the 41"),
        ({"prompt_len": 24, "new_tokens": 2}, "do not fit one step of 64 tokens"),
    ],
)
def test_a_run_of_another_size_is_refused(trtllm, checkpoint, size, message):
    loaded = TrtllmLLMEngine(max_num_tokens=64).load(checkpoint, max_batch_size=4, max_seq_len=41)
    with pytest.raises(ValueError, match=message):
        loaded.generate_seconds(**{"batch_size": 4, "prompt_len": 8, "new_tokens": 2, **size})
    loaded.generate_seconds(batch_size=4, prompt_len=24, new_tokens=1)  # prefill alone may take several steps


def test_short_answers_are_not_timed(trtllm, checkpoint):
    trtllm.short_answers = True
    loaded = TrtllmLLMEngine().load(checkpoint, max_batch_size=2, max_seq_len=32)
    with pytest.raises(ValueError, match=r"2 answers of \[2\] tokens instead of 2 of 3"):
        loaded.generate_seconds(batch_size=2, prompt_len=8, new_tokens=3)


def test_no_room_is_told_from_other_failures(trtllm, checkpoint):
    trtllm.error = RuntimeError("CUDA out of memory. Tried to allocate")
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate"):
        TrtllmLLMEngine().load(checkpoint, max_batch_size=2, max_seq_len=32)
    trtllm.error = RuntimeError("Executor worker returned error")
    with pytest.raises(RuntimeError, match="worker returned error"):
        TrtllmLLMEngine().load(checkpoint, max_batch_size=2, max_seq_len=32)


def test_checkpoints_that_it_cannot_run_are_refused(trtllm, tmp_path, checkpoint, make_stack_spec):
    engine = TrtllmLLMEngine(max_num_tokens=64)
    with pytest.raises(ValueError, match="a sequence of 65 tokens is over max_num_tokens 64"):
        engine.load(checkpoint, max_batch_size=2, max_seq_len=65)
    with pytest.raises(ValueError, match="is not a checkpoint"):
        engine.load(tmp_path, max_batch_size=2, max_seq_len=32)
    write_checkpoint(make_stack_spec(1), Architecture(blocks=(NO_ATTENTION,)), tmp_path / "no-cache")
    with pytest.raises(ValueError, match="put a block with attention in the head"):
        engine.load(tmp_path / "no-cache", max_batch_size=2, max_seq_len=32)
    with (checkpoint / "configuration_decilm.py").open("a") as file:
        file.write("print('run')\n")
    with pytest.raises(ValueError, match="is not puzzlebench's, and would be run"):
        engine.load(checkpoint, max_batch_size=2, max_seq_len=32)
    assert not trtllm.llms


def test_a_llama_checkpoint_runs_no_code(trtllm, tmp_path, make_stack_spec):
    write_checkpoint(make_stack_spec(1), Architecture(blocks=(BLOCK,)), tmp_path / "llama", layout="llama")
    TrtllmLLMEngine().load(tmp_path / "llama", max_batch_size=2, max_seq_len=32)
    assert not trtllm.llms[0].trust_remote_code


def test_a_linear_block_measured_behind_a_head_with_attention(trtllm, tmp_path, make_stack_spec):
    timings = measure_stack(
        TrtllmLLMEngine(clock=lambda: trtllm.now),
        make_stack_spec(1),
        Block(attention=Linear(), ffn=NoOp()),
        copies=1,
        batch_size=2,
        prompt_len=8,
        decode_tokens=4,
        workdir=tmp_path,
        head=(BLOCK,),
    )
    assert timings.decode.latency_us == pytest.approx(0.25e6)
    assert timings.prefill.intercept_us == pytest.approx(1e6)
    assert len(trtllm.llms) == 2
    assert all(llm.shut_down for llm in trtllm.llms)
