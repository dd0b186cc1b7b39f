"""What lies beside a tokenizer's vocabulary: roles of special tokens, what is put around a text, chat templates.

Knows the files of a checkpoint's folder, and no vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SPECIAL = ("bos", "eos", "unk", "pad")


def added_around(post_processor: Any) -> tuple[bool, bool, dict[str, int]]:
    """Whether a token is put before and after a text by a tokenizer.json's post_processor, and which, by role.

    Raises:
        ValueError: several are, or it does something else.
    """
    if not isinstance(post_processor, Mapping):
        return False, False, {}
    match post_processor.get("type"):
        case "Sequence":
            for inner in post_processor.get("processors", ()):
                if (found := added_around(inner))[2]:
                    return found
        case "TemplateProcessing":
            single = post_processor["single"]
            place = next(n for n, part in enumerate(single) if "Sequence" in part)
            before, after = single[:place], single[place + 1 :]
            if len(before) > 1 or len(after) > 1:
                raise ValueError("its post-processor adds several tokens on one side of a text; llama.cpp adds one")
            ids = post_processor.get("special_tokens") or {}
            ends = {
                role: int(ids[part[0]["SpecialToken"]["id"]]["ids"][0])
                for role, part in (("bos", before), ("eos", after))
                if part
            }
            return bool(before), bool(after), ends
        case "ByteLevel":
            pass
        case kind:
            raise ValueError(f"its post-processor is {kind}, and llama.cpp adds a first or last token only")
    return False, False, {}


def special_ids(folder: Path, config: Mapping[str, Any], names: Mapping[str, int]) -> dict[str, int]:
    """Ids by role: bos, eos, unk, pad as the tokenizer says, or else the model; eot is another end that the model has.

    Args:
        config: the tokenizer's.
        names: ids of tokens.
    """
    ids: dict[str, int] = {}
    model_config, generation = load_object(folder / "config.json"), load_object(folder / "generation_config.json")
    for role in _SPECIAL:
        token = config.get(f"{role}_token")
        content = token.get("content") if isinstance(token, Mapping) else token
        stated = [model_config.get(f"{role}_token_id"), generation.get(f"{role}_token_id")]
        flat = [
            n
            for value in stated
            for n in (value if isinstance(value, list) else [value])
            if isinstance(n, int) and n >= 0
        ]
        if isinstance(content, str) and content in names:
            ids[role] = names[content]
        elif flat:
            ids[role] = flat[0]
        if role == "eos" and (others := [number for number in flat if number != ids.get("eos")]):
            ids["eot"] = others[0]
    return ids


def chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates, in files of their own in newer checkpoints; the one without a name is `default`."""
    stated = config.get("chat_template")
    templates = {} if stated is None else {"default": stated}
    if isinstance(stated, list):
        templates = {entry["name"]: entry["template"] for entry in stated}
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    if (folder / "chat_template.jinja").is_file():
        templates["default"] = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return templates


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json, with what special_tokens_map.json of older checkpoints adds."""
    return load_object(folder / "special_tokens_map.json") | load_object(folder / "tokenizer_config.json")


def load_object(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file."""
    try:
        loaded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from None
    return loaded
