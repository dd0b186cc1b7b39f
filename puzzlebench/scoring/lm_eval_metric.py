"""Replace-1-block scores by a task of the LM Evaluation Harness (lm-eval 0.4.13 or newer).

The harness asks and judges; only what a candidate changes is run: for each batch of requests the parent's activations
before the layer are kept, and a candidate runs from its layer on. Requests that generate run the whole model with the
candidate swapped in.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from puzzlebench.child.blockwise import Blockwise, open_blockwise
from puzzlebench.child.halves import swapped
from puzzlebench.harness import find_tasks, without_bars
from puzzlebench.library.store import Library
from puzzlebench.model.blocks import Architecture, block_name
from puzzlebench.model.space import SearchSpace
from puzzlebench.scores import Direction
from puzzlebench.scoring.layer_halves import LayerHalves
from puzzlebench.scoring.results import LayerScores, read_layer, write_layer

_SEED: Final = 1234


class TaskMetric:
    """One metric of one task, as the harness defines it.

    Args:
        model: the parent, frozen and in eval mode.
        tokenizer: its.
        task: a name the harness knows.
        metric: one of the task's; None takes its first.
        include_path: a folder of task files of one's own.
        limit: documents; None takes all.
        batch_size: requests at a time.
        memory_limit: bytes of activations kept; batches beyond it run through the layers before each time.

    Raises:
        ValueError: lm-eval is not installed, or has no such task or metric.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        task: str,
        metric: str | None = None,
        include_path: Path | None = None,
        limit: int | None = None,
        batch_size: int = 8,
        memory_limit: int = 8 << 30,
    ) -> None:
        manager = find_tasks([task], () if include_path is None else (include_path,))
        self._tasks = manager.load([task])
        found = self._tasks["tasks"].get(task)
        if not hasattr(found, "higher_is_better"):
            raise ValueError(f"{task} is a group of tasks; give one of them")
        better: dict[str, bool] = found.higher_is_better()
        self.task, self.metric = task, metric or next(iter(better))
        if self.metric not in better:
            raise ValueError(f"{task} has no metric {self.metric!r}; it has {', '.join(better)}")
        found.set_fewshot_seed(_SEED)
        self.direction: Direction = "maximise" if better[self.metric] else "minimise"
        self._limit = limit
        self._lm = _prefix_lm(model, tokenizer, batch_size, memory_limit)

    def values(self, layer: int, halves: tuple[nn.Module, nn.Module] | None) -> torch.Tensor:
        """The metric of every document, [N, 1], of the parent with these halves in this layer (None: the parent)."""
        from lm_eval import evaluate

        with self._lm.candidate(layer, halves), without_bars():
            result = evaluate(self._lm, self._tasks, limit=self._limit, bootstrap_iters=0, log_samples=True)
        samples = sorted(result["samples"][self.task], key=lambda sample: sample["doc_id"])
        try:
            values = [[float(sample[self.metric])] for sample in samples]
        except (KeyError, TypeError):
            raise ValueError(
                f"{self.metric} of {self.task} is no number per document, so it has no standard error; take another"
            ) from None
        return torch.tensor(values, dtype=torch.float64)


def score_by_task(
    metric: TaskMetric,
    model: nn.Module,
    parent: Architecture,
    space: SearchSpace,
    library: Library,
    recipe: str,
    *,
    folder: Path,
    progress: Callable[[float, str], None] = lambda _share, _stage: None,
) -> list[LayerScores]:
    """Score every pair of halves in every layer of the space by a task.

    Args:
        folder: where the results of each layer are kept; layers that have theirs are not scored again.

    Raises:
        ValueError: the library lacks a block, or the task has fewer than two documents.
    """
    names = [[block_name(block) for block in layer.blocks()] for layer in space.layers]
    total, done = sum(map(len, names)), 0
    scores = []
    own: torch.Tensor | None = None
    for layer, candidates in enumerate(space.layers):
        found = read_layer(folder, layer, names[layer])
        if found is None:
            halves = LayerHalves(model, layer, candidates, parent.blocks[layer], library, recipe)
            values = {}
            for number, block in enumerate(candidates.blocks()):
                if block != parent.blocks[layer]:
                    values[block_name(block)] = metric.values(layer, halves.of(block))
                else:  # the same in every layer
                    own = metric.values(layer, None) if own is None else own
                    values[block_name(block)] = own
                progress((done + number + 1) / total, f"layer {layer}")
            if len(next(iter(values.values()))) < 2:
                raise ValueError(f"{metric.task} has too few documents for a standard error; give at least 2")
            found = LayerScores(layer=layer, metrics=(metric.metric,), values=values)
            write_layer(folder, found)
        done += len(names[layer])
        scores.append(found)
    return scores


def _prefix_lm(model: nn.Module, tokenizer: Any, batch_size: int, memory_limit: int) -> Any:
    """The harness's own transformers model, with its forward replaced; made here because its base class is optional."""
    from lm_eval.models.huggingface import HFLM

    class PrefixLM(HFLM):  # type: ignore[misc]
        """Keeps, for the layer in hand, what the parent gives it for every batch of token ids."""

        def __init__(self) -> None:
            with without_bars():
                super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype="float32")
            self._blockwise: dict[int, Blockwise] = {}
            self._inputs: dict[bytes, torch.Tensor] = {}
            self._layer = -1
            self._halves: tuple[nn.Module, nn.Module] | None = None
            self._room = memory_limit

        @contextlib.contextmanager
        def candidate(self, layer: int, halves: tuple[nn.Module, nn.Module] | None) -> Iterator[None]:
            """Answer as the parent with these halves."""
            if layer != self._layer:
                self._inputs.clear()
                self._room = memory_limit
            self._layer, self._halves = layer, halves
            try:
                yield
            finally:
                self._halves = None

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            if self._halves is None:
                return super()._model_call(inps, attn_mask, labels)
            length = inps.shape[1]  # padded on the right, which a causal model does not see
            if length not in self._blockwise:
                self._blockwise[length] = open_blockwise(model, length)
            blockwise = self._blockwise[length]
            with torch.inference_mode():
                key = inps.cpu().numpy().tobytes()
                hidden = self._inputs.get(key)
                if hidden is None:
                    hidden = blockwise.run_own(blockwise.embed(inps), 0, self._layer)
                    self._room -= hidden.nbytes
                    if self._room >= 0:
                        self._inputs[key] = hidden
                for half in self._halves:
                    hidden = blockwise.run(self._layer, half, hidden)
                return blockwise.logits(blockwise.run_own(hidden, self._layer + 1, blockwise.num_layers))

        def _model_generate(self, *args: Any, **kwargs: Any) -> Any:
            if self._halves is None:
                return super()._model_generate(*args, **kwargs)
            attention, ffn = self._halves
            with swapped(model, self._layer, attention=attention, ffn=ffn):
                return super()._model_generate(*args, **kwargs)

    return PrefixLM()
