"""An engine beside puzzlebench: fair at near-ties, unfair to nothing else, and one line where the engine fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

import psutil
import torch

from puzzlebench.child.checkpoints import load_causal_lm
from puzzlebench.exporting import verify_engine
from puzzlebench.exporting.job import ExportJob, run_export
from puzzlebench.exporting.verify import VerifyJob, compare, run_verify
from puzzlebench.exporting.verify_engine import Answer, EngineDiedError, EngineRefusedError, read_answer
from puzzlebench.exporting.verify_reference import open_reference

from .engines_here import run_script_here, state_cache
from .samples import make_samples


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    (child,) = make_samples(tmp_path_factory.mktemp("samples"), ("llama-skipped",))
    return child.folder


@pytest.fixture
def in_this_process(tmp_path, monkeypatch):
    """The script for transformers, called as a function: a process of its own takes seconds to import."""
    run_script_here(tmp_path, monkeypatch)


def job(child, **changes):
    stated = {"engine": "transformers", "prompts": 2, "prompt_len": 8, "new_tokens": 5, "trust_remote_code": True}
    return VerifyJob(checkpoint=child, **{**stated, **changes})


# Three prompt tokens and two new ones in a vocabulary of four. Row p has the logits after token p.
LOGITS = torch.tensor(
    [[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0], [0.0, 3.0, 0.0, 0.0], [0.5, 0.49, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]
)
PROMPT = [0, 1, 2]


def answer(tokens=(1, 0), *, shift=0.0, prompt_shift=0.0):
    """What an engine with these logits answers; `shift` is added to its log-probabilities."""
    own = LOGITS.log_softmax(-1)
    return Answer(
        engine="none",
        version="1",
        tokens=[list(tokens)],
        logprobs=[[float(own[2, tokens[0]]) + shift, float(own[3, tokens[1]])]],
        prompt_logprobs=[[float(own[0, 1]), float(own[1, 2]) - prompt_shift]],
        stated={},
    )


def compared(found, tolerance=1e-3, **stated):
    return compare([PROMPT], found, [LOGITS], tolerance=tolerance, **stated)


def test_the_same():
    found = compared(answer())
    assert found.passes
    assert (found.tokens, found.equal, found.near_ties, found.first_divergence) == (2, 2, 0, None)
    assert (found.prompt.count, found.generated.count) == (2, 2)
    assert found.prompt.largest < 1e-6
    assert found.verdict.startswith("agrees: 2 of 2 greedy tokens equal; log-probabilities differ by ")
    assert found.verdict.endswith(" in the mean (tolerances 0.001 and 0.0003)")


def test_another_token():
    found = compared(answer((1, 2)))
    assert not found.passes
    assert (found.equal, found.near_ties) == (1, 0)
    divergence = found.first_divergence
    assert (divergence.prompt, divergence.position) == (0, 1)
    assert (divergence.engine_token, divergence.own_token) == (2, 0)
    assert divergence.margin == pytest.approx(0.5)
    assert found.verdict.startswith("DIFFERS: 1 of 2 greedy tokens equal; ")


def test_a_near_tie_is_no_difference():
    """0.01 apart: an engine whose log-probabilities may be off by 0.006 may take either."""
    found = compared(answer((1, 1)), tolerance=0.006)
    assert found.passes
    assert (found.equal, found.near_ties) == (1, 1)
    assert found.first_divergence.margin == pytest.approx(0.01)
    assert "1 of 2 greedy tokens equal and 1 at near-ties" in found.verdict
    assert not compared(answer((1, 1)), tolerance=0.004).passes


def test_a_tie_is_none_either():
    logits = torch.zeros(5, 4)
    own = float(logits.log_softmax(-1)[0, 0])
    tied = Answer(
        engine="none",
        version="1",
        tokens=[[3, 1]],
        logprobs=[[own, own]],
        prompt_logprobs=[[own, own]],
        stated={},
    )
    found = compare([PROMPT], tied, [logits], tolerance=1e-6)
    assert found.passes
    assert found.equal == 2


@pytest.mark.parametrize("changes", [{"shift": 0.01}, {"shift": -0.01}, {"prompt_shift": 0.01}])
def test_other_log_probabilities(changes):
    found = compared(answer(**changes))
    assert not found.passes
    assert max(found.prompt.largest, found.generated.largest) == pytest.approx(0.01, rel=1e-3)
    assert max(found.prompt.mean, found.generated.mean) == pytest.approx(0.005, rel=1e-3)
    assert compared(answer(**changes), tolerance=0.02).passes


@pytest.mark.parametrize("changes", [{"shift": 0.01}, {"prompt_shift": 0.01}])
def test_the_mean_has_a_tolerance_of_its_own(changes):
    """The largest difference of 0.01 is within 0.011, and the mean of 0.005 not within 0.3 times that."""
    found = compared(answer(**changes), tolerance=0.011)
    assert not found.passes
    assert found.mean_tolerance == pytest.approx(0.0033)
    assert found.verdict.endswith("0.01 at most and 0.005 in the mean (tolerances 0.011 and 0.0033)")


def test_bf16_is_not_said_to_agree():
    found = compared(answer(shift=0.01), tolerance=0.2, dtype="bf16")
    assert found.passes
    assert found.verdict.startswith("consistent: 2 of 2 greedy tokens equal; ")
    assert compared(answer((1, 2)), tolerance=0.2, dtype="bf16").verdict.startswith("DIFFERS: ")


def test_a_token_of_no_vocabulary():
    wrong = replace(answer(), tokens=[[1, 4]])
    with pytest.raises(ValueError, match="generated token 4; the vocabulary has 4"):
        compared(wrong)


def test_transformers_runs_an_export_on_its_own(child):
    result = run_verify(job(child))
    assert result["passes"], result["verdict"]
    assert result["engine"] == "transformers"
    assert (result["tokens"], result["equal"]) == (10, 10)
    assert result["prompt"]["count"] == 14
    assert result["prompts"]["source"] == "validation files of Python's standard library"
    assert result["kv_cache"] is None
    json.dumps(result)


@pytest.mark.parametrize(
    ("layers", "passes", "verdict"),
    [
        ({0: 1024, 3: 512}, True, "KV agrees: 1,536 bytes per token, as predicted"),
        ({0: 1024, 3: 1024}, False, "KV DIFFERS: 2,048 bytes per token, 1,536 predicted"),
    ],
)
def test_a_cache_that_is_not_as_predicted_does_not_pass(child, in_this_process, monkeypatch, layers, passes, verdict):
    """llama-skipped caches 2, 0, 0 and 1 heads; the right tokens do not make up for a layer that takes more."""
    state_cache(monkeypatch, layers)
    result = run_verify(job(child))
    assert result["verdict"].startswith("agrees: ")
    assert (result["passes"], result["kv_cache"]["differs"], result["kv_cache"]["verdict"]) == (
        passes,
        not passes,
        verdict,
    )
    json.dumps(result)


def test_code_is_not_run_unasked(child, in_this_process):
    """Without its own class a child does not load; stock Llama refuses layers that differ."""
    wanted = (
        r"transformers does not run .*llama-skipped without the code that lies in it; allow that with --trust-remote"
    )
    with pytest.raises(EngineRefusedError, match=wanted) as caught:
        run_verify(job(child, trust_remote_code=False))
    assert re.search(r"--trust-remote-code \(\w+\)$", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("engine", "trusted", "message"),
    [
        ("vllm", False, "vllm does not run .*: No: x; it was not allowed to run code in it .--trust-remote-code.$"),
        ("vllm", True, "vllm does not run .*: No: x$"),
        ("transformers", True, "transformers does not run .*: No: x$"),
    ],
)
def test_the_flag_is_named_only_where_it_may_help(child, tmp_path, monkeypatch, engine, trusted, message):
    body = "json.dump({'error': 'No: x'}, open(sys.argv[2], 'w'))"
    monkeypatch.setattr(verify_engine, "_SCRIPTS", script(tmp_path, body, engine))
    with pytest.raises(EngineRefusedError, match=message):
        run_verify(job(child, engine=engine, trust_remote_code=trusted))


def test_other_weights_are_found(child, tmp_path, in_this_process):
    """One layer's matrix, a tenth larger."""
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(child, other)
    (file,) = other.glob("*.safetensors")
    state = load_file(file)
    state["model.layers.3.mlp.down_proj.weight"] *= 1.1
    save_file(state, file, metadata={"format": "pt"})
    result = run_verify(job(other, reference=child))
    assert not result["passes"]
    assert max(result["prompt"]["largest"], result["generated"]["largest"]) > 0.01


def test_random_prompts_where_there_is_no_tokenizer(child, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(child, bare)
    (bare / "tokenizer.json").unlink()
    with open_reference(bare) as reference:
        drawn = reference.prompts(3, 7, 2, seed=1)
        assert drawn == reference.prompts(3, 7, 2, seed=1)
        assert drawn != reference.prompts(3, 7, 2, seed=2)
        assert [len(prompt) for prompt in drawn] == [7, 7, 7]
        assert all(3 <= token < 512 for prompt in drawn for token in prompt)
        assert reference.text == "random ids, seed 2"


def test_too_few_positions(child):
    with pytest.raises(ValueError, match=r"has 256 positions; prompts of 250 tokens and 16 generated ones need 266"):
        run_verify(job(child, prompt_len=250, new_tokens=16))


def test_the_reference_is_a_plain_forward(child):
    rows = [[3, 4, 5, 6], [7, 8, 9]]
    with open_reference(child) as reference:
        logits = reference.logits(rows, "fp32")
    assert [tuple(one.shape) for one in logits] == [(4, 512), (3, 512)]
    assert torch.allclose(logits[1], load_causal_lm(child)(torch.tensor([rows[1]])).logits[0], atol=1e-5)


def test_the_reference_of_another_format_is_what_an_import_makes_of_it(child, tmp_path):
    run_export(ExportJob(child=str(child), out=tmp_path / "decilm", format="decilm", engines=()))
    rows = [[3, 4, 5, 6]]
    with open_reference(child) as own, open_reference(tmp_path / "decilm") as imported:
        assert imported.folder != tmp_path / "decilm"
        assert imported.architecture == own.architecture
        assert torch.equal(imported.logits(rows, "fp32")[0], own.logits(rows, "fp32")[0])
    assert not imported.folder.exists()


def script(folder: Path, body: str, engine: str = "transformers") -> Path:
    """A folder of scripts whose one engine does this."""
    file = folder / f"{engine}_engine.py"
    file.write_text(f"import json, sys, time\nrequest = json.load(open(sys.argv[1]))\n{body}\n")
    return folder


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (
            "sys.exit('first\\nsegmentation fault')",
            EngineDiedError,
            "transformers died with exit code 1: segmentation fault",
        ),
        ("sys.exit(7)", EngineDiedError, "transformers died with exit code 7: it said nothing"),
        ("time.sleep(60)", ValueError, "transformers took more than 1 s; give it more with --timeout"),
        ("open(sys.argv[2], 'w').write('{')", ValueError, "transformers answered no JSON"),
        (
            "json.dump({'error': 'no such architecture'}, open(sys.argv[2], 'w'))",
            EngineRefusedError,
            "does not run .*: no such architecture",
        ),
        ("json.dump({'schema': 2}, open(sys.argv[2], 'w'))", ValueError, "schema 2; this version reads 1"),
        ("json.dump([], open(sys.argv[2], 'w'))", ValueError, r"schema \[\]; this version reads 1"),
    ],
)
def test_engines_that_fail(child, tmp_path, monkeypatch, body, kind, message):
    monkeypatch.setattr(verify_engine, "_SCRIPTS", script(tmp_path, body))
    with pytest.raises(ValueError, match=message) as caught:
        run_verify(job(child, timeout=1))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_interpreters_by_relative_path_and_by_name(child, tmp_path, monkeypatch):
    """The engine runs in another folder; links are not followed, since a virtual environment is one."""
    body = "json.dump({'error': 'from ' + sys.executable}, open(sys.argv[2], 'w'))"
    monkeypatch.setattr(verify_engine, "_SCRIPTS", script(tmp_path, body))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python-here").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in ("bin/python-here", "python-here"):
        with pytest.raises(ValueError, match=f"from {tmp_path}/bin/python-here"):
            run_verify(job(child, python=Path(name)))


def test_nothing_is_left_of_an_engine_that_takes_too_long(child, tmp_path, monkeypatch):
    file = tmp_path / "pid"
    body = (
        f"import subprocess\nopen({str(file)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\ntime.sleep(60)"
    )
    monkeypatch.setattr(verify_engine, "_SCRIPTS", script(tmp_path, body))
    with pytest.raises(ValueError, match="took more than 3 s"):
        run_verify(job(child, timeout=3))
    assert gone(int(file.read_text())), "what the engine started still runs"


def gone(pid: int) -> bool:
    """Within ten seconds: a killed process takes a moment to go."""
    for _ in range(100):
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def test_the_engine_ends_with_a_killed_parent(tmp_path):
    """By a signal that nothing can be done about; what the engine started goes too."""
    pids = tmp_path / "pids"
    body = (
        "import os, subprocess\n"
        "started = subprocess.Popen(['sleep', '60'])\n"
        f"open({str(pids)!r} + '.part', 'w').write(f'{{os.getpid()}} {{started.pid}}')\n"
        f"os.rename({str(pids)!r} + '.part', {str(pids)!r})\n"
        "time.sleep(60)"
    )
    asking = (
        "from pathlib import Path\n"
        "from puzzlebench.exporting import verify_engine\n"
        f"verify_engine._SCRIPTS = Path({str(script(tmp_path, body))!r})\n"
        "verify_engine.ask_engine('transformers', Path('.'), [[1, 2]], new_tokens=1, dtype='float32',\n"
        "                         trust_remote_code=False, python=None, timeout=60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", asking], start_new_session=True) as parent:
        for _ in range(300):
            if pids.exists() or parent.poll() is not None:
                break
            time.sleep(0.1)
        engine, started = map(int, pids.read_text().split())
        assert psutil.pid_exists(engine)
        os.kill(parent.pid, signal.SIGKILL)
    assert gone(engine), "the engine still runs"
    assert gone(started), "what the engine started still runs"


def test_the_script_is_run_as_if_it_were_by_itself(child, tmp_path, monkeypatch):
    """Its arguments, its name, and nobody to ask."""
    body = "said = [sys.argv[0], __name__, sys.stdin.read()]\njson.dump({'error': repr(said)}, open(sys.argv[2], 'w'))"
    monkeypatch.setattr(verify_engine, "_SCRIPTS", script(tmp_path, body))
    with pytest.raises(EngineRefusedError) as caught:
        run_verify(job(child))
    assert str(caught.value).endswith(str([str(tmp_path / "transformers_engine.py"), "__main__", ""]))


def good(**changes):
    return {
        "schema": 1,
        "engine": "none",
        "version": "1",
        "tokens": [[1, 2]],
        "logprobs": [[-0.5, -0.25]],
        "prompt_logprobs": [[-1.0, -2.0]],
        **changes,
    }


def test_an_answer():
    assert read_answer(good(), [3], 2).tokens == [[1, 2]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": [[1]]}, r"tokens of lengths \[1\], not \[2\]"),
        ({"tokens": [[1, 2], [3, 4]]}, r"tokens of lengths \[2, 2\], not \[2\]"),
        ({"tokens": None}, "tokens of lengths None"),
        ({"tokens": [[1, 2.5]]}, "2.5 among its tokens"),
        ({"logprobs": [[-0.5, float("nan")]]}, "nan among its logprobs"),
        ({"prompt_logprobs": [[-0.5]]}, r"prompt_logprobs of lengths \[1\], not \[2\]"),
        ({"prompt_logprobs": [["x", -1.0]]}, "'x' among its prompt_logprobs"),
    ],
)
def test_answers_to_something_else(changes, message):
    with pytest.raises(ValueError, match=message):
        read_answer(good(**changes), [3], 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"checkpoint": Path("/no/such/export")}, "/no/such/export does not exist"),
        ({"reference": Path("/no/such/child")}, "/no/such/child does not exist"),
        ({"python": Path("/no/such/python")}, "/no/such/python cannot be run: No such file or directory"),
    ],
)
def test_what_is_not_there(child, changes, message):
    with pytest.raises(ValueError, match=message):
        run_verify(replace(job(child), **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "sglang"}, "engine 'sglang' cannot be asked; known are transformers, vllm, llama_cpp"),
        ({"dtype": "fp8"}, "dtype 'fp8' is not known; use fp32 or bf16"),
        ({"prompts": 0}, "prompts must be a whole number of at least 1"),
        ({"prompt_len": 1}, "prompt_len must be 2 at least"),
        ({"tolerance": 0.0}, "tolerance must be above 0"),
        ({"timeout": float("nan")}, "timeout must be above 0"),
    ],
)
def test_jobs_that_are_not_possible(child, changes, message):
    with pytest.raises(ValueError, match=message):
        job(child, **changes)


def test_the_script_for_transformers_keeps_puzzlebench_out(child, tmp_path):
    """A checkpoint whose own code imports puzzlebench does not pass."""
    leaning = tmp_path / "leaning"
    shutil.copytree(child, leaning)
    code = leaning / "modeling_heterogeneous.py"
    lines = code.read_text()
    code.write_text(lines.replace("import torch\n", "import torch\nimport puzzlebench.model\n", 1))
    with pytest.raises(ValueError, match=r"transformers does not run .*puzzlebench"):
        run_verify(job(leaning, reference=child, python=Path(sys.executable)))
