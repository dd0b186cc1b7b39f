"""Models by name: bundled facts, a local config.json, or a config.json from the Hugging Face Hub.

The bundled facts are minimal configs in data/*.json, one file per family, each entry with its Hub ids. Only names that
are neither bundled nor a path reach the network, and only for the config.
"""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from puzzlebench.model.blocks import Architecture
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.parameters import model_parameters
from puzzlebench.model.spec import ModelSpec, parent_architecture


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelEntry:
    """One bundled model. Every Hub id listed has these shapes; the first is the one the facts are of.

    The embedded model, which is made on the spot, has none.
    """

    id: str
    hub_ids: tuple[str, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    """One line of a listing of the bundled models. For a heterogeneous model heads and widths are the largest."""

    id: str
    hub_id: str | None
    model_type: str
    parameters: int
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool
    heterogeneous: bool


def load_model(name_or_path: str) -> tuple[ModelSpec, Architecture]:
    """The spec and architecture of a model.

    `name_or_path` is tried as, in this order: a bundled id or the Hub id of a bundled model (case does not matter), a
    directory with a config.json or such a file, an `org/name` on the Hub.

    Raises:
        ValueError: nothing has that name, or its config cannot be read or is not supported.
    """
    if entry := _bundled_by_name().get(name_or_path.lower()):
        return from_hf_config(entry.config, name=entry.id)
    path = Path(name_or_path).expanduser()
    if path.exists():
        return _load_path(path)
    parts = name_or_path.split("/")
    if len(parts) == 2 and all(parts) and parts[0] not in (".", "..", "~"):
        return from_hf_config(_read_json(_hub_config_path(name_or_path)), name=name_or_path)
    raise ValueError(f"no model is named {name_or_path!r} and there is no such path; {_near_names(name_or_path)}")


def list_models() -> tuple[ModelRow, ...]:
    """The bundled models, family by family."""
    return tuple(_row(entry) for entry in bundled_models())


def hub_id(name: str) -> str:
    """The name on the Hub of a model that may be called by its bundled id, in any case; another name is its own."""
    ids = {row.id.lower(): row.hub_id for row in list_models()}
    return ids.get(name.lower()) or name


@cache
def bundled_models() -> tuple[ModelEntry, ...]:
    """Every bundled model with its minimal config."""
    entries: list[ModelEntry] = []
    data = resources.files("puzzlebench.model") / "data"
    for file in sorted(data.iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            entries += (
                ModelEntry(id=model["id"], hub_ids=tuple(model["hub_ids"]), config=model["config"])
                for model in json.loads(file.read_text(encoding="utf-8"))["models"]
            )
    return tuple(entries)


@cache
def _bundled_by_name() -> dict[str, ModelEntry]:
    names: dict[str, ModelEntry] = {}
    for entry in bundled_models():
        for name in (entry.id, *entry.hub_ids):
            assert name.lower() not in names, f"two bundled models are named {name}"
            names[name.lower()] = entry
    return names


def _row(entry: ModelEntry) -> ModelRow:
    spec, architecture = from_hf_config(entry.config, name=entry.id)
    return ModelRow(
        id=entry.id,
        hub_id=entry.hub_ids[0] if entry.hub_ids else None,
        model_type=spec.model_type,
        parameters=model_parameters(spec, architecture),
        num_hidden_layers=spec.num_hidden_layers,
        hidden_size=spec.hidden_size,
        num_attention_heads=spec.num_attention_heads,
        num_key_value_heads=spec.num_key_value_heads,
        head_dim=spec.head_dim,
        intermediate_size=spec.intermediate_size,
        vocab_size=spec.vocab_size,
        tie_word_embeddings=spec.tie_word_embeddings,
        heterogeneous=architecture != parent_architecture(spec),
    )


def _load_path(path: Path) -> tuple[ModelSpec, Architecture]:
    file = path / "config.json" if path.is_dir() else path
    if not file.exists():
        raise ValueError(f"{path} has no config.json; give a directory with one, or the file itself")
    name = file.resolve().parent.name if file.name == "config.json" else file.stem
    return from_hf_config(_read_json(file), name=name or str(path))


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is not a JSON file that can be read: {error}") from None


def _hub_config_path(hub_id: str) -> Path:
    """Where the Hub's config.json lies in the local cache, fetched if need be."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(hf_hub_download(hub_id, "config.json"))
    except GatedRepoError:
        reason = "its files are gated; accept the licence on the Hub and log in with `hf auth login`"
    except RepositoryNotFoundError:
        reason = "the Hub has no such model, or it is private"
    except LocalEntryNotFoundError:
        reason = "the Hub cannot be reached and no copy is cached"
    except EntryNotFoundError:
        reason = "the model has no config.json"
    except HFValidationError:
        reason = "that is not a valid Hub id"
    except Exception as error:  # huggingface_hub lets errors of its HTTP client through, which differ by version
        reason = f"the Hub answered with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    raise ValueError(f"{hub_id!r} is not bundled and could not be loaded: {reason}; {_near_names(hub_id)}")


def _near_names(name: str) -> str:
    near = difflib.get_close_matches(name.lower(), _bundled_by_name(), n=3, cutoff=0.5)
    tail = "`puzzlebench models` lists what is bundled"
    return f"did you mean {', '.join(near)}? {tail}" if near else tail
