"""The fit of the hyperparameters: its covariance is the kernel model's, and what it writes is what that reads."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from puzzlebench.profiling import fit_kriging  # noqa: E402
from puzzlebench.profiling.kernel_features import DECODE_ATTENTION, PREFILL_ATTENTION  # noqa: E402
from puzzlebench.profiling.kriging import KrigingParameters, krige  # noqa: E402
from puzzlebench.profiling.parameters import read_parameters  # noqa: E402


@pytest.fixture(scope="module")
def tasks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit_kriging, "_RANDOM_ROWS", 100)
        patch.setattr(fit_kriging, "_WHOLE_ROWS", 20)
        return fit_kriging.held_out_tasks(DECODE_ATTENTION, "vllm", [("bf16",)])


@pytest.fixture(scope="module")
def fitted(tasks):
    return fit_kriging.fit_kind(DECODE_ATTENTION, tasks, steps=12)


def test_the_fit_predicts_as_the_kernel_model_does():
    model = fit_kriging._Surface(2, 3, 4)
    rng = np.random.default_rng(2)
    x, u, query = rng.uniform(0, 4, (5, 12, 3)), rng.normal(0, 0.1, (5, 12)), rng.uniform(0, 4, (5, 3))
    mean, variance = model(*(torch.as_tensor(values) for values in (x, u, query)))
    exported = model.export(np.ones(3), 12)
    same = KrigingParameters(
        lengthscales=np.array(exported["lengthscales"]),
        amplitudes=np.array(exported["amplitudes"]),
        noise=exported["noise"] * 1e3,  # so large that the robust reweighting, which the fit leaves out, does nothing
        metric=np.ones(3),
        neighbours=12,
    )
    with torch.no_grad():
        model.log_noise += np.log(1e3)
        mean, variance = model(*(torch.as_tensor(values) for values in (x, u, query)))
    expected, deviation = krige(same, x, u, query)
    np.testing.assert_allclose(mean.numpy(), expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(variance.sqrt().numpy(), deviation, rtol=1e-3)


def test_a_fit_learns_and_can_be_read_back(fitted, tasks, tmp_path):
    start = fit_kriging._Surface(DECODE_ATTENTION.sizes, 9, 4).export(np.r_[np.ones(6), np.zeros(3)], 64)
    error, before = (fit_kriging.mean_error(tasks, read_parameters(one)) for one in (fitted, start))
    assert error < before
    path = tmp_path / "kriging.json"
    fit_kriging.write_fit(path, "trtllm", "decode_attention", "bf16", start, tasks)
    fit_kriging.write_fit(path, "vllm", "decode_attention", "bf16", fitted, tasks)
    written = json.loads(path.read_text())
    own = written["engines"]["vllm"]["decode_attention bf16"]
    assert own["held_out_percent"] == {"own": round(100 * error, 3), "trtllm": round(100 * before, 3)}
    assert own["lengthscales"] == fitted["lengthscales"]


def test_an_engine_s_own_fit_is_dropped_where_the_shared_one_is_better(fitted, tasks, tmp_path):
    path = tmp_path / "kriging.json"
    fit_kriging.write_fit(path, "trtllm", "decode_attention", "bf16", fitted, tasks)
    worse = {**fitted, "amplitudes": [0.0001] * 4}
    fit_kriging.write_fit(path, "vllm", "decode_attention", "bf16", worse, tasks)
    assert json.loads(path.read_text())["engines"] == {"vllm": {}}


def test_a_fit_to_compare_with_is_asked_for(fitted, tasks, tmp_path):
    with pytest.raises(ValueError, match="has no fit of trtllm's decode_attention to compare with"):
        fit_kriging.write_fit(tmp_path / "new.json", "vllm", "decode_attention", "bf16", fitted, tasks)


def test_an_engine_that_was_not_measured_in_a_dtype_has_nothing_to_predict():
    assert fit_kriging.held_out_tasks(PREFILL_ATTENTION, "vllm", [("fp8", "fp8")]) == []
