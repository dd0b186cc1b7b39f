"""The layer engine against a stand-in tree of TensorRT-LLM with the real signatures, on the CPU."""

import contextlib
import enum
import sys
import types
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from puzzlebench.measuring import trtllm_engine
from puzzlebench.measuring.trtllm_engine import TrtllmLayerEngine
from puzzlebench.measuring.workload import Workload
from puzzlebench.model.spec import ModelSpec
from puzzlebench.scenario import Precision

HIDDEN, HEADS, HEAD_DIM, VOCAB = 64, 8, 16, 97


class Fake:
    """What the stand-ins saw, and how they are to fail."""

    def __init__(self):
        self.managers = []
        self.metadata = []
        self.layers = []
        self.extra_attrs = None
        self.room_blocks = 10_000
        self.manager_error = None
        self.kv_dtype = torch.bfloat16


def fake_modules(fake, version="1.2.1"):
    """Every module the engine imports; unknown arguments are TypeErrors, as in the real ones."""

    class QuantAlgo(enum.Enum):
        FP8 = "FP8"

    @dataclass(kw_only=True)
    class QuantConfig:
        quant_algo: QuantAlgo | None = None
        kv_cache_quant_algo: QuantAlgo | None = None

    @dataclass(kw_only=True)
    class Mapping:
        world_size: int = 1
        rank: int = 0
        tp_size: int = 1

    @dataclass(kw_only=True)
    class ModelConfig:
        pretrained_config: Any = None
        mapping: Mapping = field(default_factory=Mapping)
        quant_config: QuantConfig = field(default_factory=QuantConfig)
        attn_backend: str = "TRTLLM"
        max_num_tokens: int = 8192
        extra_attrs: dict = field(default_factory=dict, init=False)

    class TrtLinear(nn.Module):
        def __init__(self, inputs, outputs, config, dtype):
            super().__init__()
            fp8 = config.quant_config.quant_algo == QuantAlgo.FP8
            kind = torch.float8_e4m3fn if fp8 else dtype
            self.weight = nn.Parameter(torch.zeros(outputs, inputs, dtype=kind), requires_grad=False)
            if fp8:
                for name in ("weight_scale", "input_scale", "inv_input_scale"):
                    setattr(self, name, nn.Parameter(torch.tensor(1.0), requires_grad=False))

    class RMSNorm(nn.Module):
        def __init__(self, *, hidden_size, eps, dtype=None):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(hidden_size, dtype=dtype), requires_grad=False)

        def forward(self, hidden_states, residual=None):
            residual = hidden_states + residual
            return nn.functional.rms_norm(residual, residual.shape[-1:], self.weight), residual

    class NemotronNASDecoderLayer(nn.Module):
        def __init__(self, model_config, block_config, layer_idx):
            super().__init__()
            self.model_config, self.block_config, self.layer_idx = model_config, block_config, layer_idx
            config = model_config.pretrained_config
            self.calls, self.loaded = [], 0
            attention, ffn = block_config.attention, block_config.ffn
            if not attention.no_op:
                self.input_layernorm = RMSNorm(hidden_size=config.hidden_size, eps=1e-5, dtype=config.torch_dtype)
                heads = config.num_attention_heads + 2 * config.num_key_value_heads[layer_idx]
                width = config.hidden_size if attention.replace_with_linear else heads * config.head_dim
                self.self_attn = TrtLinear(config.hidden_size, width, model_config, config.torch_dtype)
            if not ffn.no_op:
                self.post_attention_layernorm = RMSNorm(
                    hidden_size=config.hidden_size, eps=1e-5, dtype=config.torch_dtype
                )
                width = int(2 * (ffn.ffn_mult or 0) * config.hidden_size / 3) or config.hidden_size
                self.mlp = TrtLinear(config.hidden_size, width, model_config, config.torch_dtype)
            fake.layers.append(self)

        def post_load_weights(self):
            self.loaded += 1

        def forward(self, position_ids, hidden_states, attn_metadata, residual=None, **kwargs):
            assert not kwargs
            assert torch.is_inference_mode_enabled()
            reference = fake.extra_attrs and fake.extra_attrs["attention_metadata"]()
            assert reference is attn_metadata
            self.calls.append((position_ids, hidden_states, attn_metadata, residual))
            return hidden_states, residual

    class LMHead(nn.Module):
        def __init__(
            self,
            num_embeddings,
            embedding_dim,
            dtype=None,
            mapping=None,
            tensor_parallel_mode=None,
            gather_output=False,
        ):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(num_embeddings, embedding_dim, dtype=dtype))
            self.inputs = []

        def forward(self, inputs):
            self.inputs.append(inputs)
            return nn.functional.linear(inputs, self.weight)

    class Embedding(LMHead):
        def forward(self, inputs):
            self.inputs.append(inputs)
            return nn.functional.embedding(inputs, self.weight)

    @dataclass(kw_only=True)
    class KvCacheConfig:
        enable_block_reuse: bool = True
        max_tokens: int | None = None
        free_gpu_memory_fraction: float | None = 0.9

    class KVCacheManager:
        def __init__(
            self,
            kv_cache_config,
            kv_cache_type,
            *,
            num_layers,
            num_kv_heads,
            head_dim,
            tokens_per_block,
            max_seq_len,
            max_batch_size,
            mapping,
            dtype="HALF",
            spec_config=None,
            layer_mask=None,
            max_num_tokens=8192,
        ):
            if fake.manager_error:
                raise fake.manager_error
            self.arguments = dict(locals())
            self.shut_down = 0
            self.requests = None
            self.blocks = min(kv_cache_config.max_tokens // tokens_per_block, fake.room_blocks)
            shape = (num_layers, self.blocks, 2, tokens_per_block, num_kv_heads, head_dim)
            self.pool = torch.zeros(shape, dtype=fake.kv_dtype)
            fake.managers.append(self)

        def get_num_free_blocks(self):
            return self.blocks

        def add_dummy_requests(self, request_ids, token_nums=None, is_gen=False, prepare_resource=True):
            self.requests = (request_ids, token_nums)
            return request_ids

        def get_buffers(self, layer_idx, kv_layout="NHD"):
            return self.pool[layer_idx]

        def shutdown(self):
            self.shut_down += 1

    @dataclass(kw_only=True)
    class KVCacheParams:
        use_cache: bool
        num_cached_tokens_per_seq: list[int] | None = None

    @dataclass(kw_only=True, eq=False)
    class Metadata:
        max_num_requests: int
        max_num_tokens: int
        kv_cache_manager: KVCacheManager
        mapping: Mapping | None = None
        seq_lens: torch.Tensor | None
        num_contexts: int
        kv_cache_params: KVCacheParams | None = None
        request_ids: list[int] | None = None
        prompt_lens: list[int] | None = None
        prepared: int = field(default=0, init=False)

        def __post_init__(self):
            fake.metadata.append(self)

        def prepare(self):
            assert self.kv_cache_manager.requests is not None  # blocks are looked up for the requests
            self.prepared += 1

    def get_attention_backend(backend_name):
        assert backend_name == "TRTLLM"
        return types.SimpleNamespace(Metadata=Metadata)

    @contextlib.contextmanager
    def model_extra_attrs(attrs):
        fake.extra_attrs = attrs
        yield
        fake.extra_attrs = None

    cache_type = types.SimpleNamespace(SELF="self")
    contents = {
        "": {"__version__": version},
        "mapping": {"Mapping": Mapping},
        "llmapi": {"KvCacheConfig": KvCacheConfig},
        "bindings": {
            "DataType": types.SimpleNamespace(BF16="bf16", HALF="half", FP8="fp8"),
            "internal": types.SimpleNamespace(batch_manager=types.SimpleNamespace(CacheType=cache_type)),
        },
        "quantization": {},
        "quantization.mode": {"QuantAlgo": QuantAlgo},
        "models": {},
        "models.modeling_utils": {"QuantConfig": QuantConfig},
        "_torch": {},
        "_torch.metadata": {"KVCacheParams": KVCacheParams},
        "_torch.model_config": {"ModelConfig": ModelConfig},
        "_torch.utils": {"model_extra_attrs": model_extra_attrs, "get_model_extra_attrs": lambda: fake.extra_attrs},
        "_torch.attention_backend": {},
        "_torch.attention_backend.utils": {"get_attention_backend": get_attention_backend},
        "_torch.models": {},
        "_torch.models.modeling_nemotron_nas": {"NemotronNASDecoderLayer": NemotronNASDecoderLayer},
        "_torch.modules": {},
        "_torch.modules.embedding": {"Embedding": Embedding, "LMHead": LMHead},
        "_torch.modules.rms_norm": {"RMSNorm": RMSNorm},
        "_torch.pyexecutor": {},
        "_torch.pyexecutor.resource_manager": {"KVCacheManager": KVCacheManager},
    }
    modules = {}
    for name, members in contents.items():
        full = f"tensorrt_llm.{name}" if name else "tensorrt_llm"
        modules[full] = types.ModuleType(full)
        vars(modules[full]).update(members)
    return modules


@pytest.fixture
def trtllm(monkeypatch):
    fake = Fake()
    for name, module in fake_modules(fake).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(trtllm_engine, "DEVICE_TYPE", "cpu")
    return fake


def make_spec(**changes):
    fields = {
        "name": "small",
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 4,
        "head_dim": HEAD_DIM,
        "intermediate_size": 512,
        "vocab_size": VOCAB,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        "qkv_bias": False,
        "attention_output_bias": False,
        "mlp_bias": False,
        "qk_norm": "none",
        "norm_placement": "pre",
        "sliding_windows": (None, None),
    }
    return ModelSpec(**{**fields, **changes})


def make_engine(precision=None, **changes):
    return TrtllmLayerEngine(make_spec(**changes), precision or Precision(), max_batch_size=8, max_len=100)


def work(part, sub_block, phase="decode", batch_size=3, context_len=40):
    return Workload(part=part, sub_block=sub_block, phase=phase, batch_size=batch_size, context_len=context_len)


def test_without_tensorrt_llm_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(trtllm_engine, "DEVICE_TYPE", "cpu")
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    with pytest.raises(
        ValueError, match=r"^TensorRT-LLM is not installed: pip install tensorrt-llm==1.2.1.*release image"
    ):
        make_engine()


def test_an_old_version_is_refused(monkeypatch):
    monkeypatch.setattr(trtllm_engine, "DEVICE_TYPE", "cpu")
    for name, module in fake_modules(Fake(), version="1.1.0").items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ValueError, match=r"TensorRT-LLM 1\.1\.0 is not supported; use 1\.2 or newer"):
        make_engine()


def test_decode_attention(trtllm):
    engine = make_engine()
    assert (engine.name, engine.version, engine.device.type) == ("trtllm", "1.2.1", "cpu")
    prepared = engine.prepare(work("attention", "gqa_2"), copies=2)
    (manager,), (metadata,) = trtllm.managers, trtllm.metadata
    arguments = manager.arguments
    assert (arguments["num_layers"], arguments["num_kv_heads"], arguments["head_dim"]) == (2, 2, HEAD_DIM)
    assert (arguments["tokens_per_block"], arguments["max_seq_len"], arguments["max_batch_size"]) == (32, 40, 3)
    assert (arguments["kv_cache_type"], arguments["dtype"]) == ("self", "bf16")
    assert arguments["kv_cache_config"].max_tokens == 3 * 64  # two blocks hold 40 tokens
    assert not arguments["kv_cache_config"].enable_block_reuse
    assert manager.requests == ([0, 1, 2], [40, 40, 40])
    assert manager.pool.float().std() == pytest.approx(1.0, rel=0.1)

    assert metadata.seq_lens.tolist() == [1, 1, 1]
    assert metadata.num_contexts == 0
    assert metadata.kv_cache_params.num_cached_tokens_per_seq == [39, 39, 39]
    assert metadata.prompt_lens == [39, 39, 39]
    assert metadata.request_ids == [0, 1, 2]
    assert (metadata.max_num_requests, metadata.max_num_tokens, metadata.prepared) == (3, 3, 1)

    first, second = trtllm.layers
    assert (first.layer_idx, second.layer_idx) == (0, 1)
    assert first.block_config.attention.n_heads_in_group == 4
    assert first.block_config.ffn.no_op
    assert first.loaded == 1
    assert not torch.equal(first.self_attn.weight, second.self_attn.weight)
    config = first.model_config
    assert config.pretrained_config.num_key_value_heads == [2, 2]
    assert config.pretrained_config.max_position_embeddings == 100
    assert (config.attn_backend, config.max_num_tokens) == ("TRTLLM", 3)
    assert config.quant_config.quant_algo is config.quant_config.kv_cache_quant_algo is None

    warm = len(second.calls)
    prepared.run(1)
    assert (len(first.calls), len(second.calls)) == (warm, warm + 1)
    position_ids, hidden, passed, residual = second.calls[-1]
    assert passed is metadata
    assert position_ids.tolist() == [[39, 39, 39]]
    assert position_ids.dtype == torch.int32
    assert hidden.shape == residual.shape == (3, HIDDEN)
    assert hidden.dtype == torch.bfloat16
    assert second.calls[-1][1] is second.calls[0][1]  # static buffers

    layer_bytes = 2 * (HIDDEN * (HEADS + 4) * HEAD_DIM + HIDDEN)
    assert prepared.copies == 2
    assert prepared.static_bytes == 2 * layer_bytes + 2 * manager.pool.numel()


def test_prefill_attention(trtllm):
    make_engine().prepare(work("attention", "gqa_8", phase="prefill", batch_size=2, context_len=5), copies=1)
    (metadata,) = trtllm.metadata
    assert metadata.seq_lens.tolist() == [5, 5]
    assert metadata.num_contexts == 2
    assert metadata.kv_cache_params.num_cached_tokens_per_seq == [0, 0]
    assert metadata.prompt_lens == [5, 5]
    assert metadata.max_num_tokens == 10
    assert trtllm.managers[0].requests == ([0, 1], [5, 5])
    position_ids, hidden, _, _ = trtllm.layers[0].calls[-1]
    assert position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4]]
    assert hidden.shape == (10, HIDDEN)


@pytest.mark.parametrize(
    ("part", "name", "settings"),
    [
        ("attention", "linear", {"replace_with_linear": True, "no_op": False}),
        ("ffn", "linear", {"replace_with_linear": True, "no_op": False}),
        ("ffn", "mlp_512", {"replace_with_linear": False, "no_op": False, "ffn_mult": 12.0}),
    ],
)
def test_work_that_sees_tokens_only(trtllm, part, name, settings):
    prepared = make_engine().prepare(work(part, name, batch_size=200, context_len=1), copies=3)
    assert not trtllm.managers
    layer = trtllm.layers[0]
    other = layer.block_config.ffn if part == "attention" else layer.block_config.attention
    assert other.no_op
    assert vars(getattr(layer.block_config, part)).items() >= settings.items()
    position_ids, hidden, metadata, residual = layer.calls[-1]
    assert position_ids is metadata is None
    assert hidden.shape == residual.shape == (200, HIDDEN)
    assert prepared.static_bytes == sum(p.numel() * 2 for layer in trtllm.layers for p in layer.parameters())


def test_embedding_and_head(trtllm):
    engine = make_engine()
    embedding = engine.prepare(work("embedding", "embedding", batch_size=6, context_len=1), copies=2)
    head = engine.prepare(work("head", "head", batch_size=6, context_len=1), copies=2)
    assert embedding.static_bytes == 2 * 2 * VOCAB * HIDDEN
    assert head.static_bytes == 2 * 2 * (VOCAB + 1) * HIDDEN
    embedding.run(1)
    head.run(1)


def test_fp8_weights_and_cache(trtllm):
    trtllm.kv_dtype = torch.float8_e4m3fn
    make_engine(Precision(weight_dtype="fp8", kv_dtype="fp8")).prepare(work("attention", "gqa_2"), copies=1)
    (layer,), (manager,) = trtllm.layers, trtllm.managers
    quant = layer.model_config.quant_config
    assert (quant.quant_algo.name, quant.kv_cache_quant_algo.name) == ("FP8", "FP8")
    assert manager.arguments["dtype"] == "fp8"
    assert manager.pool.float().std() == pytest.approx(1.0, rel=0.1)
    linear = layer.self_attn
    assert (linear.weight.float() * linear.weight_scale).std() == pytest.approx(HIDDEN**-0.5, rel=0.05)
    assert (linear.input_scale * linear.inv_input_scale).item() == pytest.approx(1.0)
    assert layer.calls[-1][1].dtype == torch.bfloat16


def test_a_cache_of_fp8_under_bf16_weights(trtllm):
    make_engine(Precision(kv_dtype="fp8")).prepare(work("attention", "gqa_2"), copies=1)
    quant = trtllm.layers[0].model_config.quant_config
    assert quant.quant_algo is None
    assert quant.kv_cache_quant_algo.name == "FP8"


def test_caches_are_released_once(trtllm):
    engine = make_engine()
    dropped = engine.prepare(work("attention", "gqa_2"), copies=1)
    kept = engine.prepare(work("attention", "gqa_4"), copies=1)
    del dropped
    assert [manager.shut_down for manager in trtllm.managers] == [1, 0]
    engine.close()
    engine.close()
    del kept
    assert [manager.shut_down for manager in trtllm.managers] == [1, 1]


def test_a_cache_that_does_not_fit(trtllm):
    engine = make_engine()
    trtllm.room_blocks = 5
    with pytest.raises(torch.OutOfMemoryError, match="6 blocks are needed, 5 fit"):
        engine.prepare(work("attention", "gqa_2"), copies=1)
    assert trtllm.managers[0].shut_down == 1
    for error in (RuntimeError("CUDA out of memory"), AssertionError("Impossible to fit in any sequence in kvCache")):
        trtllm.manager_error = error
        with pytest.raises(torch.OutOfMemoryError, match="key-value cache of 6 blocks"):
            engine.prepare(work("attention", "gqa_2"), copies=1)
    trtllm.manager_error = RuntimeError("unknown dtype")
    with pytest.raises(RuntimeError, match="unknown dtype"):
        engine.prepare(work("attention", "gqa_2"), copies=1)


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        (work("attention", "gqa_3"), "3 key-value heads do not divide"),
        (work("attention", "gqa_2_w16"), "gqa_2_w16: .* no window"),
        (work("attention", "gqa_2", batch_size=9), "batch 9 of length 40 is over the 8 of 100"),
        (work("attention", "gqa_2", context_len=101), "length 101 is over"),
        (work("attention", "gqa_2", context_len=1), "so length 2, not 1"),
        (work("attention", "no_op"), "attention no_op has nothing to run"),
        (work("ffn", "no_op"), "ffn no_op has nothing to run"),
        (work("ffn", "mlp_300"), "mlp_300: an MLP width of 300 .* 256 or 512"),
        (work("model", "parent"), "part 'model' is not a sub-block"),
    ],
)
def test_work_it_cannot_do_is_refused(trtllm, workload, message):
    with pytest.raises(ValueError, match=message):
        make_engine().prepare(workload, copies=1)
    assert not trtllm.managers


@pytest.mark.parametrize(
    ("precision", "changes", "message"),
    [
        (Precision(tensor_parallel=2), {}, "not with tensor_parallel 2"),
        (Precision(weight_dtype="fp32", kv_dtype="fp32"), {}, "weights in fp32 are not served; use bf16, fp16, fp8"),
        (Precision(kv_dtype="fp16"), {}, "weights in bf16 go with a key-value cache in bf16 or fp8, not in fp16"),
        (Precision(), {"qkv_bias": True}, "small has biases"),
        (Precision(), {"qk_norm": "per_head"}, "not normed like Llama"),
        (Precision(), {"norm_placement": "both"}, "not normed like Llama"),
    ],
)
def test_a_model_it_cannot_run_is_refused(trtllm, precision, changes, message):
    with pytest.raises(ValueError, match=message):
        make_engine(precision, **changes)


def test_a_cpu_is_refused():
    with pytest.raises(ValueError, match="TensorRT-LLM runs on NVIDIA GPUs, not on 'cpu'; use the torch engine"):
        trtllm_engine.trtllm_engine(
            spec=make_spec(), precision=Precision(), device=torch.device("cpu"), max_batch_size=1, max_len=8
        )


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_machine_without_a_gpu_says_so(monkeypatch):
    for name, module in fake_modules(Fake()).items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ValueError, match="this machine has none that torch can use"):
        make_engine()


def test_a_version_without_the_scales_is_refused(trtllm):
    part = nn.Module()
    part.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(ValueError, match="have no weight_scale here"):
        trtllm_engine._randomise(part)
