"""Checkpoint directories: children are saved whole or not at all, parents and children are loaded.

A saved child loads with puzzlebench's own class here, and elsewhere with AutoModelForCausalLM and trust_remote_code,
since its class lies in the directory.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from puzzlebench.child import modeling_heterogeneous
from puzzlebench.child.configs import MODELING_FILE, auto_map, check_family
from puzzlebench.errors import first_line
from puzzlebench.files import new_folder


def save_child(model: Any, folder: Path, tokenizer: Any = None, *, extra: Mapping[str, str] | None = None) -> None:
    """Write config.json, safetensors and the child's class, with the tokenizer's files if there is one.

    Args:
        model: a child from `build_child`, trained or not.
        folder: must not exist, and appears whole or not at all; its parent is made.
        tokenizer: the parent's, as transformers loads it.
        extra: further text files, by name.

    Raises:
        ValueError: the folder exists or cannot be written, or the model is not of a supported family.
    """
    from safetensors import SafetensorError

    check_family(model.config.model_type)
    with new_folder(Path(folder), SafetensorError) as partial:
        model.config.auto_map = auto_map(model.config.model_type)
        model.save_pretrained(partial)
        shutil.copyfile(modeling_heterogeneous.__file__, partial / MODELING_FILE)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
        for name, text in (extra or {}).items():
            (partial / name).write_text(text, encoding="utf-8")


def load_causal_lm(
    name: str | Path, dtype: torch.dtype | str = "auto", device: torch.device | str = "cpu"
) -> nn.Module:
    """A parent or a child, in evaluation mode.

    Args:
        name: a checkpoint directory, or for parents also a name on the Hugging Face Hub. No code in it is run.
        dtype: of the weights; "auto" is the checkpoint's.
        device: where the weights go.

    Raises:
        ValueError: there is no checkpoint, it is broken, or its family is not supported.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, PretrainedConfig

    _check_folder(name)
    try:
        stated, _ = PretrainedConfig.get_config_dict(name)
        check_family(stated.get("model_type"))
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        if getattr(config, "attn_logit_softcapping", None):
            config._attn_implementation = "eager"  # sdpa has no soft caps, and older versions then leave them out
        model, report = _model_class(stated).from_pretrained(name, config=config, dtype=dtype, output_loading_info=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(f"{name} cannot be loaded: {first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{name} is broken: {len(missing)} weights are missing, the first is {missing[0]}")
    loaded: nn.Module = model.to(device)
    return loaded.eval()


def _model_class(stated: dict[str, Any]) -> Any:
    import transformers

    if stated.get("per_layer_config"):
        return modeling_heterogeneous.heterogeneous_class(stated["model_type"])
    return getattr(transformers, modeling_heterogeneous.CLASSES[stated["model_type"]])


def _check_folder(name: str | Path) -> None:
    """Local directories get their own messages, as transformers takes what is none for a name on the Hub."""
    folder = Path(name)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ValueError(f"{name} is not a checkpoint: it has no config.json")
    if not folder.exists() and (isinstance(name, Path) or folder.is_absolute() or str(name).startswith(".")):
        raise ValueError(f"{name} does not exist")
