"""How fast each kernel is next to torch: `python -m puzzlebench_kernels.benchmark`.

`run` returns rows of plain numbers. On a GPU every implementation is captured in a CUDA graph over enough sets of
random inputs that none is still in the L2 cache when its turn comes, outputs too, and the graph is replayed. Without a
GPU only the torch implementations run, on tiny sizes: that proves the code, not a speed.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], object]
Row = dict[str, str | int | float]

L2_CACHES = 4  # bytes of all input sets together, in sizes of the L2 cache
MAX_SETS = 512
MIN_SAMPLES = 20
LEAST_SECONDS = 1e-3  # of one timed stretch on a GPU
LEAD_CYCLES = 100_000  # about 55 us, in which the host's launch of a stretch is over
FP8 = torch.float8_e4m3fn


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One kernel at one size; every implementation turns a set of inputs into a call without arguments.

    `bytes` is the least that must move: inputs read once, outputs written once; for `linear_kl_divergence`, whose
    matrix products are bound by arithmetic, it only says how far from memory-bound it is.
    """

    kernel: str
    shape: str
    dtype: str
    bytes: int
    make: Callable[[torch.device], dict[str, Any]]
    implementations: dict[str, Callable[[dict[str, Any]], Call]]


def run(kernel_names: Iterable[str] | None = None, seconds: float = 0.5) -> list[Row]:
    """Time kernels next to torch (and SDPA, and flashinfer where it can be imported, for decode attention).

    Args:
        kernel_names: some of `KERNELS`; None for all.
        seconds: for how long each implementation is timed, warm-up and capture not counted.

    Returns:
        One row per kernel, size and implementation: kernel, shape, dtype, implementation; median_us, low_us and high_us
        (of one call: median, and 2.5 % and 97.5 % percentiles over replays of the graph); bytes; bytes_per_s at the
        median; share_of_copy, that over what a large device-to-device copy reaches in the same process.

    Raises:
        ValueError: an unknown kernel, or `seconds` is not positive.
        ImportError: triton is missing.
    """
    names = list(KERNELS if kernel_names is None else kernel_names)
    for name in names:
        if name not in KERNELS:
            near = difflib.get_close_matches(name, KERNELS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KERNELS)}"
            raise ValueError(f"there is no kernel {name!r}; {hint}")
    if not seconds > 0:
        raise ValueError(f"seconds is {seconds}; it must be positive")
    try:
        import triton  # noqa: F401
    except ImportError as error:
        raise ImportError("the kernels need triton: pip install triton") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    copy = _copy_bytes_per_s(device, seconds)
    rows: list[Row] = []
    for name in names:
        for case in KERNELS[name](device.type == "cuda"):
            for implementation, prepare in case.implementations.items():
                if device.type == "cpu" and not implementation.startswith("torch"):
                    continue
                low, median, high = _percentiles(_time(case, prepare, device, seconds))
                speed = case.bytes / median
                rows.append(
                    {
                        "kernel": case.kernel,
                        "shape": case.shape,
                        "dtype": case.dtype,
                        "implementation": implementation,
                        "median_us": median * 1e6,
                        "low_us": low * 1e6,
                        "high_us": high * 1e6,
                        "bytes": case.bytes,
                        "bytes_per_s": speed,
                        "share_of_copy": speed / copy,
                    }
                )
    return rows


def format_table(rows: list[Row]) -> str:
    """Rows of `run` as aligned text, one line each below a header."""
    header = ["kernel", "shape", "dtype", "implementation", "median us", "low us", "high us", "MB", "GB/s", "of copy"]
    lines = [header]
    for row in rows:
        names = [str(row[column]) for column in ("kernel", "shape", "dtype", "implementation")]
        times = [f"{row[column]:.1f}" for column in ("median_us", "low_us", "high_us")]
        speeds = [f"{float(row['bytes']) / 1e6:.1f}", f"{float(row['bytes_per_s']) / 1e9:.0f}"]
        lines.append([*names, *times, *speeds, f"{float(row['share_of_copy']):.1%}"])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    justified = ([*map(str.ljust, line[:4], widths), *map(str.rjust, line[4:], widths[4:])] for line in lines)
    return "\n".join("  ".join(cells).rstrip() for cells in justified)


def _percentiles(samples: list[float]) -> tuple[float, float, float]:
    low, median, high = torch.tensor(samples, dtype=torch.float64).quantile(
        torch.tensor([0.025, 0.5, 0.975], dtype=torch.float64)
    )
    return float(low), float(median), float(high)


def _time(case: Case, prepare: Callable[[dict[str, Any]], Call], device: torch.device, seconds: float) -> list[float]:
    """Seconds per call, one sample per round over all input sets."""
    sets = 1
    if device.type == "cuda":
        cache = torch.cuda.get_device_properties(device).L2_cache_size
        sets = min(MAX_SETS, max(2, math.ceil(L2_CACHES * cache / case.bytes)))
    torch.manual_seed(0)
    calls = [prepare(case.make(device)) for _ in range(sets)]
    return _time_on_gpu(calls, seconds) if device.type == "cuda" else _time_on_cpu(calls, seconds)


def _time_on_cpu(calls: list[Call], seconds: float) -> list[float]:
    for call in calls:
        call()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < MIN_SAMPLES or time.perf_counter() < end:
        start = time.perf_counter()
        for call in calls:
            call()
        samples.append((time.perf_counter() - start) / len(calls))
    return samples


def _time_on_gpu(calls: list[Call], seconds: float) -> list[float]:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compiles, tunes and fills the allocator
            for call in calls[:2]:
                call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph, rotations = torch.cuda.CUDAGraph(), 1
    with torch.cuda.graph(graph):
        outputs = [call() for call in calls]  # held, so that each has memory of its own
    graph.replay()
    torch.cuda.synchronize()
    once = _replay(graph)
    if once < LEAST_SECONDS:  # too short beside the clock's own error
        graph, rotations = torch.cuda.CUDAGraph(), math.ceil(LEAST_SECONDS / max(once, 1e-6))
        with torch.cuda.graph(graph):
            for _ in range(rotations):
                outputs = [call() for call in calls]
        graph.replay()
    samples: list[float] = []
    end = time.perf_counter() + seconds
    while len(samples) < MIN_SAMPLES or time.perf_counter() < end:
        samples.append(_replay(graph) / len(calls) / rotations)
    del outputs
    return samples


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    """Seconds of one replay; the device is kept busy until the host's launch is over."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda._sleep(LEAD_CYCLES)  # type: ignore[no-untyped-call]
    start.record()
    graph.replay()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def _copy_bytes_per_s(device: torch.device, seconds: float) -> float:
    """Bytes read plus bytes written per second by a copy much larger than any cache."""
    size = 2**30 if device.type == "cuda" else 2**24
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    calls: list[Call] = [lambda: target.copy_(source)]
    samples = _time_on_gpu(calls, seconds) if device.type == "cuda" else _time_on_cpu(calls, seconds)
    return 2 * size / _percentiles(samples)[1]


def _random(device: torch.device, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, device=device, dtype=torch.bfloat16).to(dtype)


def _gradients(function: Callable[..., torch.Tensor], arguments: dict[str, Any]) -> Call:
    """Forward and backward, with respect to every argument that wants a gradient."""
    leaves = [value for value in arguments.values() if isinstance(value, torch.Tensor) and value.requires_grad]
    seed = arguments.pop("grad", None)
    return lambda: torch.autograd.grad(function(**arguments), leaves, seed)


def _quantise_cases(real: bool) -> Iterator[Case]:
    from puzzlebench_kernels.quantise import quantise_fp8, quantise_fp8_reference

    for tokens, width in ((128, 8192), (8192, 4096), (8192, 14336)) if real else ((4, 64),):

        def make(device: torch.device, t: int = tokens, w: int = width) -> dict[str, Any]:
            return {"x": _random(device, t, w), "scale": 0.02}

        yield Case(
            kernel="quantise_fp8",
            shape=f"tokens={tokens} width={width}",
            dtype="bf16",
            bytes=3 * tokens * width,
            make=make,
            implementations={
                "triton": lambda a: lambda: quantise_fp8(**a),
                "torch": lambda a: lambda: quantise_fp8_reference(**a),
            },
        )


def _rms_norm_cases(real: bool) -> Iterator[Case]:
    from puzzlebench_kernels.rms_norm import add_rms_norm, add_rms_norm_reference

    for tokens, hidden in ((128, 8192), (8192, 4096), (16384, 8192)) if real else ((4, 64),):

        def make(device: torch.device, t: int = tokens, h: int = hidden) -> dict[str, Any]:
            x, residual, weight = _random(device, t, h), _random(device, t, h), _random(device, h)
            return {"x": x, "residual": residual, "weight": weight, "eps": 1e-5}

        yield Case(
            kernel="add_rms_norm",
            shape=f"tokens={tokens} hidden={hidden}",
            dtype="bf16",
            bytes=2 * (4 * tokens * hidden + hidden),
            make=make,
            implementations={
                "triton": lambda a: lambda: add_rms_norm(**a),
                "torch": lambda a: lambda: add_rms_norm_reference(**a),
            },
        )


def _swiglu_cases(real: bool) -> Iterator[Case]:
    from puzzlebench_kernels.swiglu import swiglu, swiglu_reference

    for tokens, intermediate in ((128, 28672), (8192, 14336), (8192, 5632)) if real else ((4, 64),):
        for training in (False, True):

            def make(
                device: torch.device, t: int = tokens, i: int = intermediate, training: bool = training
            ) -> dict[str, Any]:
                gate_up = _random(device, t, 2 * i)
                if not training:
                    return {"gate_up": gate_up}
                return {"gate_up": gate_up.requires_grad_(), "grad": _random(device, t, i)}

            implementations: dict[str, Callable[[dict[str, Any]], Call]] = {
                "triton": lambda a: lambda: swiglu(**a),
                "torch": lambda a: lambda: swiglu_reference(**a),
            }
            if training:
                implementations = {
                    "triton": lambda a: _gradients(swiglu, a),
                    "torch": lambda a: _gradients(swiglu_reference, a),
                }
            yield Case(
                kernel="swiglu",
                shape=f"tokens={tokens} intermediate={intermediate}" + " forward+backward" * training,
                dtype="bf16",
                bytes=2 * tokens * intermediate * (8 if training else 3),
                make=make,
                implementations=implementations,
            )


def _rope_append_cases(real: bool) -> Iterator[Case]:
    from puzzlebench_kernels.rope_append import rope_append_

    sizes = ((128, 64, 8, 128), (8192, 64, 8, 128), (8192, 32, 8, 128)) if real else ((4, 4, 2, 16),)
    for (tokens, num_heads, num_kv_heads, head_dim), cache_dtype in (
        (size, dtype) for size in sizes for dtype in (torch.bfloat16, FP8)
    ):
        heads = num_heads + 2 * num_kv_heads

        def make(
            device: torch.device,
            t: int = tokens,
            h: int = num_heads,
            kv: int = num_kv_heads,
            d: int = head_dim,
            dtype: torch.dtype = cache_dtype,
        ) -> dict[str, Any]:
            angles = torch.rand(t, d // 2, device=device)
            return {
                "qkv": _random(device, t, (h + 2 * kv) * d),
                "cos": angles.cos(),
                "sin": angles.sin(),
                "positions": torch.arange(t, dtype=torch.int32, device=device),
                "key_cache": _random(device, -(-t // 16), 16, kv, d, dtype=dtype),
                "value_cache": _random(device, -(-t // 16), 16, kv, d, dtype=dtype),
                "slots": torch.randperm(t, device=device),
                "num_heads": h,
                "num_kv_heads": kv,
                "head_dim": d,
            }

        rotated = (num_heads + num_kv_heads) * head_dim
        yield Case(
            kernel="rope_append",
            shape=f"tokens={tokens} heads={num_heads} kv={num_kv_heads} head_dim={head_dim}",
            dtype="bf16" if cache_dtype == torch.bfloat16 else "bf16, fp8 cache",
            bytes=tokens
            * (2 * heads * head_dim + 2 * rotated + 2 * num_kv_heads * head_dim * cache_dtype.itemsize + 4 * head_dim),
            make=make,
            implementations={"triton": lambda a: lambda: rope_append_(**a), "torch": _rope_append_torch},
        )


def _rope_append_torch(arguments: dict[str, Any]) -> Call:
    """Eager and in place, for slots that are all appended: the reference copies whole caches."""
    num_heads, num_kv_heads, head_dim = (arguments[name] for name in ("num_heads", "num_kv_heads", "head_dim"))
    heads = arguments["qkv"].view(len(arguments["qkv"]), -1, head_dim)
    rotating, keys, values = (
        heads[:, : num_heads + num_kv_heads],
        heads[:, num_heads : num_heads + num_kv_heads],
        heads[:, num_heads + num_kv_heads :],
    )

    def call() -> None:
        low, high = rotating.float().chunk(2, dim=-1)
        cos, sin = (arguments[name][arguments["positions"]][:, None] for name in ("cos", "sin"))
        rotating.copy_(torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1))
        for cache, rows in ((arguments["key_cache"], keys), (arguments["value_cache"], values)):
            flat = cache.view(-1, num_kv_heads, head_dim).view(torch.uint8)
            flat[arguments["slots"]] = rows.to(cache.dtype).contiguous().view(torch.uint8)

    return call


def _decode_attention_cases(real: bool) -> Iterator[Case]:
    from puzzlebench_kernels.decode_attention import paged_decode_attention, paged_decode_attention_reference

    sizes = (
        ((128, 4096, 32, 8), (1, 8192, 64, 8), (16, 8192, 64, 8), (64, 8192, 64, 4), (128, 8192, 64, 1))
        if real
        else ((2, 40, 4, 2),)
    )
    for (batch, length, num_heads, num_kv_heads), cache_dtype in (
        (size, dtype) for size in sizes for dtype in (torch.bfloat16, FP8)
    ):
        head_dim, page_size = (128, 32) if real else (16, 16)

        def make(
            device: torch.device,
            b: int = batch,
            n: int = length,
            h: int = num_heads,
            kv: int = num_kv_heads,
            d: int = head_dim,
            page: int = page_size,
            dtype: torch.dtype = cache_dtype,
        ) -> dict[str, Any]:
            pages = -(-n // page)
            return {
                "query": _random(device, b, h, d),
                "key_cache": _random(device, b * pages, page, kv, d, dtype=dtype),
                "value_cache": _random(device, b * pages, page, kv, d, dtype=dtype),
                "page_table": torch.randperm(b * pages, device=device).view(b, pages).int(),
                "lengths": torch.full((b,), n, dtype=torch.int32, device=device),
                "max_length": n,
            }

        def _without_bound(a: dict[str, Any]) -> Call:
            del a["max_length"]
            return lambda: paged_decode_attention_reference(**a)

        implementations: dict[str, Callable[[dict[str, Any]], Call]] = {
            "triton": lambda a: lambda: paged_decode_attention(**a),
            "torch": _without_bound,
        }
        if cache_dtype == torch.bfloat16:
            implementations["torch_sdpa_dense"] = _sdpa
            if importlib.util.find_spec("flashinfer"):
                implementations["flashinfer"] = _flashinfer
        elements = batch * head_dim
        yield Case(
            kernel="decode_attention",
            shape=f"batch={batch} length={length} heads={num_heads} kv={num_kv_heads} head_dim={head_dim}",
            dtype="bf16" if cache_dtype == torch.bfloat16 else "bf16, fp8 cache",
            bytes=2 * elements * (length * num_kv_heads * cache_dtype.itemsize + 2 * num_heads),
            make=make,
            implementations=implementations,
        )


def _sdpa(arguments: dict[str, Any]) -> Call:
    """Over a dense copy of the cache: torch reads no pages."""
    query, table = arguments["query"][:, :, None], arguments["page_table"]
    length = int(arguments["lengths"][0])

    def dense(cache: torch.Tensor) -> torch.Tensor:
        return cache[table].view(len(table), -1, *cache.shape[2:])[:, :length].transpose(1, 2).contiguous()

    keys, values = dense(arguments.pop("key_cache")), dense(arguments.pop("value_cache"))
    return lambda: torch.nn.functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)


def _flashinfer(arguments: dict[str, Any]) -> Call:
    """Planned once outside the timed region; its plan reads lengths on the host, which ours never does."""
    flashinfer = importlib.import_module("flashinfer")
    query, keys, table = arguments["query"], arguments["key_cache"], arguments["page_table"]
    batch, pages = table.shape
    page_size = keys.shape[1]
    workspace = torch.empty(128 * 2**20, dtype=torch.uint8, device=query.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "NHD", use_tensor_cores=True)
    wrapper.plan(
        torch.arange(0, (batch + 1) * pages, pages, dtype=torch.int32, device=query.device),
        table.flatten(),
        (arguments["lengths"] - 1) % page_size + 1,
        query.shape[1],
        keys.shape[2],
        query.shape[2],
        page_size,
        q_data_type=query.dtype,
        kv_data_type=keys.dtype,
    )
    return lambda: wrapper.run(query, (keys, arguments["value_cache"]))


def _loss_cases(real: bool) -> Iterator[Case]:
    from puzzlebench_kernels import losses

    count = 16384 * 8192 if real else 1000

    def make_mse(device: torch.device) -> dict[str, Any]:
        return {"child": _random(device, count).requires_grad_(), "parent": _random(device, count)}

    yield Case(
        kernel="losses",
        shape=f"normalised_mse elements={count} forward+backward",
        dtype="bf16",
        bytes=2 * count * 5,
        make=make_mse,
        implementations={
            "triton": lambda a: _gradients(losses.normalised_mse, a),
            "torch": lambda a: _gradients(losses.normalised_mse_reference, a),
        },
    )

    tokens, vocabulary, hidden = (2048, 128256, 4096) if real else (4, 100, 16)

    def make_kl(device: torch.device) -> dict[str, Any]:
        student, teacher = _random(device, tokens, vocabulary), _random(device, tokens, vocabulary)
        return {"student_logits": student.requires_grad_(), "teacher_logits": teacher}

    yield Case(
        kernel="losses",
        shape=f"kl_divergence tokens={tokens} vocabulary={vocabulary} forward+backward",
        dtype="bf16",
        bytes=2 * tokens * vocabulary * 5,
        make=make_kl,
        implementations={
            "triton": lambda a: _gradients(losses.kl_divergence, a),
            "torch": lambda a: _gradients(losses.kl_divergence_reference, a),
        },
    )

    def make_linear(device: torch.device) -> dict[str, Any]:
        states = {f"{who}_hidden": _random(device, tokens, hidden) / 64 for who in ("student", "teacher")}
        weights = {f"{who}_weight": _random(device, vocabulary, hidden) for who in ("student", "teacher")}
        for tensor in (states["student_hidden"], weights["student_weight"]):
            tensor.requires_grad_()
        return states | weights

    yield Case(
        kernel="losses",
        shape=f"linear_kl_divergence tokens={tokens} vocabulary={vocabulary} hidden={hidden} forward+backward",
        dtype="bf16",
        bytes=2 * 3 * (tokens + vocabulary) * hidden,
        make=make_linear,
        implementations={
            "triton": lambda a: _gradients(losses.linear_kl_divergence, a),
            "torch": lambda a: _gradients(losses.linear_kl_divergence_reference, a),
        },
    )


KERNELS: dict[str, Callable[[bool], Iterator[Case]]] = {
    "rms_norm": _rms_norm_cases,
    "quantise": _quantise_cases,
    "swiglu": _swiglu_cases,
    "rope_append": _rope_append_cases,
    "decode_attention": _decode_attention_cases,
    "losses": _loss_cases,
}


if __name__ == "__main__":
    print(format_table(run(sys.argv[1:] or None)))
