"""What the benchmarks of the suite run: each function puts one piece of work in place and gives it back ready to run.

Inputs are made here, from seeds; nothing is downloaded. Heavy packages are imported by the functions that need them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from puzzlebench.measuring.device import Device
    from puzzlebench.measuring.engines import Engine
    from puzzlebench.model.dtypes import WeightDtype
    from puzzlebench.profiling.block_costs import Phase

_COLD_KERNEL_COPIES = 4
_LENGTH = 64  # tokens of the sequences of the small model
_WIDTH = 256


@dataclass(kw_only=True, slots=True)
class Ready:
    """Work in place; see `measuring.engines.Prepared`."""

    launch: Callable[[int], object]
    copies: int = 1
    static_bytes: int = 0

    def run(self, copy: int) -> None:
        """Run once on one copy."""
        self.launch(copy)


def block(
    device: Device,
    *,
    engine: str,
    model: str,
    dtype: WeightDtype,
    part: str,
    sub_block: str,
    phase: Phase,
    batch_size: int,
    length: int,
) -> Ready:
    """A sub-block with its weights and cache, in as many copies as a live cost table rotates over."""
    import torch

    from puzzlebench.measuring.plan import plan_workloads
    from puzzlebench.measuring.workload import Workload, plan_cell
    from puzzlebench.model.catalog import load_model

    spec, parent = load_model(model)
    opened, precision = _engine(engine, model, dtype, device.torch_name)
    key = Workload(part=part, sub_block=sub_block, phase=phase, batch_size=batch_size, context_len=length)
    cell = plan_cell(key, max_num_tokens=batch_size * length)
    [planned] = plan_workloads(spec, parent, precision, [cell], cache_bytes=device.last_level_cache_bytes)
    with torch.inference_mode():
        prepared = opened.prepare(planned.workload, copies=planned.copies)
    launch = torch.inference_mode()(prepared.run)
    return Ready(launch=launch, copies=prepared.copies, static_bytes=prepared.static_bytes)


@functools.cache
def _engine(name: str, model: str, dtype: WeightDtype, device: str) -> tuple[Engine, Any]:
    """One for all blocks of a model and precision, which share weights and inputs."""
    import torch

    from puzzlebench.measuring.engines import open_engine
    from puzzlebench.model.catalog import load_model
    from puzzlebench.scenario import Precision

    spec, _ = load_model(model)
    precision = Precision(weight_dtype=dtype, kv_dtype="bf16" if dtype == "bf16" else "fp32")
    return open_engine(name, spec, precision, torch.device(device), max_batch_size=64, max_len=2048), precision


def kernel(device: Device, *, what: str, tokens: int, width: int) -> Ready:
    """Our kernel in bf16 on a GPU, over a few sets of inputs; on a CPU its reference in fp32, on one."""
    import torch

    ours = device.kind == "cuda"
    generator = torch.Generator(device=device.torch_name).manual_seed(0)
    dtype = torch.bfloat16 if ours else torch.float32

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device.torch_name, dtype=torch.float32).to(dtype)

    copies = _COLD_KERNEL_COPIES if ours else 1
    calls = [_KERNELS[what](random, tokens, width, ours) for _ in range(copies)]
    return Ready(launch=torch.inference_mode()(lambda copy: calls[copy]()), copies=copies)


Random = Callable[..., Any]
Call = Callable[[], object]


def _add_rms_norm(random: Random, tokens: int, width: int, ours: bool) -> Call:
    from puzzlebench_kernels.rms_norm import add_rms_norm, add_rms_norm_reference

    x, residual, weight = random(tokens, width), random(tokens, width), random(width)
    function = add_rms_norm if ours else add_rms_norm_reference
    return lambda: function(x, residual, weight, 1e-5)


def _swiglu(random: Random, tokens: int, width: int, ours: bool) -> Call:
    from puzzlebench_kernels.swiglu import swiglu, swiglu_reference

    gate_up, function = random(tokens, 2 * width), swiglu if ours else swiglu_reference
    return lambda: function(gate_up)


def _kl_divergence(random: Random, tokens: int, width: int, ours: bool) -> Call:
    from puzzlebench_kernels.losses import kl_divergence, kl_divergence_reference

    student, teacher = random(tokens, width), random(tokens, width)
    function = kl_divergence if ours else kl_divergence_reference
    return lambda: function(student, teacher)


def _decode_attention(random: Random, tokens: int, width: int, ours: bool) -> Call:
    """`tokens` sequences with `width` tokens in their caches, 32 heads on 8 key-value heads of 128."""
    import torch

    from puzzlebench_kernels.decode_attention import paged_decode_attention, paged_decode_attention_reference

    page = 32
    pages = width // page
    query = random(tokens, 32, 128)
    keys, values = (random(tokens * pages, page, 8, 128) for _ in range(2))
    table = torch.arange(tokens * pages, device=query.device).view(tokens, pages).int()
    lengths = torch.full((tokens,), width, dtype=torch.int32, device=query.device)
    if ours:
        return lambda: paged_decode_attention(query, keys, values, table, lengths, max_length=width)
    return lambda: paged_decode_attention_reference(query, keys, values, table, lengths)


_KERNELS: dict[str, Callable[[Random, int, int, bool], Call]] = {
    "add_rms_norm": _add_rms_norm,
    "swiglu": _swiglu,
    "kl_divergence": _kl_divergence,
    "decode_attention": _decode_attention,
}


def small_search(device: Device) -> Ready:
    """An exact search over 8 layers."""
    del device
    from puzzlebench_search.instances import served_instance
    from puzzlebench_search.solve import solve

    problem = served_instance(8, seed=0)
    return Ready(launch=lambda _copy: solve(problem))


def large_search(device: Device) -> Ready:
    """An exact search over 16 layers with limits that all bind."""
    del device
    from puzzlebench_search.instances import hard_instance
    from puzzlebench_search.solve import solve

    problem = hard_instance(16, seed=0)
    return Ready(launch=lambda _copy: solve(problem))


def front(device: Device) -> Ready:
    """A front of Llama-3.1-8B on an H100 at one batch size."""
    del device
    from puzzlebench.model.catalog import load_model
    from puzzlebench.model.space import default_space
    from puzzlebench.profiling.profile import Grid, build_cost_table
    from puzzlebench.profiling.sources import open_kernels
    from puzzlebench.scenario import Precision
    from puzzlebench.scores import parameter_scores
    from puzzlebench.searching.costs import load_costs
    from puzzlebench.searching.pareto import pareto
    from puzzlebench.searching.scenarios import join_limits, parse_limit, parse_scenario

    spec, parent = load_model("llama-3.1-8b")
    space = default_space(spec, parent)
    gpu, kernels = open_kernels("h100")
    grid = Grid(batch_sizes=(64,), prefill_lens=(2048,), context_lens=(2048, 2560))
    table = build_cost_table(kernels, gpu, spec, space, Precision(), grid)
    limits = join_limits([parse_limit("max-memory", "80GiB")])
    scores = parameter_scores(spec, space, parent)
    costs = load_costs(table, scores, [parse_scenario("2048+512")], limits=limits)
    return Ready(launch=lambda _copy: pareto(costs, (64,), "throughput", "score", table=table, points=2))


def cost_table(device: Device) -> Ready:
    """The cost table of a few blocks around Llama-3.1-70B's from shipped H100 kernels, one batch and length."""
    del device
    from puzzlebench.model.catalog import load_model
    from puzzlebench.model.space import default_space
    from puzzlebench.profiling.profile import Grid, build_cost_table
    from puzzlebench.profiling.sources import open_kernels
    from puzzlebench.scenario import Precision

    spec, parent = load_model("llama-3.1-70b")
    space = default_space(spec, parent, kv_heads=(2,), ffn_fractions=(0.5, 0.1))
    gpu, kernels = open_kernels("h100")
    grid = Grid(batch_sizes=(16,), prefill_lens=(2048,), context_lens=(2048,))
    return Ready(launch=lambda _copy: build_cost_table(kernels, gpu, spec, space, Precision(), grid))


def estimate_model(device: Device) -> Ready:
    """Latency, throughput and memory of Llama-3.1-70B in one scenario."""
    del device
    from puzzlebench.estimate import estimate
    from puzzlebench.model.catalog import load_model
    from puzzlebench.profiling.sources import open_kernels
    from puzzlebench.scenario import Precision, Scenario

    spec, parent = load_model("llama-3.1-70b")
    gpu, kernels = open_kernels("h100")
    precision = Precision(weight_dtype="fp8", kv_dtype="fp8", tensor_parallel=2)
    scenario = Scenario(batch_size=16, prefill_len=1024, decode_len=512, precision=precision)
    return Ready(launch=lambda _copy: estimate(kernels, gpu, spec, parent, scenario))


@functools.cache
def _small_model(device: str) -> Any:
    """A random Llama of two layers, width 256, 2,048 tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=_WIDTH,
        intermediate_size=3 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM(config)
    return model.eval().requires_grad_(requires_grad=False).to(device)


def _synchronised(device: Device, work: Callable[[], object]) -> Callable[[int], object]:
    """The work to its end: what it has started on a GPU, too."""
    if device.kind == "cpu":
        return lambda _copy: work()
    import torch

    def launch(_copy: int) -> None:
        work()
        torch.cuda.synchronize()

    return launch


def distil_step(device: Device) -> Ready:
    """`distil_layer` for one step of two sequences: teacher, two variants, their losses before and after."""
    import numpy as np
    import torch

    from puzzlebench.child.blockwise import open_blockwise
    from puzzlebench.child.halves import new_sub_block
    from puzzlebench.child.modeling_heterogeneous import take_half
    from puzzlebench.library.activations import open_inputs
    from puzzlebench.library.distil import LayerRun, Variant, distil_layer
    from puzzlebench.library.recipe import Recipe, Training
    from puzzlebench.model.blocks import GatedMLP, Linear

    model = _small_model(device.torch_name)
    tokens = np.random.default_rng(0).integers(0, 2048, (4, _LENGTH)).astype(np.int32)
    blockwise = open_blockwise(model, _LENGTH)
    inputs = open_inputs(blockwise, tokens, storage="memory", memory_limit=1 << 30, folder=Path())
    layer: Any = blockwise.layers[0]
    run = LayerRun(
        blockwise=blockwise,
        layer=0,
        attention=take_half(layer, "attention"),
        ffn=take_half(layer, "ffn"),
        inputs=inputs,
        precision="fp32",
    )
    recipe = Recipe(
        training=Training(steps=1, batch_size=2, evaluations=1, warmup=1), data="random", sequences=4, length=_LENGTH
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        halves = [
            new_sub_block(layer, model.config, 0, "attention", Linear()).requires_grad_(),
            new_sub_block(layer, model.config, 0, "ffn", GatedMLP(intermediate_size=_WIDTH)).requires_grad_(),
        ]

    def work() -> None:
        attention = {"attention": halves[0], "ffn": run.ffn}
        variants = [
            Variant(name="attention", halves=attention, trained=("attention",)),  # type: ignore[arg-type]
            Variant(name="ffn", halves={"ffn": halves[1]}, trained=("ffn",)),
        ]
        distil_layer(run, variants, recipe)

    return Ready(launch=_synchronised(device, work))


def score_block(device: Device) -> Ready:
    """One replaced FFN of the first layer against the parent, from kept activations to its metrics."""
    import torch

    from puzzlebench.child.blockwise import open_blockwise
    from puzzlebench.child.halves import new_sub_block
    from puzzlebench.child.modeling_heterogeneous import take_half
    from puzzlebench.model.blocks import GatedMLP
    from puzzlebench.scoring.metrics import metrics, reference

    model = _small_model(device.torch_name)
    layer: Any = model.model.layers[0]
    blockwise = open_blockwise(model, _LENGTH)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2048, (2, _LENGTH), generator=generator).to(device.torch_name)
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(2)
        half = new_sub_block(layer, model.config, 0, "ffn", GatedMLP(intermediate_size=_WIDTH))
        hidden = blockwise.embed(ids)
        parent = reference(blockwise.logits(blockwise.run_own(hidden, 0, 2)), ids)
        attention = take_half(layer, "attention")

    @torch.inference_mode()
    def work() -> torch.Tensor:
        middle = blockwise.run(0, attention, hidden)
        output = blockwise.run_own(blockwise.run(0, half, middle), 1, 2)
        return metrics(blockwise.logits(output), parent)

    return Ready(launch=_synchronised(device, work))


class _Bytes:
    """A tokenizer of bytes: what is timed is the packing."""

    eos_token_id = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The bytes of a text."""
        del add_special_tokens
        return list(text.encode())


def pack_text(device: Device) -> Ready:
    """64 documents of 1 KiB into rows of 256 tokens."""
    del device
    from puzzlebench.text.corpus import Document
    from puzzlebench.text.tokens import pack_documents

    documents = [Document(name=str(number), text=f"{number:07d} " * 128) for number in range(64)]
    return Ready(launch=lambda _copy: pack_documents(documents, _Bytes(), sequences=None, length=256, spread=True))
