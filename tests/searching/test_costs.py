"""Problems made of costs and scores: columns, sums, workspace levels, limits, and what does not go together."""

import math
from dataclasses import replace

import numpy as np
import pytest

from puzzlebench.model.parameters import model_parameters
from puzzlebench.profiling.cost_table import read_cost_table, write_cost_table
from puzzlebench.scores import ScoreTable
from puzzlebench.searching.layer_rules import parse_layer_rule
from puzzlebench.searching.recheck import recheck
from puzzlebench.searching.scenarios import parse_scenario
from puzzlebench_search.problem import Limit, broken_limits

from .conftest import MEMORY, edited, limits, load, memory_of, pairs, places, random_architectures, scores_of, solutions


def test_the_problem_of_one_scenario(llama):
    costs = load(llama, limits=limits("max-memory=80GB", "max-params=8B", "min-throughput=100", "max-ttft=1s"))
    assert costs.batch_sizes == (1, 4, 16)
    cases = costs.cases(4)
    problem = cases[0].problem
    assert problem.resources == ("memory", "params", "ttft", "tpot", "latency", "throughput")
    assert problem.names[:2] == ("0:gqa_8+mlp_14336", "0:gqa_8+mlp_7168")
    assert problem.num_layers == 4
    assert problem.direction == "minimise"
    assert problem.scores.tolist() == llama.scores.frame["score"].tolist()
    assert problem.limits == (
        Limit(resource="memory", high=80e9),
        Limit(resource="throughput", high=4 * 512 / 100),
        Limit(resource="ttft", high=1.0),
        Limit(resource="params", high=8e9),
    )
    case = cases[0]
    assert case.to_user("throughput", 4 * 512 / 100) == pytest.approx(100)
    assert case.to_user("ttft", 0.5) == 0.5
    assert [case.user_limit(limit) for limit in problem.limits] == [
        *MEMORY,
        *limits("min-throughput=100"),
        *costs.limits[3:],
        *costs.limits[1:2],
    ]
    with pytest.raises(ValueError, match="no column is named 'ttft\\[a\\]'; there are memory, params"):
        case.to_user("ttft[a]", 1.0)


def test_columns_of_several_scenarios(llama):
    costs = load(
        llama,
        "a:512+512,max-throughput=50,min-throughput=20,max-memory=9GB",
        "b:128+1,max-ttft=2s",
        limits=limits("max-ttft=1s", "max-memory=8GB"),
    )
    case = costs.cases(1)[0]
    names = ("memory[a]", "memory[b]", "params", "ttft[a]", "tpot[a]", "latency[a]", "throughput[a]")
    assert case.problem.resources == (*names, "ttft[b]", "latency[b]", "throughput[b]")
    assert case.problem.limits == (
        Limit(resource="throughput[a]", low=512 / 50, high=512 / 20),
        Limit(resource="memory[a]", high=9e9),
        Limit(resource="ttft[a]", high=1.0),
        Limit(resource="ttft[b]", high=2.0),
        Limit(resource="memory[b]", high=8e9),
    )
    assert case.user_limit(case.problem.limits[0]) == limits("max-throughput=50", "min-throughput=20")[0]
    assert case.to_user("throughput[b]", 0.5) == 2
    assert len(case.workspace_bytes) == 2


@pytest.mark.parametrize("which", ["llama", "gemma"])
@pytest.mark.parametrize("text", ["512+512", "700+300", "128+1", "2048+2048"])
def test_sums_are_those_counted_again(which, text, request):
    world = request.getfixturevalue(which)
    scenario = parse_scenario(text)
    costs = load(world, text, limits=MEMORY)
    for place, architecture in enumerate(random_architectures(world, 40)):
        batch = costs.batch_sizes[place % 3]
        again = recheck(world.table, world.spec, architecture, [scenario], batch, MEMORY)
        found = solutions(costs, batch, architecture)
        assert found
        for case, solution in found:
            values = {name: case.to_user(name, value) for name, value in solution.uses.items()}
            memory = values.pop("memory")
            assert values == pytest.approx({key: again.values[key] for key in values}, rel=1e-12)
            assert memory >= again.values["memory"]
            assert costs.architecture(case.problem, solution.choices) == architecture
        assert min(solution.uses["memory"] for _, solution in found) == again.values["memory"]
        assert again.values["params"] == model_parameters(world.spec, architecture)
        if scenario.prefill_len in (128, 512, 2048):
            most = world.table.metadata["settings"]["max_num_tokens"]
            exact = memory_of(world, architecture, batch, scenario, max_num_tokens=most)
            assert again.values["memory"] == exact


def test_a_table_from_a_file_gives_the_same(gemma, tmp_path):
    path = tmp_path / "costs.parquet"
    write_cost_table(gemma.table, path)
    one, other = load(gemma).cases(4)[0].problem, load(gemma, table=read_cost_table(path)).cases(4)[0].problem
    assert (one.uses == other.uses).all()


def test_pages_and_windows(gemma):
    for page in (1, 48, 64):
        scenario = parse_scenario("2048+1000")
        costs = load(gemma, "2048+1000", limits=MEMORY, tokens_per_block=page)
        _, solution = solutions(costs, 4, gemma.parent)[0]
        again = recheck(gemma.table, gemma.spec, gemma.parent, [scenario], 4, MEMORY, tokens_per_block=page)
        exact = memory_of(gemma, gemma.parent, 4, scenario, tokens_per_block=page)
        assert solution.uses["memory"] == again.values["memory"] == exact


def workspace_shuffled(world, seed):
    """The table with workspaces that follow no order, as measured ones may."""
    rng = np.random.default_rng(seed)

    def edit(frame):
        busy = frame["sub_block"] != "no_op"
        frame.loc[busy, "workspace_bytes"] = rng.integers(1, 9, int(busy.sum())) * 2**28

    return edited(world.table, edit)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("texts", [["700+500"], ["a:512+1000", "b:128+512"], ["a:512+512", "b:200+20,max-ttft=1s"]])
def test_some_case_counts_every_architectures_workspace_exactly(llama, texts, seed):
    table = workspace_shuffled(llama, seed)
    scenarios = [parse_scenario(text) for text in texts]
    costs = load(llama, *texts, table=table, limits=MEMORY)
    bases = [case.problem.base.tolist() for case in costs.cases(4)]
    assert bases == sorted(bases, reverse=True)
    columns = [name for name in costs.cases(4)[0].problem.resources if name.startswith("memory")]
    for architecture in random_architectures(llama, 30, seed):
        again = recheck(table, llama.spec, architecture, scenarios, 4, MEMORY)
        found = [[solution.uses[name] for name in columns] for _, solution in solutions(costs, 4, architecture)]
        exact = [again.values[name] for name in columns]
        assert exact in found
        assert all(memory >= least for one in found for memory, least in zip(one, exact, strict=True))


def test_only_a_limit_of_memory_makes_several_cases(llama):
    (only,) = load(llama, limits=limits("max-ttft=1s")).cases(4)
    cases = load(llama, limits=MEMORY).cases(4)
    assert len(cases) > 5
    assert only.workspace_bytes == cases[0].workspace_bytes
    assert len(only.problem.names) == len(cases[0].problem.names) == len(llama.scores.frame)
    sizes = [case.workspace_bytes[0] for case in cases]
    assert sizes == sorted(set(sizes), reverse=True)
    assert sizes[-1] == 0
    assert set(cases[-1].problem.names) == {f"{layer}:no_op+no_op" for layer in range(4)}
    for case in cases:
        needs = cases[0].problem.base[0] - case.problem.base[0]
        assert needs == sizes[0] - case.workspace_bytes[0]


def test_levels_that_a_fixed_layer_exceeds_are_no_cases(llama):
    (only,) = load(llama, limits=MEMORY, fixes=[parse_layer_rule("2=parent")]).cases(1)
    assert (
        only.workspace_bytes[0]
        == llama.table.frame.query("batch_size == 1 and context_len == 512")["workspace_bytes"].max()
    )


def test_a_lower_limit_of_memory_is_not_met_by_workspace_that_nobody_needs(llama):
    least = limits("min-memory=1GB", "max-memory=80GB")
    costs, architecture = load(llama, limits=least), llama.parent
    small = next(iter(random_architectures(llama, 1)))
    for model in (architecture, small):
        again = recheck(llama.table, llama.spec, model, costs.scenarios, 4, least)
        for case, solution in solutions(costs, 4, model):
            counted = solution.uses["memory"] == again.values["memory"]
            assert (solution.uses["workspace"] >= 1) == counted
            broken = [limit.resource for limit in broken_limits(case.problem, solution)]
            assert ("workspace" in broken) == (not counted)
            assert case.upper_sd.shape == case.lower_sd.shape == case.problem.uses.shape
            assert case.base_upper_sd.shape == case.base_lower_sd.shape == case.problem.base.shape
            with pytest.raises(ValueError, match="no resource is named 'workspace'"):
                case.user_limit(case.problem.limits[-1])


def test_costs_without_scores_are_unused(llama):
    scores = scores_of(llama, [["gqa_8+mlp_14336", "gqa_4+no_op"]] * 4)
    assert load(llama).unused == ()
    assert load(llama, scores=scores).unused == (
        "attention gqa_2",
        "attention gqa_1",
        "attention linear",
        "attention no_op",
        "ffn mlp_7168",
        "ffn linear",
    )


def test_limits_can_be_changed(llama):
    costs = load(llama, limits=MEMORY)
    changed = costs.with_limits(limits("max-ttft=1s"))
    assert [limit.resource for limit in changed.cases(1)[0].problem.limits] == ["ttft"]
    assert costs.cases(1)[0].problem.limits[0].resource == "memory"
    with pytest.raises(ValueError, match="ttft has more than one limit"):
        costs.with_limits(limits("max-ttft=1s") * 2)


def test_architectures_need_one_choice_for_each_layer(llama):
    costs = load(llama)
    problem = costs.cases(1)[0].problem
    chosen = places(problem, llama.parent)
    assert costs.architecture(problem, chosen[::-1]) == llama.parent
    for wrong in (chosen[1:], [*chosen, chosen[0]], [chosen[0] + 1, *chosen]):
        with pytest.raises(ValueError, match="choices must be one for each of 4 layers, not for layers"):
            costs.architecture(problem, wrong)


def test_scores_and_costs_must_be_of_one_model(llama, gemma):
    with pytest.raises(ValueError, match=f"^the scores are of {gemma.spec.name}, the costs of {llama.spec.name}$"):
        load(llama, scores=gemma.scores)
    nameless = {key: value for key, value in llama.scores.metadata.items() if key != "model"}
    assert load(llama, scores=ScoreTable(frame=llama.scores.frame, metadata=nameless)).cases(1)
    parent = {**nameless["parent"], "blocks": nameless["parent"]["blocks"][:3]}
    frame = llama.scores.frame.query("layer < 3")
    shorter = ScoreTable(frame=frame, metadata=nameless | {"parent": parent})
    with pytest.raises(ValueError, match=r"the scores are of 3 layers, the costs of .*, a model with 4$"):
        load(llama, scores=shorter)
    with pytest.raises(ValueError, match="tokens_per_block must be a whole number"):
        load(llama, tokens_per_block=0)


def test_scores_may_be_better_high(llama):
    metadata = llama.scores.metadata | {"direction": "maximise"}
    problem = load(llama, scores=replace(llama.scores, metadata=metadata)).cases(1)[0].problem
    assert problem.direction == "maximise"
    assert math.isclose(problem.losses.sum(), -llama.scores.frame["score"].sum())


def test_pairs_are_what_is_scored(llama):
    scores = scores_of(llama, [pairs(("gqa_8", "no_op"), ("mlp_14336", "no_op"))] * 4)
    assert load(llama, scores=scores).cases(1)[0].problem.names[3] == "0:no_op+no_op"
