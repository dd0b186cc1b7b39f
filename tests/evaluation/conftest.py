"""Results as lm-eval writes them, made by hand."""

from __future__ import annotations

import json

import pytest


def write_result(folder, tasks, *, date="2026-11-28T10-00-00.000000", groups=None, name="tiny", **header):
    """A result file with its samples. Of each task: its values per document, and what else is told of it."""
    folder.mkdir(parents=True, exist_ok=True)
    stated = {
        "results": {},
        "group_subtasks": {},
        "configs": {},
        "versions": {},
        "n-shot": {},
        "higher_is_better": {},
        "n-samples": {},
        "config": {"model": "hf", "model_dtype": "torch.float32"},
        "lm_eval_version": "0.4.13",
        "model_name": name,
        **header,
    }
    for task, told in tasks.items():
        metric, values = told.get("metric", "acc"), told["values"]
        numbers = told.get("ids", range(len(values)))
        aggregate = told.get("aggregate", lambda found: sum(found) / len(found))(values)
        kind = told.get("filter", "none")
        stated["results"][task] = {"alias": task, f"{metric},{kind}": aggregate, f"{metric}_stderr,{kind}": "N/A"}
        stated["configs"][task] = {"task": task, "output_type": told.get("output_type", "multiple_choice")}
        stated["versions"][task] = told.get("version", 1.0)
        stated["n-shot"][task] = told.get("shots", 0)
        stated["higher_is_better"][task] = {metric: told.get("higher", True)}
        rows = [
            {
                "doc_id": number,
                "doc": {},
                "arguments": {f"gen_args_{choice}": {} for choice in range(4)},
                "filter": kind,
                "metrics": [metric],
                "doc_hash": f"{told.get('hash', 'doc')}{number}",
                "prompt_hash": f"{told.get('prompt', 'prompt')}{number}",
                metric: value,
            }
            for number, value in zip(numbers, values, strict=True)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"samples_{task}_{date}.jsonl").write_text(lines)
    for group, (children, aggregate) in (groups or {}).items():
        stated["group_subtasks"][group] = children
        stated["results"][group] = {"alias": group} | ({} if aggregate is None else {"acc,none": aggregate})
        stated["higher_is_better"][group] = {"acc": True}
    file = folder / f"results_{date}.json"
    file.write_text(json.dumps(stated))
    return file


@pytest.fixture
def write():
    return write_result
