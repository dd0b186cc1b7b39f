"""A tiny model, plans for it, and an engine that runs nothing."""

import math
import sys
from types import ModuleType, SimpleNamespace

import pytest

from puzzlebench.measuring.engines import ENGINES
from puzzlebench.measuring.plan import Effort, Plan, Planned
from puzzlebench.measuring.results import Measured
from puzzlebench.measuring.workload import Workload
from puzzlebench.model.spec import ModelSpec
from puzzlebench.scenario import Precision

FP32 = Precision(weight_dtype="fp32", kv_dtype="fp32")


@pytest.fixture(scope="session")
def make_spec():
    def make(**changes):
        layers = changes.get("num_hidden_layers", 2)
        fields = {
            "name": "tiny",
            "model_type": "llama",
            "num_hidden_layers": layers,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "intermediate_size": 64,
            "vocab_size": 96,
            "max_position_embeddings": 128,
            "tie_word_embeddings": False,
            "qkv_bias": False,
            "attention_output_bias": False,
            "mlp_bias": False,
            "qk_norm": "none",
            "norm_placement": "pre",
            "sliding_windows": (None,) * layers,
        }
        return ModelSpec(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def work():
    """A workload from its parts in one line."""

    def make(part, sub_block, phase="decode", batch_size=1, context_len=1):
        return Workload(part=part, sub_block=sub_block, phase=phase, batch_size=batch_size, context_len=context_len)

    return make


@pytest.fixture
def make_plan(make_spec):
    def make(workloads, **changes):
        fields = {
            "spec": make_spec(),
            "device": "cpu",
            "engine": "torch",
            "precision": FP32,
            "effort": Effort(sessions=1, seconds=1.0),
            "models": {},
            "fingerprint": {
                "device": "some_cpu",
                "torch": "2.0",
                "date": "2026-01-02T03:04:05+00:00",
                "git_commit": "abc",
                "cpu": {"flags": ["avx2"]},
            },
        }
        planned = tuple(Planned(workload=one, copies=2) for one in workloads)
        return Plan(workloads=planned, **{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def make_measured():
    """A measured workload with a latency and a relative interval."""

    def make(workload, latency_us, relative=0.1, **changes):
        fields = {
            "workload": workload,
            "latency_us": latency_us,
            "low_us": latency_us * (1 - relative),
            "high_us": latency_us * (1 + 2 * relative),
            "hot_us": latency_us / 2,
            "samples": 30,
            "sessions": 3,
            "throttled_share": 0.0,
            "disturbed_share": 0.0,
            "energy_mj": math.nan,
            "copies": 2,
            "static_bytes": 200,
            "peak_bytes": 70,
            "reserved_bytes": None,
            "process_bytes": None,
            "stopped_by": "interval",
        }
        return Measured(**{**fields, **changes})

    return make


class StubEngine:
    """Prepares at once. `raises` maps the name of a sub-block to what preparing it raises."""

    name, version = "stub", "1"

    def __init__(self, raises, device):
        self.raises, self.device, self.asked, self.closed = raises, device, [], False

    def prepare(self, workload, *, copies):
        self.asked.append(workload)
        if workload.sub_block in self.raises:
            raise self.raises[workload.sub_block]
        return SimpleNamespace(copies=copies, static_bytes=100 * copies, run=lambda copy: None, workload=workload)

    def close(self):
        self.closed = True


@pytest.fixture
def stub_engine(monkeypatch):
    """An engine named `stub` in this process: `opened` holds every one made."""
    module = ModuleType("stub_engine_of_tests")
    found = SimpleNamespace(raises={}, opened=[])

    def open_stub(*, spec, precision, device, max_batch_size, max_len):
        engine = StubEngine(found.raises, device)
        engine.max_batch_size, engine.max_len = max_batch_size, max_len
        found.opened.append(engine)
        return engine

    module.open_stub = open_stub
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(ENGINES, "stub", f"{module.__name__}:open_stub")
    return found
