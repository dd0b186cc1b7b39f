from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from puzzlebench.training.checkpoints import restore_training, save_training
from puzzlebench.training.optimisers import Optimisers, warm_then_cosine


def _model(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleDict(
        {
            "embed_tokens": nn.Embedding(11, 8),
            "wide": nn.Linear(8, 16),
            "tall": nn.Linear(16, 8),
            "norm": nn.LayerNorm(8),
        }
    )


def _optimisers(model, name="muon"):
    return Optimisers(
        dict(model.named_parameters()), name=name, lr=0.05, other_lr=0.01, not_matrices=("embed",), weight_decay=0.1
    )


def _steps(model, optimisers, first, last):
    for step in range(first, last):
        ids = torch.randint(0, 11, (6,), generator=torch.Generator().manual_seed(step))
        hidden = model["embed_tokens"](ids)
        output = model["norm"](hidden + model["tall"](torch.relu(model["wide"](hidden))))
        (output - hidden.detach().roll(1, 0)).square().mean().backward()
        optimisers.step(warm_then_cosine(step, 10, 2))


def _weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def _assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", ["muon", "adamw"])
@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_a_training_goes_on_from_its_file_as_if_it_had_not_stopped(tmp_path, name, stop):
    whole = _model()
    _steps(whole, _optimisers(whole, name), 0, 10)
    model = _model()
    optimisers = _optimisers(model, name)
    _steps(model, optimisers, 0, stop)
    save_training(tmp_path / "t.safetensors", dict(model.named_parameters()), optimisers, {"step": stop})
    fresh = _model(seed=1)
    again = _optimisers(fresh, name)
    facts = restore_training(tmp_path / "t.safetensors", dict(fresh.named_parameters()), again)
    _steps(fresh, again, facts["step"], 10)
    _assert_equal(_weights(fresh), _weights(whole))


def test_state_is_a_copy_for_who_restores_it():
    model = _model()
    optimisers = _optimisers(model)
    _steps(model, optimisers, 0, 2)
    state = {name: value.clone() for name, value in optimisers.state().items()}
    other = _model()
    restored = _optimisers(other)
    restored.restore(state)
    _steps(other, restored, 2, 4)
    _assert_equal(state, optimisers.state())


def test_state_goes_to_the_device_of_its_parameter_and_counts_stay_on_the_cpu():
    model = _model()
    optimisers = _optimisers(model)
    _steps(model, optimisers, 0, 1)
    elsewhere = copy.deepcopy(model).to("meta")
    restored = _optimisers(elsewhere)
    restored.restore(optimisers.state())
    for name, value in restored.state().items():
        assert value.device.type == ("cpu" if name.endswith("/step") else "meta"), name


def test_matrices_go_to_muon_and_tables_and_vectors_to_adamw():
    model = _model()
    optimisers = _optimisers(model)
    _steps(model, optimisers, 0, 1)
    fields = {name.partition("/")[0]: set() for name in optimisers.state()}
    for name in optimisers.state():
        fields[name.partition("/")[0]].add(name.partition("/")[2])
    adamw = {"step", "exp_avg", "exp_avg_sq"}
    assert fields == {
        "embed_tokens.weight": adamw,
        "wide.weight": {"momentum_buffer"},
        "wide.bias": adamw,
        "tall.weight": {"momentum_buffer"},
        "tall.bias": adamw,
        "norm.weight": adamw,
        "norm.bias": adamw,
    }


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_what_has_no_gradient_is_left_alone_and_gradients_are_gone_afterwards(name):
    model = _model()
    optimisers = _optimisers(model, name)
    _steps(model, optimisers, 0, 2)
    before, state = _weights(model), {key: value.clone() for key, value in optimisers.state().items()}
    model["wide"].weight.grad = torch.ones(16, 8)
    model["norm"].bias.grad = torch.ones(8)
    optimisers.step(1.0)
    after = _weights(model)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {"wide.weight", "norm.bias"}
    changed = {key for key, value in optimisers.state().items() if not torch.equal(value, state[key])}
    assert {key.partition("/")[0] for key in changed} == {"wide.weight", "norm.bias"}
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_share_of_nothing_moves_nothing():
    model = _model()
    optimisers = _optimisers(model)
    before = _weights(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimisers.step(0.0)
    _assert_equal(_weights(model), before)


def test_a_file_of_another_training_is_refused(tmp_path):
    file = tmp_path / "t.safetensors"
    model = _model()
    save_training(file, dict(model.named_parameters()), _optimisers(model), {})
    other = nn.ModuleDict({"wide": nn.Linear(8, 16), "more": nn.Linear(2, 2)})
    with pytest.raises(
        ValueError, match=r"of another training: more\.weight is missing or of another shape; remove it"
    ):
        restore_training(file, dict(other.named_parameters()), _optimisers(other))
    other = nn.ModuleDict({"wide": nn.Linear(1, 16)})
    with pytest.raises(ValueError, match=r"of another training: wide\.weight is missing or of another shape"):
        restore_training(file, dict(other.named_parameters()), _optimisers(other))


def test_the_schedule_warms_up_and_ends_at_its_floor():
    shares = [warm_then_cosine(step, 100, 10) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert shares[10] == 1.0
    assert all(later < earlier for earlier, later in pairwise(shares[10:]))
    assert shares[55] == pytest.approx(0.02 + 0.98 / 2)
    assert warm_then_cosine(100, 100, 10) == pytest.approx(0.02)
    assert warm_then_cosine(3, 3, 10) == pytest.approx(0.4)  # ends while it warms up
