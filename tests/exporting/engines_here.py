"""The script for transformers in the process of a test, in place of one of its own."""

from __future__ import annotations

import importlib.util
import json

import transformers

from puzzlebench.exporting import verify


def run_script_here(tmp_path, monkeypatch):
    """Code of checkpoints is then imported from a folder of the test's own."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    spec = importlib.util.spec_from_file_location("transformers_engine", verify._SCRIPTS / "transformers_engine.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(command, *_):
        _, _, request, answer = command
        with open(request) as file:
            stated = json.load(file)
        try:
            found = script.answer_request(stated)
        except Exception as error:
            found = script.empty_answer() | {"error": script._one_line(error)}
        with open(answer, "w") as file:
            json.dump(found, file)
        return 0, ""

    monkeypatch.setattr(verify, "_run", run)
