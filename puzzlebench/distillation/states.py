"""The state of a training on disk, from which it goes on: one file of one process, or a folder that all write to.

What lies under the final name is whole. Knows neither losses nor data.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from puzzlebench.distillation.ranks import Ranks
from puzzlebench.errors import first_line
from puzzlebench.files import write_text
from puzzlebench.training.checkpoints import SaveClock, restore_training, save_training
from puzzlebench.training.optimisers import Optimisers

_FACTS: Final = "facts.json"
_WEIGHTS: Final = "weights//"
_OPTIMISER: Final = "optimiser//"
_SHARE_OF_TIME: Final = 0.05  # at most for writing, where many processes write a large model


class States:
    """Saves and restores; all processes call each method together.

    Args:
        folder: exists; every process sees it.
        name: of the training. States of another name are left alone.
    """

    def __init__(self, folder: Path, name: str, ranks: Ranks) -> None:
        self._ranks = ranks
        self._file = folder / f"{name}.safetensors"
        self._clock = SaveClock()
        self._took = 0.0
        self._written = time.monotonic()

    def due(self) -> bool:
        """Whether it is time to save."""
        rested = time.monotonic() - self._written >= self._took / _SHARE_OF_TIME
        return bool(self._ranks.agree(rested and self._clock()))

    def save(self, named: Mapping[str, torch.nn.Parameter], optimisers: Optimisers, facts: Mapping[str, Any]) -> None:
        """Write all of it; what was written before stays until then.

        Raises:
            ValueError: the disk is full, or cannot be written to.
        """
        begun = time.monotonic()
        if self._ranks.count == 1:
            save_training(self._file, named, optimisers, facts)
        else:
            self._save_together(named, optimisers, facts)
        self._written = time.monotonic()
        self._took = self._written - begun if self._ranks.count > 1 else 0.0

    def restore(self, named: Mapping[str, torch.nn.Parameter], optimisers: Optimisers) -> dict[str, Any] | None:
        """Take over what was saved last, by however many processes, and return its facts; None where nothing was.

        Raises:
            ValueError: what is there is broken.
        """
        folders = self._ranks.agree([str(folder) for folder in self._folders()])
        if folders:
            return self._restore_together(Path(folders[-1]), named, optimisers)
        if self._ranks.agree(self._file.exists()):
            if self._ranks.sharded:
                raise ValueError(
                    f"{self._file} was written by one process and cannot be spread over several; remove it"
                )
            return restore_training(self._file, named, optimisers)
        return None

    def remove(self) -> None:
        """Remove all states of this training."""
        self._ranks.wait()
        if self._ranks.index == 0:
            self._file.unlink(missing_ok=True)
            for folder in [*self._folders(), *self._file.parent.glob(f"{self._file.stem}.*.part")]:
                shutil.rmtree(folder, ignore_errors=True)

    def _folders(self) -> list[Path]:
        return sorted(self._file.parent.glob(f"{self._file.stem}.step-*[0-9]"))

    def _save_together(
        self, named: Mapping[str, torch.nn.Parameter], optimisers: Optimisers, facts: Mapping[str, Any]
    ) -> None:
        folder = self._file.with_name(f"{self._file.stem}.step-{facts['step']:09d}")
        part = folder.with_name(f"{folder.name}.part")
        if self._ranks.index == 0:
            shutil.rmtree(part, ignore_errors=True)  # a killed run's
        self._ranks.wait()
        tensors: dict[str, Any] = {_WEIGHTS + name: parameter.detach() for name, parameter in named.items()}
        tensors |= {_OPTIMISER + name: value for name, value in optimisers.state().items()}
        checkpoint = _together()
        try:
            checkpoint.save(tensors, checkpoint_id=part)
        except (OSError, checkpoint.api.CheckpointException) as error:
            raise ValueError(f"cannot write {part}: {first_line(error)}") from None
        self._ranks.wait()
        if self._ranks.index == 0:
            write_text(part / _FACTS, json.dumps(facts))
            before = self._folders()
            os.replace(part, folder)
            for old in before:
                shutil.rmtree(old, ignore_errors=True)
        self._ranks.wait()

    def _restore_together(
        self, folder: Path, named: Mapping[str, torch.nn.Parameter], optimisers: Optimisers
    ) -> dict[str, Any]:
        checkpoint = _together()
        try:
            facts: dict[str, Any] = json.loads((folder / _FACTS).read_text())
            stored = checkpoint.FileSystemReader(folder).read_metadata().state_dict_metadata
            tensors: dict[str, Any] = {}
            for key, entry in stored.items():
                name = key.removeprefix(_WEIGHTS)
                if name != key:
                    tensors[key] = named[name].detach()  # in place
                    continue
                like = named[key.removeprefix(_OPTIMISER).rsplit("/", 1)[0]].detach()
                own = tuple(entry.size) == tuple(like.shape)
                tensors[key] = torch.zeros_like(like) if own else torch.zeros(entry.size, dtype=entry.properties.dtype)
            checkpoint.load(tensors, checkpoint_id=folder, no_dist=self._ranks.count == 1)
        except (OSError, ValueError, KeyError, checkpoint.api.CheckpointException) as error:
            raise ValueError(f"{folder} is no state of this training that can be read: {error}; remove it") from None
        optimisers.restore(
            {key.removeprefix(_OPTIMISER): value for key, value in tensors.items() if key.startswith(_OPTIMISER)}
        )
        return facts


def _together() -> Any:
    """torch's checkpoints of tensors that are spread over processes; it exports less than it documents."""
    from torch.distributed import checkpoint

    return checkpoint
