"""paged_decode_attention against float64, over groups, head sizes, dtypes, windows, ragged lengths and splits."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")
from hypothesis import given, settings
from hypothesis import strategies as st

from puzzlebench_kernels.decode_attention import (
    choose_splits,
    paged_decode_attention,
    paged_decode_attention_reference,
)

FP8 = torch.float8_e4m3fn
# One rounding to 8, 11 or 24 bits: half a unit in the last place on a GPU, a whole one where the interpreter truncates.
ROUNDING = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-23}
# Scores and exponentials in float32: relative error of a weight, for scores of a few tens at most.
ARITHMETIC = 2e-5


def make(
    lengths: list[int],
    heads: tuple[int, int, int],
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    device: torch.device,
    page_size: int = 16,
    window: int | None = None,
) -> dict:
    """Random arguments; pages in random order, NaN in every cached element and a wild index at every page unused."""
    num_heads, num_kv_heads, head_dim = heads
    max_pages = max(1, *(-(-length // page_size) for length in lengths)) + 1
    num_pages = len(lengths) * max_pages + 2
    table = torch.randperm(num_pages)[: len(lengths) * max_pages].view(len(lengths), max_pages).int().to(device)
    length = torch.tensor(lengths, dtype=torch.int32, device=device)
    tokens = torch.arange(max_pages * page_size, device=device)
    used = tokens < length[:, None]
    if window is not None:
        used &= tokens >= length[:, None] - window
    slots = (table.long()[:, :, None] * page_size + torch.arange(page_size, device=device)).flatten(1)[used]
    caches = {}
    for name in ("key_cache", "value_cache"):
        rows = torch.full((num_pages * page_size, num_kv_heads, head_dim), float("nan"), device=device)
        rows[slots] = torch.randn(len(slots), num_kv_heads, head_dim, device=device)
        caches[name] = rows.to(cache_dtype).view(num_pages, page_size, num_kv_heads, head_dim)
    table[~used.view(len(lengths), max_pages, page_size).any(-1)] = 2**30
    return {
        "query": torch.randn(len(lengths), num_heads, head_dim, device=device).to(dtype),
        **caches,
        "page_table": table,
        "lengths": length,
        "window": window,
    }


def take_pages(cache: torch.Tensor, pages: torch.Tensor) -> torch.Tensor:
    return cache.view(torch.uint8)[pages].view(cache.dtype)  # as bytes: torch has no index for float8


def exact(arguments: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Reference in float64, and the same with absolute values: what errors of the weights are relative to."""
    clean = dict(arguments)
    del clean["max_length"]
    clean.pop("num_splits", None)
    clean["page_table"] = arguments["page_table"].where(arguments["page_table"] < 2**30, 0)
    clean["query"] = arguments["query"].double()
    for name in ("key_cache", "value_cache"):
        clean[name] = arguments[name].float().nan_to_num()
    out = paged_decode_attention_reference(**clean)
    clean["value_cache"] = clean["value_cache"].abs()
    return out, paged_decode_attention_reference(**clean)


def check(arguments: dict) -> torch.Tensor:
    out = paged_decode_attention(**arguments)
    dtype = arguments["query"].dtype
    assert out.dtype == dtype
    expected, of_absolutes = exact(arguments)
    # The result is rounded once; before, each weight is rounded once to the dtype of the product with the values.
    bound = ROUNDING[dtype] * (expected.abs() + of_absolutes) + ARITHMETIC * of_absolutes
    error = (out.double() - expected).abs()
    assert (error <= bound).all(), (
        f"largest error {error.max():.3g}, {(error / bound).nan_to_num(9).max():.3g} of its bound"
    )
    return out


@pytest.mark.parametrize("num_splits", [1, 3])
@pytest.mark.parametrize("group", [1, 3, 5, 7, 8, 16, 64, 80])
def test_groups(group: int, num_splits: int, device: torch.device) -> None:
    num_kv_heads = 2 if group < 16 else 1
    arguments = make([37, 0], (num_kv_heads * group, num_kv_heads, 32), torch.bfloat16, torch.bfloat16, device)
    out = check(arguments | {"max_length": 37, "num_splits": num_splits})
    assert (out[1] == 0).all()


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.float32),
        (torch.bfloat16, FP8),
        (torch.float16, FP8),
        (torch.float32, FP8),
    ],
)
@pytest.mark.parametrize("head_dim", [16, 64, 96, 128, 256])
def test_head_sizes_and_dtypes(
    head_dim: int, dtype: torch.dtype, cache_dtype: torch.dtype, device: torch.device
) -> None:
    arguments = make([150, 1], (3, 1, head_dim), dtype, cache_dtype, device)
    check(arguments | {"max_length": 150, "num_splits": 2})


@pytest.mark.parametrize(("page_size", "window"), [(16, 1), (16, 33), (32, 16), (64, 33), (64, 1000)])
def test_windows_and_pages(page_size: int, window: int, device: torch.device) -> None:
    arguments = make([16, 100], (4, 2, 32), torch.float32, torch.float32, device, page_size, window)
    for num_splits in (1, 2):
        check(arguments | {"max_length": 100, "num_splits": num_splits})


def test_scales(device: torch.device) -> None:
    arguments = make([70, 20], (4, 1, 64), torch.bfloat16, FP8, device)
    check(arguments | {"max_length": 70, "key_scale": 0.7, "value_scale": 3.0, "scale": 0.05})


def test_query_that_is_part_of_a_wider_matrix(device: torch.device) -> None:
    arguments = make([20, 33], (4, 2, 32), torch.float32, torch.float32, device)
    wide = torch.randn(2, 8, 32, device=device)
    wide[:, :4] = arguments["query"]
    narrow = check(arguments | {"max_length": 33})
    assert torch.equal(paged_decode_attention(**(arguments | {"query": wide[:, :4], "max_length": 33})), narrow)


def test_max_length_decides_only_the_splits(device: torch.device) -> None:
    arguments = make([600, 20], (2, 1, 16), torch.float32, torch.float32, device)
    for max_length in (0, 20, 600, 10**9):
        check(arguments | {"max_length": max_length})


def test_empty_batch(device: torch.device) -> None:
    arguments = make([4], (2, 1, 16), torch.float32, torch.float32, device)
    arguments |= {name: arguments[name][:0] for name in ("query", "page_table", "lengths")}
    assert paged_decode_attention(**arguments, max_length=4).shape == (0, 2, 16)


@settings(max_examples=10, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 80), min_size=1, max_size=3),
    heads=st.sampled_from([(1, 1, 16), (6, 2, 32), (4, 4, 48), (17, 1, 16)]),
    window=st.none() | st.integers(1, 100),
    num_splits=st.integers(2, 6),
    seed=st.integers(0, 2**31),
)
def test_result_does_not_depend_on_the_splits(
    lengths: list[int], heads: tuple[int, int, int], window: int | None, num_splits: int, seed: int
) -> None:
    torch.manual_seed(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    arguments = make(lengths, heads, torch.float32, torch.float32, device, window=window)
    arguments["max_length"] = max(lengths)
    whole = check(arguments | {"num_splits": 1})
    parts = check(arguments | {"num_splits": num_splits})
    _, of_absolutes = exact(arguments)
    assert ((whole - parts).double().abs() <= ARITHMETIC * of_absolutes).all()


def test_choose_splits() -> None:
    assert choose_splits(programs=1024, tokens=8192, block_n=64, places=264) == 1  # 3.9 rounds: full enough
    assert choose_splits(programs=1, tokens=100, block_n=64, places=264) == 1  # too short to cut
    assert choose_splits(programs=1, tokens=10**6, block_n=64, places=264) >= 200  # one sequence fills the device
    assert choose_splits(programs=300, tokens=8192, block_n=64, places=264) > 1  # a second round, nearly empty
    assert choose_splits(programs=8, tokens=0, block_n=64, places=264) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 64)}, r"query has shape \[2, 64\]"),
        ({"query": torch.zeros(2, 4, 64, dtype=torch.float64)}, "query is float64"),
        ({"query": torch.zeros(4, 2, 64).transpose(0, 1)}, "query has strides"),
        ({"query": torch.zeros(2, 3, 64)}, "3 query heads cannot share 2 kv heads"),
        ({"query": torch.zeros(2, 4, 24), "key_cache": torch.zeros(5, 16, 2, 24)}, "head_dim is 24|value_cache"),
        ({"key_cache": torch.zeros(5, 16, 2, 32)}, r"key_cache has shape \[5, 16, 2, 32\]"),
        ({"key_cache": torch.zeros(5, 16, 2, 64, dtype=torch.float16)}, "key_cache is float16"),
        ({"value_cache": torch.zeros(5, 16, 2, 64, dtype=FP8)}, "value_cache is float8_e4m3fn"),
        ({"key_cache": torch.zeros(5, 8, 2, 64), "value_cache": torch.zeros(5, 8, 2, 64)}, "page_size is 8"),
        ({"page_table": torch.zeros(3, 2, dtype=torch.int32)}, r"page_table has shape \[3, 2\]"),
        ({"page_table": torch.zeros(2, 2, dtype=torch.int64)}, "page_table is int64"),
        ({"lengths": torch.zeros(2)}, "lengths is float32"),
        ({"window": 0}, "window is 0"),
        ({"max_length": -1}, "max_length is -1"),
        ({"num_splits": 0}, "num_splits is 0"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    arguments = {
        "query": torch.zeros(2, 4, 64),
        "key_cache": torch.zeros(5, 16, 2, 64),
        "value_cache": torch.zeros(5, 16, 2, 64),
        "page_table": torch.zeros(2, 2, dtype=torch.int32),
        "lengths": torch.zeros(2, dtype=torch.int32),
        "max_length": 32,
    }
    with pytest.raises(ValueError, match=message):
        paged_decode_attention(**(arguments | change))


@pytest.mark.gpu
@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, FP8])
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "batch", "length", "window"),
    [
        (32, 8, 128, 4096, None),
        (64, 8, 128, 2048, None),
        (64, 8, 1, 8192, None),
        (64, 4, 16, 8192, None),
        (64, 2, 64, 8192, None),
        (64, 1, 128, 8192, None),
        (32, 8, 64, 8192, 1024),
    ],
)
def test_llama_sizes(
    num_heads: int,
    num_kv_heads: int,
    batch: int,
    length: int,
    window: int | None,
    cache_dtype: torch.dtype,
    device: torch.device,
) -> None:
    lengths = torch.randint(1, length + 1, (batch,)).tolist()
    lengths[0] = length
    arguments = make(lengths, (num_heads, num_kv_heads, 128), torch.bfloat16, cache_dtype, device, 32, window)
    out = paged_decode_attention(**arguments, max_length=length)
    # The reference gathers pages in float64: a few sequences of it at a time fit.
    for sequence in {0, 1 % batch, batch // 2, batch - 1}:
        part = {name: arguments[name][sequence : sequence + 1].clone() for name in ("query", "page_table", "lengths")}
        pages = part["page_table"][part["page_table"] < 2**30].long()
        small = {name: take_pages(arguments[name], pages) for name in ("key_cache", "value_cache")}
        part["page_table"][part["page_table"] < 2**30] = torch.arange(len(pages), dtype=torch.int32, device=device)
        wanted = check({**part, **small, "window": window, "max_length": length})
        # Another split is taken for one sequence alone, so the two differ by what a rounding of the weights can.
        torch.testing.assert_close(out[sequence : sequence + 1].float(), wanted.float(), rtol=2**-6, atol=2**-6)


@pytest.mark.gpu
def test_runs_in_a_cuda_graph(device: torch.device) -> None:
    arguments = make([900, 0, 77], (8, 2, 128), torch.bfloat16, torch.bfloat16, device) | {"max_length": 1000}
    eager = check(arguments)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = paged_decode_attention(**arguments)
    captured.fill_(float("nan"))
    graph.replay()
    assert torch.equal(captured, eager)
