"""rope_append_ against float64: the rotation, and what the caches hold afterwards."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from puzzlebench_kernels.rope_append import rope_append_, rope_append_reference

FP8 = torch.float8_e4m3fn
# One rounding to 8, 11 or 24 bits: half a unit in the last place on a GPU, a whole one where the interpreter truncates.
ROUNDING = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-23}
# The two products of a rotation may cancel; their float32 error is relative to them, at most about 5 here.
CANCELLATION = 1e-6
UNWRITTEN = 7.0  # what every cache slot holds before


def make(
    tokens: int,
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
    pages: tuple[int, int] = (6, 16),
) -> dict:
    """Arguments of rope_append_: random rows, positions, and slots of which every fifth is negative."""
    num_heads, num_kv_heads, head_dim = heads
    num_pages, page_size = pages
    angles = torch.outer(torch.arange(50.0), 10000 ** -torch.linspace(0, 1, head_dim // 2)).to(device)
    slots = torch.randperm(num_pages * page_size)[:tokens].to(device)
    slots[4::5] = -1
    cache = torch.full((num_pages, page_size, num_kv_heads, head_dim), UNWRITTEN, device=device).to(cache_dtype)
    return {
        "qkv": torch.randn(tokens, (num_heads + 2 * num_kv_heads) * head_dim, device=device).to(dtype),
        "cos": angles.cos(),
        "sin": angles.sin(),
        "positions": torch.randint(50, (tokens,), dtype=torch.int32, device=device),
        "key_cache": cache,
        "value_cache": cache.clone(),
        "slots": slots,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
    }


def check(arguments: dict) -> None:
    qkv, num_heads, num_kv_heads = arguments["qkv"], arguments["num_heads"], arguments["num_kv_heads"]
    dtype, head_dim, slots = qkv.dtype, arguments["head_dim"], arguments["slots"]
    before = qkv.clone()
    caches = {name: arguments[name].clone() for name in ("key_cache", "value_cache")}
    rope_append_(**arguments)
    expected, _, _ = rope_append_reference(**(arguments | caches | {"qkv": before.double()}))
    torch.testing.assert_close(qkv.double(), expected, rtol=ROUNDING[dtype], atol=CANCELLATION)

    # Caches hold exactly what the row holds, cast; slots that were not named hold what they held.
    rows = qkv.view(len(qkv), -1, head_dim)
    assert torch.equal(rows[:, num_heads + num_kv_heads :], before.view(rows.shape)[:, num_heads + num_kv_heads :])
    parts = {"key_cache": rows[:, num_heads:][:, :num_kv_heads], "value_cache": rows[:, num_heads + num_kv_heads :]}
    for name, part in parts.items():
        scale = arguments.get(name.replace("cache", "scale"), 1.0)
        cache = arguments[name].view(-1, num_kv_heads, head_dim)
        wanted = caches[name].view(-1, num_kv_heads, head_dim).float()
        wanted[slots[slots >= 0]] = quantised(part[slots >= 0].float(), scale, cache.dtype)
        if cache.dtype == torch.bfloat16 and dtype != cache.dtype and cache.device.type == "cpu":
            torch.testing.assert_close(cache.float(), wanted, rtol=2**-7, atol=0)  # truncated by the interpreter
        else:
            assert torch.equal(cache.float(), wanted)


def quantised(values: torch.Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor:
    if dtype == FP8:
        values = (values / torch.tensor(scale, device=values.device)).clamp(-448, 448)
    return values.to(dtype).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    ("tokens", "heads"),
    [(1, (1, 1, 2)), (7, (3, 1, 64)), (5, (8, 2, 96)), (3, (10, 2, 128)), (2, (2, 2, 256)), (11, (5, 5, 6))],
)
def test_matches_float64(tokens: int, heads: tuple[int, int, int], dtype: torch.dtype, device: torch.device) -> None:
    check(make(tokens, heads, dtype, dtype, device))


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_cache_of_another_dtype(cache_dtype: torch.dtype, device: torch.device) -> None:
    check(make(6, (4, 2, 64), torch.float32, cache_dtype, device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_float8_cache(dtype: torch.dtype, device: torch.device) -> None:
    arguments = make(9, (4, 2, 64), dtype, FP8, device) | {"key_scale": 0.37, "value_scale": 0.01}
    if device.type == "cpu":
        # Values whose quotients the interpreter can convert: float8 numbers, up to three times past the largest. No
        # rotation, and scales that are powers of two.
        arguments |= {"key_scale": 0.5, "value_scale": 0.25, "cos": torch.ones(50, 32), "sin": torch.zeros(50, 32)}
        arguments["qkv"] = (arguments["qkv"] * 150).clamp(-440, 440).to(FP8).to(dtype)
    check(arguments)
    largest = arguments["value_cache"].float().abs().max()
    assert largest == 448  # so saturation was reached


def test_layout_is_that_of_hugging_face(device: torch.device) -> None:
    # x * cos + rotate_half(x) * sin, with each table repeated over both halves.
    arguments = make(5, (4, 2, 16), torch.float32, torch.float32, device)
    rotating = arguments["qkv"].clone().view(5, 8, 16)[:, :6]
    cos, sin = (arguments[name][arguments["positions"]].repeat(1, 2)[:, None] for name in ("cos", "sin"))
    rotated_half = torch.cat((-rotating[..., 8:], rotating[..., :8]), dim=-1)
    rope_append_(**arguments)
    wanted = rotating * cos + rotated_half * sin
    torch.testing.assert_close(arguments["qkv"].view(5, 8, 16)[:, :6], wanted, rtol=2**-22, atol=CANCELLATION)


def test_values_that_are_not_finite_stay_where_they_are(device: torch.device) -> None:
    arguments = make(2, (2, 1, 4), torch.float32, torch.float32, device)
    arguments["slots"] = torch.tensor([3, 90], device=device)
    arguments["qkv"][:, -4:] = torch.tensor([float("inf"), float("nan"), -1.0, 2.0], device=device)
    rope_append_(**arguments)
    torch.testing.assert_close(arguments["value_cache"].view(-1, 4)[3], arguments["qkv"][0, -4:], equal_nan=True)
    assert arguments["qkv"][:, :-4].isfinite().all()


def test_no_tokens(device: torch.device) -> None:
    rope_append_(**make(0, (2, 1, 8), torch.float32, torch.float32, device))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 0}, "num_heads is 0"),
        ({"head_dim": 7}, "head_dim is 7; it must be even"),
        ({"qkv": torch.zeros(3, 30)}, r"qkv has shape \[3, 30\]; it must be \[any, 32\]"),
        ({"cos": torch.zeros(50, 4, dtype=torch.bfloat16)}, "cos is bfloat16"),
        ({"sin": torch.zeros(49, 4)}, r"sin has shape \[49, 4\]; it must be \[50, 4\]"),
        ({"positions": torch.zeros(3, dtype=torch.int64)}, "positions is int64"),
        ({"key_cache": torch.zeros(6, 16, 2, 8)}, r"key_cache has shape \[6, 16, 2, 8\]"),
        ({"key_cache": torch.zeros(6, 16, 1, 8, dtype=torch.float8_e5m2)}, "key_cache is float8_e5m2"),
        ({"value_cache": torch.zeros(6, 16, 1, 8, dtype=torch.float16)}, "value_cache is float16"),
        ({"slots": torch.zeros(3, dtype=torch.int32)}, "slots is int32"),
        ({"slots": torch.zeros(4, dtype=torch.int64)}, r"slots has shape \[4\]; it must be \[3\]"),
        ({"key_scale": 0.0}, "key_scale is 0.0"),
        ({"value_scale": 2.0}, "value_scale is 2.0; only a float8_e4m3fn cache is scaled"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    arguments = make(3, (2, 1, 8), torch.float32, torch.float32, torch.device("cpu"))
    with pytest.raises(ValueError, match=message):
        rope_append_(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize("num_kv_heads", [8, 4, 2, 1])
@pytest.mark.parametrize(("tokens", "num_heads"), [(1, 32), (128, 64), (8192, 64)])
def test_llama_sizes(
    tokens: int, num_heads: int, num_kv_heads: int, cache_dtype: torch.dtype, device: torch.device
) -> None:
    check(make(tokens, (num_heads, num_kv_heads, 128), torch.bfloat16, cache_dtype, device, pages=(300, 32)))
