"""Small models with everything a search needs: a cost table, scores, and ways to change both."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from puzzlebench.model.blocks import Architecture, block_name, parse_block
from puzzlebench.model.catalog import load_model
from puzzlebench.model.memory import model_memory
from puzzlebench.model.space import default_space
from puzzlebench.model.spec import parent_architecture
from puzzlebench.profiling.cost_table import CostTable
from puzzlebench.profiling.profile import Grid, build_cost_table
from puzzlebench.scenario import Precision
from puzzlebench.scores import ScoreTable, parameter_scores
from puzzlebench.searching.costs import load_costs
from puzzlebench.searching.scenarios import ResourceLimit, join_limits, parse_limit, parse_scenario
from puzzlebench.serving import estimating
from puzzlebench.serving.calibration import Calibration
from puzzlebench.serving.iterations import Overheads
from puzzlebench_search.problem import make_solution

GRID = Grid(batch_sizes=(1, 4, 16), prefill_lens=(128, 512, 2048), context_lens=(128, 512, 1024, 4096))


def shortened(name, layers):
    """The first layers of a catalogued model."""
    spec, _ = load_model(name)
    return replace(spec, num_hidden_layers=layers, sliding_windows=spec.sliding_windows[:layers])


def make_world(kernels, gpu, spec, precision, *, grid=GRID, max_num_tokens=4096):
    parent = parent_architecture(spec)
    space = default_space(spec, ffn_fractions=(1.0, 0.5))
    table = build_cost_table(kernels, gpu, spec, space, precision, grid, max_num_tokens=max_num_tokens)
    return SimpleNamespace(
        spec=spec,
        parent=parent,
        space=space,
        precision=precision,
        table=table,
        scores=parameter_scores(spec, space, parent),
    )


@pytest.fixture(scope="module")
def overheads():
    """An engine with known overheads, whatever those that ship are; of about the size that engines have."""
    planted = Calibration(
        name="planted",
        engine="trtllm",
        engine_version="0.1",
        runs=1,
        gpus=(),
        models=(),
        overheads=Overheads(sub_block_us=-1.0, all_reduce_us=3.0, sequence_us=2.0, request_ms=3.0),
        widths={"tpot": 0.05, "ttft": 0.1, "throughput": 0.07},
        elsewhere={"tpot": 0.1, "ttft": 0.2, "throughput": 0.15},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(estimating, "find_calibration", lambda engine, *, gpu, model: planted)
        yield planted


@pytest.fixture(scope="session")
def llama(h100_kernels, h100):
    return make_world(h100_kernels, h100, shortened("llama-3.1-8b", 4), Precision())


@pytest.fixture(scope="session")
def gemma(h100_kernels, h100):
    """Windows in every other layer, tied embeddings, two norms per sub-block, fp8, two GPUs."""
    precision = Precision(weight_dtype="fp8", kv_dtype="fp8", tensor_parallel=2)
    return make_world(h100_kernels, h100, shortened("gemma-2-9b", 4), precision, max_num_tokens=8192)


def edited(table, edit, **metadata):
    """A copy of a cost table after `edit(frame)`, which may return a new frame."""
    frame = table.frame.copy()
    changed = edit(frame)
    return CostTable(frame=frame if changed is None else changed, metadata=table.metadata | metadata)


def scores_of(world, layers):
    """Scores for these blocks in each layer, counting up."""
    frame = world.scores.frame.iloc[:0].copy()
    rows = [(layer, name, 0.5 * place) for layer, names in enumerate(layers) for place, name in enumerate(names)]
    for place, (layer, name, score) in enumerate(rows):
        frame.loc[place] = [layer, name, score, 0.0, 0]
    frame = frame.astype({"layer": "int64", "samples": "int64", "score": "float64"})
    return ScoreTable(frame=frame, metadata=world.scores.metadata | {"partial": True})


def random_architectures(world, count, seed=0):
    """Blocks drawn from the scored ones of each layer; now and then few kinds, so that small ones come up too."""
    rng = np.random.default_rng(seed)
    for place in range(count):
        blocks = []
        for layer in range(world.spec.num_hidden_layers):
            names = world.scores.candidates(layer)
            if place % 3 == 0:
                names = [name for name in names if "gqa" not in name and "mlp" not in name] or names
            blocks.append(parse_block(names[rng.integers(len(names))]))
        yield Architecture(blocks=tuple(blocks))


def pairs(attention, ffn):
    return [f"{one}+{other}" for one, other in itertools.product(attention, ffn)]


MEMORY = (ResourceLimit(resource="memory", high=80e9),)


def limits(*texts):
    return join_limits(parse_limit(*text.split("=")) for text in texts)


def load(world, *scenarios, table=None, scores=None, **options):
    scenarios = [parse_scenario(text) for text in scenarios or ("512+512",)]
    return load_costs(table or world.table, scores or world.scores, scenarios, **options)


def places(problem, architecture):
    """Where an architecture's choices stand, or None where the problem lacks one."""
    known = {name: place for place, name in enumerate(problem.names)}
    names = [f"{layer}:{block_name(block)}" for layer, block in enumerate(architecture.blocks)]
    return [known[name] for name in names] if all(name in known for name in names) else None


def solutions(costs, batch_size, architecture):
    """The architecture in every case that holds it."""
    found = []
    for case in costs.cases(batch_size):
        chosen = places(case.problem, architecture)
        if chosen is not None:
            found.append((case, make_solution(case.problem, chosen)))
    return found


def memory_of(world, architecture, batch_size, scenario, **options):
    return model_memory(
        world.spec,
        architecture,
        batch_size=batch_size,
        prefill_len=scenario.prefill_len,
        context_len=scenario.context_len,
        weight_dtype=world.precision.weight_dtype,
        kv_dtype=world.precision.kv_dtype,
        tensor_parallel=world.precision.tensor_parallel,
        **options,
    ).total_bytes
