"""The checkpoint that is exported: what its config says and its weights, read tensor by tensor. Builds no model.

A checkpoint whose layers stand in block_configs (DeciLM, Nemotron) is read as the child of ours that it amounts to, so
every writer meets `per_layer_config` only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from puzzlebench.errors import first_line
from puzzlebench.library.realise import SOLUTION_FILE
from puzzlebench.measuring.stack.checkpoint import INDEX_FILE
from puzzlebench.model.blocks import Architecture
from puzzlebench.model.families import DECILM_TYPES
from puzzlebench.model.hf_config import from_hf_config
from puzzlebench.model.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

SHARD_BYTES: Final = 5 * 10**9
"""Most of one file of weights, where nothing else is asked."""

_HEAD: Final = "lm_head.weight"
_COMPUTED: Final = "rotary_emb.inv_freq"  # what older checkpoints hold of what is computed from the config
_PRIVATE: Final = ("_name_or_path", "_commit_hash", "name_or_path")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportSource:
    """A checkpoint on disk, nothing loaded.

    Attributes:
        name: of its folder.
        config: its config.json, but for names of folders; of a DeciLM checkpoint what says the same as a child of ours.
        fingerprint: see `checkpoint_fingerprint`.
        solution: its puzzle_solution.json, if there is one.
    """

    folder: Path
    name: str
    spec: ModelSpec
    architecture: Architecture
    config: dict[str, Any]
    fingerprint: str
    solution: Mapping[str, Any] | None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every weight under its Hugging Face name, embeddings first and layer by layer, each read when it is its turn.

        A head that is tied to the embeddings does not come.
        """
        files = _weight_files(self.folder)
        opened: dict[Path, Any] = {}
        for name in sorted(_kept(files, self.spec), key=_in_order):
            yield name, _read_tensor(name, files[name], opened)

    def settings(self) -> dict[str, Any]:
        """The config with what its family means by keys that are absent, as this transformers has it."""
        return read_config(self.config).to_dict()  # type: ignore[no-any-return]


def open_source(folder: Path) -> ExportSource:
    """A child of ours, a stock checkpoint of a supported family, or a DeciLM checkpoint.

    Raises:
        ValueError: it is none of them, is quantised, or its weights are not those of its config.
    """
    from puzzlebench.child.configs import check_family
    from puzzlebench.parent.fingerprint import checkpoint_fingerprint

    folder = Path(folder)
    if folder.suffix == ".gguf" or (not (folder / "config.json").is_file() and any(folder.glob("*.gguf"))):
        raise ValueError(f"{folder} is a GGUF file; make a checkpoint of it first with `puzzlebench import`")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a checkpoint: it has no config.json")
    config = {key: value for key, value in _read_object(folder / "config.json").items() if key not in _PRIVATE}
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise ValueError(f"{folder} is quantised ({method}); give the checkpoint it was made from")
    if config.get("model_type") in DECILM_TYPES:
        from puzzlebench.exporting.decilm import child_of_decilm

        config = child_of_decilm(config, name=str(folder))
    try:
        check_family(config.get("model_type"))
        spec, architecture = from_hf_config(config, name=folder.resolve().name)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    solution = folder / SOLUTION_FILE
    source = ExportSource(
        folder=folder,
        name=folder.resolve().name,
        spec=spec,
        architecture=architecture,
        config=config,
        fingerprint=checkpoint_fingerprint(folder),
        solution=_read_object(solution) if solution.is_file() else None,
    )
    _check_weights(source)
    return source


def is_decilm(folder: Path) -> bool:
    """Whether a checkpoint states its layers in block_configs, or as the first DeciLM did."""
    return _read_object(folder / "config.json").get("model_type") in DECILM_TYPES


def read_config(config: Mapping[str, Any]) -> Any:
    """The config of transformers' own class for the family.

    Raises:
        ValueError: transformers does not take it.
    """
    from transformers import CONFIG_MAPPING

    stated = {key: value for key, value in config.items() if key != "model_type"}
    try:
        return CONFIG_MAPPING[config["model_type"]](**stated)
    except Exception as error:  # of a strict config class too, which are no ValueErrors
        raise ValueError(f"transformers does not take the config: {first_line(error)}") from None


def needed_shapes(config: Mapping[str, Any], spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that a checkpoint with this config holds."""
    import torch

    from puzzlebench.child.modeling_heterogeneous import heterogeneous_class

    own = read_config(config)
    with torch.device("meta"):
        state = heterogeneous_class(own.model_type)(own).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items() if not _is_tied_head(name, spec)}


def counted(
    tensors: Iterable[tuple[str, Tensor]], total: int, progress: Callable[[float, str], None]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors, telling which share of `total` elements has come by."""
    done = 0
    for name, tensor in tensors:
        progress(min(done / total, 1.0), "weights")
        yield name, tensor
        done += tensor.numel()


def cast(name: str, tensor: Tensor, dtype: Any) -> Tensor:
    """The tensor in a dtype of torch's.

    Raises:
        ValueError: a value is too large for it; the message begins with the name.
    """
    done = tensor.to(dtype)
    if dtype != tensor.dtype and not bool(done.isfinite().all()) and bool(tensor.isfinite().all()):
        largest, kind = float(tensor.abs().max()), str(dtype).removeprefix("torch.")
        raise ValueError(f"{name} has a weight of {largest:.4g}, which does not fit into {kind}; use bf16 or fp32")
    return done


def _read_tensor(name: str, file: Path, opened: dict[Path, Any]) -> Tensor:
    """One tensor; its file is opened, once, with those of others."""
    from safetensors import SafetensorError, safe_open

    try:
        if file not in opened:
            opened[file] = safe_open(file, framework="pt")
        return opened[file].get_tensor(name)  # type: ignore[no-any-return]
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{name} in {file} cannot be read: {first_line(error)}") from None


def _check_weights(source: ExportSource) -> None:
    from safetensors import SafetensorError, safe_open

    files = _weight_files(source.folder)
    found = set(_kept(files, source.spec))
    needed = needed_shapes(source.config, source.spec)
    for names, what in ((needed.keys() - found, "missing"), (found - needed.keys(), "of no layer in its config")):
        if names:
            first = min(names, key=_in_order)
            raise ValueError(f"{source.folder} is broken: {len(names)} weights are {what}, the first is {first}")
    try:
        for file in sorted(set(files.values())):
            with safe_open(file, framework="pt") as opened:
                there = set(opened.keys())
                for name in sorted((name for name in found if files[name] == file), key=_in_order):
                    if name not in there:
                        raise ValueError(f"{source.folder} is broken: {file.name} lacks {name}, which its index names")
                    shape = tuple(opened.get_slice(name).get_shape())
                    if shape != needed[name]:
                        raise ValueError(
                            f"{source.folder} is broken: {name} is {list(shape)}, and its config asks for "
                            f"{list(needed[name])}"
                        )
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} is not a safetensors file that can be read: {first_line(error)}") from None


def _weight_files(folder: Path) -> dict[str, Path]:
    """Where every tensor is: as the index says, or wherever there is one."""
    from safetensors import SafetensorError, safe_open

    if (folder / INDEX_FILE).is_file():
        places = _read_object(folder / INDEX_FILE).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
            raise ValueError(f"{folder / INDEX_FILE} has no weight_map of names of files")
        for place in sorted(set(places.values())):
            if Path(place).name != place or not (folder / place).is_file():
                raise ValueError(f"{folder} is broken: its index names {place}, which is not in the folder")
        return {name: folder / place for name, place in places.items()}
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as opened:
                files.update(dict.fromkeys(opened.keys(), path))
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is not a safetensors file that can be read: {first_line(error)}") from None
    return files


def _kept(names: Mapping[str, Path], spec: ModelSpec) -> list[str]:
    return [name for name in names if not name.endswith(_COMPUTED) and not _is_tied_head(name, spec)]


def _is_tied_head(name: str, spec: ModelSpec) -> bool:
    return spec.tie_word_embeddings and name == _HEAD


def _in_order(name: str) -> tuple[bool, list[tuple[int, str]]]:
    """The head last, and layer 10 after layer 9."""
    return name == _HEAD, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _read_object(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not a JSON file that can be read: {first_line(error)}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{file} holds no object")
    return data
