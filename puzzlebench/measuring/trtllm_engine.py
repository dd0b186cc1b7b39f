"""Single sub-blocks on TensorRT-LLM's own modules (PyTorch backend), for the live block profile. Not yet run on a GPU.

A sub-block is a NemotronNASDecoderLayer with its other half a no-op, so the norm that TensorRT-LLM fuses with the
residual is in it. The copies that runs rotate over are layers of one model: copy i has layer index i, its own weights
and its own part of the key-value cache. Metadata is prepared once, so a run launches kernels and nothing else.

Written against the sources of NVIDIA/TensorRT-LLM, all under `tensorrt_llm/` where not said otherwise:
`_torch/models/modeling_nemotron_nas.py` (commit 4d365368), `_torch/attention_backend/interface.py` (51ea5c96),
`_torch/pyexecutor/resource_manager.py` (001541ba), `_torch/model_config.py` (008e0af8), `_torch/modules/attention.py`
(00547a25), `linear.py` (00bbf71e) and `embedding.py` (06d0733f), `tools/layer_wise_benchmarks/runner.py` (020cbd8a)
and `tests/unittest/_torch/modeling/test_modeling_llama.py` (151c21c6) for metadata and cache made by hand.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from puzzlebench.measuring.stack.layouts import ffn_mult
from puzzlebench.measuring.stack.trtllm_import import check_version, import_trtllm
from puzzlebench.measuring.workload import Workload
from puzzlebench.model.blocks import (
    GQA,
    AttentionSubBlock,
    FFNSubBlock,
    GatedMLP,
    Linear,
    NoOp,
    parse_sub_block,
    sub_block_name,
)
from puzzlebench.model.checks import require_positive_int
from puzzlebench.model.spec import ModelSpec, check_key_value_heads
from puzzlebench.scenario import Precision

if TYPE_CHECKING:
    from puzzlebench.measuring.engines import Engine

DEVICE_TYPE = "cuda"
TOKENS_PER_BLOCK = 32
_ACTIVATIONS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.bfloat16}
_CACHE_TYPES = {"bf16": "BF16", "fp16": "HALF", "fp8": "FP8"}
_NORM_EPS = 1e-5
_ROPE_THETA = 500000.0
_FP8_LARGEST = 448.0
_FP8_STD = 64.0  # of the stored values: seven standard deviations to the largest
_ACTIVATION_RANGE = 8.0  # of what the static input scale covers; normed activations stay within it
_FULL = ("out of memory", "fit in any sequence")


class TrtllmLayerEngine:
    """Prepares workloads on TensorRT-LLM's layers.

    Args:
        spec: like Llama: no biases, norms before each sub-block, none on queries and keys.
        precision: weights bf16, fp16 or fp8 (static per-tensor scales), a cache in the activations' dtype or fp8.
        max_batch_size: most sequences of an attention workload.
        max_len: longest context.
        device: an NVIDIA GPU.

    Raises:
        ValueError: TensorRT-LLM is not installed or too old, or it cannot run this model, precision or device.
    """

    name = "trtllm"

    def __init__(
        self,
        spec: ModelSpec,
        precision: Precision,
        *,
        max_batch_size: int,
        max_len: int,
        device: torch.device | None = None,
    ) -> None:
        self.device = device or torch.device(DEVICE_TYPE)
        _check_model(spec, precision, self.device)
        if self.device.type == "cuda":
            if not torch.cuda.is_available():
                raise ValueError("TensorRT-LLM runs on NVIDIA GPUs, and this machine has none that torch can use")
            if self.device.index is not None:
                torch.cuda.set_device(self.device)  # where its cache manager allocates
        require_positive_int("max_batch_size", max_batch_size)
        require_positive_int("max_len", max_len)
        self.version: str = check_version(import_trtllm("tensorrt_llm"))
        self._spec = spec
        self._precision = precision
        self._max_batch_size = max_batch_size
        self._max_len = max_len
        self._dtype = _ACTIVATIONS[precision.weight_dtype]
        self._mapping = import_trtllm("tensorrt_llm.mapping").Mapping(world_size=1, tp_size=1, rank=0)
        self._releases: list[Callable[[], object]] = []

    def prepare(self, workload: Workload, *, copies: int) -> TrtllmPrepared:
        """Put a workload in place, warmed up by one run of every copy.

        Raises:
            torch.OutOfMemoryError: it does not fit.
            ValueError: the engine cannot run it.
        """
        require_positive_int("copies", copies)
        match workload.part:
            case "attention":
                prepared = self._attention(workload, parse_sub_block("attention", workload.sub_block), copies)
            case "ffn":
                prepared = self._layers(workload, NoOp(), parse_sub_block("ffn", workload.sub_block), copies)
            case "embedding":
                prepared = self._embedding(workload, copies)
            case "head":
                prepared = self._head(workload, copies)
            case _:
                raise ValueError(f"part {workload.part!r} is not a sub-block; use attention, ffn, embedding or head")
        for copy in range(copies):  # lets kernels be chosen and workspaces grow before any capture
            prepared.run(copy)
        return prepared

    def close(self) -> None:
        """Release every cache."""
        while self._releases:
            self._releases.pop()()

    def _attention(self, workload: Workload, sub: AttentionSubBlock, copies: int) -> TrtllmPrepared:
        if not isinstance(sub, GQA):
            return self._layers(workload, sub, NoOp(), copies)
        if sub.sliding_window is not None:
            raise ValueError(f"{workload.sub_block}: TensorRT-LLM's layer has no window here; use GQA without one")
        check_key_value_heads(self._spec, sub.num_key_value_heads)
        batch, length = workload.batch_size, workload.context_len
        if batch > self._max_batch_size or length > self._max_len:
            raise ValueError(
                f"batch {batch} of length {length} is over the {self._max_batch_size} of {self._max_len} this engine "
                "was opened for"
            )
        if workload.phase == "decode" and length < 2:
            raise ValueError(f"decode needs a token in the cache before the current one, so length 2, not {length}")
        config, layers = self._build(sub, NoOp(), copies, tokens=workload.tokens)
        manager = self._cache(sub, copies, batch=batch, length=length)
        try:
            metadata = self._metadata(workload, manager)
            launch = self._launch_attention(workload, config, layers, metadata)
            held = sum(_bytes(layer) for layer in layers) + sum(
                buffer.numel() * buffer.element_size() for buffer in _buffers(manager, copies)
            )
        except BaseException:
            manager.shutdown()
            raise
        prepared = TrtllmPrepared(launch, copies=copies, static_bytes=held)
        self._releases.append(weakref.finalize(prepared, manager.shutdown))
        return prepared

    def _layers(
        self, workload: Workload, attention: AttentionSubBlock, ffn: FFNSubBlock, copies: int
    ) -> TrtllmPrepared:
        """Sub-blocks that see tokens, not contexts."""
        if attention == ffn == NoOp():
            raise ValueError(f"{workload.part} {workload.sub_block} has nothing to run")
        _, layers = self._build(attention, ffn, copies, tokens=workload.tokens)
        hidden, residual = self._activations(workload.tokens), self._activations(workload.tokens)

        def launch(copy: int) -> None:
            layers[copy](position_ids=None, hidden_states=hidden, attn_metadata=None, residual=residual)

        return TrtllmPrepared(launch, copies=copies, static_bytes=sum(_bytes(layer) for layer in layers))

    def _embedding(self, workload: Workload, copies: int) -> TrtllmPrepared:
        parts = import_trtllm("tensorrt_llm._torch.modules.embedding")
        spec = self._spec
        with torch.device(self.device):
            modules = [parts.Embedding(spec.vocab_size, spec.hidden_size, dtype=self._dtype) for _ in range(copies)]
        for module in modules:
            _randomise(module)
        ids = torch.randint(spec.vocab_size, (workload.tokens,), dtype=torch.int32, device=self.device)

        def launch(copy: int) -> None:
            modules[copy](ids)

        return TrtllmPrepared(launch, copies=copies, static_bytes=sum(_bytes(module) for module in modules))

    def _head(self, workload: Workload, copies: int) -> TrtllmPrepared:
        spec = self._spec
        norm = import_trtllm("tensorrt_llm._torch.modules.rms_norm").RMSNorm
        head = import_trtllm("tensorrt_llm._torch.modules.embedding").LMHead
        with torch.device(self.device):
            modules = [
                (
                    norm(hidden_size=spec.hidden_size, eps=_NORM_EPS, dtype=self._dtype),
                    head(spec.vocab_size, spec.hidden_size, dtype=self._dtype, mapping=self._mapping),
                )
                for _ in range(copies)
            ]
        for pair in modules:
            for module in pair:
                _randomise(module)
        hidden, residual = self._activations(workload.batch_size), self._activations(workload.batch_size)

        def launch(copy: int) -> None:
            final_norm, output = modules[copy]
            normed, _ = final_norm(hidden, residual)
            output(normed)

        held = sum(_bytes(module) for pair in modules for module in pair)
        return TrtllmPrepared(launch, copies=copies, static_bytes=held)

    def _build(
        self, attention: AttentionSubBlock, ffn: FFNSubBlock, copies: int, *, tokens: int
    ) -> tuple[Any, Sequence[nn.Module]]:
        """The model config, and one layer per copy with random weights."""
        block = SimpleNamespace(
            attention=_attention_settings(self._spec, attention), ffn=_ffn_settings(self._spec, ffn)
        )
        layer_class = import_trtllm("tensorrt_llm._torch.models.modeling_nemotron_nas").NemotronNASDecoderLayer
        heads = attention.num_key_value_heads if isinstance(attention, GQA) else 0
        config = import_trtllm("tensorrt_llm._torch.model_config").ModelConfig(
            pretrained_config=self._pretrained_config([heads] * copies),
            mapping=self._mapping,
            quant_config=self._quant_config(),
            attn_backend="TRTLLM",
            max_num_tokens=tokens,
        )
        with torch.device(self.device):
            layers = [layer_class(config, block, layer) for layer in range(copies)]
        for layer in layers:
            _randomise(layer)
            for module in layer.modules():
                if hasattr(module, "post_load_weights"):
                    module.post_load_weights()
        return config, layers

    def _pretrained_config(self, key_value_heads: list[int]) -> Any:
        spec = self._spec
        return import_trtllm("transformers").PretrainedConfig(
            architectures=["DeciLMForCausalLM"],
            model_type="nemotron-nas",
            num_hidden_layers=len(key_value_heads),
            hidden_size=spec.hidden_size,
            intermediate_size=spec.intermediate_size,
            num_attention_heads=spec.num_attention_heads,
            num_key_value_heads=key_value_heads,
            head_dim=spec.head_dim,
            vocab_size=spec.vocab_size,
            max_position_embeddings=max(spec.max_position_embeddings, self._max_len),
            tie_word_embeddings=False,
            rms_norm_eps=_NORM_EPS,
            rope_theta=_ROPE_THETA,
            torch_dtype=self._dtype,
        )

    def _quant_config(self) -> Any:
        algorithms = import_trtllm("tensorrt_llm.quantization.mode").QuantAlgo
        return import_trtllm("tensorrt_llm.models.modeling_utils").QuantConfig(
            quant_algo=algorithms.FP8 if self._precision.weight_dtype == "fp8" else None,
            kv_cache_quant_algo=algorithms.FP8 if self._precision.kv_dtype == "fp8" else None,
        )

    def _cache(self, sub: GQA, copies: int, *, batch: int, length: int) -> Any:
        """A cache manager that holds `batch` sequences of `length` tokens, filled with random values."""
        bindings = import_trtllm("tensorrt_llm.bindings")
        blocks = batch * -(-length // TOKENS_PER_BLOCK)
        try:
            manager = import_trtllm("tensorrt_llm._torch.pyexecutor.resource_manager").KVCacheManager(
                import_trtllm("tensorrt_llm.llmapi").KvCacheConfig(
                    max_tokens=blocks * TOKENS_PER_BLOCK, enable_block_reuse=False
                ),
                bindings.internal.batch_manager.CacheType.SELF,
                num_layers=copies,
                num_kv_heads=sub.num_key_value_heads,
                head_dim=self._spec.head_dim,
                tokens_per_block=TOKENS_PER_BLOCK,
                max_seq_len=length,
                max_batch_size=batch,
                mapping=self._mapping,
                dtype=getattr(bindings.DataType, _CACHE_TYPES[self._precision.kv_dtype]),
            )
        except (RuntimeError, AssertionError) as error:
            if any(sign in str(error).lower() for sign in _FULL):
                raise torch.OutOfMemoryError(f"key-value cache of {blocks} blocks: {error}") from error
            raise
        try:
            if (free := manager.get_num_free_blocks()) < blocks:
                raise torch.OutOfMemoryError(f"key-value cache: {blocks} blocks are needed, {free} fit")
            manager.add_dummy_requests(list(range(batch)), token_nums=[length] * batch)
            for buffer in _buffers(manager, copies):
                _fill(buffer)
        except BaseException:
            manager.shutdown()
            raise
        return manager

    def _metadata(self, workload: Workload, manager: Any) -> Any:
        """What the attention backend needs to know of the batch: prompts without a past, or one token after one."""
        batch, length = workload.batch_size, workload.context_len
        prefill = workload.phase == "prefill"
        new, cached = (length, 0) if prefill else (1, length - 1)
        backend = import_trtllm("tensorrt_llm._torch.attention_backend.utils").get_attention_backend("TRTLLM")
        metadata = backend.Metadata(
            max_num_requests=batch,
            max_num_tokens=batch * new,
            kv_cache_manager=manager,
            mapping=self._mapping,
            seq_lens=torch.tensor([new] * batch, dtype=torch.int),
            num_contexts=batch if prefill else 0,
            kv_cache_params=import_trtllm("tensorrt_llm._torch.metadata").KVCacheParams(
                use_cache=True, num_cached_tokens_per_seq=[cached] * batch
            ),
            request_ids=list(range(batch)),
            prompt_lens=[length if prefill else cached] * batch,
        )
        metadata.prepare()
        return metadata

    def _launch_attention(
        self, workload: Workload, config: Any, layers: Sequence[nn.Module], metadata: Any
    ) -> Callable[[int], None]:
        utils = import_trtllm("tensorrt_llm._torch.utils")
        length = workload.context_len
        positions = torch.arange(length) if workload.phase == "prefill" else torch.tensor([length - 1])
        position_ids = positions.repeat(workload.batch_size)[None].to(device=self.device, dtype=torch.int32)
        hidden, residual = self._activations(workload.tokens), self._activations(workload.tokens)

        def launch(copy: int) -> None:
            with utils.model_extra_attrs(config.extra_attrs):
                utils.get_model_extra_attrs()["attention_metadata"] = weakref.ref(metadata)
                layers[copy](position_ids=position_ids, hidden_states=hidden, attn_metadata=metadata, residual=residual)

        return launch

    def _activations(self, tokens: int) -> torch.Tensor:
        return torch.randn(tokens, self._spec.hidden_size, dtype=self._dtype, device=self.device)


class TrtllmPrepared:
    """A workload in place. Dropping it frees its cache."""

    def __init__(self, launch: Callable[[int], None], *, copies: int, static_bytes: int) -> None:
        self.copies = copies
        self.static_bytes = static_bytes
        self._launch = launch

    def run(self, copy: int) -> None:
        """Launch once on one copy, 0 to copies - 1."""
        with torch.inference_mode():
            self._launch(copy)


def trtllm_engine(
    *, spec: ModelSpec, precision: Precision, device: torch.device, max_batch_size: int, max_len: int
) -> Engine:
    """The engine by the arguments every engine takes; see `TrtllmLayerEngine`."""
    return TrtllmLayerEngine(spec, precision, max_batch_size=max_batch_size, max_len=max_len, device=device)


def _check_model(spec: ModelSpec, precision: Precision, device: torch.device) -> None:
    if device.type != DEVICE_TYPE:
        raise ValueError(f"TensorRT-LLM runs on NVIDIA GPUs, not on {device.type!r}; use the torch engine there")
    if precision.tensor_parallel != 1:
        raise ValueError(
            f"TensorRT-LLM layers are timed on one GPU, not with tensor_parallel {precision.tensor_parallel}"
        )
    if precision.weight_dtype not in _ACTIVATIONS:
        raise ValueError(f"weights in {precision.weight_dtype} are not served; use {', '.join(_ACTIVATIONS)}")
    activations = "fp16" if precision.weight_dtype == "fp16" else "bf16"
    if precision.kv_dtype not in (activations, "fp8"):
        raise ValueError(
            f"weights in {precision.weight_dtype} go with a key-value cache in {activations} or fp8, not in "
            f"{precision.kv_dtype}"
        )
    if spec.qkv_bias or spec.attention_output_bias or spec.mlp_bias:
        raise ValueError(f"{spec.name} has biases, which TensorRT-LLM's layer for these models does not")
    if spec.qk_norm != "none" or spec.norm_placement != "pre":
        raise ValueError(f"{spec.name} is not normed like Llama, and TensorRT-LLM's layer for these models is")


def _attention_settings(spec: ModelSpec, sub: AttentionSubBlock) -> SimpleNamespace:
    group = spec.num_attention_heads // sub.num_key_value_heads if isinstance(sub, GQA) else None
    return SimpleNamespace(
        n_heads_in_group=group, no_op=isinstance(sub, NoOp), replace_with_linear=isinstance(sub, Linear)
    )


def _ffn_settings(spec: ModelSpec, sub: FFNSubBlock) -> SimpleNamespace:
    try:
        multiplier = ffn_mult(sub.intermediate_size, spec.hidden_size) if isinstance(sub, GatedMLP) else None
    except ValueError as error:
        raise ValueError(f"{sub_block_name(sub)}: {error}") from None
    return SimpleNamespace(
        ffn_mult=multiplier, no_op=isinstance(sub, NoOp), replace_with_linear=isinstance(sub, Linear)
    )


@torch.no_grad()
def _randomise(module: nn.Module) -> None:
    """Random weights of the size trained ones have, norms around one; scales of fp8 matrices to match."""
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if not isinstance(weight, torch.Tensor):
            continue
        if weight.dim() == 1:
            weight.normal_(1.0, 0.1)
        elif weight.dtype == torch.float8_e4m3fn:
            values = torch.randn(weight.shape, device=weight.device).mul_(_FP8_STD).clamp_(-_FP8_LARGEST, _FP8_LARGEST)
            weight.copy_(values)
            _set(part, "weight_scale", weight.shape[-1] ** -0.5 / _FP8_STD)
            _set(part, "input_scale", _ACTIVATION_RANGE / _FP8_LARGEST)
            _set(part, "inv_input_scale", _FP8_LARGEST / _ACTIVATION_RANGE)
        else:
            weight.normal_(0.0, weight.shape[-1] ** -0.5)


def _set(part: nn.Module, name: str, value: float) -> None:
    scale = getattr(part, name, None)
    if not isinstance(scale, torch.Tensor):
        raise ValueError(f"TensorRT-LLM's fp8 matrices have no {name} here; use a version of 1.2 or 1.3, or bf16")
    scale.fill_(value)


def _bytes(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _buffers(manager: Any, copies: int) -> list[torch.Tensor]:
    """Each layer's part of the pool, [blocks, key or value, tokens, heads, head_dim]."""
    return [manager.get_buffers(layer) for layer in range(copies)]


def _fill(buffer: torch.Tensor) -> None:
    values = buffer if buffer.element_size() > 1 else buffer.view(torch.float8_e4m3fn)
    for first in range(0, len(values), 1024):
        blocks = values[first : first + 1024]
        blocks.copy_(torch.randn(blocks.shape, device=blocks.device))
