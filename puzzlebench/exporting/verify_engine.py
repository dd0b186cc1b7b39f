"""An engine in a process of its own: what it is asked, what it answers, and how that can fail.

The process runs a script that imports the engine only (engine_scripts/), by an interpreter of one's choice, and ends
when this process does, however that comes about.

    request  {"schema": 1, "checkpoint": path, "prompts": [[ids]], "new_tokens": N, "dtype": "float32" | "bfloat16",
              "trust_remote_code": bool}
    answer   {"schema": 1, "engine": name, "version": text, "tokens": [[N ids]], "logprobs": [[N]],
              "prompt_logprobs": [[length - 1]], "kv_cache": null | {...}, "error": null | line}
             log-probabilities are natural logarithms: of the generated tokens, and of the prompt's from its second on.
             kv_cache: "block_size", "num_blocks", "layers" [{"layer", "bytes_per_token"}], "bytes_per_token",
             "total_bytes", and where known "max_model_len", "bytes_per_sequence"; see kv_check.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from puzzlebench.errors import first_line

SCHEMA: Final = 1
_SCRIPTS: Final = Path(__file__).parent / "engine_scripts"
_GUARD: Final = _SCRIPTS / "guarded.py"


class EngineRefusedError(ValueError):
    """The engine runs, and says that it does not run this checkpoint."""


class EngineDiedError(ValueError):
    """The engine's process ended without an answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an engine's script answered, checked."""

    engine: str
    version: str
    tokens: list[list[int]]
    logprobs: list[list[float]]
    prompt_logprobs: list[list[float]]
    stated: Mapping[str, Any] = field(repr=False)


def ask_engine(
    engine: str,
    checkpoint: Path,
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    dtype: str,
    trust_remote_code: bool,
    python: Path | None,
    timeout: float,
) -> Answer:
    """Run the engine's script; see `VerifyJob` for the arguments.

    Args:
        dtype: "float32" or "bfloat16".

    Raises:
        EngineRefusedError: the engine says what went wrong.
        EngineDiedError: the process ended without an answer.
        ValueError: the process cannot be started or takes too long, or its answer is not one to this request.
    """
    interpreter = sys.executable if python is None else _interpreter(python)
    request = {
        "schema": SCHEMA,
        "checkpoint": str(checkpoint.resolve()),
        "prompts": [list(prompt) for prompt in prompts],
        "new_tokens": new_tokens,
        "dtype": dtype,
        "trust_remote_code": trust_remote_code,
    }
    with tempfile.TemporaryDirectory(prefix="puzzlebench-verify-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        script = _SCRIPTS / f"{engine}_engine.py"
        try:
            code, stderr = _run([interpreter, str(_GUARD), str(script), str(asked), str(answered)], folder, timeout)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{engine} took more than {timeout:g} s; give it more with --timeout") from None
        except OSError as error:
            raise ValueError(
                f"{interpreter} cannot be run: {error.strerror}; give an interpreter with --python"
            ) from None
        if not answered.is_file():
            said = next((line for line in reversed(stderr.splitlines()) if line.strip()), "it said nothing")
            raise EngineDiedError(f"{engine} died with exit code {code}: {said.strip()}")
        try:
            stated = json.loads(answered.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{engine} answered no JSON: {first_line(error)}") from None
    if isinstance(stated, dict) and stated.get("error"):
        untrusted = not trust_remote_code and _has_code(checkpoint)
        raise EngineRefusedError(_refusal(engine, checkpoint, str(stated["error"]), untrusted=untrusted))
    return read_answer(stated, [len(prompt) for prompt in prompts], new_tokens)


def _refusal(engine: str, checkpoint: Path, error: str, *, untrusted: bool) -> str:
    if not untrusted:
        return f"{engine} does not run {checkpoint}: {error}"
    if (
        engine == "transformers"
    ):  # its own classes then read layers that differ as if they did not: many errors, one cause
        return (
            f"transformers does not run {checkpoint} without the code that lies in it; allow that with "
            f"--trust-remote-code ({error.partition(':')[0]})"
        )
    return f"{engine} does not run {checkpoint}: {error}; it was not allowed to run code in it (--trust-remote-code)"


def _has_code(checkpoint: Path) -> bool:
    """Whether the config names classes that lie in the checkpoint."""
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and bool(config.get("auto_map"))


def _interpreter(python: Path) -> str:
    """A path that holds in another working folder; links stay, since a virtual environment is one. A bare name is
    looked up in PATH."""
    return str(python.absolute()) if len(python.parts) > 1 or python.exists() else str(python)


def _run(command: Sequence[str], folder: str, timeout: float) -> tuple[int, str]:
    """Exit code and stderr. After an error here nothing is left of what the process started.

    This process holds the one end of a pipe whose other end is the engine's standard input. No other process gets it,
    so it closes when this one ends, killed or not, and the engine's guard ends the engine.
    """
    watched, held = os.pipe()
    try:
        with subprocess.Popen(
            command,
            cwd=folder,
            stdin=watched,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            try:
                _, stderr = process.communicate(timeout=timeout)
            except BaseException:  # an interrupt too: the terminal's does not reach the engine
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise
    finally:
        os.close(watched)
        os.close(held)
    return process.returncode, stderr


def read_answer(stated: Any, lengths: Sequence[int], new_tokens: int) -> Answer:
    """An answer of a script, if it is one to the request.

    Raises:
        ValueError: it is not; the message says what is wrong.
    """
    if not isinstance(stated, dict) or stated.get("schema") != SCHEMA:
        found = stated.get("schema") if isinstance(stated, dict) else stated
        raise ValueError(f"the engine's answer has schema {found!r}; this version reads {SCHEMA}")
    wanted = {
        "tokens": [new_tokens] * len(lengths),
        "logprobs": [new_tokens] * len(lengths),
        "prompt_logprobs": [length - 1 for length in lengths],
    }
    for name, sizes in wanted.items():
        rows = stated.get(name)
        if not isinstance(rows, list) or [len(row) for row in rows if isinstance(row, list)] != sizes:
            shape = [len(row) for row in rows if isinstance(row, list)] if isinstance(rows, list) else rows
            raise ValueError(f"the engine's answer has {name} of lengths {shape}, not {sizes}")
        kinds = int if name == "tokens" else (int, float)
        for value in (value for row in rows for value in row):
            if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value):
                raise ValueError(f"the engine's answer has {value!r} among its {name}")
    return Answer(
        engine=str(stated.get("engine")),
        version=str(stated.get("version")),
        tokens=stated["tokens"],
        logprobs=stated["logprobs"],
        prompt_logprobs=stated["prompt_logprobs"],
        stated=stated,
    )
