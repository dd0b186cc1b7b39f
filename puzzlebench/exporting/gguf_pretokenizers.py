"""How text is cut before byte-level BPE merges it: tokenizer.json's pre_tokenizer against llama.cpp's names for them.

A GGUF file names its pre-tokenizer, and llama.cpp has the pattern in its code. So the name is found from what
tokenizer.json does, and a pattern that is not in the table is refused: a wrong name would give other tokens without a
word. A cut is written as a short line: `split PATTERN`, `digits` (runs), `digit` (each alone), `punctuation` (runs),
`gpt2` (the pattern that ByteLevel itself brings).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_START = r"[^\r\n\p{L}\p{N}]?"

_LLAMA3 = rf"{_WORDS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_WORDS}|{_LETTERS}|\p{{N}}|{_REST}"
_TEKKEN = rf"{_START}{_UPPER}*{_LOWER}+|{_START}{_UPPER}+{_LOWER}*|\p{{N}}|{_REST_SLASH}"
_GPT4O = rf"{_START}{_UPPER}*{_LOWER}+{_WORDS}?|{_START}{_UPPER}+{_LOWER}*{_WORDS}?|\p{{N}}{{1,3}}|{_REST_SLASH}"
_SEED = rf"{_WORDS}|{_LETTERS}|\p{{N}}{{1}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True, kw_only=True, slots=True)
class PreTokenizer:
    """One of llama.cpp's.

    Attributes:
        cuts: one after another, each within the pieces of the one before.
        ignore_merges: a piece that is a token is taken whole, whatever its merges.
        exact: llama.cpp's pattern is the same, not one that comes near.
    """

    name: str
    cuts: tuple[str, ...]
    ignore_merges: bool = False
    exact: bool = True


# Read in llama.cpp, src/llama-vocab.cpp. Where several names do the same, the first is written and all are read.
PRE_TOKENIZERS: tuple[PreTokenizer, ...] = (
    PreTokenizer(name="gpt-2", cuts=("gpt2",)),
    PreTokenizer(name="llama-bpe", cuts=(f"split {_LLAMA3}",), ignore_merges=True),
    PreTokenizer(name="dbrx", cuts=(f"split {_LLAMA3}",)),
    PreTokenizer(name="qwen2", cuts=(f"split {_QWEN2}",)),
    # Its pattern there has [^a-z] and [^A-Z] for upper and lower case, which differs outside of ASCII.
    PreTokenizer(name="tekken", cuts=(f"split {_TEKKEN}",), ignore_merges=True, exact=False),
    PreTokenizer(name="gpt-4o", cuts=(f"split {_GPT4O}",), exact=False),
    PreTokenizer(name="smollm", cuts=("digit", "gpt2")),
    PreTokenizer(name="falcon", cuts=("punctuation", "gpt2", "digits", "split [0-9][0-9][0-9]")),
    PreTokenizer(
        name="deepseek-coder",
        cuts=(r"split [\r\n]", r"split \s?\p{L}+", r"split \s?\p{P}+", "split [一-龥ࠀ-一가-퟿]+", "digit"),
    ),
    PreTokenizer(name="seed-coder", cuts=(f"split {_SEED}",)),
)
_SAME_AS = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "pixtral": "llama-bpe",
    "smaug-bpe": "dbrx",
    "chatglm-bpe": "dbrx",
    "stablelm2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "megrez": "qwen2",
    "starcoder": "smollm",
    "refact": "smollm",
    "command-r": "smollm",
    "codeshell": "smollm",
    "minerva-7b": "smollm",
    "phi-2": "gpt-2",
    "olmo": "gpt-2",
    "mpt": "gpt-2",
    "jais": "gpt-2",
    "trillion": "gpt-2",
    "llama4": "gpt-4o",
}


def find_pre_tokenizer(tokenizer: Mapping[str, Any]) -> PreTokenizer:
    """llama.cpp's pre-tokenizer that cuts as a tokenizer.json with a byte-level BPE model does.

    Raises:
        ValueError: llama.cpp has none; the message says what the tokenizer does.
    """
    cuts = _cuts(tokenizer.get("pre_tokenizer"))
    ignore_merges = bool(tokenizer["model"].get("ignore_merges"))
    for known in PRE_TOKENIZERS:
        if known.cuts == cuts and known.ignore_merges == ignore_merges:
            return known
    merges = " and takes whole pieces before merges (ignore_merges)" if ignore_merges else ""
    raise ValueError(
        f"its pre-tokenizer cuts by {', then '.join(cuts)}{merges}, for which llama.cpp has no name known here; known "
        f"are those of {', '.join(known.name for known in PRE_TOKENIZERS)}"
    )


def named_pre_tokenizer(name: str) -> PreTokenizer | None:
    """The pre-tokenizer that a GGUF file names, or None where its pattern is not known here."""
    wanted = _SAME_AS.get(name, name)
    return next((known for known in PRE_TOKENIZERS if known.name == wanted), None)


def pre_tokenizer_json(pre: PreTokenizer) -> dict[str, Any]:
    """The pre_tokenizer of a tokenizer.json that cuts this way."""
    steps = [_step_json(cut) for cut in pre.cuts]
    if "gpt2" not in pre.cuts:
        steps.append(_byte_level(use_regex=False))
    return steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}


def _step_json(cut: str) -> dict[str, Any]:
    match cut:
        case "gpt2":
            return _byte_level(use_regex=True)
        case "digits" | "digit":
            return {"type": "Digits", "individual_digits": cut == "digit"}
        case "punctuation":
            return {"type": "Punctuation", "behavior": "Contiguous"}
    pattern = {"Regex": cut.removeprefix("split ")}
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}


def _byte_level(*, use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def is_byte_level(pre_tokenizer: Any) -> bool:
    """Whether the pre_tokenizer of a tokenizer.json turns text into GPT-2's stand-ins for bytes."""
    return any(step.get("type") == "ByteLevel" for step in _steps(pre_tokenizer))


def _steps(pre_tokenizer: Any) -> list[Mapping[str, Any]]:
    if not isinstance(pre_tokenizer, Mapping):
        return []
    if pre_tokenizer.get("type") != "Sequence":
        return [pre_tokenizer]
    return [step for inner in pre_tokenizer.get("pretokenizers", ()) for step in _steps(inner)]


def _cuts(pre_tokenizer: Any) -> tuple[str, ...]:
    return tuple(cut for step in _steps(pre_tokenizer) for cut in _cuts_of_step(step))


def _cuts_of_step(step: Mapping[str, Any]) -> tuple[str, ...]:
    match step.get("type"):
        case "ByteLevel":
            if step.get("add_prefix_space"):
                raise ValueError("its pre-tokenizer puts a space before the text, which llama.cpp does not with BPE")
            return ("gpt2",) if step.get("use_regex", True) else ()
        case "Digits":
            return ("digit",) if step.get("individual_digits") else ("digits",)
        case "Punctuation":
            behavior = step.get("behavior", "Isolated")
            return ("punctuation",) if behavior == "Contiguous" else (f"punctuation {behavior}",)
        case "Split":
            pattern = step.get("pattern") or {}
            text = pattern.get("Regex", pattern.get("String"))
            way = (step.get("behavior"), bool(step.get("invert")))
            # Matches cut out as pieces; keeping the matches only is the same where every character is in one.
            if way == ("Isolated", False) or (way == ("Removed", True) and str(text).endswith(r"|\s+")):
                return (f"split {text}",)
            return (f"split {text} ({way[0]}{', inverted' if way[1] else ''})",)
    return (str(step.get("type")),)
