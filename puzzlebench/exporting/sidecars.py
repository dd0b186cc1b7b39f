"""What lies beside the weights: tokenizer, chat template, generation config, and what is known of the child.

Tokenizers are copied as files, never loaded. No name of a folder on this machine goes along.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import puzzlebench
from puzzlebench.library.realise import OF_WEIGHTS, SOLUTION_FILE
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
_MODEL_INPUTS: Final = ("input_ids", "attention_mask")
_FOLDERS: Final = re.compile(
    r"(?<![\w.:/~])(?:file://[^\s/]*)?(?:~(?:[A-Za-z_][\w.-]*)?/|(?:\.\.?/)+|/+(?=[^\s/]+(?: [^\s/]+)?/)|[A-Za-z]:\\+)"
    r"(?:[^\s/\\'\"]+(?: [^\s/\\'\"]+)?[/\\]+)*([^\s/\\'\",;)]+)"
)
"""A path from the root, from home or from the folder above, and its last part; a folder's name may have one space."""


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


def copy_tokenizer(folder: Path, out: Path) -> None:
    """Copy the tokenizer's files.

    They are copied byte for byte, but for tokenizer_config.json, see `_suit_all_versions`.
    """
    for file in _tokenizer_files(folder):
        _copy(file, out / file.name, folder)
    if (folder / CHAT_TEMPLATES).is_dir():
        (out / CHAT_TEMPLATES).mkdir()
        for file in sorted((folder / CHAT_TEMPLATES).glob("*.jinja")):
            _copy(file, out / CHAT_TEMPLATES / file.name, folder)
    _suit_all_versions(out / TOKENIZER_CONFIG)


def tokenizer_folder(folders: tuple[Path, ...]) -> Path | None:
    """The first folder that has a tokenizer with a vocabulary."""
    for folder in folders:
        names = [file.name for file in _tokenizer_files(folder)]
        if not all(name in _NO_VOCABULARY or name.startswith("chat_template") for name in names):
            return folder
    return None


def check_no_link_out(file: Path, folder: Path) -> None:
    """Raise ValueError for a file that is a link to somewhere outside its model's folder: nobody would expect what is
    there to go along. The Hub's cache, which links to its own blobs, is one folder here.
    """
    whole = folder.resolve()
    whole = whole.parent.parent if whole.parent.name == "snapshots" else whole
    if not file.resolve().is_relative_to(whole):
        raise ValueError(
            f"{file} is a link to a file outside {whole}, which is not taken along; put a copy in its place"
        )


def _tokenizer_files(folder: Path) -> list[Path]:
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and _TOKENIZER.fullmatch(file.name)]
    for file in files:
        check_no_link_out(file, folder)
    return files


def _copy(file: Path, to: Path, folder: Path) -> None:
    """Copy a file of a model's folder; that it cannot be read is its own error, and not one of writing."""
    check_no_link_out(file, folder)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from None
    to.write_bytes(data)


def copy_generation_config(source: ExportSource, out: Path) -> None:
    """Copy it byte for byte, or write the ids of special tokens that the config states."""
    if (source.folder / GENERATION_FILE).is_file():
        _copy(source.folder / GENERATION_FILE, out / GENERATION_FILE, source.folder)
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
    stated = {**own, **own_solution(source), **{key: value for key, value in known.items() if value is not None}}
    plain: dict[str, Any] = without_folders(_plain(stated))
    return plain


def own_solution(source: ExportSource) -> dict[str, Any]:
    """The child's puzzle_solution.json without folders, and without what it says of other weights than these."""
    stated = dict(source.solution or {})
    blocks = [stated.get(key) for key in ("export", "imported")]
    if not any(isinstance(one, dict) and one.get("weights_fingerprint") == source.fingerprint for one in blocks):
        stated = {key: value for key, value in stated.items() if key not in OF_WEIGHTS}
    plain: dict[str, Any] = without_folders(stated)
    return plain


def file_digest(file: Path) -> str:
    """SHA-256 of a whole file, as the Hub states it too."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_solution(out: Path, solution: Mapping[str, Any]) -> None:
    """Write puzzle_solution.json."""
    write_json(out / SOLUTION_FILE, solution)


def written_by(**facts: Any) -> dict[str, Any]:
    """Who wrote something, and when."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return {"schema_version": 1, "created": created, "puzzlebench_version": puzzlebench.__version__, **facts}


def without_folders(value: Any) -> Any:
    """The value, of JSON, in whose texts every path is its last part, but for those that lead down from here: so are
    names on the Hub.
    """
    if isinstance(value, str):
        if value.startswith(("/", "~/")) and "\n" not in value:
            return Path(value).name or value
        return _FOLDERS.sub(lambda found: found[1], value)
    if isinstance(value, dict):
        return {key: without_folders(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_folders(one) for one in value]
    return value


def _candidates(parent: Any, run: Path | None) -> list[Path]:
    from puzzlebench.model.catalog import hub_id
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
    return found + _cached(hub_id(parent))


def _cached(name: str) -> list[Path]:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        file = try_to_load_from_cache(name, "config.json")
    except HFValidationError:  # a name that cannot be one of the Hub
        return []
    return [Path(file).parent] if isinstance(file, str) else []


def _suit_all_versions(file: Path) -> None:
    """Write tokenizer_config.json so that transformers 4 and 5 both read it.

    5 writes TokenizersBackend for what both know by its older name, for which 4 gives token types to models that take
    none, where the config does not say what the inputs are.
    """
    if not file.is_file():
        return
    text = file.read_text(encoding="utf-8")
    try:
        stated = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{file.name} is not a JSON file that can be read: {error}") from None
    if not isinstance(stated, dict):
        raise ValueError(f"{file.name} holds no object")
    done = {"model_input_names": list(_MODEL_INPUTS), **stated}
    if done.get("tokenizer_class") == "TokenizersBackend":
        done["tokenizer_class"] = "PreTrainedTokenizerFast"
    if done != stated:
        write_json(file, done)


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
