"""A parent by name: the embedded one, a local directory, or a model of the Hub. Knows no blocks and no data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from puzzlebench.child.checkpoints import load_causal_lm
from puzzlebench.errors import first_line
from puzzlebench.model.blocks import Architecture
from puzzlebench.model.catalog import hub_id, load_model
from puzzlebench.model.spec import ModelSpec
from puzzlebench.parent.fingerprint import checkpoint_fingerprint

EMBEDDED = "embedded"


@dataclass(frozen=True, kw_only=True, slots=True)
class ParentFiles:
    """A parent on disk, nothing loaded."""

    name: str
    folder: Path
    spec: ModelSpec
    architecture: Architecture
    fingerprint: str


def find_parent(name: str, *, quiet: bool = False, report: Callable[[float, str], None] | None = None) -> ParentFiles:
    """The files of a parent: `embedded` is trained first where it is not there yet, a Hub model downloaded.

    Args:
        report: called with the share of the training done, in place of a bar of its own.

    Raises:
        ValueError: there is no such model, or it is of no supported family.
    """
    if name == EMBEDDED:
        from puzzlebench.parent.embedded import make_embedded

        folder = make_embedded(quiet=quiet or report is not None, report=report)
    else:
        folder = Path(name).expanduser()
        if not folder.is_dir():
            load_model(name)  # a name that nothing has ends here, with near names
            folder = _download(hub_id(name))
    spec, architecture = load_model(str(folder))
    if not Path(name).expanduser().is_dir():
        spec = replace(spec, name=name)  # not that of a cache's folder
    return ParentFiles(
        name=name,
        folder=folder,
        spec=spec,
        architecture=architecture,
        fingerprint=checkpoint_fingerprint(folder),
    )


def load_parent(files: ParentFiles, device: torch.device, dtype: torch.dtype) -> Any:
    """The model, frozen and in eval mode."""
    model = load_causal_lm(files.folder, dtype=dtype, device=device)
    return model.eval().requires_grad_(requires_grad=False)


def empty_parent(files: ParentFiles, dtype: torch.dtype) -> Any:
    """The model in eval mode, its parameters without memory (on the meta device) and its other buffers as usual.

    Raises:
        ValueError: its config cannot be read.
    """
    import transformers
    from torch.nn.modules.module import register_module_parameter_registration_hook

    from puzzlebench.child.modeling_heterogeneous import heterogeneous_class

    def without_memory(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if parameter is None or parameter.is_meta:  # those that are tied come twice and stay one
            return None
        return nn.Parameter(parameter.to("meta"), requires_grad=False)

    try:
        config = transformers.AutoConfig.from_pretrained(files.folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{files.folder} cannot be loaded: {first_line(error)}") from None
    register: Any = register_module_parameter_registration_hook
    hook = register(without_memory)
    try:
        return heterogeneous_class(config.model_type)._from_config(config, dtype=dtype).eval()
    finally:
        hook.remove()


def load_tokenizer(files: ParentFiles) -> Any:
    """The parent's tokenizer.

    Raises:
        ValueError: the directory has none.
    """
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(str(files.folder))
    except (OSError, ValueError, KeyError, ImportError) as error:  # ImportError: the conversion of a slow tokenizer
        raise ValueError(f"{files.folder} has no tokenizer that can be read: {first_line(error)}") from None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    patterns += ["README.md", "LICENSE*", "NOTICE*", "*USE_POLICY*"]  # what an exported child has to carry on
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["consolidated*", "original/*"]))
    except GatedRepoError:
        raise ValueError(
            f"{name} is gated; accept its licence on the Hub and log in with `hf auth login`, or give a directory"
        ) from None
    except Exception as error:  # its HTTP client's errors differ by version
        raise ValueError(f"{name} could not be downloaded: {first_line(error)}") from None
