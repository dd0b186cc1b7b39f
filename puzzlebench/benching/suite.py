"""The suite in one place: every benchmark with its name, what it needs and how it is put in place. Knows no clock.

A name is GROUP/what and stays what it is as long as the work behind it does: whoever changes a shape gives it another
name, or the old numbers would be compared with another thing. One run takes about 100 us to 50 ms.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from puzzlebench.benching import workloads

if TYPE_CHECKING:
    from puzzlebench.measuring.device import Device
    from puzzlebench.measuring.engines import Prepared
    from puzzlebench.profiling.block_costs import Phase

GROUPS: Final = ("block", "kernel", "search", "pipeline")
_EXTRAS: Final = {
    "torch": "pip install 'puzzlebench[models]'",
    "transformers": "pip install 'puzzlebench[models]'",
    "triton": "pip install triton",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One cell of a result.

    Attributes:
        name: GROUP/what, without spaces.
        about: what one run does, for people.
        needs: modules beside torch that it imports.
        on: the kind of device it is for; any: work of the host, timed by the host's clock wherever it runs.
        cache: cold runs rotate over copies of weights and caches, hot ones stay on one.
        bf16: needs units for it.
        prepare: puts it in place on a device; what it gives is run again and again.
    """

    name: str
    about: str
    needs: tuple[str, ...] = ()
    on: Literal["cpu", "cuda", "any"] = "any"
    cache: Literal["cold", "hot"] = "hot"
    bf16: bool = False
    prepare: Callable[[Device], Prepared]

    def __post_init__(self) -> None:
        """Raise ValueError for a name that is none."""
        if self.group not in GROUPS or not self.name.removeprefix(f"{self.group}/") or self.name.split() != [self.name]:
            raise ValueError(f"a benchmark is called GROUP/what without spaces, not {self.name!r}")

    @property
    def group(self) -> str:
        """The first part of its name."""
        return self.name.partition("/")[0]


def missing(benchmark: Benchmark, device: Device) -> str | None:
    """Why it cannot run on this device, in a few words; None where it can."""
    if benchmark.on not in ("any", device.kind):
        return f"is for {'CPUs' if benchmark.on == 'cpu' else 'GPUs'}"
    for module in benchmark.needs:
        if importlib.util.find_spec(module) is None:
            return f"needs {module}: {_EXTRAS[module]}"
    if benchmark.bf16 and device.kind == "cpu":
        import torch

        from puzzlebench.training.precision import fast_precision

        if fast_precision(torch.device("cpu")) != "bf16":
            return "needs a CPU with units for bf16"
    return None


def choose(patterns: Sequence[str], benchmarks: Sequence[Benchmark] | None = None) -> tuple[Benchmark, ...]:
    """The benchmarks whose names match one of the patterns, in the suite's order; all where there is no pattern.

    Args:
        patterns: see `matching`.

    Raises:
        ValueError: a pattern matches none.
    """
    suite = BENCHMARKS if benchmarks is None else tuple(benchmarks)
    if not patterns:
        return suite
    names = [one.name for one in suite]
    chosen = {name for pattern in patterns for name in matching(pattern, names)}
    return tuple(one for one in suite if one.name in chosen)


def matching(pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a pattern means: as in a shell (`block/*.decode.*`), or else any that hold it (`decode`).

    Raises:
        ValueError: there is none.
    """
    found = fnmatch.filter(names, pattern) or fnmatch.filter(names, f"*{pattern}*")
    if not found:
        near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}?" if near else "`puzzlebench bench --list` has their names"
        raise ValueError(f"no benchmark matches {pattern!r}; {hint}")
    return found


def _block(
    on: Literal["cpu", "cuda"],
    engine: str,
    model: str,
    dtype: Literal["fp32", "bf16"],
    part: str,
    sub_block: str,
    phase: Phase,
    batch_size: int,
    length: int,
    cache: Literal["cold", "hot"] = "cold",
) -> Benchmark:
    """A sub-block of a model at one size, in the project's own names for both."""
    name = f"block/{engine}.{dtype}.{model}.{part}.{sub_block}.{phase}.b{batch_size}.n{length}"
    return Benchmark(
        name=name + ".hot" * (cache == "hot"),
        about=f"{part} {sub_block} of {model}, {phase} of {batch_size} x {length} tokens, {dtype}, {engine}, {cache}",
        needs=("triton",) if engine == "triton" else (),
        on=on,
        cache=cache,
        bf16=dtype == "bf16",
        prepare=partial(
            workloads.block,
            engine=engine,
            model=model,
            dtype=dtype,
            part=part,
            sub_block=sub_block,
            phase=phase,
            batch_size=batch_size,
            length=length,
        ),
    )


def _kernel(what: str, tokens: int, width: int, on: Literal["cpu", "cuda"]) -> Benchmark:
    """A kernel of `puzzlebench_kernels` on a GPU; on a CPU its reference in torch, and called so."""
    ours = on == "cuda"
    return Benchmark(
        name=f"kernel/{'triton' if ours else 'torch_reference'}.{what}.t{tokens}.w{width}",
        about=f"{what}, {'our Triton kernel, bf16' if ours else 'its reference in torch, fp32'}; {tokens} x {width}",
        needs=("triton",),  # the references live in the kernels' files
        on=on,
        cache="cold" if ours else "hot",
        prepare=partial(workloads.kernel, what=what, tokens=tokens, width=width),
    )


def _host(name: str, about: str, prepare: Callable[[Device], Prepared], *needs: str) -> Benchmark:
    return Benchmark(name=name, about=about, needs=needs, prepare=prepare)


_CPU: Final = ("cpu", "torch", "embedded")
_GPU_SIZES: Final[tuple[tuple[str, str, Phase, int, int], ...]] = (
    ("attention", "gqa_8", "prefill", 1, 2048),
    ("attention", "gqa_8", "decode", 16, 2048),
    ("attention", "gqa_2", "decode", 64, 2048),
    ("attention", "linear", "decode", 64, 1),
    ("ffn", "mlp_14336", "prefill", 1, 2048),
    ("ffn", "mlp_14336", "decode", 16, 1),
    ("ffn", "mlp_7168", "decode", 64, 1),
)

BENCHMARKS: Final[tuple[Benchmark, ...]] = (
    _block(*_CPU, "fp32", "attention", "gqa_4", "prefill", 1, 128),
    _block(*_CPU, "fp32", "attention", "gqa_1", "prefill", 1, 256),
    _block(*_CPU, "fp32", "attention", "gqa_4", "decode", 4, 256),
    _block(*_CPU, "fp32", "attention", "gqa_4", "decode", 4, 256, "hot"),
    _block(*_CPU, "fp32", "attention", "gqa_1", "decode", 16, 256),
    _block(*_CPU, "fp32", "attention", "linear", "decode", 64, 1),
    _block(*_CPU, "fp32", "ffn", "mlp_768", "prefill", 1, 128),
    _block(*_CPU, "fp32", "ffn", "mlp_768", "decode", 16, 1),
    _block(*_CPU, "fp32", "ffn", "mlp_768", "decode", 16, 1, "hot"),
    _block(*_CPU, "fp32", "ffn", "mlp_384", "decode", 16, 1),
    _block(*_CPU, "fp32", "ffn", "mlp_80", "prefill", 1, 256),
    _block(*_CPU, "bf16", "ffn", "mlp_768", "prefill", 1, 128),
    _block(*_CPU, "bf16", "attention", "gqa_4", "decode", 4, 256),
    *(_block("cuda", engine, "llama-3.1-8b", "bf16", *size) for engine in ("torch", "triton") for size in _GPU_SIZES),
    *(_kernel(what, 256, 1024, "cpu") for what in ("add_rms_norm", "swiglu", "kl_divergence")),
    _kernel("decode_attention", 2, 128, "cpu"),
    *(_kernel(what, 8192, 8192, "cuda") for what in ("add_rms_norm", "swiglu")),
    _kernel("kl_divergence", 2048, 128_256, "cuda"),
    _kernel("decode_attention", 64, 4096, "cuda"),
    _host("search/exact.served.l8", "the best of 8 layers x 54 blocks under 4 limits, proven", workloads.small_search),
    _host("search/exact.hard.l16", "the same for 16 layers whose limits all bind", workloads.large_search),
    _host("search/pareto.llama-3.1-8b.p2", "a front of throughput and score with 2 budgets", workloads.front),
    _host("pipeline/cost_table.llama-3.1-70b", "a table of 9 sub-blocks at one size, H100", workloads.cost_table),
    _host("pipeline/estimate.llama-3.1-70b", "the whole model in one scenario, H100, fp8", workloads.estimate_model),
    _host("pipeline/distil_layer.w256", "one step of blockwise distillation", workloads.distil_step, "transformers"),
    _host("pipeline/score.w256", "score of one replacement in 2 layers", workloads.score_block, "transformers"),
    _host("pipeline/pack_text", "64 KiB of text into rows of 256 tokens", workloads.pack_text),
)
