"""Evidence of a child: read from a run or file by file, and refused where it is of another child."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")

from puzzlebench.estimate import Interval
from puzzlebench.exporting.evidence import EvidenceFiles, read_evidence
from puzzlebench.exporting.source import open_source
from puzzlebench.model.blocks import GQA, Architecture, Block, GatedMLP
from puzzlebench.searching.scenarios import ResourceLimit

from . import documents
from .documents import write
from .samples import make_samples


@pytest.fixture(scope="module")
def tiny_child(tmp_path_factory):
    (child,) = make_samples(tmp_path_factory.mktemp("samples"), ("llama-sized",))
    return child


@pytest.fixture
def source(tiny_child):
    return open_source(tiny_child.folder)


def another(architecture: Architecture) -> Architecture:
    last = Block(attention=GQA(num_key_value_heads=2), ffn=GatedMLP(intermediate_size=512))
    return Architecture(blocks=(*architecture.blocks[:-1], last))


@pytest.fixture
def run(tiny_child, source, tmp_path):
    """A run's folder with all that a card needs; child/ has other weights than distilled/."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_child.folder, folder / "distilled")
    shutil.copytree(tiny_child.folder, folder / "child")
    halve(folder / "child")
    parent = source.solution["parent_fingerprint"]
    write(folder / "search/search.json", documents.search(source.architecture))
    write(folder / "distilled/distillation.json", documents.distillation(parent))
    kept = documents.retention("gone", child=source.fingerprint, parent=parent)
    write(folder / "evaluation/distilled/retention.json", kept)
    before = {"retention": 0.95, "low": 0.93, "high": 0.97}
    realised = documents.retention(folder / "child", parent=parent, overall=before)
    write(folder / "evaluation/realised/retention.json", realised)
    known = {"parent": parent, "child": source.fingerprint}
    write(folder / "speed/speed.json", documents.speed(fingerprints=known))
    stages = [{"name": name} for name in ("search", "distil", "evaluate", "speed")]
    write(folder / "run.json", {"schema_version": 1, "stages": stages})
    return folder


def halve(folder):
    from safetensors.torch import load_file, save_file

    (file,) = folder.glob("*.safetensors")
    state = {name: tensor * 0.5 for name, tensor in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})


def test_a_run(run):
    found = read_evidence(EvidenceFiles(run=run), open_source(run / "distilled"))
    assert found.notes == ()
    assert found.search.values["throughput"] == 1211.4
    assert found.search.parent_values["ttft"] == 0.0514
    assert found.search.limits[0] == ResourceLimit(resource="throughput", low=1210.5)
    assert found.search.cost_cells == {"measured": 64}
    assert found.search.proven
    assert found.retention.overall == Interval(value=1.0012, low=0.987, high=1.0159)
    assert found.retention.before == Interval(value=0.95, low=0.93, high=0.97)
    assert [task.task for task in found.retention.tasks] == ["puzzlebench_choice", "other"]
    assert math.isnan(found.retention.tasks[1].retained.value)
    assert found.speed.speed_ups["decode"] == Interval(value=2.1, low=2.1 * 0.9, high=2.1 * 1.1)
    assert found.speed.errors == {"prefill": 0.02, "decode": -0.005, "generate": -0.024}
    assert found.speed.times[1]["generate"].value == 917.0
    assert found.retention.tasks[0].above_chance == Interval(value=1.0117, low=0.966, high=1.06)
    assert (found.retention.tasks[0].chance, found.retention.tasks[0].documents) == (0.25, 400)
    assert found.speed.predicted_times[1]["generate"].value == 917.0
    assert found.speed.disturbed_share == 0.125
    assert found.retention.checked
    assert found.speed.checked
    assert found.distillation.checked
    assert found.distillation.losses == {"cosine": 1.0, "forward_kl": 1.0}
    assert found.distillation.data == "books.jsonl"
    assert found.distillation.held_out["forward_kl"] == (0.02, 0.006), "rows of one length only"


def test_the_realised_child_of_a_run_was_not_distilled(run):
    found = read_evidence(EvidenceFiles(run=run), open_source(run / "child"))
    assert found.distillation is None
    assert found.retention.overall.value == 0.95
    assert found.retention.before is None
    assert found.speed is not None, "its architecture is the same, and so are its times"


def test_without_a_child_nothing_is_checked(run):
    assert read_evidence(EvidenceFiles(run=run)).speed.device == "AMD EPYC, 2 core(s)"


def test_nothing():
    found = read_evidence(EvidenceFiles())
    assert (found.search, found.retention, found.speed, found.distillation, found.notes) == (None, None, None, None, ())


def test_a_run_of_another_child(run, tiny_child):
    halve(run / "distilled")
    with pytest.raises(ValueError, match=r"is not the run of .*folders distilled and child hold other weights"):
        read_evidence(EvidenceFiles(run=run), open_source(tiny_child.folder))


def test_unfinished_stages_are_passed_over(run):
    write(run / "run.json", {"schema_version": 1, "stages": [{"name": "search"}, {"name": "distil"}]})
    found = read_evidence(EvidenceFiles(run=run), open_source(run / "distilled"))
    assert found.speed is None
    assert found.retention is None
    assert "speed/speed.json is of a stage that the run has not finished, and was passed over." in found.notes


def test_a_file_by_name_takes_the_place_of_the_runs(run, tmp_path):
    own = open_source(run / "distilled").fingerprint
    other = write(tmp_path / "speed.json", documents.speed(device="another", fingerprints={"child": own}))
    found = read_evidence(EvidenceFiles(run=run, speed=other), open_source(run / "distilled"))
    assert found.speed.device == "another"


def test_a_search_of_another_child(source, tmp_path):
    file = write(tmp_path / "search.json", documents.search(another(source.architecture)))
    with pytest.raises(ValueError, match=r"search.json: it is of another child: in layer 3 it chose gqa_2\+mlp_512"):
        read_evidence(EvidenceFiles(search=file), source)
    short = Architecture(blocks=source.architecture.blocks[:2])
    file = write(tmp_path / "search.json", documents.search(short))
    with pytest.raises(ValueError, match="it chose 2 layers and this one has 4"):
        read_evidence(EvidenceFiles(search=file), source)


def test_a_later_solution_is_found_and_not_called_the_best(source, tmp_path):
    file = write(tmp_path / "search.json", documents.search(another(source.architecture), source.architecture))
    assert not read_evidence(EvidenceFiles(search=file), source).search.proven


def test_a_search_that_found_nothing(source, tmp_path):
    file = write(tmp_path / "search.json", documents.search(source.architecture, solutions=[]))
    with pytest.raises(ValueError, match="the search found no architecture"):
        read_evidence(EvidenceFiles(search=file), source)


def test_a_parent_of_another_batch_size_is_left_out(source, tmp_path):
    stated = documents.search(source.architecture)
    stated["parent"]["batch_size"] = 8
    file = write(tmp_path / "search.json", stated)
    assert read_evidence(EvidenceFiles(search=file), source).search.parent_values == {}


def test_retention_of_another_child(source, tiny_child, tmp_path):
    shutil.copytree(tiny_child.folder, tmp_path / "other")
    halve(tmp_path / "other")
    file = write(tmp_path / "retention.json", documents.retention(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"it is of another child: other has other weights than llama-sized"):
        read_evidence(EvidenceFiles(retention=file), source)
    file = write(tmp_path / "retention.json", documents.retention("gone", child="0" * 64))
    with pytest.raises(ValueError, match="it is of another child: gone has other weights"):
        read_evidence(EvidenceFiles(retention=file), source)
    gone = write(tmp_path / "retention.json", documents.retention("/no/such/child"))
    found = read_evidence(EvidenceFiles(retention=gone), source)
    assert not found.retention.checked
    assert found.notes == (
        "Not checked: which weights the child of the evaluation, called child, had.",
        "Not checked: which weights the parent of the evaluation, called tiny, had.",
    )


def test_evidence_of_another_parent(source, tmp_path):
    own = source.fingerprint
    kept = write(tmp_path / "retention.json", documents.retention("x", child=own, parent="0" * 64))
    with pytest.raises(ValueError, match="it is of another parent: tiny has other weights than the parent of llama"):
        read_evidence(EvidenceFiles(retention=kept), source)
    timed = write(tmp_path / "speed.json", documents.speed(fingerprints={"parent": "0" * 64, "child": own}))
    with pytest.raises(ValueError, match="it is of another parent: parent has other weights"):
        read_evidence(EvidenceFiles(speed=timed), source)


def test_values_outside_their_own_intervals(source, tmp_path):
    wrong = documents.retention("x", overall={"retention": 1.2, "low": 0.9, "high": 1.1})
    file = write(tmp_path / "retention.json", wrong)
    with pytest.raises(ValueError, match=r"retention is 1.2, outside its own interval, 0.9 to 1.1"):
        read_evidence(EvidenceFiles(retention=file), source)


def test_the_distillation_beside_the_weights_is_read(source, tiny_child, tmp_path):
    shutil.copytree(tiny_child.folder, tmp_path / "child")
    stated = documents.distillation(source.solution["parent_fingerprint"])
    write(tmp_path / "child/distillation.json", stated)
    found = read_evidence(EvidenceFiles(), open_source(tmp_path / "child"))
    assert (found.distillation.tokens, found.distillation.checked, found.notes) == (307_200, True, ())
    write(tmp_path / "child/distillation.json", {**stated, "weights_fingerprint": "0" * 64})
    with pytest.raises(ValueError, match="it is of another child: child has other weights than child"):
        read_evidence(EvidenceFiles(), open_source(tmp_path / "child"))


def test_distillation_from_another_parent(source, tmp_path):
    file = write(tmp_path / "distillation.json", documents.distillation("0" * 64))
    with pytest.raises(ValueError, match="it is of another parent: tiny has other weights than the parent of"):
        read_evidence(EvidenceFiles(distillation=file), source)
    child = replace(source, solution=None)
    assert read_evidence(EvidenceFiles(distillation=file), child).distillation.tokens == 307_200


def test_speed_of_another_child(source, tmp_path):
    file = write(tmp_path / "speed.json", documents.speed("one", "two"))
    with pytest.raises(ValueError, match=r"it has 2 children \(one, two\); this one is called llama-sized"):
        read_evidence(EvidenceFiles(speed=file), source)
    job = {"models": [{"label": "one", "fingerprint": "1"}, {"label": "two", "fingerprint": source.fingerprint}]}
    write(tmp_path / "run/job.json", job)
    assert read_evidence(EvidenceFiles(speed=file), source).speed.speed_ups["prefill"].value == 2.1
    job["models"][1]["fingerprint"] = "2"
    write(tmp_path / "run/job.json", job)
    with pytest.raises(ValueError, match="it is of other checkpoints"):
        read_evidence(EvidenceFiles(speed=file), source)


def test_speed_that_does_not_say_of_which_weights(source, tmp_path):
    file = write(tmp_path / "speed.json", documents.speed("mine", predicted=False))
    found = read_evidence(EvidenceFiles(speed=file), source)
    assert found.speed.predicted == {}
    assert not found.speed.checked
    assert found.notes == (
        "Not checked: which weights the child of the times, called mine, had.",
        "Not checked: which weights the parent of the times, called parent, had.",
    )


def test_speed_predicted_for_another_setup(source, tmp_path):
    costs = {"gpu": "h100", "engine": "trtllm", "weight_dtype": "fp8", "same_device": False, "same_precision": False}
    file = write(tmp_path / "speed.json", documents.speed(costs=costs))
    assert [line.split(":")[0] for line in read_evidence(EvidenceFiles(speed=file), source).speed.other_setup] == [
        "The cost table is of h100",
        "The cost table is of fp8 weights, measured was fp32.",
        "The cost table is of the engine trtllm, measured was torch.",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a JSON file that can be read"),
        ("[]", "has schema version None; this version reads 1"),
        ('{"schema_version": 2}', "has schema version 2; this version reads 1"),
        ('{"schema_version": true}', "has schema version True"),
        ('{"schema_version": 1}', "lacks '[a-z_]+'; run its stage again"),
    ],
)
@pytest.mark.parametrize("name", ["search", "retention", "speed", "distillation"])
def test_files_that_are_not_what_they_should_be(name, text, message, tmp_path):
    file = tmp_path / f"{name}.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_evidence(EvidenceFiles(**{name: file}))
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"search.json: no such file"):
        read_evidence(EvidenceFiles(search=tmp_path / "search.json"))
    with pytest.raises(ValueError, match="is no folder of a run"):
        read_evidence(EvidenceFiles(run=tmp_path / "nowhere"))
