"""What adapters of serving engines need to know of a checkpoint before they hand it over. Loads no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from puzzlebench.measuring.stack.layouts import CONFIG_CLASS_FILE
from puzzlebench.model.blocks import Architecture
from puzzlebench.model.hf_config import from_hf_config


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointFacts:
    """A checkpoint's layers and vocabulary.

    Attributes:
        runs_code: its config class lies beside it, so an engine has to be told to trust it.
    """

    architecture: Architecture
    vocab_size: int
    runs_code: bool


def read_checkpoint(checkpoint: Path) -> CheckpointFacts:
    """Read the config of a checkpoint.

    Raises:
        ValueError: there is none, or its config class is not the one that `write_checkpoint` writes.
    """
    try:
        config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        runs_code = "auto_map" in config
        written = (checkpoint / CONFIG_CLASS_FILE).read_text(encoding="utf-8") if runs_code else None
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{checkpoint} is not a checkpoint written by write_checkpoint: {error}") from None
    if runs_code and written != config_class_source():
        raise ValueError(f"{checkpoint}: its {CONFIG_CLASS_FILE} is not puzzlebench's, and would be run; write it anew")
    spec, architecture = from_hf_config(config, name=checkpoint.name)
    return CheckpointFacts(architecture=architecture, vocab_size=spec.vocab_size, runs_code=runs_code)


def config_class_source() -> str:
    """The Python file with the config class of the decilm layout."""
    file = resources.files("puzzlebench.measuring.stack").joinpath(f"{CONFIG_CLASS_FILE}.in")
    return file.read_text(encoding="utf-8")
