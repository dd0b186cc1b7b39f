"""The Hugging Face format: the family's own config with `per_layer_config`, and beside it the class that reads that.

A checkpoint whose layers are all alike is written as the stock one that it is.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puzzlebench.exporting.decilm import finished_child
from puzzlebench.exporting.rope import both_forms

if TYPE_CHECKING:
    from puzzlebench.exporting.source import ExportSource


def hf_config(source: ExportSource, *, dtype: str) -> dict[str, Any]:
    """A JSON-ready config.json for every transformers that is supported.

    Args:
        dtype: of the weights, by its name in torch.
    """
    stated = {key: value for key, value in source.config.items() if key != "torch_dtype"}
    return {**finished_child(stated), **both_forms(stated), "dtype": dtype}


def write_code(config: dict[str, Any], folder: Path) -> None:
    """The file that transformers runs to load the checkpoint, where it needs one."""
    from puzzlebench.child import modeling_heterogeneous
    from puzzlebench.child.configs import MODELING_FILE

    if "auto_map" in config:
        shutil.copyfile(modeling_heterogeneous.__file__, folder / MODELING_FILE)
