"""Stacks in vLLM through its public LLM class. Not yet run on a GPU.

Written against the sources of vllm-project/vllm: `vllm/entrypoints/llm.py` (commit 0012cf69; further arguments go to
EngineArgs) and `vllm/model_executor/models/nemotron_nas.py` (commit 00bd1493), whose layers know no linear sub-block
and whose first layer has to have attention: its MLP norms against a residual that only attention leaves. Prefixes are
not cached, and the CUDA graph is captured for the batch itself. vLLM starts on the first request that reaches it, so
`decode_from` of measure_stack matters here too.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from puzzlebench.measuring.stack.prompts import RandomPrompts, check_run
from puzzlebench.measuring.stack.read import read_checkpoint
from puzzlebench.model.blocks import GQA, Architecture, Linear

INSTALL = "vLLM is not installed: pip install vllm, or use the image vllm/vllm-openai"
_FULL = ("out of memory", "free memory on device", "no available memory for the cache blocks")


class VllmLLMEngine:
    """Loads both layouts of checkpoints into `vllm.LLM`.

    Args:
        gpu_memory_utilization: part of the GPU that one model may take; below a half, two stacks share it.
        max_num_batched_tokens: most tokens of one step.
        kv_cache_dtype: auto (as the checkpoint) or fp8.
        clock: seconds, monotonic.
        seed: of the prompts.

    Raises:
        ValueError: vLLM is not installed.
    """

    name = "vllm"

    def __init__(
        self,
        *,
        gpu_memory_utilization: float = 0.45,
        max_num_batched_tokens: int = 8192,
        kv_cache_dtype: str = "auto",
        clock: Callable[[], float] = time.perf_counter,
        seed: int = 0,
    ) -> None:
        try:
            self._package: Any = importlib.import_module("vllm")
        except ImportError as error:
            raise ValueError(f"{INSTALL} ({error})") from None
        self.version = str(self._package.__version__)
        self._utilization = gpu_memory_utilization
        self._max_num_batched_tokens = max_num_batched_tokens
        self._kv_cache_dtype = kv_cache_dtype
        self._clock = clock
        self._seed = seed

    def load(self, checkpoint: Path, *, max_batch_size: int, max_seq_len: int) -> LoadedVllm:
        """See `StackEngine.load`."""
        facts = read_checkpoint(Path(checkpoint))
        _check_layers(facts.architecture)
        try:
            llm = self._package.LLM(
                model=str(checkpoint),
                skip_tokenizer_init=True,
                trust_remote_code=facts.runs_code,
                gpu_memory_utilization=self._utilization,
                max_num_seqs=max_batch_size,
                max_model_len=max_seq_len,
                max_num_batched_tokens=max(self._max_num_batched_tokens, max_seq_len),
                enable_prefix_caching=False,
                kv_cache_dtype=self._kv_cache_dtype,
                compilation_config={"cudagraph_capture_sizes": [max_batch_size]},
            )
        except (RuntimeError, ValueError) as error:
            if any(sign in str(error).lower() for sign in _FULL):
                raise torch.OutOfMemoryError(f"vLLM: {error}") from error
            raise
        return LoadedVllm(
            llm,
            self._package.SamplingParams,
            prompts=RandomPrompts(facts.vocab_size, seed=self._seed),
            clock=self._clock,
            batch_size=max_batch_size,
            max_seq_len=max_seq_len,
        )


class LoadedVllm:
    """A model in vLLM, for one batch size."""

    def __init__(
        self,
        llm: Any,
        sampling_params: Any,
        *,
        prompts: RandomPrompts,
        clock: Callable[[], float],
        batch_size: int,
        max_seq_len: int,
    ) -> None:
        self._llm = llm
        self._sampling_params = sampling_params
        self._prompts = prompts
        self._clock = clock
        self._batch_size = batch_size
        self._max_seq_len = max_seq_len

    def generate_seconds(self, *, batch_size: int, prompt_len: int, new_tokens: int) -> float:
        """See `LoadedModel.generate_seconds`. The batch is the one it was loaded for: its graph is the one captured."""
        check_run(
            batch_size=batch_size,
            prompt_len=prompt_len,
            new_tokens=new_tokens,
            max_batch_size=self._batch_size,
            max_seq_len=self._max_seq_len,
        )
        if batch_size != self._batch_size:
            raise ValueError(
                f"batch_size {batch_size} is not the {self._batch_size} whose CUDA graph was captured; load it for that"
            )
        prompts = [{"prompt_token_ids": ids} for ids in self._prompts.draw(batch_size, prompt_len).tolist()]
        sampling = self._sampling_params(max_tokens=new_tokens, temperature=0.0, ignore_eos=True, detokenize=False)
        begin = self._clock()
        answers = self._llm.generate(prompts, sampling_params=sampling, use_tqdm=False)
        seconds = self._clock() - begin
        lengths = {len(answer.outputs[0].token_ids) for answer in answers}
        if lengths != {new_tokens} or len(answers) != batch_size:
            raise ValueError(
                f"vLLM gave {len(answers)} answers of {sorted(lengths)} tokens instead of {batch_size} of {new_tokens}"
            )
        return seconds

    def close(self) -> None:
        """See `LoadedModel.close`. vLLM ends its engine process, or frees the memory in this one."""
        self._llm.llm_engine.engine_core.shutdown()


def _check_layers(architecture: Architecture) -> None:
    for layer, block in enumerate(architecture.blocks):
        if Linear() in (block.attention, block.ffn):
            raise ValueError(f"layer {layer} has a linear sub-block, which vLLM does not run; use TensorRT-LLM")
    if not isinstance(architecture.blocks[0].attention, GQA):
        raise ValueError("vLLM needs attention in the first layer; put a block with attention in the head")
