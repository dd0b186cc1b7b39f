"""`estimate --serving` and `search --serving`: what they print, exit codes, and one line for what is wrong."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

from puzzlebench.cli import main
from puzzlebench.cli_search import served_loss
from puzzlebench.model.blocks import architecture_to_json
from puzzlebench.profiling.cost_table import write_cost_table
from puzzlebench.profiling.profile import Grid
from puzzlebench.scenario import Precision
from puzzlebench.searching import serving_search
from puzzlebench.serving.calibration import calibrations

from .searching.conftest import edited, make_world, shortened

GRID = Grid(batch_sizes=(1,), prefill_lens=(256,), context_lens=(256, 512))
ASK = ["estimate", "--serving", "--prefill", "512", "--decode", "128"]
FIND = ["search", "--costs", "t.parquet", "--scores", "params", "--scenario", "256+64", "--serving"]


@pytest.fixture(scope="module")
def world(h100_kernels, h100):
    return make_world(h100_kernels, h100, shortened("llama-3.1-8b", 3), Precision(), grid=GRID)


@pytest.fixture(scope="module")
def written(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "t.parquet"
    write_cost_table(world.table, path)
    return path


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, written):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PUZZLEBENCH_DEBUG", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "t.parquet").write_bytes(written.read_bytes())
    return tmp_path


def run(capsys, *arguments, code=0):
    assert main([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    assert "error" not in err
    return out


def as_json(capsys, *arguments, code=0):
    def no_number(text):
        raise AssertionError(f"{text} is no JSON")

    return json.loads(run(capsys, *arguments, "--json", code=code), parse_constant=no_number)


def refuse(capsys, *arguments):
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as stop:  # argparse's own errors
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    return err


def narrow(out):
    return max(len(line) for line in out.splitlines() if not line.startswith(("source", "overheads", "costs")))


def test_users(capsys):
    out = run(capsys, *ASK, "--concurrency", "16")
    for words in (
        "prompts of 512, 128 generated; 16 users",
        "time to first token",
        "per second (",
        "requests in the system",
        "iterations with prompts",
        "sequences, more than there are",
        "way through the server",
        "wait for an iteration",
        "overheads fitted on trtllm",
        "; kernels are of version 1.",
        "90 % intervals",
    ):
        assert words in " ".join(out.split()), words
    assert narrow(out) <= 120
    found = as_json(capsys, *ASK, "--concurrency", "16")
    assert found["keeps_limits"]
    assert found["workload"]["concurrency"] == 16
    for name in ("ttft_ms", "tpot_ms", "generated_tokens_per_s", "total_tokens_per_s"):
        assert found[name]["low"] < found[name]["value"] < found[name]["high"]
    state = found["state"]
    per_request = found["ttft_ms"]["value"] + 127 * found["tpot_ms"]["value"]
    assert state["requests_per_s"] * per_request / 1e3 == pytest.approx(16, rel=1e-5)
    assert found["generated_tokens_per_s"]["value"] == pytest.approx(128 * state["requests_per_s"])


def test_a_rate_and_lengths_that_differ(capsys):
    arguments = ["estimate", "--serving", "--prefill", "400:512", "--decode", "100:128", "--request-rate", "3.5"]
    out = run(capsys, *arguments)
    assert "prompts of 400:512, 100:128 generated; 3.5 requests per second" in " ".join(out.split())
    found = as_json(capsys, *arguments)
    assert found["state"]["requests_per_s"] == pytest.approx(3.5, rel=1e-4)
    assert found["state"]["queue_ms"] < 0.01 * found["state"]["ttft_ms"]  # there are places for hundreds
    for name in ("generated_tokens_per_s", "total_tokens_per_s_per_gpu"):
        assert found[name]["low"] == found[name]["value"] == found[name]["high"]
    assert out.count("as asked") == 3


def test_a_rate_that_few_places_can_just_serve(capsys):
    """Requests wait for a place then, and users see it."""
    ask = [*ASK, "--max-batch-size", "4"]
    most = as_json(capsys, *ask, "--concurrency", "4")["state"]["requests_per_s"]
    calm, busy = (as_json(capsys, *ask, "--request-rate", share * most)["state"] for share in (0.3, 0.9))
    assert calm["queue_ms"] < 0.2 * calm["ttft_ms"]
    assert busy["queue_ms"] > 0.5 * busy["ttft_ms"]
    assert busy["ttft_ms"] - busy["queue_ms"] < 2 * calm["ttft_ms"]
    assert "are more than can be served" in refuse(capsys, *ask, "--request-rate", 1.1 * most)
    out = run(capsys, *ask, "--request-rate", 0.97 * most, "--check")
    assert "users in step" not in out


def test_parts_of_the_time_to_the_first_token(capsys):
    found = as_json(capsys, *ASK, "--engine", "vllm", "--concurrency", "16")
    state, way = found["state"], fitted(found).overheads.request_ms
    assert state["way_ms"] == way > 0
    parts = way + state["wait_ms"] + state["queue_ms"] + state["chunks"] * state["mixed_iteration_ms"]
    assert found["ttft_ms"]["value"] == pytest.approx(parts)


def fitted(found):
    (one,) = [one for one in calibrations() if one.label == found["calibrated"]]
    return one


def test_a_gpu_that_nothing_was_measured_on(capsys):
    """The same overheads, and the intervals of runs elsewhere."""
    words = "no measured runs of this GPU and model: wider intervals"
    for gpu, here in (("h100", True), ("l40s", False)):
        ask = [*ASK, "--gpu", gpu, "--concurrency", "4"]
        found = as_json(capsys, *ask)
        one = fitted(found)
        assert found["measured_here"] == here == ("llama-3.1-8b" in one.models and f"{gpu}_sxm" in one.gpus)
        width = math.log(found["ttft_ms"]["high"] / found["ttft_ms"]["value"])
        assert width >= (one.widths if here else one.elsewhere)["ttft"] * (1 - 1e-9)
        assert (words in run(capsys, *ask)) != here
    bare = run(capsys, *ASK, "--gpu", "b200", "--engine", "sglang", "--concurrency", "4")
    assert "no measured runs of this engine: kernels without overheads, and wider intervals" in bare


def test_tensor_parallelism_is_per_gpu_too(capsys):
    found = as_json(capsys, *ASK, "--concurrency", "16", "--tp", "2")
    for name in ("generated_tokens_per_s", "total_tokens_per_s"):
        assert found[f"{name}_per_gpu"]["value"] == pytest.approx(found[name]["value"] / 2)
    assert "  per GPU " in run(capsys, *ASK, "--concurrency", "16", "--tp", "2")


def test_the_check_agrees(capsys):
    arguments = ["estimate", "--serving", "--prefill", "300:512", "--decode", "64:128", "--concurrency", "12"]
    found = as_json(capsys, *arguments, "--check")
    seen = found["simulated"]
    assert seen["tpot_ms"] == pytest.approx(found["tpot_ms"]["value"], rel=0.05)
    assert seen["generated_tokens_per_s"] == pytest.approx(found["generated_tokens_per_s"]["value"], rel=0.05)
    assert seen["requests"] > 100
    out = run(capsys, *ASK, "--concurrency", "4", "--check")
    assert "simulated" in out
    assert narrow(out) <= 120


def test_users_in_step_are_an_explanation_where_they_are_one(capsys):
    step, other = "users who begin together stay in step", "users in step are not why"
    out = " ".join(run(capsys, *ASK, "--concurrency", "8", "--check").split())
    assert step in out
    assert "with prompts of 410:512 and answers of 102:128 the two agree" in out
    answers = run(
        capsys, "estimate", "--serving", "--prefill", "512", "--decode", "90:128", "--concurrency", "8", "--check"
    )
    assert other not in answers
    assert step not in run(capsys, *ASK, "--concurrency", "1", "--check")
    rate = run(capsys, *ASK, "--request-rate", "2", "--check")
    assert "means of 1,9" in rate  # of 2,000
    assert step not in rate
    assert other not in rate


def test_a_full_cache_evicts_and_is_said_to(capsys):
    ask = ["estimate", "--serving", "--engine", "vllm", "--prefill", "4000", "--decode", "500:2000"]
    words = "the cache is full, and vllm then evicts sequences"
    assert words in " ".join(run(capsys, *ask, "--concurrency", "300").split())
    assert words not in run(capsys, *ask, "--concurrency", "30")


def test_a_whole_prompt_must_leave_room(capsys):
    """Else the sequences that decode would starve it."""
    ask = [*ASK, "--max-num-tokens", "520", "--concurrency", "40"]
    found = as_json(capsys, *ask)
    assert (found["state"]["limit"], found["state"]["slots"]) == ("iteration size", 9)
    assert "sequences: more leave no room for a prompt in an iteration" in " ".join(run(capsys, *ask).split())


def test_a_sweep_marks_the_best(capsys):
    out = run(capsys, *ASK, "--max-tpot", "12", "--max-batch-size", "64")
    assert narrow(out) <= 120
    found = as_json(capsys, *ASK, "--max-tpot", "12ms", "--max-ttft", "0.3s", "--max-batch-size", "64")
    kept = [one for one in found["sweep"] if one["tpot_ms"]["value"] <= 12 and one["ttft_ms"]["value"] <= 300]
    best = found["generated_tokens_per_s"]["value"]
    assert best >= max(one["generated_tokens_per_s"]["value"] for one in kept)
    assert (found["tpot_ms"]["value"], found["ttft_ms"]["value"]) < (12, 300)
    assert f"* {found['workload']['concurrency']}" in out


def test_limits_that_do_not_hold(capsys):
    out = run(capsys, *ASK, "--concurrency", "16", "--max-tpot", "1", "--max-ttft", "1", code=3)
    assert "! time per output token is " in out
    assert "! time to first token is " in out
    out = run(capsys, *ASK, "--max-tpot", "1", "--max-batch-size", "16", code=3)
    assert "! no number of users keeps the limits; with 1 user time per output token is " in out
    assert not as_json(capsys, *ASK, "--max-tpot", "1", "--max-batch-size", "8", code=3)["keeps_limits"]


def test_limits_that_exclude_each_other_show_the_nearest(capsys):
    """One user keeps neither; more users only move away."""
    found = as_json(capsys, *ASK, "--max-tpot", "1", "--max-ttft", "1", "--max-batch-size", "16", code=3)

    def worst(one):
        return max(one["tpot_ms"]["value"], one["ttft_ms"]["value"])

    assert worst(found) == min(map(worst, found["sweep"]))


def test_a_variant_beside_its_parent(capsys, folder, llama_8b):
    data = architecture_to_json(llama_8b[1])
    for block in data["blocks"][8:16]:
        block["ffn"] = "no_op"
    (folder / "child.json").write_text(json.dumps(data))
    variant = [*ASK, "--architecture", "child.json", "--concurrency", "8"]
    out = run(capsys, *variant, "--check")
    assert "llama-3.1-8b" in out
    assert "ratio" in out
    assert narrow(out) <= 120
    found = as_json(capsys, *variant)
    assert found["tpot_ms"]["value"] < found["baseline"]["tpot_ms"]["value"]


def test_a_parent_that_does_not_fit(capsys):
    arguments = [*ASK, "--model", "llama-3.1-70b", "--architecture", "nvidia/Llama-3_3-Nemotron-Super-49B-v1"]
    arguments += ["--gpu", "h200", "--engine", "vllm", "--concurrency", "2"]
    out = run(capsys, *arguments)
    assert "llama-3.1-70b is not shown: llama-3.1-70b does not fit: weights take " in out
    assert "does not fit" in as_json(capsys, *arguments)["baseline"]["why_not"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--concurrency", "0"], "concurrency must be a whole number of at least 1, not 0"),
        (["--request-rate", "0"], "the request rate must be above 0"),
        (["--request-rate", "1e6"], "are more than can be served"),
        (["--concurrency", "2", "--request-rate", "2"], "not allowed with"),
        (["--concurrency", "2", "--batch", "2"], "--batch is of a static batch"),
        (["--prefill", "9:"], "--prefill: '9:' is no length"),
        (["--decode", "9:8"], "--decode: the longest length, 8, must not be below the shortest, 9"),
        (["--decode", "1", "--concurrency", "1"], "answers of one token"),
        (["--max-ttft", "fast"], "--max-ttft: 'fast' is not a duration"),
        (["--max-ttft", "0"], "--max-ttft: '0ms' must be above 0"),
        (["--max-tpot", "-5ms"], "one that begins with - is given as --option=VALUE"),
        (["--max-tpot=-5ms"], "--max-tpot: '-5ms' is not a duration"),
        (["--max-num-tokens", "256"], "512 tokens are more than an iteration's 256; use --chunked-prefill"),
        (["--max-num-tokens", "0"], "max_num_tokens must be a whole number of at least 1, not 0"),
        (["--model", "llama-3.1-70b", "--concurrency", "1"], "use fewer bytes per weight or more GPUs (--tp)"),
        (["--memory-fraction", "2", "--concurrency", "1"], "the memory fraction must be above 0"),
    ],
)
def test_bad_input_of_an_estimate(capsys, arguments, words):
    assert words in refuse(capsys, *ASK, *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--concurrency", "2"], "--concurrency needs --serving"),
        (["--no-chunked-prefill"], "--chunked-prefill needs --serving"),
        (["--check"], "--check needs --serving"),
        (["--prefill", "100:200"], "--prefill '100:200' is no number of tokens; ranges need --serving"),
    ],
)
def test_a_static_batch_has_no_users(capsys, arguments, words):
    assert words in refuse(capsys, "estimate", *arguments)


def test_parts_of_prompts_can_be_asked_for(capsys):
    arguments = [*ASK, "--concurrency", "4", "--max-num-tokens", "300", "--chunked-prefill"]
    found = as_json(capsys, *arguments)
    assert found["scheduler"]["chunked"]
    assert found["state"]["chunks"] == 2
    assert "2 parts of each" in run(capsys, *arguments)


@pytest.fixture
def quicker(capsys):
    """Tokens per second that the parent does not reach with so many users on one GPU, but a smaller model does."""

    def than_parent(users):
        found = as_json(capsys, *FIND, "--concurrency", users, "--min-throughput", 1)
        return f"{1.2 * found['serving']['parent']['estimate']['generated_tokens_per_s']['value']:.0f}"

    return than_parent


def test_a_search(capsys, quicker):
    least = quicker(32)
    out = run(capsys, *FIND, "--concurrency", "4,32", "--min-throughput", least)
    for words in (
        "in-flight batching",
        "proven best",
        "served by itself: ",
        "own steady state",
        "overheads fitted on trtllm",
        "times added up lay ",
    ):
        assert words in out, words
    assert max(len(line) for line in out.splitlines() if not line.startswith(("costs", "scores", "overheads"))) <= 120
    found = as_json(capsys, *FIND, "--concurrency", "4,32", "--min-throughput", least)
    served = found["serving"]
    assert found["title"].endswith(", in-flight batching")
    assert served["concurrency"] == found["solutions"][0]["batch_size"]
    assert all(limit["holds"] for limit in served["own"]["limits"])
    own = served["own"]["estimate"]
    assert own["generated_tokens_per_s"]["value"] >= float(least)
    linear = found["solutions"][0]["values"]
    assert linear["throughput"] == pytest.approx(own["generated_tokens_per_s"]["value"], rel=0.01)
    assert linear["tpot"] == pytest.approx(own["tpot_ms"]["value"] / 1e3, rel=0.01)


def test_a_search_over_gpus(capsys, quicker):
    least = quicker(32)
    arguments = [*FIND, "--concurrency", "32,64", "--tp", "2,1", "--min-throughput", least]
    found = as_json(capsys, *arguments)
    tried = {one["tensor_parallel"]: one for one in found["serving"]["tried"]}
    assert set(tried) == {1, 2}
    best = min(tried, key=lambda gpus: (tried[gpus]["objective"], gpus))
    assert found["serving"]["tensor_parallel"] == best
    (limit,) = [limit for limit in found["limits"] if limit["resource"] == "throughput"]
    assert limit["low"] == pytest.approx(float(least) * best)
    assert "by tensor parallelism" in run(capsys, *arguments)


def test_a_search_without_an_answer(capsys):
    out = run(capsys, *FIND, "--concurrency", "4", "--max-tpot", "1us", code=3)
    assert "tpot at most 1 us is out of reach" in out
    assert as_json(capsys, *FIND, "--concurrency", "4", "--max-tpot", "1us", code=3)["outcome"] == "infeasible"


def test_answers_that_keep_their_limits_win(capsys, monkeypatch):
    """And what does not keep them, served by itself, is no success."""

    def outcome(gpus, keeps, *objectives):
        found = SimpleNamespace(found=[SimpleNamespace(objective=one) for one in objectives])
        return SimpleNamespace(tensor_parallel=gpus, keeps=keeps, outcome=found)

    best_first = [
        outcome(2, True, 5.0),
        outcome(4, True, 6.0),
        outcome(1, False, 1.0),
        outcome(8, False),
        outcome(3, False),
    ]
    jumbled = [best_first[place] for place in (3, 1, 4, 2, 0)]
    assert sorted(jumbled, key=lambda one: served_loss(one, 1.0)) == best_first
    wrong, low, high = outcome(1, False, 9.0), outcome(4, True, 5.0), outcome(2, True, 6.0)
    assert sorted([wrong, low, high], key=lambda one: served_loss(one, -1.0)) == [high, low, wrong]

    found = serving_search.search_served
    monkeypatch.setattr(
        serving_search, "search_served", lambda *args, **more: replace(found(*args, **more), keeps=False)
    )
    arguments = [*FIND, "--concurrency", "4", "--min-throughput", "1"]
    assert not as_json(capsys, *arguments, code=3)["serving"]["keeps_limits"]
    run(capsys, *arguments, code=3)


def test_a_front(capsys):
    arguments = ["pareto", *FIND[1:], "--concurrency", "4,32", "--max-tpot", "2ms", "--points", "3"]
    front = as_json(capsys, *arguments)
    assert len(front["points"]) >= 3
    assert {point["batch_size"] for point in front["points"]} <= {4, 32}
    assert "one degree of tensor parallelism" in refuse(capsys, *arguments, "--tp", "1,2")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--concurrency", "few"], "--concurrency is auto or whole numbers such as 16,64,128, not 'few'"),
        (["--concurrency", "0"], "--concurrency is auto or whole numbers"),
        (["--concurrency", "4", "--batch-size", "4"], "--batch-size is of static batches"),
        (["--concurrency", "64", "--max-batch-size", "32"], "64 are more than the engine's 32 sequences"),
        (["--concurrency", "4", "--scenario", "128+64"], "--serving takes one --scenario"),
        (["--concurrency", "4", "--tp", "0"], "tensor_parallel must be a whole number of at least 1, not 0"),
        (["--concurrency", "4", "--tp", "two"], "'two' is not a list of whole numbers"),
    ],
)
def test_bad_input_of_a_search(capsys, arguments, words):
    assert words in refuse(capsys, *FIND, *arguments)


def test_a_search_of_static_batches_has_no_users(capsys):
    assert "--tp needs --serving" in refuse(capsys, *FIND[:-1], "--tp", "2")


def test_a_table_measured_live_is_refused(capsys, world, folder):
    write_cost_table(edited(world.table, lambda frame: frame.assign(engine="torch")), folder / "t.parquet")
    assert "was measured live (torch); profile with --source kernels" in refuse(capsys, *FIND, "--concurrency", "4")
