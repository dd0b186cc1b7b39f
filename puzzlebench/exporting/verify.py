"""Whether an engine computes what puzzlebench computes: tokens and log-probabilities of an export beside the child's.

The engine runs in a process of its own, by an interpreter of one's choice, through a script that imports the engine
only (engine_scripts/). It continues prompts greedily; puzzlebench then reads the same tokens in one forward of its own.
So every token of the engine is judged given the very tokens before it, and a near-tie early on spoils nothing after it.

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
import datetime
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

import puzzlebench
from puzzlebench.errors import first_line
from puzzlebench.model.checks import require_positive_int

if TYPE_CHECKING:
    from torch import Tensor

Engine: TypeAlias = Literal["transformers", "vllm", "llama_cpp"]
VerifyDtype: TypeAlias = Literal["fp32", "bf16"]

ENGINES: Final[tuple[Engine, ...]] = get_args(Engine)
SCHEMA: Final = 1
RESULT_SCHEMA: Final = 1
TOLERANCES: Final[Mapping[VerifyDtype, float]] = {"fp32": 1e-3, "bf16": 0.25}
"""Largest difference of a log-probability that passes. See docs/engines.md for what engines really show."""

_TORCH_NAMES: Final[Mapping[VerifyDtype, str]] = {"fp32": "float32", "bf16": "bfloat16"}
_SCRIPTS: Final = Path(__file__).parent / "engine_scripts"


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyJob:
    """One export to check in one engine.

    Attributes:
        checkpoint: an exported folder, or a GGUF file.
        reference: the child that puzzlebench loads; None: the checkpoint itself.
        python: the interpreter that has the engine; None: this one.
        new_tokens: to generate for each prompt.
        tolerance: largest difference of a log-probability that passes, in nats; None: by dtype. Between two tokens it
            counts twice: each may be off by as much.
        dtype: the number format that both sides compute in.
        trust_remote_code: whether the engine may run code that lies in the checkpoint.
        timeout: seconds that the engine may take.
        seed: of random prompts, where there is no tokenizer.
    """

    checkpoint: Path
    engine: Engine
    reference: Path | None = None
    python: Path | None = None
    prompts: int = 4
    prompt_len: int = 24
    new_tokens: int = 16
    tolerance: float | None = None
    dtype: VerifyDtype = "fp32"
    trust_remote_code: bool = False
    timeout: float = 900.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        if self.engine not in ENGINES:
            raise ValueError(f"engine {self.engine!r} cannot be asked; known are {', '.join(ENGINES)}")
        if self.dtype not in _TORCH_NAMES:
            raise ValueError(f"dtype {self.dtype!r} is not known; use {' or '.join(_TORCH_NAMES)}")
        for name in ("prompts", "prompt_len", "new_tokens"):
            require_positive_int(name, getattr(self, name))
        if self.prompt_len < 2:
            raise ValueError("prompt_len must be 2 at least: nothing comes before a first token")
        for name in ("tolerance", "timeout"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be above 0, not {value}")

    @property
    def limit(self) -> float:
        """The tolerance that holds."""
        return TOLERANCES[self.dtype] if self.tolerance is None else self.tolerance


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Of log-probabilities, in nats: how many were compared, the largest absolute one and the mean."""

    count: int
    largest: float
    mean: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Divergence:
    """The first token that puzzlebench would not have taken.

    Attributes:
        prompt, position: which prompt, and which of its generated tokens, both from 0.
        engine_token, own_token: what each takes.
        margin: how much likelier puzzlebench finds its own, in nats.
    """

    prompt: int
    position: int
    engine_token: int
    own_token: int
    margin: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """An engine beside puzzlebench.

    Attributes:
        tokens: generated by the engine.
        equal: of those, the ones that are puzzlebench's most likely given the same tokens before.
        near_ties: of the others, those whose margin is within twice the tolerance.
        first_divergence: the first of the others, near-tie or not; None where there is none.
    """

    tolerance: float
    prompt: Difference
    generated: Difference
    tokens: int
    equal: int
    near_ties: int
    first_divergence: Divergence | None

    @property
    def agrees(self) -> bool:
        """Whether all tokens are equal but for near-ties, and all log-probabilities within the tolerance."""
        within = max(self.prompt.largest, self.generated.largest) <= self.tolerance
        return within and self.equal + self.near_ties == self.tokens

    @property
    def verdict(self) -> str:
        """One line for people."""
        largest = max(self.prompt.largest, self.generated.largest)
        tokens = f"{self.equal} of {self.tokens} greedy tokens equal"
        if self.near_ties:
            tokens += f" and {self.near_ties} at near-ties"
        differs = f"log-probabilities differ by {largest:.2g} at most (tolerance {self.tolerance:g})"
        return f"{'agrees' if self.agrees else 'DIFFERS'}: {tokens}; {differs}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an engine's script answered, checked."""

    engine: str
    version: str
    tokens: list[list[int]]
    logprobs: list[list[float]]
    prompt_logprobs: list[list[float]]
    stated: Mapping[str, Any] = field(repr=False)


def run_verify(
    job: VerifyJob, *, progress: Callable[[float, str], None] = lambda _share, _stage: None
) -> dict[str, Any]:
    """Ask the engine, compare, and say what came out, JSON-ready.

    Raises:
        ValueError: the reference or the interpreter is not there, the engine does not load the checkpoint or answers
            something else than it was asked, or it takes too long.
    """
    from puzzlebench.exporting.verify_reference import open_reference

    if not job.checkpoint.exists():
        raise ValueError(f"{job.checkpoint} does not exist")
    started = time.monotonic()
    with open_reference(job.checkpoint if job.reference is None else job.reference) as reference:
        progress(0.0, "prompts")
        prompts = reference.prompts(job.prompts, job.prompt_len, job.new_tokens, seed=job.seed)
        progress(0.1, f"{job.engine} runs")
        answer = ask_engine(job, prompts)
        progress(0.7, "puzzlebench runs")
        logits = reference.logits(
            [[*prompt, *new] for prompt, new in zip(prompts, answer.tokens, strict=True)], job.dtype
        )
        found = compare(prompts, answer, logits, tolerance=job.limit)
        cache = reference.compare_cache(answer.stated, job.dtype)
        source = reference.text
    return {
        "schema_version": RESULT_SCHEMA,
        "puzzlebench_version": puzzlebench.__version__,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "checkpoint": str(job.checkpoint),
        "reference": str(job.checkpoint if job.reference is None else job.reference),
        "engine": answer.engine,
        "engine_version": answer.version,
        "dtype": job.dtype,
        "prompts": {"count": job.prompts, "length": job.prompt_len, "new_tokens": job.new_tokens, "source": source},
        **asdict(found),
        "agrees": found.agrees,
        "verdict": found.verdict,
        "kv_cache": cache,
        "seconds": round(time.monotonic() - started, 1),
    }


def ask_engine(job: VerifyJob, prompts: Sequence[Sequence[int]]) -> Answer:
    """Run the engine's script in a process of its own.

    Raises:
        ValueError: the process cannot be started, takes too long, dies, says what went wrong, or its answer is not one
            to this request.
    """
    python = sys.executable if job.python is None else _interpreter(job.python)
    script = _SCRIPTS / f"{job.engine}_engine.py"
    request = {
        "schema": SCHEMA,
        "checkpoint": str(job.checkpoint.resolve()),
        "prompts": [list(prompt) for prompt in prompts],
        "new_tokens": job.new_tokens,
        "dtype": _TORCH_NAMES[job.dtype],
        "trust_remote_code": job.trust_remote_code,
    }
    with tempfile.TemporaryDirectory(prefix="puzzlebench-verify-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(request), encoding="utf-8")
        try:
            code, stderr = _run([python, str(script), str(asked), str(answered)], folder, job.timeout)
        except subprocess.TimeoutExpired:
            raise ValueError(f"{job.engine} took more than {job.timeout:g} s; give it more with --timeout") from None
        except OSError as error:
            raise ValueError(f"{python} cannot be run: {error.strerror}; give an interpreter with --python") from None
        if not answered.is_file():
            said = next((line for line in reversed(stderr.splitlines()) if line.strip()), "it said nothing")
            raise ValueError(f"{job.engine} died with exit code {code}: {said.strip()}")
        try:
            stated = json.loads(answered.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{job.engine} answered no JSON: {first_line(error)}") from None
    if isinstance(stated, dict) and stated.get("error"):
        raise ValueError(f"{job.engine} does not run {job.checkpoint}: {stated['error']}")
    return read_answer(stated, [len(prompt) for prompt in prompts], job.new_tokens)


def _interpreter(python: Path) -> str:
    """A path that holds in another working folder; links stay, since a virtual environment is one. A bare name is
    looked up in PATH."""
    return str(python.absolute()) if len(python.parts) > 1 or python.exists() else str(python)


def _run(command: Sequence[str], folder: str, timeout: float) -> tuple[int, str]:
    """Exit code and stderr. After an error here nothing is left of what the process started."""
    with subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
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


def compare(
    prompts: Sequence[Sequence[int]], answer: Answer, logits: Sequence[Tensor], *, tolerance: float
) -> Comparison:
    """An engine's answer beside puzzlebench's own logits.

    Args:
        logits: for every prompt [length + new tokens, vocabulary], of the prompt and the engine's tokens after it.
        tolerance: in nats.

    Raises:
        ValueError: a token of the engine is not in the vocabulary.
    """
    prompt_gaps: list[float] = []
    gaps: list[float] = []
    equal = near_ties = 0
    first: Divergence | None = None
    for place, (prompt, rows) in enumerate(zip(prompts, logits, strict=True)):
        own = rows.double().log_softmax(-1)
        new = answer.tokens[place]
        if wrong := [token for token in new if not 0 <= token < own.shape[-1]]:
            raise ValueError(f"the engine generated token {wrong[0]}; the vocabulary has {own.shape[-1]}")
        stated = [*answer.prompt_logprobs[place], *answer.logprobs[place]]
        for position, (token, value) in enumerate(zip([*prompt[1:], *new], stated, strict=True)):
            generated = position - (len(prompt) - 1)
            gap = abs(float(own[position, token]) - value)
            if generated < 0:
                prompt_gaps.append(gap)
                continue
            gaps.append(gap)
            best = int(own[position].argmax())
            margin = float(own[position, best] - own[position, token])
            if margin == 0:
                equal += 1
                continue
            near_ties += margin <= 2 * tolerance
            first = first or Divergence(
                prompt=place, position=generated, engine_token=token, own_token=best, margin=margin
            )
    return Comparison(
        tolerance=tolerance,
        prompt=_difference(prompt_gaps),
        generated=_difference(gaps),
        tokens=len(gaps),
        equal=equal,
        near_ties=near_ties,
        first_divergence=first,
    )


def _difference(gaps: Sequence[float]) -> Difference:
    return Difference(count=len(gaps), largest=max(gaps), mean=math.fsum(gaps) / len(gaps))
