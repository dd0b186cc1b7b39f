"""tokenizer.json and tokenizer_config.json rebuilt from a GGUF file's keys. Knows no weights and no files.

What a GGUF file does not say is not made up: tokens that take the spaces beside them, normalisation, and the roles of
special tokens other than those it names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from puzzlebench.exporting.gguf_pretokenizers import named_pre_tokenizer, pre_tokenizer_json
from puzzlebench.exporting.gguf_sentencepiece import CONTROL, SPACE, UNUSED, USER_DEFINED, Pieces, merges_from_scores

NOTE_FILE: Final = "tokenizer_is_missing.txt"
_PREFIX: Final = "tokenizer."
_ROLES: Final = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
# The names of which llama.cpp puts a first token before a text where the file does not say.
_ADDS_BOS: Final = ("llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "tekken")


def tokenizer_files(keys: Mapping[str, Any], vocab_size: int) -> dict[str, str]:
    """Text by file name; one file that says why where a tokenizer cannot be rebuilt.

    Args:
        keys: of the GGUF file.
        vocab_size: rows of the embeddings.

    Raises:
        ValueError: its tokens are not as many as the embeddings.
    """
    model, pre_name = keys.get("tokenizer.ggml.model"), keys.get("tokenizer.ggml.pre")
    tokens = keys.get("tokenizer.ggml.tokens")
    if model not in ("gpt2", "llama") or not tokens:
        return _missing(f"its tokenizer is {model!r}, and gpt2 and llama can be rebuilt")
    if len(tokens) != vocab_size:
        raise ValueError(f"it has {len(tokens)} tokens, and embeddings for {vocab_size}")
    types = [int(kind) for kind in keys.get("tokenizer.ggml.token_type") or [1] * len(tokens)]
    add_bos = bool(keys.get("tokenizer.ggml.add_bos_token", model == "llama" or pre_name in _ADDS_BOS))
    add_eos = bool(keys.get("tokenizer.ggml.add_eos_token", False))
    special = {role: int(number) for role, key in _ROLES.items() if (number := _role(keys, key)) is not None}
    built: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added(tokens, types),
        "post_processor": _template(
            tokens, special.get("bos") if add_bos else None, special.get("eos") if add_eos else None
        ),
    }
    vocab = {token: number for number, (token, kind) in enumerate(zip(tokens, types, strict=True)) if kind != UNUSED}
    if model == "gpt2":
        pre = named_pre_tokenizer(pre_name) if pre_name else None
        if pre is None:
            return _missing(f"its pre-tokenizer is {pre_name!r}, whose pattern is not known here")
        built |= {"normalizer": None, "pre_tokenizer": pre_tokenizer_json(pre), "decoder": {**_BYTE_LEVEL}}
        built["model"] = {
            **_BPE,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocab,
            "merges": [merge.split(" ", 1) for merge in keys.get("tokenizer.ggml.merges") or ()],
        }
    else:
        if (scores := keys.get("tokenizer.ggml.scores")) is None:
            return _missing("its tokenizer has no scores")
        prefix = bool(keys.get("tokenizer.ggml.add_space_prefix", True))
        pieces = Pieces(tokens=tuple(tokens), scores=tuple(scores), types=tuple(types), space_prefix=prefix)
        unknown = special.get("unk", 0)
        built |= {"normalizer": _spaces(prefix=prefix), "pre_tokenizer": None, "decoder": _space_decoder(prefix=prefix)}
        built["model"] = {
            **_BPE,
            "byte_fallback": True,
            "fuse_unk": True,
            "unk_token": tokens[unknown],
            "vocab": vocab,
            "merges": [list(merge) for merge in merges_from_scores(pieces)],
        }
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{role}_token": tokens[number] for role, number in special.items() if number < len(tokens)}
    files = {"tokenizer.json": _json(built)}
    templates = _templates(keys)
    if list(templates) == ["default"]:
        files["chat_template.jinja"] = templates["default"]
    elif templates:
        config["chat_template"] = [{"name": name, "template": text} for name, text in templates.items()]
    return files | {"tokenizer_config.json": _json(config)}


_BPE: Final[dict[str, Any]] = {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}
_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def _role(keys: Mapping[str, Any], key: str) -> Any:
    return keys.get(f"tokenizer.ggml.{key}_token_id")


def _added(tokens: Sequence[str], types: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind == CONTROL,
        }
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]


def _template(tokens: Sequence[str], first: int | None, last: int | None) -> dict[str, Any]:
    """What is put around a text, or around the second of two."""

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        if first is not None:
            parts.insert(0, {"SpecialToken": {"id": tokens[first], "type_id": type_id}})
        if last is not None:
            parts.append({"SpecialToken": {"id": tokens[last], "type_id": type_id}})
        return parts

    used = sorted({number for number in (first, last) if number is not None})
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            tokens[number]: {"id": tokens[number], "ids": [number], "tokens": [tokens[number]]} for number in used
        },
    }


def _spaces(*, prefix: bool) -> dict[str, Any]:
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}] * prefix + [replace]}


def _space_decoder(*, prefix: bool) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _templates(keys: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name; the one without is `default`."""
    start = f"{_PREFIX}chat_template"
    templates = {}
    for key, value in keys.items():
        if key == start:
            templates["default"] = str(value)
        elif key.startswith(f"{start}."):
            templates[key.removeprefix(f"{start}.")] = str(value)
    return templates


def _missing(reason: str) -> dict[str, str]:
    text = f"The GGUF file had no tokenizer that could be rebuilt: {reason}. Put the parent's tokenizer files here.\n"
    return {NOTE_FILE: text}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
