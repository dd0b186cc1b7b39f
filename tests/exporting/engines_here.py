"""The script for transformers in the process of a test, in place of one of its own."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import transformers

from puzzlebench.exporting import verify_engine


def run_script_here(tmp_path, monkeypatch):
    """Code of checkpoints is then imported from a folder of the test's own."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    file = verify_engine._SCRIPTS / "transformers_engine.py"
    spec = importlib.util.spec_from_file_location("transformers_engine", file)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(command, *_):
        *_, request, answer = command
        with open(request) as file:
            stated = json.load(file)
        try:
            found = script.answer_request(stated)
        except Exception as error:
            found = script.empty_answer() | {"error": script._one_line(error)}
        with open(answer, "w") as file:
            json.dump(found, file)
        return 0, ""

    monkeypatch.setattr(verify_engine, "_run", run)


def state_cache(monkeypatch, layers):
    """As if the engine had a key-value cache with these bytes per token in these layers."""
    run_script = verify_engine._run

    def run(command, *rest):
        found = run_script(command, *rest)
        answer = Path(command[-1])
        total = sum(layers.values())
        cache = {
            "block_size": 16,
            "num_blocks": 4,
            "layers": [{"layer": layer, "bytes_per_token": size} for layer, size in layers.items()],
            "bytes_per_token": total,
            "total_bytes": 64 * total,
        }
        answer.write_text(json.dumps(json.loads(answer.read_text()) | {"kv_cache": cache}))
        return found

    monkeypatch.setattr(verify_engine, "_run", run)
