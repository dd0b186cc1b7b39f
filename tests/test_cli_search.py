"""The search command: what it prints and writes, its exit codes, and that bad input is one line on stderr."""

import json
from pathlib import Path

import pandas as pd
import pytest

from puzzlebench.cli import main
from puzzlebench.model.blocks import architecture_from_json, architecture_to_json, block_name
from puzzlebench.model.space import default_space
from puzzlebench.model.spec import parent_architecture
from puzzlebench.profiling.cost_table import CostTable, write_cost_table
from puzzlebench.profiling.profile import Grid
from puzzlebench.scenario import Precision
from puzzlebench.scores import parameter_scores, write_score_table
from puzzlebench.searching.recheck import recheck
from puzzlebench.searching.scenarios import parse_scenario
from puzzlebench_search.cases import CaseOutcome, CasesResult

from .searching.conftest import edited, make_world, shortened

GRID = Grid(batch_sizes=(1, 4), prefill_lens=(128, 512), context_lens=(128, 512, 1024))
ASK = ("--costs", "t.parquet", "--scores", "params", "--scenario", "512+128")
ENDS = (*ASK, "--max-memory", "2900MiB", "--min-throughput", "500")


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
    (tmp_path / "t.parquet").write_bytes(written.read_bytes())
    return tmp_path


def run(capsys, *arguments, code=0):
    """What a search prints; progress goes to stderr."""
    assert main(["search", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert "error" not in err
    assert "Traceback" not in err
    return out


def as_json(capsys, *arguments, code=0):

    def no_number(text):
        raise AssertionError(f"{text} is no JSON")

    return json.loads(run(capsys, *arguments, "--json", code=code), parse_constant=no_number)


def refuse(capsys, folder, *arguments):
    """The one line that a bad command line prints."""
    before = sorted(folder.iterdir())
    try:
        code = main(["search", *map(str, arguments)])
    except SystemExit as stop:  # argparse's own errors
        code = stop.code
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert sorted(folder.iterdir()) == before
    return err


def write_table(world, edit):
    write_cost_table(edited(world.table, edit), Path("t.parquet"))


def write_csv(world, edit=lambda frame: None, name="s.csv"):
    frame = world.scores.frame[["layer", "block", "score"]].copy()
    changed = edit(frame)
    (frame if changed is None else changed).to_csv(name, index=False)


CSV = ("--costs", "t.parquet", "--scores", "s.csv", "--scenario", "512+128")
SAID = ("--score-metric", "kl", "--score-direction", "minimise")


def test_prints_what_was_found(capsys, world):
    out = run(capsys, *ENDS, "--diverse", "2", "--alpha", "0.5", "--compare")
    for words in (
        "llama-3.1-8b on h100_sxm (trtllm",
        "scenario 512+128: prompts of 512, 128 generated",
        "limits: memory at most 2.832 GiB, throughput at least 500 tokens/s",
        "3 layers, 72 choices; scores: parameters_removed, lower is better",
        "proven best",
        "binds: score,",
        "parent, batch ",
        "! the parent does not keep this limit",
        "solutions that differ",
        "layers of 2  ",
        "other ways to choose",
        "greedy",
        "costs: t.parquet (",
        "scores: params (",
    ):
        assert words in out, words
    assert max(len(line) for line in out.splitlines() if not line.startswith(("costs", "scores"))) <= 120


def test_names_in_brackets_are_printed(capsys, world):
    out = run(
        capsys,
        *(*ASK[:-1], "chat:512+128,max-ttft=20ms", "--scenario", "long:512+500"),
        *("--confidence", "0.95", "--errors", "independent", "--engine-rules", "vllm", "--compare"),
        *("--fix", "0=parent", "--exclude", "1-2=*+no_op"),
    )
    for words in (
        "scenario chat: prompts of 512, 128 generated; ttft at most 20 ms",
        "memory at most 72 GiB (90 % of the GPU)",
        " more taken out by rules",
        "memory[chat]",
        "throughput[long]",
        "at 0.95",
        "limits hold with 0.95 confidence each (independent errors); without it the score could be ",
        "taken out, 23: fix 0=parent",
        "taken out, 12: exclusion 1-2=*+no_op",
        " does not load [ffn_linear]: ",
    ):
        assert words in out, words
    wide = [line for line in out.splitlines() if len(line) > 120]
    assert all(line.startswith(("costs", "scores", "taken out")) for line in wide)


def test_json_is_what_the_table_says(capsys, world):
    data = as_json(capsys, *ENDS, "--diverse", "2", "--compare")
    best = data["solutions"][0]
    architecture = architecture_from_json(best["architecture"])
    check = recheck(world.table, world.spec, architecture, [parse_scenario("512+128")], best["batch_size"])
    assert best["values"] == check.values
    assert check.values["memory"] <= 2900 * 2**20
    assert check.values["throughput"] >= 500
    assert data["settings"] == {
        "batch_sizes": [1, 4],
        "diverse": 2,
        "alpha": 0.8,
        "method": "auto",
        "time_limit": data["settings"]["time_limit"],
        "confidence": None,
    }
    assert data["parent"]["values"]["params"] > best["values"]["params"]
    assert all(row["worse_by"] is None or row["worse_by"] >= 0 for row in data["baselines"])
    assert data["outcome"] == "optimal"
    assert data["memory_limit_is_default"] is False


def test_scores_of_a_csv(capsys, world):
    """Scores that say layer 1 matters least, and in the other direction the same with a minus."""

    def unequal(frame):
        frame["score"] = [
            score * (1 if layer != 1 else 1e-3) for layer, score in zip(frame.layer, frame.score, strict=True)
        ]

    write_csv(world, unequal)
    down = as_json(capsys, *CSV, *SAID, "--max-params", "1.6B")["solutions"][0]
    kept = down["architecture"]["blocks"]
    assert [f"{kept[layer]['attention']}+{kept[layer]['ffn']}" for layer in (0, 2)] == ["gqa_8+mlp_14336"] * 2

    def upwards(frame):
        unequal(frame)
        frame["score"] = -frame["score"]

    write_csv(world, upwards, "S.CSV")
    said = ("--score-metric", "accuracy", "--score-direction", "maximise", "--max-params", "1.6B")
    up = as_json(capsys, "--costs", "t.parquet", "--scores", "S.CSV", "--scenario", "512+128", *said)["solutions"][0]
    assert up["architecture"] == down["architecture"]
    assert up["objective"] == pytest.approx(-down["objective"])
    assert "higher is better" in run(capsys, *CSV[:3], "S.CSV", *CSV[4:], *said)


def test_out_is_a_folder_that_estimate_reads(capsys, folder, world):
    assert "wrote o: search.json, architecture.json, ..." in run(capsys, *ENDS, "--diverse", "3", "--out", "o")
    names = ["architecture.2.json", "architecture.3.json", "architecture.json", "search.json"]
    assert sorted(path.name for path in (folder / "o").iterdir()) == names
    data = json.loads((folder / "o" / "search.json").read_text())
    for place, name in ((0, "architecture.json"), (1, "architecture.2.json")):
        assert json.loads((folder / "o" / name).read_text()) == data["solutions"][place]["architecture"]
    run(capsys, *ENDS, "--out", "o")
    assert sorted(path.name for path in (folder / "o").iterdir()) == ["architecture.json", "search.json"]
    assert as_json(capsys, *ENDS, "--out", "o")["solutions"] != []
    assert "wrote o/search.json" in run(capsys, *ASK, "--max-memory", "1GiB", "--out", "o", code=3)
    assert [path.name for path in (folder / "o").iterdir()] == ["search.json"]
    assert json.loads((folder / "o" / "search.json").read_text())["outcome"] == "infeasible"


def test_estimate_takes_what_search_wrote(capsys, folder):
    assert main(["profile", "--batch-sizes", "1", "--prefill-lens", "128", "--context-lens", "128,256"]) == 0
    (table,) = folder.glob("llama*.parquet")
    run(capsys, "--costs", table.name, "--scores", "params", "--max-tpot", "5ms", "--out", "o")
    arguments = ["--architecture", "o/architecture.json", "--prefill", "128", "--decode", "16", "--json"]
    assert main(["estimate", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["speed_up"] > 1


def test_infeasible_limits_are_explained(capsys):
    out = run(capsys, *ASK, "--max-memory", "2.6GiB", "--min-params", "1.4B", code=3)
    for words in (
        "no architecture keeps these limits at any of the batch sizes",
        "memory at most 2.6 GiB and params at least 1.4 B cannot hold together",
        "! memory at most 2.6 GiB",
        "smallest change in all",
        "what each batch size would need",
    ):
        assert words in out, words
    assert max(len(line) for line in out.splitlines() if not line.startswith(("costs", "scores"))) <= 120
    out = run(capsys, *ASK, "--max-memory", "1GiB", "--batch-size", "4", code=3)
    assert "no architecture keeps these limits at batch 4" in out
    assert "memory at most 1 GiB is out of reach" in out
    assert "what each batch size" not in out


@pytest.mark.parametrize("errors", ["correlated", "independent"])
def test_infeasible_limits_with_confidence(capsys, errors):
    asked = (*ASK, "--max-ttft", "1us", "--confidence", "0.95", "--errors", errors)
    out = run(capsys, *asked, code=3)
    assert "ttft at most 1 us with its margin is out of reach" in out
    assert "margins are of 0.95 confidence in each limit, errors correlated" in out
    assert ("wider than the independent ones asked for" in out) == (errors == "independent")
    explanation = as_json(capsys, *asked, code=3)["explanation"]
    assert explanation["errors_taken_as"] == "correlated"
    assert {one["asked"]["column"] for one in explanation["limits"]} == {"ttft", "memory"}


def test_a_scorer_of_ones_own(capsys, folder):
    (folder / "my_own_scorer.py").write_text(
        "import zlib\n\ndef score(architecture):\n    return zlib.crc32(str(architecture.blocks).encode()) / 2**32\n"
    )
    asked = (*ENDS, "--scorer", "my_own_scorer:score", "--evaluations", "12")
    data = as_json(capsys, *asked, "--out", "o")
    refined = data["refined"]
    assert refined["whole_score"] < refined["whole_score_of_first"], "one of twelve is better than the first"
    assert refined["evaluations"] == 12
    assert all(limit["holds"] for limit in refined["limits"])
    assert json.loads((folder / "o" / "architecture.refined.json").read_text()) == refined["architecture"]
    out = " ".join(run(capsys, *asked).split())
    assert f"re-scored as whole models (12 scored; all 12 evaluations were used): {refined['whole_score']:.6g}, " in out
    assert f"better than the search's best at {refined['whole_score_of_first']:.6g}; its sum of single scores" in out


def test_a_shipped_table(capsys):
    costs = ("--costs", "amd_epyc_2c/embedded.torch.fp32-fp32", "--scores", "params", "--scenario", "128+32")
    data = as_json(capsys, *costs, "--max-latency", "150ms", "--time-limit", "60")
    assert data["gpu"] == "amd_epyc_2c"
    assert data["solutions"][0]["values"]["latency"] <= 0.15


def test_limits_that_are_not_given(capsys):
    assert as_json(capsys, *ASK)["memory_limit_is_default"] is True
    free = as_json(capsys, *ASK, "--max-memory", "none")
    assert (free["limits"], free["memory_limit_is_default"]) == ([], False)
    assert free["solutions"][0]["objective"] == 0
    assert "limits: none" in run(capsys, *ASK, "--max-memory", "none")
    default = as_json(capsys, *ASK[:4])
    assert [scenario["name"] for scenario in default["scenarios"]] == ["512+128"]


def test_a_parent_that_the_table_lacks_is_not_shown(capsys, world):
    write_table(world, lambda frame: frame.query("sub_block != 'gqa_8'"))
    write_csv(world)
    asked = (*CSV, *SAID, "--exclude", "*=gqa_8+*")
    assert as_json(capsys, *asked)["parent"] is None
    out = run(capsys, *asked)
    assert "the parent is not shown: the cost table lacks cells of its blocks" in out
    assert "ratio" not in out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--max-memory", "lots"], "max-memory: 'lots' is not a number of bytes; give one such as 80GiB or 80GB"),
        (["--max-ttft", "900"], "max-ttft: '900' has no unit; give a unit: 900ms or 0.9s"),
        (["--min-throughput", "6000/s"], "min-throughput: '6000/s' is not a number of tokens per second"),
        (["--max-params", "0"], "max-params: '0' must be above 0"),
        (["--max-memory", "1GiB", "--min-memory", "2GiB"], "memory cannot be at least 2 GiB and at most 1 GiB"),
        (["--scenario", "1024"], "give prompt and generated tokens, such as 2048+512 or chat:2048+512"),
        (["--scenario", "512+64,max-speed=3"], "scenario '512+64,max-speed=3': "),
        (["--scenario", "512+128"], "two scenarios are named 512+128; name them"),
        (["--scenario", "long:4096+64"], "scenario long: prompts of 4096 tokens lie outside the cost table's prefill"),
        (["--scenario", "long:512+4000"], "scenario long: steps that attend to 513 to 4511 tokens lie outside"),
        (["--scenario", "one:512+1", "--max-tpot", "3ms"], "scenario one: with 1 generated token there is no time"),
        (["--batch-size", "3"], "the cost table has no batch size 3; it has 1, 4"),
        (["--batch-size", "1,x"], "--batch-size is auto or whole numbers such as 1,8,64, not '1,x'"),
        (["--confidence", "0.3"], "the confidence must be above 0.5 and below 1, not 0.3"),
        (["--confidence", "nan"], "the confidence must be above 0.5 and below 1, not nan"),
        (["--errors", "independent"], "--errors needs --confidence, such as 0.95"),
        (["--errors", "correlated"], "--errors needs --confidence, such as 0.95"),
        (["--engine-rules", "tgi"], "tgi"),
        (["--fix", "parent"], "'parent' is not layers=block; give a rule such as 5=gqa_8+*, 0-3=parent"),
        (["--fix", "0-9=parent"], "'0-9=parent' names layer 9, but the layers are 0 to 2"),
        (["--fix", "1=gqa_7+*"], "fix '1=gqa_7+*' matches no scored block of layer 1"),
        (["--exclude", "2=*+*"], "exclusion '2=*+*' leaves layer 2 without a choice"),
        (["--exclude", "1=gqa_3+*"], "exclusion '1=gqa_3+*' matches no scored block of layer 1"),
        (["--diverse", "0"], "the number of solutions must be at least 1, not 0"),
        (["--alpha", "1.5"], "alpha must be at least 0 and below 1, not 1.5"),
        (["--time-limit", "0"], "the time limit must be a number of seconds above 0, not 0.0"),
        (["--evaluations", "0"], "the number of evaluations must be at least 1, not 0"),
        (["--scorer", "nothing"], "'nothing' does not name a scorer; expected package.module:function"),
        (["--scorer", "no_module_x:score"], "the scorer 'no_module_x:score' cannot be loaded: No module named"),
        (["--score-metric", "kl"], "--scores params says itself what it is; leave out --score-metric"),
        (["--out", "t.parquet"], "cannot write to t.parquet: it is a file"),
        (["--out", "no/o"], "cannot write to no/o: the folder it would be in does not exist"),
        (["--solver", "gurobi"], "invalid choice: 'gurobi'"),
        (["--costs", "none.parquet"], "none.parquet: no such cost table"),
        (["--scores", "none.parquet"], "none.parquet: no such score table"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(capsys, folder, more, words):
    assert words in refuse(capsys, folder, *ASK, *more)


def test_a_folder_without_permission(capsys, folder, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "cannot write to o: permission denied" in refuse(capsys, folder, *ASK, "--out", "o")


def test_scores_of_another_model(capsys, folder, world):
    for name, layers, words in (
        ("llama-3.2-1b", 3, "the scores are of llama-3.2-1b, the costs of llama-3.1-8b"),
        ("llama-3.1-8b", 2, "the scores are of 2 layers, the costs of llama-3.1-8b, a model with 3"),
    ):
        spec = shortened(name, layers)
        table = parameter_scores(spec, default_space(spec), parent_architecture(spec))
        write_score_table(table, folder / "s.parquet")
        assert words in refuse(capsys, folder, "--costs", "t.parquet", "--scores", "s.parquet")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda frame: frame.assign(score=frame.score.astype(str).where(frame.index != 30, "nan")),
            "s.csv, line 32: layer 1, gqa_4+linear: score must be finite, not 'nan'",
        ),
        (lambda frame: frame.drop(index=30), "layer 1 lacks gqa_4+linear"),
        (lambda frame: frame.drop(index=24), "layer 1 lacks gqa_8+mlp_14336"),
        (lambda frame: frame.query("layer < 2"), "layer 2 has no scores"),
        (lambda frame: frame.assign(layer=frame.layer + 1), "layer 3 (gqa_8+mlp_14336) is none of the parent's 0 to 2"),
        (
            lambda frame: frame.assign(block=frame.block.str.replace("mlp_7168", "mlp_7424")),
            "layer 0, gqa_8+mlp_7424: the cost table has no cells for ffn mlp_7424; it has mlp_14336, mlp_7168",
        ),
    ],
)
def test_a_csv_that_does_not_fit(capsys, folder, world, edit, words):
    write_csv(world, edit)
    assert words in refuse(capsys, folder, *CSV, *SAID)


def test_a_csv_needs_words(capsys, folder, world):
    write_csv(world)
    assert "give --score-direction minimise or maximise" in refuse(capsys, folder, *CSV, "--score-metric", "kl")
    assert "give --score-metric, such as kl" in refuse(capsys, folder, *CSV, "--score-direction", "minimise")


def test_a_missing_cell_is_named(capsys, folder, world):
    gone = "sub_block == 'gqa_4' and phase == 'decode' and batch_size == 4 and context_len == 512"
    write_table(world, lambda frame: frame.query(f"not ({gone})"))
    line = refuse(capsys, folder, *ASK)
    assert (
        "layer 0, gqa_4+mlp_14336: the cost table has no cell for attention gqa_4, decode, batch 4, length 512" in line
    )
    assert "leave batch size 4 out with --batch-size" in line
    assert as_json(capsys, *ASK, "--batch-size", "1")["outcome"] == "optimal"


def test_two_tables_in_one(capsys, folder, world):
    frame = pd.concat([world.table.frame, world.table.frame.assign(gpu="h200_sxm")], ignore_index=True)
    write_cost_table(CostTable(frame=frame, metadata=world.table.metadata), folder / "t.parquet")
    line = refuse(capsys, folder, *ASK)
    assert "the cost table mixes gpu h100_sxm and h200_sxm; give a table with one gpu" in line


def test_a_corrupt_table(capsys, folder):
    (folder / "t.parquet").write_bytes(b"PAR1 no more")
    assert "t.parquet is not a readable cost table" in refuse(capsys, folder, *ASK)


@pytest.mark.parametrize("options", [(), ("--diverse", "2"), ("--compare",), ("--confidence", "0.9")])
def test_an_interruption_leaves_nothing(capsys, folder, monkeypatch, options):
    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("puzzlebench_search.cases.solve", stop)
    before = sorted(folder.iterdir())
    assert main(["search", *ENDS, *options, "--out", "o"]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == ("", "puzzlebench: interrupted\n")
    assert sorted(folder.iterdir()) == before


def test_an_interruption_leaves_what_was_there(capsys, folder, monkeypatch):
    run(capsys, *ENDS, "--out", "o")
    before = {path.name: path.read_text() for path in (folder / "o").iterdir()}

    def stop(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("puzzlebench.searching.compare.run_baseline", stop)
    assert main(["search", *ENDS, "--compare", "--out", "o"]) == 130
    assert {path.name: path.read_text() for path in (folder / "o").iterdir()} == before


def test_a_scorer_that_fails_ends_in_one_line(capsys, folder):
    (folder / "failing_scorer.py").write_text("def score(architecture):\n    raise OSError('out of disk')\n")
    assert main(["search", *ENDS, "--scorer", "failing_scorer:score", "--out", "o"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("puzzlebench: error: the scorer failed on ")
    assert not (folder / "o").exists()


def test_the_time_limit_may_pass_before_anything_is_found(capsys, folder, monkeypatch):
    def stopped(problems, **_options):
        outcomes = tuple(CaseOutcome(status="stopped", bound=0.0) for _ in problems)
        return CasesResult(best=None, result=None, outcomes=outcomes, seconds=1.0)

    monkeypatch.setattr("puzzlebench.searching.search.solve_cases", stopped)
    line = refuse(capsys, folder, *ENDS, "--time-limit", "1.5")
    assert "the time limit of 1.5 s passed before any architecture was found, and there may be none" in line


def test_names_of_blocks_are_those_of_the_files(capsys, world):
    blocks = as_json(capsys, *ASK)["solutions"][0]["architecture"]
    assert blocks == architecture_to_json(world.parent)
    assert "layers  0-2 " + block_name(world.parent.blocks[0]) in run(capsys, *ASK)


PARETO = ("pareto", *ENDS)


def pareto(capsys, *arguments):
    assert main([*PARETO, *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_a_front_is_printed_and_written(capsys, folder):
    pytest.importorskip("matplotlib")
    out = pareto(capsys, "--points", "4", "--csv", "f.csv", "--out", "f.json", "--plot", "f.png")
    answer = json.loads(Path("f.json").read_text())
    rows = pd.read_csv("f.csv")
    assert len(rows) == len(answer["points"]) > 1
    assert rows["y"].tolist() == sorted(rows["y"]), "more tokens per second cost score"
    assert rows["x"].tolist() == sorted(rows["x"])
    assert f"{len(rows)} points, {len(rows)} proven" in out
    assert (rows["memory"] <= 2900 * 2**20).all()
    assert (rows["throughput"] >= 500 * (1 - 1e-9)).all()
    assert Path("f.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in folder.iterdir()} == {"t.parquet", "f.csv", "f.json", "f.png"}


def test_a_front_with_confidence_costs_score(capsys):
    plain = json.loads(pareto(capsys, "--points", "3", "--json"))["points"]
    safe = json.loads(pareto(capsys, "--points", "3", "--confidence", "0.95", "--json"))["points"]
    assert max(point["x"] for point in safe) <= max(point["x"] for point in plain) * (1 + 1e-9)
    assert min(point["y"] for point in safe) >= min(point["y"] for point in plain) - 1e-6


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--x", "speed"), "speed"),
        (("--x", "score"), "score"),
        (("--points", "0"), "points"),
        (("--plot", "f.pdf"), ".png"),
        (("--plot", "nowhere/f.png"), "nowhere"),
        (("--csv", "nowhere/f.csv"), "nowhere"),
        (("--out", "nowhere/f.json"), "nowhere"),
        (("--confidence", "0.95", "--errors", "independent"), "independent"),
        (("--max-tpot", "1us"), "no architecture keeps the limits"),
    ],
)
def test_a_front_that_cannot_be_is_one_line(capsys, folder, more, words):
    before = sorted(folder.iterdir())
    assert main([*PARETO, *more]) == 2
    out, err = capsys.readouterr()
    *_, last = err.splitlines()
    assert out == ""
    assert last.startswith("puzzlebench: error: ")
    assert words in last
    assert sorted(folder.iterdir()) == before
