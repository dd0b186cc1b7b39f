"""Operations, sub-blocks and weights: against formulas written out here and against transformers."""

import math
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

from puzzlebench.measuring.ops import (  # noqa: E402
    CACHE_ROOM,
    NORM_EPSILON,
    AttentionStep,
    TorchOps,
    _rotate,
    rotation,
    rotation_of,
)
from puzzlebench.measuring.sub_blocks import Stream, run_embedding, run_head, run_sub_block  # noqa: E402
from puzzlebench.measuring.weights import (  # noqa: E402
    Dense,
    embedding_weights,
    head_weights,
    sub_block_weights,
)
from puzzlebench.model import memory  # noqa: E402
from puzzlebench.model.blocks import GQA, GatedMLP, Linear, NoOp  # noqa: E402

CPU = torch.device("cpu")
OPS = TorchOps(torch.float32)
TIGHT = {"rtol": 1e-4, "atol": 1e-5}  # fp32 sums in another order


@pytest.fixture(autouse=True)
def inference():
    with torch.inference_mode():
        yield


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def make_weights(generator):
    return lambda spec, sub, dtype="fp32": sub_block_weights(spec, sub, dtype, CPU, generator)


def make_step(phase, batch, length, *, heads=4, kv_heads=2, head_dim=8, window=None):
    return AttentionStep(
        phase=phase,
        batch_size=batch,
        length=length,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        window=window,
        rotation=rotation(length, head_dim, CPU),
    )


def new_cache(step):
    return OPS.new_cache(step, torch.zeros(OPS.cache_bytes(step), dtype=torch.uint8))


def norm(x, weight):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + NORM_EPSILON) * weight


def attend(qkv, batch, length, *, heads=4, kv_heads=2, head_dim=8, window=None):
    """Softmax attention written out: head by head, query by query, [B L, heads D]."""
    shaped = qkv.view(batch, length, heads + 2 * kv_heads, head_dim).clone()
    for position in range(length):
        for pair in range(head_dim // 2):
            angle = position * 500_000.0 ** (-2 * pair / head_dim)
            first = shaped[:, position, : heads + kv_heads, pair].clone()
            second = shaped[:, position, : heads + kv_heads, pair + head_dim // 2].clone()
            shaped[:, position, : heads + kv_heads, pair] = first * math.cos(angle) - second * math.sin(angle)
            shaped[:, position, : heads + kv_heads, pair + head_dim // 2] = second * math.cos(angle) + first * math.sin(
                angle
            )
    out = torch.empty(batch, length, heads, head_dim)
    for head in range(heads):
        kv = heads + head // (heads // kv_heads)
        for query in range(length):
            first = 0 if window is None else max(0, query - window + 1)
            keys, values = shaped[:, first : query + 1, kv], shaped[:, first : query + 1, kv + kv_heads]
            scores = torch.einsum("bd,bkd->bk", shaped[:, query, head], keys) / math.sqrt(head_dim)
            out[:, query, head] = torch.einsum("bk,bkd->bd", scores.softmax(-1), values)
    return out.view(batch * length, heads * head_dim)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
def test_prefill_attention(kv_heads, window):
    batch, length = 2, 7
    step = make_step("prefill", batch, length, kv_heads=kv_heads, window=window)
    qkv = torch.randn(batch * length, (4 + 2 * kv_heads) * 8)
    out = OPS.attend(qkv.clone(), new_cache(step), step)
    expected = attend(qkv, batch, length, kv_heads=kv_heads, window=window)
    torch.testing.assert_close(out, expected, **TIGHT)
    if window == 3:
        assert not torch.allclose(expected, attend(qkv, batch, length, kv_heads=kv_heads))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 100])
def test_decode_of_the_last_token_is_the_last_row_of_prefill(kv_heads, window):
    batch, length = 3, 9
    prefill = make_step("prefill", batch, length, kv_heads=kv_heads, window=window)
    qkv = torch.randn(batch, length, (4 + 2 * kv_heads) * 8)
    storage = torch.zeros(OPS.cache_bytes(prefill), dtype=torch.uint8)
    cache = OPS.new_cache(prefill, storage)
    whole = OPS.attend(qkv.view(batch * length, -1).clone(), cache, prefill).view(batch, length, -1)
    assert cache.keys.shape == (batch, kv_heads, length if window is None else min(length, window), 8)
    cache.keys[:, :, -1] = math.nan  # decode must write its own
    cache.values[:, :, -1] = math.nan
    decode = make_step("decode", batch, length, kv_heads=kv_heads, window=window)
    assert OPS.cache_bytes(decode) == OPS.cache_bytes(prefill)
    last = OPS.attend(qkv[:, -1].clone(), OPS.new_cache(decode, storage), decode)
    torch.testing.assert_close(last, whole[:, -1], **TIGHT)


def test_rotation_is_that_of_transformers():
    pytest.importorskip("transformers", reason="needs transformers")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    config = LlamaConfig(head_dim=16, rope_theta=500_000.0, hidden_size=64, num_attention_heads=4)
    step = make_step("prefill", 2, 50, head_dim=16)
    x = torch.randn(2, 50, 3, 16)
    cosine, sine = LlamaRotaryEmbedding(config)(x, torch.arange(50)[None])
    theirs, _ = apply_rotary_pos_emb(x, x, cosine, sine, unsqueeze_dim=2)
    torch.testing.assert_close(_rotate(x, new_cache(step)), theirs, **TIGHT)
    decode = make_step("decode", 2, 50, head_dim=16)
    torch.testing.assert_close(_rotate(x[:, -1:], new_cache(decode)), theirs[:, -1:], **TIGHT)


@pytest.mark.parametrize("placement", ["pre", "post", "both"])
def test_norms_are_where_the_placement_says(make_spec, make_weights, placement):
    spec = make_spec(norm_placement=placement)
    sub = Linear()
    weights = make_weights(spec, sub)
    delta, residual = torch.randn(5, 32), torch.randn(5, 32)
    stream = run_sub_block(OPS, spec, sub, weights, Stream(delta=delta, residual=residual), None)
    x = delta + residual
    inputs = x if placement == "post" else norm(x, weights.norms["before"])
    expected = inputs @ weights.matrices["linear"].weight.T
    if placement != "pre":
        expected = norm(expected, weights.norms["after"])
    torch.testing.assert_close(stream.residual, x)
    torch.testing.assert_close(stream.delta, expected, **TIGHT)


@pytest.mark.parametrize("placement", ["pre", "post", "both"])
def test_the_first_sub_block_has_no_residual_yet(make_spec, make_weights, placement):
    spec = make_spec(norm_placement=placement)
    weights, x = make_weights(spec, Linear()), torch.randn(5, 32)
    alone = run_sub_block(OPS, spec, Linear(), weights, Stream(delta=x, residual=None), None)
    split = run_sub_block(OPS, spec, Linear(), weights, Stream(delta=0.25 * x, residual=0.75 * x), None)
    torch.testing.assert_close(alone.delta + alone.residual, split.delta + split.residual, **TIGHT)


@pytest.mark.parametrize("bias", [False, True])
def test_a_gated_mlp(make_spec, make_weights, bias):
    spec, sub = make_spec(mlp_bias=bias), GatedMLP(intermediate_size=24)
    weights = make_weights(spec, sub)
    x = torch.randn(5, 32)
    stream = run_sub_block(OPS, spec, sub, weights, Stream(delta=x, residual=None), None)
    gate_up, down = weights.matrices["gate_up"], weights.matrices["down"]
    assert gate_up.weight.shape == (48, 32)
    assert down.weight.shape == (32, 24)
    both = norm(x, weights.norms["before"]) @ gate_up.weight.T + (gate_up.bias if bias else 0)
    gate, up = both[:, :24], both[:, 24:]
    expected = (gate * gate.sigmoid() * up) @ down.weight.T + (down.bias if bias else 0)
    torch.testing.assert_close(stream.delta, expected, **TIGHT)


def test_a_no_op_changes_nothing_and_has_no_weights(make_spec, make_weights):
    weights = make_weights(make_spec(), NoOp())
    stream = Stream(delta=torch.randn(2, 32), residual=None)
    assert run_sub_block(OPS, make_spec(), NoOp(), weights, stream, None) is stream
    assert (weights.bytes, dict(weights.matrices), dict(weights.norms)) == (0, {}, {})


@pytest.mark.parametrize("qk_norm", ["none", "per_head", "full"])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_with_biases_and_norms_of_queries_and_keys(make_spec, make_weights, qk_norm, bias):
    spec = make_spec(qk_norm=qk_norm, qkv_bias=bias, attention_output_bias=bias)
    sub = GQA(num_key_value_heads=2)
    weights = make_weights(spec, sub)
    batch, length = 2, 5
    x = torch.randn(batch * length, 32)
    step = make_step("prefill", batch, length)
    stream = run_sub_block(OPS, spec, sub, weights, Stream(delta=x, residual=None), (new_cache(step), step))
    matrix, out = weights.matrices["qkv"], weights.matrices["o"]
    qkv = norm(x, weights.norms["before"]) @ matrix.weight.T + (matrix.bias if bias else 0)
    queries, keys, values = qkv.split([32, 16, 16], dim=-1)
    if qk_norm == "per_head":
        queries = norm(queries.reshape(-1, 4, 8), weights.norms["query"]).reshape(-1, 32)
        keys = norm(keys.reshape(-1, 2, 8), weights.norms["key"]).reshape(-1, 16)
    if qk_norm == "full":
        queries, keys = norm(queries, weights.norms["query"]), norm(keys, weights.norms["key"])
    expected = attend(torch.cat([queries, keys, values], dim=-1), batch, length) @ out.weight.T
    torch.testing.assert_close(stream.delta, expected + (out.bias if bias else 0), **TIGHT)


def test_embedding_and_head(make_spec, generator):
    spec = make_spec()
    embedding, head = (make(spec, "fp32", CPU, generator) for make in (embedding_weights, head_weights))
    tokens = torch.tensor([3, 0, 95, 3])
    stream = run_embedding(embedding, tokens)
    assert stream.residual is None
    assert torch.equal(stream.delta, embedding.matrices["embedding"].weight[tokens])
    residual = torch.randn(4, 32)
    found = run_head(OPS, head, replace(stream, residual=residual))
    logits = norm(stream.delta + residual, head.norms["before"]) @ head.matrices["head"].weight.T
    assert torch.equal(found, logits.argmax(-1))


SUBS = [
    GQA(num_key_value_heads=2),
    GQA(num_key_value_heads=1, sliding_window=4),
    GatedMLP(intermediate_size=40),
    Linear(),
    NoOp(),
]


@pytest.mark.parametrize("sub", SUBS)
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": True},
        {"attention_output_bias": True, "qkv_bias": True, "mlp_bias": True},
        {"qk_norm": "per_head"},
        {"qk_norm": "full", "norm_placement": "post"},
        {"norm_placement": "both", "qk_norm": "per_head"},
    ],
    ids=str,
)
def test_weights_take_the_bytes_that_the_memory_model_counts(make_spec, make_weights, sub, dtype, changes):
    spec = make_spec(**changes)
    assert make_weights(spec, sub, dtype).bytes == memory.sub_block_weight_bytes(spec, sub, weight_dtype=dtype)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
def test_ends_take_the_bytes_that_the_memory_model_counts(make_spec, generator, dtype):
    spec = make_spec()
    embedding, head = (make(spec, dtype, CPU, generator) for make in (embedding_weights, head_weights))
    assert embedding.bytes == memory.embedding_weight_bytes(spec, weight_dtype=dtype)
    assert head.bytes == memory.head_weight_bytes(spec, weight_dtype=dtype)


def test_fp8_weights_are_a_byte_each_and_mean_the_same(make_spec, make_weights):
    spec, sub = make_spec(hidden_size=128, intermediate_size=256), GatedMLP(intermediate_size=256)
    weights = make_weights(spec, sub, "fp8")
    scales = 8 * 3  # the memory model counts two scales for gate, up and down
    assert weights.bytes == memory.sub_block_weight_bytes(spec, sub, weight_dtype="fp8") - scales
    matrix = weights.matrices["gate_up"]
    values = matrix.weight.float() * matrix.scale
    assert values.std() == pytest.approx(128**-0.5, rel=0.05)
    assert matrix.weight.float().abs().max() == 448, "the largest weight uses the whole range"


@pytest.mark.parametrize("sub", SUBS[:-1])
def test_activations_keep_their_size_and_no_weight_is_zero(make_spec, make_weights, sub):
    spec = make_spec(qk_norm="per_head", norm_placement="both", qkv_bias=True)
    weights = make_weights(spec, sub)
    tensors = [*weights.norms.values(), *(m.weight for m in weights.matrices.values())]
    tensors += [m.bias for m in weights.matrices.values() if isinstance(m, Dense) and m.bias is not None]
    assert all((tensor == 0).float().mean() < 0.01 for tensor in tensors)
    step = make_step("prefill", 2, 8, kv_heads=getattr(sub, "num_key_value_heads", 2))
    attention = (new_cache(step), step) if isinstance(sub, GQA) else None
    stream = run_sub_block(OPS, spec, sub, weights, Stream(delta=torch.randn(16, 32), residual=None), attention)
    assert 0.5 < stream.delta.std() < 2


def test_a_cache_has_room_between_the_heads_that_attention_does_not_see():
    step = make_step("decode", 2, 5, kv_heads=2, window=None)
    storage = torch.zeros(OPS.cache_bytes(step), dtype=torch.uint8)
    cache = OPS.new_cache(step, storage)
    storage.view(torch.float32).fill_(math.nan)
    cache.keys.zero_()
    cache.values.zero_()
    assert OPS.attend(torch.randn(2, (4 + 2 * 2) * 8), cache, step).isfinite().all()
    assert cache.keys.stride(1) == (5 + CACHE_ROOM) * 8


def test_rotation_of_scaled_frequencies_and_a_norm_epsilon_of_ones_own():
    frequencies = torch.tensor([1.0, 0.25])
    cosine, sine = rotation_of(frequencies, 3, attention_scale=2.0)
    torch.testing.assert_close(cosine[2], 2 * torch.tensor([2.0, 0.5]).cos())
    torch.testing.assert_close(sine[1], 2 * frequencies.sin())
    x = torch.full((1, 4), 0.5)
    torch.testing.assert_close(TorchOps(torch.float32, 0.75).norm(x, torch.ones(4)), x / math.sqrt(0.25 + 0.75))
