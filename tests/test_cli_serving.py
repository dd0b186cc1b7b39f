"""`estimate --serving` and `search --serving`: what they print, exit codes, and one line for what is wrong."""

import json

import pytest

from puzzlebench.cli import main
from puzzlebench.model.blocks import architecture_to_json
from puzzlebench.profiling.cost_table import write_cost_table
from puzzlebench.profiling.profile import Grid
from puzzlebench.scenario import Precision

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
        "overheads of trtllm",
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
    assert found["state"]["queue_ms"] == 0


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
    assert "users who begin together stay in step" in out
    assert "stay in step" not in run(capsys, *ASK, "--request-rate", "2", "--check")
    assert narrow(out) <= 120


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
        "overheads of trtllm",
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
