"""Real sub-blocks and whole models on one device, through the operations of `ops` or `triton_ops`.

Weights live in one pool per sub-block, caches in one arena, inputs in one buffer per size: workloads that share them
can all be in place at once and be timed in any order. A whole model takes its layers' weights from the same pools.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from puzzlebench.measuring.ops import AttentionStep, Cache, Ops, TorchOps, rotation
from puzzlebench.measuring.sub_blocks import Stream, run_embedding, run_head, run_sub_block
from puzzlebench.measuring.weights import (
    ACTIVATION_DTYPES,
    Weights,
    embedding_weights,
    head_weights,
    random_normal,
    sub_block_weights,
)
from puzzlebench.measuring.workload import MODEL_PART, Workload
from puzzlebench.model.blocks import GQA, Architecture, SubBlock, parse_sub_block, sub_block_name
from puzzlebench.model.spec import ModelSpec
from puzzlebench.profiling.block_costs import Phase
from puzzlebench.scenario import Precision

_SEED = 20241119
_ALIGNMENT = 256
_FP8_LEAST_CAPABILITY = (8, 9)


def torch_engine(
    *, spec: ModelSpec, precision: Precision, device: torch.device, max_batch_size: int, max_len: int
) -> BlockEngine:
    """The `torch` engine: any device; the cache is kept in the activations' dtype.

    Raises:
        ValueError: tensor parallelism, an fp8 cache, or fp8 weights where the device has no fp8 units.
    """
    del max_batch_size, max_len
    _check_one_gpu(precision)
    if precision.weight_dtype == "fp8" and (
        device.type != "cuda" or torch.cuda.get_device_capability(device) < _FP8_LEAST_CAPABILITY
    ):
        raise ValueError("fp8 weights are measured on GPUs of compute capability 8.9 and later; use bf16 here")
    dtype = ACTIVATION_DTYPES[precision.weight_dtype]
    cache_dtype = {"fp8": torch.float8_e4m3fn}.get(precision.kv_dtype) or ACTIVATION_DTYPES[precision.kv_dtype]
    if cache_dtype != dtype:
        fitting = "bf16" if precision.weight_dtype == "fp8" else precision.weight_dtype
        raise ValueError(
            f"the torch engine keeps the cache in the activations' dtype, not {precision.kv_dtype} under "
            f"{precision.weight_dtype} weights; give --kv-dtype {fitting}"
        )
    return BlockEngine(TorchOps(dtype), spec, precision, device, version=torch.__version__)


def triton_engine(
    *, spec: ModelSpec, precision: Precision, device: torch.device, max_batch_size: int, max_len: int
) -> BlockEngine:
    """The `triton` engine: our kernels for the memory-bound work, torch for the matrices. Needs a GPU.

    Raises:
        ValueError: there is no GPU or no Triton, or the precision cannot be run.
    """
    del max_batch_size, max_len
    _check_one_gpu(precision)
    if device.type != "cuda":
        raise ValueError("the triton engine needs a GPU; use --engine torch on the CPU")
    from puzzlebench.measuring.triton_ops import TritonOps, triton_version

    return BlockEngine(
        TritonOps(precision), spec, precision, device, version=f"{triton_version()}+torch{torch.__version__}"
    )


def _check_one_gpu(precision: Precision) -> None:
    if precision.tensor_parallel != 1:
        raise ValueError(f"live measurement times one GPU; --tp {precision.tensor_parallel} needs --source kernels")


@dataclass(kw_only=True, slots=True)
class PreparedBlock:
    """A workload in place; see `engines.Prepared`."""

    copies: int
    static_bytes: int
    launch: Callable[[int], object]

    def run(self, copy: int) -> None:
        """Launch once on one copy."""
        self.launch(copy)


class BlockEngine:
    """See `engines.Engine`. `models` are the architectures that workloads of part `model` may name."""

    def __init__(self, ops: Ops, spec: ModelSpec, precision: Precision, device: torch.device, *, version: str) -> None:
        self.name, self.version, self.device = ops.name, version, device
        self.models: dict[str, Architecture] = {}
        self._ops, self._spec, self._precision = ops, spec, precision
        self._dtype = ACTIVATION_DTYPES[precision.weight_dtype]
        self._generator = torch.Generator(device=device).manual_seed(_SEED)
        self._pools: dict[tuple[str, str], list[Weights]] = {}
        self._inputs: dict[int, Stream] = {}
        self._arena = torch.empty(0, dtype=torch.uint8, device=device)

    def prepare(self, workload: Workload, *, copies: int) -> PreparedBlock:
        """Put a workload in place; of a model there is one copy whatever is asked, its layers evict each other."""
        match workload.part:
            case "embedding":
                return self._prepare_embedding(workload, copies)
            case "head":
                pool = self._pool("head", "head", copies)
                stream = self._stream(workload.tokens)
                return self._block(pool, 0, lambda copy: run_head(self._ops, pool[copy], stream))
            case part if part == MODEL_PART:
                return self._prepare_model(workload)
            case _:
                return self._prepare_sub_block(workload, copies)

    def close(self) -> None:
        """Release weights, inputs and caches."""
        self._pools.clear()
        self._inputs.clear()
        self._arena = torch.empty(0, dtype=torch.uint8, device=self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _prepare_sub_block(self, workload: Workload, copies: int) -> PreparedBlock:
        sub = self._sub_block(workload.part, workload.sub_block)
        pool = self._pool(workload.part, workload.sub_block, copies)
        stream, spec, ops = self._stream(workload.tokens), self._spec, self._ops
        if not isinstance(sub, GQA):
            return self._block(pool, 0, lambda copy: run_sub_block(ops, spec, sub, pool[copy], stream, None))
        step = self._attention_step(sub, workload.phase, workload.batch_size, workload.context_len)
        caches = self._caches([step] * copies)
        return self._block(
            pool,
            copies * ops.cache_bytes(step),
            lambda copy: run_sub_block(ops, spec, sub, pool[copy], stream, (caches[copy], step)),
        )

    def _prepare_embedding(self, workload: Workload, copies: int) -> PreparedBlock:
        weights = self._pool("embedding", "embedding", 1)[0]
        tokens = self._tokens((copies, workload.tokens))
        return PreparedBlock(
            copies=copies, static_bytes=weights.bytes, launch=lambda copy: run_embedding(weights, tokens[copy])
        )

    def _prepare_model(self, workload: Workload) -> PreparedBlock:
        architecture, ops, spec = self.models[workload.sub_block], self._ops, self._spec
        layers: list[tuple[SubBlock, Weights]] = []
        steps: list[AttentionStep] = []
        used: Counter[tuple[str, str]] = Counter()
        for block in architecture.blocks:
            for part, sub in (("attention", block.attention), ("ffn", block.ffn)):
                key = (part, sub_block_name(sub))
                used[key] += 1
                layers.append((sub, self._pool(*key, used[key])[used[key] - 1]))
                if isinstance(sub, GQA):
                    steps.append(self._attention_step(sub, workload.phase, workload.batch_size, workload.context_len))
        caches = self._caches(steps)
        embedding, head = self._pool("embedding", "embedding", 1)[0], self._pool("head", "head", 1)[0]
        tokens = self._tokens((workload.tokens,))
        last = torch.arange(workload.batch_size, device=self.device)
        if workload.phase == "prefill":
            last = last * workload.context_len + workload.context_len - 1

        def launch(_copy: int) -> torch.Tensor:
            stream, attention = run_embedding(embedding, tokens), iter(zip(caches, steps, strict=True))
            for sub, weights in layers:
                mine = next(attention) if isinstance(sub, GQA) else None
                stream = run_sub_block(ops, spec, sub, weights, stream, mine)
            if workload.phase == "prefill":
                residual = None if stream.residual is None else stream.residual[last]
                stream = Stream(delta=stream.delta[last], residual=residual)
            return run_head(ops, head, stream)

        weights_held = [weights for _, weights in layers] + [embedding, head]
        held = sum(weights.bytes for weights in weights_held) + sum(ops.cache_bytes(step) for step in steps)
        return PreparedBlock(copies=1, static_bytes=held, launch=launch)

    def _block(self, pool: list[Weights], cache_bytes: int, launch: Callable[[int], object]) -> PreparedBlock:
        return PreparedBlock(
            copies=len(pool), static_bytes=sum(weights.bytes for weights in pool) + cache_bytes, launch=launch
        )

    def _sub_block(self, part: str, name: str) -> SubBlock:
        return parse_sub_block("attention", name) if part == "attention" else parse_sub_block("ffn", name)

    def _pool(self, part: str, name: str, copies: int) -> list[Weights]:
        """The first `copies` weights of a sub-block; made when first asked for."""
        makers: Mapping[str, Callable[..., Weights]] = {"embedding": embedding_weights, "head": head_weights}
        pool = self._pools.setdefault((part, name), [])
        rest = (self._precision.weight_dtype, self.device, self._generator)
        while len(pool) < copies:
            if part in makers:
                pool.append(makers[part](self._spec, *rest))
            else:
                pool.append(sub_block_weights(self._spec, self._sub_block(part, name), *rest))
        return pool[:copies]

    def _stream(self, tokens: int) -> Stream:
        """Random inputs of unit size, shared by every workload of as many tokens."""
        if tokens not in self._inputs:
            shape = (tokens, self._spec.hidden_size)
            delta, residual = (random_normal(shape, self._dtype, self.device, self._generator) for _ in range(2))
            self._inputs[tokens] = Stream(delta=delta, residual=residual)
        return self._inputs[tokens]

    def _tokens(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randint(self._spec.vocab_size, shape, device=self.device, generator=self._generator)

    def _attention_step(self, sub: GQA, phase: Phase, batch_size: int, length: int) -> AttentionStep:
        return AttentionStep(
            phase=phase,
            batch_size=batch_size,
            length=length,
            num_heads=self._spec.num_attention_heads,
            num_kv_heads=sub.num_key_value_heads,
            head_dim=self._spec.head_dim,
            window=sub.sliding_window,
            rotation=rotation(length, self._spec.head_dim, self.device),
        )

    def _caches(self, steps: list[AttentionStep]) -> list[Cache]:
        """One cache per step, side by side in the arena, which grows when it has to."""
        sizes = [math.ceil(self._ops.cache_bytes(step) / _ALIGNMENT) * _ALIGNMENT for step in steps]
        if sum(sizes) > self._arena.numel():
            self._arena = torch.empty(0, dtype=torch.uint8, device=self.device)
            self._arena = self._random_bytes(sum(sizes))
        caches, start = [], 0
        for step, size in zip(steps, sizes, strict=True):
            storage = self._arena[start : start + self._ops.cache_bytes(step)]
            caches.append(self._ops.new_cache(step, storage))
            start += size
        return caches

    def _random_bytes(self, count: int) -> torch.Tensor:
        """Storage that reads as numbers of about unit size in the cache's dtype."""
        if self._precision.kv_dtype == "fp8":
            # e4m3 without the highest exponent bit: either sign, at most 1.875.
            bytes_ = torch.randint(256, (count,), dtype=torch.uint8, device=self.device, generator=self._generator)
            return bytes_.bitwise_and_(0xBF)
        dtype = ACTIVATION_DTYPES[self._precision.kv_dtype]
        return random_normal((count // dtype.itemsize,), dtype, self.device, self._generator).view(torch.uint8)
