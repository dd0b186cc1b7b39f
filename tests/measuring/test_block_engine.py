"""The engine against transformers, its own decode against its prefill, and what it holds."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")

from puzzlebench.measuring.block_engine import BlockEngine  # noqa: E402
from puzzlebench.measuring.engines import open_engine  # noqa: E402
from puzzlebench.measuring.ops import CACHE_ROOM, NORM_EPSILON, TorchOps  # noqa: E402
from puzzlebench.model import memory  # noqa: E402
from puzzlebench.model.blocks import (  # noqa: E402
    GQA,
    Architecture,
    Block,
    GatedMLP,
    Linear,
    NoOp,
    parse_sub_block,
    sub_block_name,
)
from puzzlebench.model.hf_config import from_hf_config  # noqa: E402
from puzzlebench.model.spec import parent_architecture  # noqa: E402
from puzzlebench.scenario import Precision  # noqa: E402

CPU = torch.device("cpu")
FP32 = Precision(weight_dtype="fp32", kv_dtype="fp32")
TINY = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "vocab_size": 90,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
THEIRS = {"rope_theta": 500_000.0, "rms_norm_eps": NORM_EPSILON, "pad_token_id": None, "bos_token_id": None}
FAMILIES = [
    {"model_type": "llama"},
    {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4},
    {"model_type": "mistral", "sliding_window": 5},
    {"model_type": "qwen2"},
    {"model_type": "qwen3", "num_key_value_heads": 1},
    {"model_type": "olmo2", "head_dim": 8},
]


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


class Spy(TorchOps):
    """Keeps the last matrix product: of a whole model, the logits."""

    def matmul(self, x, matrix):
        self.last = super().matmul(x, matrix)
        return self.last


@pytest.fixture
def make_engine():
    def make(spec, **models):
        engine = BlockEngine(Spy(torch.float32), spec, FP32, CPU, version="1")
        engine.models.update(models)
        return engine

    return make


def logits_of(engine, workload, tokens, monkeypatch):
    """(logits, tokens) of one launch of a whole model on these token ids."""
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_tokens", lambda shape: tokens.reshape(shape))
        prepared = engine.prepare(workload, copies=1)
    found = prepared.launch(0)
    return engine._ops.last.clone(), found


def copy_into(module, matrix):
    module.weight.copy_(matrix.weight)
    if module.bias is not None:
        module.bias.copy_(matrix.bias)


def copy_part(module, matrix, first, rows):
    module.weight.copy_(matrix.weight[first : first + rows])
    if module.bias is not None:
        module.bias.copy_(matrix.bias[first : first + rows])


def fill(model, engine, spec, architecture):
    """Copy the engine's weights into a model of transformers, layer by layer."""
    used = {}

    def take(part, sub):
        key = (part, sub_block_name(sub))
        used[key] = used.get(key, -1) + 1
        return engine._pools[key][used[key]]

    post = spec.norm_placement == "post"
    for layer, block in zip(model.model.layers, architecture.blocks, strict=True):
        mine, attention = take("attention", block.attention), layer.self_attn
        if isinstance(block.attention, GQA):
            queries, keys = 4 * spec.head_dim, block.attention.num_key_value_heads * spec.head_dim
            for module, first, rows in (
                (attention.q_proj, 0, queries),
                (attention.k_proj, queries, keys),
                (attention.v_proj, queries + keys, keys),
            ):
                copy_part(module, mine.matrices["qkv"], first, rows)
            copy_into(attention.o_proj, mine.matrices["o"])
            if spec.qk_norm != "none":
                attention.q_norm.weight.copy_(mine.norms["query"])
                attention.k_norm.weight.copy_(mine.norms["key"])
        elif isinstance(block.attention, Linear):
            copy_into(attention.linear, mine.matrices["linear"])
        if mine.norms and post:
            layer.post_attention_layernorm.weight.copy_(mine.norms["after"])
        elif mine.norms:
            layer.input_layernorm.weight.copy_(mine.norms["before"])
        mine = take("ffn", block.ffn)
        if isinstance(block.ffn, GatedMLP):
            width = block.ffn.intermediate_size
            copy_part(layer.mlp.gate_proj, mine.matrices["gate_up"], 0, width)
            copy_part(layer.mlp.up_proj, mine.matrices["gate_up"], width, width)
            copy_into(layer.mlp.down_proj, mine.matrices["down"])
        elif isinstance(block.ffn, Linear):
            copy_into(layer.mlp, mine.matrices["linear"])
        if mine.norms and post:
            layer.post_feedforward_layernorm.weight.copy_(mine.norms["after"])
        elif mine.norms:
            layer.post_attention_layernorm.weight.copy_(mine.norms["before"])
    model.model.embed_tokens.weight.copy_(engine._pools["embedding", "embedding"][0].matrices["embedding"].weight)
    head = engine._pools["head", "head"][0]
    model.model.norm.weight.copy_(head.norms["before"])
    model.lm_head.weight.copy_(head.matrices["head"].weight)


def hf_model(config):
    values = {key: value for key, value in config.items() if key != "model_type"}
    built = transformers.AutoConfig.for_model(config["model_type"], **{**values, **THEIRS})
    return transformers.AutoModelForCausalLM.from_config(built, attn_implementation="eager").eval()


def agree(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)  # three layers of fp32 sums in another order
    assert theirs.std() > 0.3, "logits that are all alike would agree too"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: "-".join(map(str, family.values())))
def test_a_whole_model_gives_the_logits_of_transformers(make_engine, work, family, monkeypatch):
    spec, architecture = from_hf_config({**TINY, **family}, name="tiny")
    engine, model = make_engine(spec, parent=architecture), hf_model({**TINY, **family})
    tokens = torch.randint(90, (2, 11))
    prefill = work("model", "parent", "prefill", 2, 11)
    logits, found = logits_of(engine, prefill, tokens, monkeypatch)
    fill(model, engine, spec, architecture)
    theirs = model(tokens).logits[:, -1]
    agree(logits, theirs)
    assert torch.equal(found, theirs.argmax(-1))
    # The caches that prefill left behind are where decode of the same length looks.
    decoded, again = logits_of(engine, work("model", "parent", "decode", 2, 11), tokens[:, -1], monkeypatch)
    agree(decoded, theirs)
    assert torch.equal(again, found)


class LinearAttention(torch.nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.linear = torch.nn.Linear(hidden, hidden, bias=False)

    def forward(self, hidden_states, **_):
        return self.linear(hidden_states), None


class Nothing(torch.nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, hidden_states, **_):
        nothing = torch.zeros_like(hidden_states)
        return (nothing, None) if self.attention else nothing


def test_a_heterogeneous_model_gives_the_logits_of_one_built_by_hand(make_engine, work, monkeypatch):
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

    config = {**TINY, "model_type": "llama", "num_hidden_layers": 5}
    spec, _ = from_hf_config(config, name="tiny")
    pairs = [("gqa_2", "mlp_48"), ("no_op", "linear"), ("gqa_1", "mlp_16"), ("linear", "no_op"), ("gqa_2", "mlp_48")]
    architecture = Architecture(
        blocks=tuple(
            Block(attention=parse_sub_block("attention", attention), ffn=parse_sub_block("ffn", ffn))
            for attention, ffn in pairs
        )
    )
    engine, model = make_engine(spec, child=architecture), hf_model(config)
    for place, (layer, block) in enumerate(zip(model.model.layers, architecture.blocks, strict=True)):
        changed = transformers.AutoConfig.for_model("llama", **{**TINY, **THEIRS})
        changed._attn_implementation = "eager"
        match block.attention:
            case GQA(num_key_value_heads=heads):
                changed.num_key_value_heads = heads
                layer.self_attn = LlamaAttention(changed, layer_idx=place)
            case Linear():
                layer.self_attn = LinearAttention(32)
            case NoOp():
                layer.self_attn = Nothing(attention=True)
        match block.ffn:
            case GatedMLP(intermediate_size=width):
                changed.intermediate_size = width
                layer.mlp = LlamaMLP(changed)
            case Linear():
                layer.mlp = torch.nn.Linear(32, 32, bias=False)
            case NoOp():
                layer.mlp = Nothing(attention=False)
    tokens = torch.randint(90, (2, 7))
    logits, _ = logits_of(engine, work("model", "child", "prefill", 2, 7), tokens, monkeypatch)
    fill(model, engine, spec, architecture)
    theirs = model(tokens, use_cache=False).logits[:, -1]
    agree(logits, theirs)
    decoded, _ = logits_of(engine, work("model", "child", "decode", 2, 7), tokens[:, -1], monkeypatch)
    agree(decoded, theirs)


def test_a_model_of_nothing_is_embedding_and_head(make_engine, make_spec, work, monkeypatch):
    empty = Architecture(blocks=(Block(attention=NoOp(), ffn=NoOp()),) * 2)
    engine = make_engine(make_spec(), empty=empty)
    _, found = logits_of(engine, work("model", "empty", "prefill", 3, 4), torch.arange(12), monkeypatch)
    assert found.shape == (3,)


def test_layers_of_a_model_are_different(make_engine, make_spec, work, monkeypatch):
    spec = make_spec()
    engine = make_engine(spec, parent=parent_architecture(spec))
    engine.prepare(work("model", "parent", "decode", 1, 4), copies=1)
    first, second = engine._pools["attention", "gqa_2"]
    assert not torch.equal(first.matrices["qkv"].weight, second.matrices["qkv"].weight)


SUBS = ["gqa_2", "gqa_1_w4", "linear"]


@pytest.mark.parametrize(
    ("part", "name"), [("attention", name) for name in SUBS] + [("ffn", "mlp_24"), ("ffn", "linear")]
)
@pytest.mark.parametrize(("phase", "batch", "length"), [("decode", 3, 10), ("prefill", 2, 6)])
@pytest.mark.parametrize("copies", [1, 4])
def test_what_is_held_is_what_the_memory_model_counts_and_room_for_more(
    make_engine, make_spec, work, part, name, phase, batch, length, copies
):
    spec = make_spec()
    prepared = make_engine(spec).prepare(work(part, name, phase, batch, length), copies=copies)
    sub = parse_sub_block(part, name)
    weights = memory.sub_block_weight_bytes(spec, sub, weight_dtype="fp32")
    cached = min(length, 4) if name == "gqa_1_w4" else length
    per_token = memory.sub_block_kv_bytes_per_token(spec, sub, kv_dtype="fp32")
    assert prepared.static_bytes == copies * (weights + batch * (cached + CACHE_ROOM) * per_token)
    assert prepared.copies == copies


def test_a_model_holds_what_the_memory_model_counts_and_room_for_more(make_engine, make_spec, work):
    spec = make_spec(sliding_windows=(None, 4), qkv_bias=True)
    parent = parent_architecture(spec)
    prepared = make_engine(spec, parent=parent).prepare(work("model", "parent", "decode", 3, 10), copies=9)
    cache = memory.kv_cache_bytes(spec, parent, batch_size=3, context_len=10, kv_dtype="fp32", tokens_per_block=1)
    room = sum(
        3 * CACHE_ROOM * memory.sub_block_kv_bytes_per_token(spec, block.attention, kv_dtype="fp32")
        for block in parent.blocks
    )
    assert prepared.static_bytes == memory.model_weight_bytes(spec, parent, weight_dtype="fp32") + cache + room
    assert prepared.copies == 1


def test_copies_are_different_tensors(make_engine, make_spec, work, monkeypatch):
    spec = make_spec()
    engine = make_engine(spec)
    seen = []
    original = engine._caches
    monkeypatch.setattr(engine, "_caches", lambda steps: seen.append(original(steps)) or seen[-1])
    engine.prepare(work("attention", "gqa_2", "decode", 2, 8), copies=5)
    pool = engine._pools["attention", "gqa_2"]
    for name in ("qkv", "o"):
        tensors = [weights.matrices[name].weight for weights in pool]
        assert len({tensor.data_ptr() for tensor in tensors}) == 5
        assert not any(torch.equal(tensors[0], other) for other in tensors[1:])
    (caches,) = seen
    spans = sorted(
        (tensor.data_ptr(), tensor.numel() * tensor.element_size())
        for cache in caches
        for tensor in (cache.keys, cache.values)
    )
    assert len(spans) == 10
    assert all(start + size <= other for (start, size), (other, _) in itertools.pairwise(spans))


@pytest.mark.parametrize(("part", "name", "length"), [("ffn", "mlp_24", 1), ("attention", "gqa_2", 8)])
def test_every_copy_runs_on_its_own_weights(make_engine, make_spec, work, part, name, length):
    engine = make_engine(make_spec())
    prepared = engine.prepare(work(part, name, "decode", 2, length), copies=3)
    outputs = [prepared.launch(copy).delta.clone() for copy in range(3)]
    assert not any(torch.equal(outputs[0], other) for other in outputs[1:])
    assert torch.equal(prepared.launch(0).delta, outputs[0])
    last = engine._pools[part, name][2].matrices["o" if part == "attention" else "down"]
    last.weight.zero_()
    assert [bool(prepared.launch(copy).delta.any()) for copy in range(3)] == [True, True, False]


def test_every_copy_reads_its_own_cache(make_engine, make_spec, work):
    engine = make_engine(make_spec())
    prepared = engine.prepare(work("attention", "gqa_2", "decode", 2, 8), copies=3)
    first, *others = engine._pools["attention", "gqa_2"]
    for other in others:
        other.matrices["qkv"].weight.copy_(first.matrices["qkv"].weight)
        other.matrices["o"].weight.copy_(first.matrices["o"].weight)
        other.norms["before"].copy_(first.norms["before"])
    outputs = [prepared.launch(copy).delta.clone() for copy in range(3)]
    assert not any(torch.allclose(outputs[0], other) for other in outputs[1:])


def test_copies_of_an_embedding_read_other_rows(make_engine, make_spec, work):
    engine = make_engine(make_spec())
    prepared = engine.prepare(work("embedding", "embedding", "decode", 20, 1), copies=3)
    rows = [prepared.launch(copy).delta for copy in range(3)]
    assert rows[0].shape == (20, 32)
    assert not torch.equal(rows[0], rows[1])


@pytest.mark.parametrize("kv_dtype", ["fp32", "fp8"])
def test_inputs_and_caches_are_never_zeros(make_spec, work, monkeypatch, kv_dtype):
    dtype = {"fp32": torch.float32, "fp8": torch.float8_e4m3fn}[kv_dtype]
    precision = Precision(weight_dtype="fp32", kv_dtype=kv_dtype)
    engine = BlockEngine(TorchOps(dtype), make_spec(), precision, CPU, version="1")
    engine.prepare(work("attention", "gqa_2", "decode", 4, 64), copies=2)
    (stream,) = engine._inputs.values()
    contents = engine._arena.view(dtype).float()
    for tensor in (stream.delta, stream.residual, contents):
        assert tensor.isfinite().all()
        assert (tensor == 0).float().mean() < 0.05
        assert tensor.std() > 0.3
        assert tensor.unique().numel() > 50


def test_a_larger_workload_leaves_an_earlier_one_its_cache(make_engine, make_spec, work):
    engine = make_engine(make_spec())
    small = engine.prepare(work("attention", "gqa_2", "decode", 1, 4), copies=1)
    before = small.launch(0).delta.clone()
    large = engine.prepare(work("attention", "gqa_2", "decode", 8, 64), copies=2)
    large.run(1)
    torch.testing.assert_close(small.launch(0).delta, before)


def test_the_same_weights_serve_all_sizes_of_a_sub_block(make_engine, make_spec, work):
    engine = make_engine(make_spec())
    for size in (1, 4, 9):
        engine.prepare(work("ffn", "mlp_24", "decode", size, 1), copies=size)
    assert len(engine._pools["ffn", "mlp_24"]) == 9
    assert sorted(engine._inputs) == [1, 4, 9]
    engine.close()
    assert (engine._pools, engine._inputs, engine._arena.numel()) == ({}, {}, 0)


@pytest.mark.parametrize("placement", ["pre", "post", "both"])
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_other_dtypes_run_in_their_own(make_spec, work, dtype, placement):
    spec = make_spec(norm_placement=placement, qk_norm="per_head", qkv_bias=True)
    engine = open_engine("torch", spec, Precision(weight_dtype=dtype, kv_dtype=dtype), CPU, max_batch_size=2, max_len=8)
    wanted = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    for part, name, phase in (
        ("attention", "gqa_2", "prefill"),
        ("attention", "gqa_2", "decode"),
        ("ffn", "mlp_24", "decode"),
    ):
        stream = engine.prepare(work(part, name, phase, 2, 8), copies=1).launch(0)
        assert stream.delta.dtype == stream.residual.dtype == wanted
        assert stream.delta.isfinite().all()
    assert (engine.name, engine.version) == ("torch", torch.__version__)
