"""The models of both sides, opened for lm-eval: puzzlebench's checkpoints, or whatever a backend of lm-eval takes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from puzzlebench.child.configs import check_family
from puzzlebench.errors import first_line
from puzzlebench.harness import NEEDS_HARNESS, quiet_logging, without_bars
from puzzlebench.parent.fingerprint import checkpoint_fingerprint
from puzzlebench.parent.open import EMBEDDED, ParentFiles, find_parent, load_tokenizer

_PLACE: Final = "{model}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """How a model is run.

    Attributes:
        name: of a model type of lm-eval, such as vllm; None: transformers, with puzzlebench's own loader, which runs no
            code of a checkpoint.
        arguments: for it, as lm-eval's --model_args. `{model}` in them stands for the model; where it does not occur,
            `pretrained={model}` is put before them.
        device, precision: of puzzlebench's own loader.
        batch_size: requests at a time, a number or what the backend knows, such as auto.
    """

    name: str | None = None
    arguments: str = ""
    device: str = "cpu"
    precision: str = "fp32"
    batch_size: str = "16"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFiles:
    """A model that is found and not loaded."""

    name: str
    where: str
    fingerprint: str
    files: ParentFiles | None


def find_model(name: str, backend: Backend) -> ModelFiles:
    """Where a model is, and what its weights are known by.

    Raises:
        ValueError: there is no such model, or puzzlebench's own loader does not take it.
    """
    if backend.name is None or name == EMBEDDED:
        files = find_parent(name, quiet=True)
        check_family(json.loads((files.folder / "config.json").read_text(encoding="utf-8")).get("model_type"))
        return ModelFiles(name=name, where=str(files.folder), fingerprint=files.fingerprint, files=files)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return ModelFiles(name=name, where=str(folder), fingerprint=checkpoint_fingerprint(folder), files=None)
    return ModelFiles(name=name, where=name, fingerprint=name, files=None)  # the backend's to find


def model_arguments(model: ModelFiles, backend: Backend) -> str:
    """What lm-eval is told about a model, as its --model_args."""
    arguments = backend.arguments
    if _PLACE not in arguments:
        arguments = f"pretrained={_PLACE},{arguments}".rstrip(",")
    return arguments.replace(_PLACE, model.where)


def open_model(model: ModelFiles, backend: Backend) -> Any:
    """The model as lm-eval takes it.

    Raises:
        ValueError: it cannot be loaded, or lm-eval has no such backend.
    """
    try:
        import lm_eval.api.registry as registry
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise ValueError(NEEDS_HARNESS) from None
    quiet_logging()
    if backend.name is not None:
        try:
            kind = registry.get_model(backend.name)
        except (KeyError, ValueError, ImportError) as error:
            raise ValueError(f"lm-eval has no backend {backend.name!r}: {first_line(error)}") from None
        try:
            return kind.create_from_arg_string(model_arguments(model, backend), {"batch_size": backend.batch_size})
        except (ImportError, OSError, TypeError, ValueError) as error:
            raise ValueError(f"{model.name} cannot be opened by {backend.name}: {first_line(error)}") from None
    import torch

    from puzzlebench.child.checkpoints import load_causal_lm
    from puzzlebench.training.precision import DTYPES

    assert model.files is not None
    with without_bars():
        loaded = load_causal_lm(
            model.files.folder, dtype=DTYPES[backend.precision], device=torch.device(backend.device)
        )
        tokenizer = load_tokenizer(model.files)
        return HFLM(
            pretrained=loaded,
            tokenizer=tokenizer,
            batch_size=backend.batch_size,
            softmax_dtype="float32",  # in bf16 the sums over a line would be steps of 0.5
        )
