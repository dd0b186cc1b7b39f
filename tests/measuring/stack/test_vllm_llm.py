"""The vLLM adapter against a stand-in with the real signatures. Nothing here needs vLLM."""

import sys
import types
from dataclasses import dataclass

import pytest
import torch

from puzzlebench.measuring.stack.checkpoint import write_checkpoint
from puzzlebench.measuring.stack.measure import measure_stack
from puzzlebench.measuring.stack.vllm_llm import VllmLLMEngine
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP, Linear, NoOp

BLOCK = Block(attention=GQA(num_key_value_heads=2), ffn=GatedMLP(intermediate_size=256))
NO_ATTENTION = Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=256))


@dataclass(kw_only=True)
class SamplingParams:
    max_tokens: int = 16
    temperature: float = 1.0
    ignore_eos: bool = False
    detokenize: bool = True


@dataclass(kw_only=True)
class EngineArgs:
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    enable_prefix_caching: bool | None = None
    kv_cache_dtype: str = "auto"


class FakeVllm(types.ModuleType):
    __version__ = "0.19.0"

    def __init__(self):
        super().__init__("vllm")
        fake = self
        self.now, self.llms, self.error, self.short = 0.0, [], None, 0
        self.SamplingParams = SamplingParams

        class LLM:
            def __init__(
                self,
                model,
                *,
                tokenizer=None,
                skip_tokenizer_init=False,
                trust_remote_code=False,
                gpu_memory_utilization=0.9,
                compilation_config=None,
                **kwargs,
            ):
                if fake.error:
                    raise fake.error
                assert skip_tokenizer_init
                self.model, self.trust_remote_code = model, trust_remote_code
                self.utilization, self.compilation = gpu_memory_utilization, compilation_config
                self.args = EngineArgs(**kwargs)
                self.calls, self.shut_down = [], 0
                core = types.SimpleNamespace(shutdown=self._shutdown)
                self.llm_engine = types.SimpleNamespace(engine_core=core)
                fake.llms.append(self)

            def _shutdown(self):
                self.shut_down += 1

            def generate(self, prompts, sampling_params=None, *, use_tqdm=True):
                assert not self.shut_down
                self.calls.append((prompts, sampling_params, use_tqdm))
                fake.now += sampling_params.max_tokens * (2.0 if self.model.endswith("large") else 1.5)
                answer = types.SimpleNamespace(token_ids=[0] * (sampling_params.max_tokens - fake.short))
                return [types.SimpleNamespace(outputs=[answer]) for _ in prompts]

        self.LLM = LLM


@pytest.fixture
def vllm(monkeypatch):
    fake = FakeVllm()
    monkeypatch.setitem(sys.modules, "vllm", fake)
    return fake


@pytest.fixture
def checkpoint(tmp_path, make_stack_spec):
    write_checkpoint(make_stack_spec(1), Architecture(blocks=(BLOCK,)), tmp_path / "model")
    return tmp_path / "model"


def test_without_vllm_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match="vLLM is not installed: pip install vllm"):
        VllmLLMEngine()


def test_what_the_engine_is_asked_for(vllm, checkpoint):
    engine = VllmLLMEngine(kv_cache_dtype="fp8", max_num_batched_tokens=64)
    assert (engine.name, engine.version) == ("vllm", "0.19.0")
    loaded = engine.load(checkpoint, max_batch_size=4, max_seq_len=100)
    (llm,) = vllm.llms
    assert llm.args == EngineArgs(
        max_num_seqs=4,
        max_model_len=100,
        max_num_batched_tokens=100,
        enable_prefix_caching=False,
        kv_cache_dtype="fp8",
    )
    assert (llm.trust_remote_code, llm.utilization) == (True, 0.45)
    assert llm.compilation == {"cudagraph_capture_sizes": [4]}
    loaded.generate_seconds(batch_size=4, prompt_len=8, new_tokens=3)
    ((prompts, sampling, bar),) = llm.calls
    assert sampling == SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True, detokenize=False)
    assert not bar
    assert [len(prompt["prompt_token_ids"]) for prompt in prompts] == [8] * 4
    with pytest.raises(ValueError, match="batch_size 3 is not the 4"):
        loaded.generate_seconds(batch_size=3, prompt_len=8, new_tokens=3)
    vllm.short = 1
    with pytest.raises(ValueError, match=r"4 answers of \[2\] tokens instead of 4 of 3"):
        loaded.generate_seconds(batch_size=4, prompt_len=8, new_tokens=3)
    loaded.close()
    assert llm.shut_down == 1


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Free memory on device cuda:0 (3/79 GiB) on startup is less than desired GPU memory utilization"),
        RuntimeError("CUDA out of memory"),
    ],
)
def test_no_room_is_told_from_other_failures(vllm, checkpoint, error):
    vllm.error = error
    with pytest.raises(torch.OutOfMemoryError):
        VllmLLMEngine().load(checkpoint, max_batch_size=2, max_seq_len=32)
    vllm.error = ValueError("unknown architecture")
    with pytest.raises(ValueError, match="unknown architecture"):
        VllmLLMEngine().load(checkpoint, max_batch_size=2, max_seq_len=32)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ((BLOCK, Block(attention=Linear(), ffn=NoOp())), "layer 1 has a linear sub-block"),
        ((NO_ATTENTION, BLOCK), "vLLM needs attention in the first layer; put a block with attention in the head"),
    ],
)
def test_layers_that_vllm_does_not_run_are_refused(vllm, tmp_path, make_stack_spec, blocks, message):
    write_checkpoint(make_stack_spec(2), Architecture(blocks=blocks), tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        VllmLLMEngine().load(tmp_path / "model", max_batch_size=2, max_seq_len=32)
    assert not vllm.llms


def test_an_ffn_measured_behind_a_head_with_attention(vllm, tmp_path, make_stack_spec):
    timings = measure_stack(
        VllmLLMEngine(clock=lambda: vllm.now),
        make_stack_spec(1),
        NO_ATTENTION,
        copies=2,
        batch_size=2,
        prompt_len=8,
        decode_tokens=4,
        workdir=tmp_path,
        head=(BLOCK,),
    )
    assert timings.decode.latency_us == pytest.approx(0.25e6)
    assert all(llm.shut_down for llm in vllm.llms)
