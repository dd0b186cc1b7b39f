"""What lies beside the weights: tokenizer, chat template, generation config, and what is known of the child.

Tokenizers are copied as files, never loaded. No name of a folder on this machine goes along.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import puzzlebench
from puzzlebench.library.realise import SOLUTION_FILE
from puzzlebench.model.blocks import architecture_to_json
from puzzlebench.model.parameters import model_parameters
from puzzlebench.parent.fingerprint import checkpoint_fingerprint

if TYPE_CHECKING:
    from puzzlebench.exporting.source import ExportSource

GENERATION_FILE: Final = "generation_config.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
CHAT_TEMPLATES: Final = "additional_chat_templates"
_TOKENIZER: Final = re.compile(
    r"tokenizer.*\.(json|model|txt)|tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)"
    r"|merges\.txt|spiece\.model|sentencepiece.*\.model|.*\.tiktoken|tekken\.json|chat_template\.(jinja|json)"
)
_NO_VOCABULARY: Final = (TOKENIZER_CONFIG, "special_tokens_map.json", "added_tokens.json")
_IDS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
_FOLDERS: Final = re.compile(r"(?<![\w.:/~])(?:~/|/(?=[^\s/]+/)|[A-Za-z]:\\)(?:[^\s/\\'\"]+[/\\])*([^\s/\\'\",;)]+)")


def write_json(path: Path, value: Any) -> None:
    """One JSON document."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def find_parent_folder(source: ExportSource, run: Path | None) -> Path | None:
    """The folder of the child's parent, where it is still on this machine and has the parent's weights.

    Nothing is trained or downloaded for it.
    """
    solution = source.solution or {}
    for folder in _candidates(solution.get("parent"), run):
        if not (folder / "config.json").is_file():
            continue
        wanted = solution.get("parent_fingerprint")
        try:
            if wanted is None or checkpoint_fingerprint(folder) == wanted:
                return folder
        except ValueError:
            continue
    return None


def copy_tokenizer(folders: tuple[Path, ...], out: Path) -> tuple[str, ...]:
    """Copy the tokenizer's files of the first folder that has a vocabulary; their names come back, none if none has.

    They are copied byte for byte, but for the one name in tokenizer_config.json that only transformers 5 knows.
    """
    folder = tokenizer_folder(folders)
    if folder is None:
        return ()
    files = _tokenizer_files(folder)
    for file in files:
        shutil.copyfile(file, out / file.name)
    if (folder / CHAT_TEMPLATES).is_dir():
        shutil.copytree(folder / CHAT_TEMPLATES, out / CHAT_TEMPLATES)
    _name_class_of_all_versions(out / TOKENIZER_CONFIG)
    return tuple(file.name for file in files)


def tokenizer_folder(folders: tuple[Path, ...]) -> Path | None:
    """The first folder that has a tokenizer with a vocabulary."""
    for folder in folders:
        names = [file.name for file in _tokenizer_files(folder)]
        if not all(name in _NO_VOCABULARY or name.startswith("chat_template") for name in names):
            return folder
    return None


def _tokenizer_files(folder: Path) -> list[Path]:
    return [file for file in sorted(folder.iterdir()) if file.is_file() and _TOKENIZER.fullmatch(file.name)]


def copy_generation_config(source: ExportSource, out: Path) -> None:
    """Copy it byte for byte, or write the ids of special tokens that the config states."""
    if (source.folder / GENERATION_FILE).is_file():
        shutil.copyfile(source.folder / GENERATION_FILE, out / GENERATION_FILE)
        return
    stated = {key: source.config[key] for key in _IDS if source.config.get(key) is not None}
    if stated:
        write_json(out / GENERATION_FILE, {"_from_model_config": True, **stated})


def solution_of(source: ExportSource, known: Mapping[str, Any], *, parent: str | None) -> dict[str, Any]:
    """What goes into puzzle_solution.json: the child's own keys, then those of `known` that say something.

    Args:
        known: by key, values of JSON or plain dataclasses.
        parent: stated where the child does not say whose it is.
    """
    own = {
        "parent": parent,
        "architecture": architecture_to_json(source.architecture),
        "parameters": model_parameters(source.spec, source.architecture),
    }
    stated = {**own, **(source.solution or {}), **{key: value for key, value in known.items() if value is not None}}
    plain: dict[str, Any] = without_folders(_plain(stated))
    return plain


def write_solution(out: Path, solution: Mapping[str, Any]) -> None:
    """Write puzzle_solution.json."""
    write_json(out / SOLUTION_FILE, solution)


def written_by(**facts: Any) -> dict[str, Any]:
    """Who wrote something, and when."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"schema_version": 1, "created": created, "puzzlebench_version": puzzlebench.__version__, **facts}


def without_folders(value: Any) -> Any:
    """The value, of JSON, in whose texts every path from the root or home is its last part."""
    if isinstance(value, str):
        if value.startswith(("/", "~/")):
            return Path(value).name or value
        return _FOLDERS.sub(lambda found: found[1], value)
    if isinstance(value, dict):
        return {key: without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_folders(one) for one in value]
    return value


def _candidates(parent: Any, run: Path | None) -> list[Path]:
    from puzzlebench.model.catalog import list_models
    from puzzlebench.parent.embedded import ParentRecipe, embedded_folder
    from puzzlebench.parent.open import EMBEDDED

    found: list[Path] = []
    try:
        stated = json.loads((run / "parent.json").read_text(encoding="utf-8")) if run is not None else {}
        found += [Path(stated["folder"])] if isinstance(stated.get("folder"), str) else []
    except (OSError, ValueError, AttributeError):
        pass  # a run without it; the other places are left
    if not isinstance(parent, str):
        return found
    if parent == EMBEDDED:
        return [*found, embedded_folder(ParentRecipe())]
    found.append(Path(parent).expanduser())
    names = {row.id: row.hub_id for row in list_models()}
    return found + _cached(names.get(parent) or parent)


def _cached(hub_id: str) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(hub_id, "config.json")
    except HFValidationError:  # a name that cannot be one of the Hub
        return []
    return [Path(file).parent] if isinstance(file, str) else []


def _name_class_of_all_versions(file: Path) -> None:
    """transformers 5 writes TokenizersBackend, which 4 does not know, for what both know by its older name."""
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    if '"TokenizersBackend"' in text:
        file.write_text(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'), encoding="utf-8")


def _plain(value: Any) -> Any:
    """Dataclasses, tuples and mappings as JSON has them; what is not a number is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
