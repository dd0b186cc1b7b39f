"""Stacks in TensorRT-LLM through its public LLM API (PyTorch backend): real scheduler, real CUDA graphs, real batch.

Written against the sources of NVIDIA/TensorRT-LLM: `tensorrt_llm/sampling_params.py` (commit 000a01de),
`tensorrt_llm/llmapi/llm.py` and `llm_args.py` with the API reference of 1.3.0rc27,
`tensorrt_llm/executor/base_worker.py` (ignore_eos becomes an end_id of -1),
`tensorrt_llm/_torch/models/modeling_nemotron_nas.py` (commit 4d365368) and
`tensorrt_llm/_torch/pyexecutor/resource_manager.py` (commit 001541ba). Not yet run on a GPU. What it settles:

- The graph is captured for the batch itself, without padding.
- Blocks of the cache are not reused, so no prompt is answered from another's.
- The cache holds what the run needs and no more, so that two models can share a GPU.
- A stack needs one layer with attention: a cache of zero bytes per token is divided by.

The API takes requests one at a time, so the first steps of a run hold part of the batch, and the last ones too. Prompts
are then read in several steps, and (T(d) - T(1)) / (d - 1) counts a few steps too many; `decode_from` of measure_stack
takes them out of the decode slope. (batch_wait_timeout_ms would not: in `_torch/pyexecutor/executor_request_queue.py`
it holds up every step that brings fewer than a whole batch of new requests, the decode steps among them.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from puzzlebench.measuring.stack.prompts import RandomPrompts, check_run
from puzzlebench.measuring.stack.read import read_checkpoint
from puzzlebench.measuring.stack.trtllm_import import check_version, import_trtllm
from puzzlebench.model.blocks import GQA

TOKENS_PER_BLOCK = 32


class TrtllmLLMEngine:
    """Loads both layouts of checkpoints into `tensorrt_llm.LLM`.

    Args:
        max_num_tokens: most tokens of one step; the prompts of a batch run in one step where they fit in it.
        free_gpu_memory_fraction: most of the free memory that the cache may take.
        kv_dtype: auto (as the checkpoint) or fp8.
        clock: seconds, monotonic.
        seed: of the prompts.

    Raises:
        ValueError: TensorRT-LLM is not installed, or too old.
    """

    name = "trtllm"

    def __init__(
        self,
        *,
        max_num_tokens: int = 8192,
        free_gpu_memory_fraction: float = 0.85,
        kv_dtype: str = "auto",
        clock: Callable[[], float] = time.perf_counter,
        seed: int = 0,
    ) -> None:
        self._package = import_trtllm("tensorrt_llm")
        self.version: str = check_version(self._package)
        self._max_num_tokens = max_num_tokens
        self._memory_fraction = free_gpu_memory_fraction
        self._kv_dtype = kv_dtype
        self._clock = clock
        self._seed = seed

    def load(self, checkpoint: Path, *, max_batch_size: int, max_seq_len: int) -> LoadedTrtllm:
        """See `StackEngine.load`."""
        facts = read_checkpoint(Path(checkpoint))
        if not any(isinstance(block.attention, GQA) for block in facts.architecture.blocks):
            raise ValueError(
                "TensorRT-LLM needs a layer with a key-value cache; put a block with attention in the head"
            )
        if max_seq_len > self._max_num_tokens:
            raise ValueError(
                f"a sequence of {max_seq_len} tokens is over max_num_tokens {self._max_num_tokens}; raise that"
            )
        api = import_trtllm("tensorrt_llm.llmapi")
        # 1.3.0rc27 calls it DecodeCudaGraphConfig.
        graphs = getattr(api, "DecodeCudaGraphConfig", None) or api.CudaGraphConfig
        blocks = -(-(max_seq_len + 1) // TOKENS_PER_BLOCK) + 1  # the scheduler runs one step ahead
        try:
            llm = self._package.LLM(
                model=str(checkpoint),
                skip_tokenizer_init=True,
                trust_remote_code=facts.runs_code,
                max_batch_size=max_batch_size,
                max_seq_len=max_seq_len,
                max_num_tokens=self._max_num_tokens,
                cuda_graph_config=graphs(batch_sizes=[max_batch_size], enable_padding=False),
                kv_cache_config=api.KvCacheConfig(
                    enable_block_reuse=False,
                    max_tokens=max_batch_size * blocks * TOKENS_PER_BLOCK,
                    free_gpu_memory_fraction=self._memory_fraction,
                    tokens_per_block=TOKENS_PER_BLOCK,
                    dtype=self._kv_dtype,
                ),
            )
        except RuntimeError as error:
            if "out of memory" in str(error).lower():
                raise torch.OutOfMemoryError(f"TensorRT-LLM: {error}") from error
            raise
        return LoadedTrtllm(
            llm,
            self._package.SamplingParams,
            prompts=RandomPrompts(facts.vocab_size, seed=self._seed),
            clock=self._clock,
            batch_size=max_batch_size,
            max_seq_len=max_seq_len,
            max_num_tokens=self._max_num_tokens,
        )


class LoadedTrtllm:
    """A model in TensorRT-LLM, for one batch size."""

    def __init__(
        self,
        llm: Any,
        sampling_params: Any,
        *,
        prompts: RandomPrompts,
        clock: Callable[[], float],
        batch_size: int,
        max_seq_len: int,
        max_num_tokens: int,
    ) -> None:
        self._llm = llm
        self._sampling_params = sampling_params
        self._prompts = prompts
        self._clock = clock
        self._batch_size = batch_size
        self._max_seq_len = max_seq_len
        self._max_num_tokens = max_num_tokens

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
        if new_tokens > 1 and batch_size * prompt_len > self._max_num_tokens:
            raise ValueError(
                f"{batch_size} prompts of {prompt_len} tokens do not fit one step of {self._max_num_tokens} tokens, so "
                "decoding would begin before they are all read; raise max_num_tokens or shorten the prompts"
            )
        inputs = self._prompts.draw(batch_size, prompt_len).tolist()
        # Without a tokenizer the ids must be given; ignore_eos keeps them from ending anything.
        sampling = self._sampling_params(max_tokens=new_tokens, end_id=0, pad_id=0, ignore_eos=True, detokenize=False)
        begin = self._clock()
        answers = self._llm.generate(inputs, sampling_params=sampling, use_tqdm=False)
        seconds = self._clock() - begin
        lengths = {len(answer.outputs[0].token_ids) for answer in answers}
        if lengths != {new_tokens} or len(answers) != batch_size:
            raise ValueError(
                f"TensorRT-LLM gave {len(answers)} answers of {sorted(lengths)} tokens instead of {batch_size} of "
                f"{new_tokens}"
            )
        return seconds

    def close(self) -> None:
        """See `LoadedModel.close`."""
        self._llm.shutdown()
