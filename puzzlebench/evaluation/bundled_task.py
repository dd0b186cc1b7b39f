"""What the bundled tasks need when the harness runs them: their documents, and what an answer is worth.

This file is copied beside the tasks, so that they run with plain lm-eval where puzzlebench is not installed. So it
imports nothing of puzzlebench.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def choice_documents(**_stated: Any) -> dict[str, Any]:
    """Documents of puzzlebench_choice, by split."""
    return _documents("puzzlebench_choice")


def perplexity_documents(**_stated: Any) -> dict[str, Any]:
    """Documents of puzzlebench_perplexity, by split."""
    return _documents("puzzlebench_perplexity")


def generation_documents(**_stated: Any) -> dict[str, Any]:
    """Documents of puzzlebench_generation, by split."""
    return _documents("puzzlebench_generation")


def judge_generation(document: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """The share of the target's characters that the answer has right, from its start to the first mistake."""
    answer = results[0][0] if isinstance(results[0], list) else results[0]
    answer = answer.lstrip(" ")  # which some tokenizers leave out where an answer begins
    target: str = document["target"]
    right = next((place for place, sign in enumerate(target) if answer[place : place + 1] != sign), len(target))
    return {"prefix_match": right / len(target)}


def _documents(task: str) -> dict[str, Any]:
    from datasets import Dataset

    lines = Path(__file__).with_name(f"{task}.jsonl").read_text("utf-8").splitlines()
    return {"test": Dataset.from_list([json.loads(line) for line in lines])}
