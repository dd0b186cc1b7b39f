"""Whole measurements: against an engine whose costs are known, and once through a real one."""

import json
import math

import numpy as np
import pytest
import torch

from puzzlebench.measuring.stack.measure import measure_stack
from puzzlebench.measuring.stack.slope import StackRefused
from puzzlebench.measuring.stack.transformers_engine import TransformersEngine
from puzzlebench.model.blocks import GQA, Block, GatedMLP, NoOp
from puzzlebench.model.hf_config import from_hf_config

BLOCK = Block(attention=GQA(num_key_value_heads=2), ffn=GatedMLP(intermediate_size=512))
HEAD = (Block(attention=GQA(num_key_value_heads=8), ffn=NoOp()),)
REST, HEAD_COST = 5e-3, 2e-3


def block_seconds(block, context):
    """A cost that knows the block: linear in the context where there is attention."""
    width = 0 if block.ffn == NoOp() else block.ffn.intermediate_size
    return 1e-6 * width + (0 if block.attention == NoOp() else 1e-7 * block.attention.num_key_value_heads * context)


class KnownModel:
    def __init__(self, engine, blocks, loaded_for):
        self.engine, self.blocks, self.loaded_for = engine, blocks, loaded_for
        self.is_open = True

    def generate_seconds(self, *, batch_size, prompt_len, new_tokens):
        assert self.is_open
        assert batch_size == self.loaded_for[0]
        assert prompt_len + new_tokens <= self.loaded_for[1]
        engine = self.engine
        engine.runs.append((len(self.blocks), new_tokens))
        if engine.fails_after is not None and len(engine.runs) > engine.fails_after:
            raise RuntimeError("the engine fell over")
        seconds = REST * new_tokens
        for block in self.blocks:
            seconds += engine.sign * 100 * block_seconds(block, prompt_len)
            seconds += engine.sign * sum(block_seconds(block, prompt_len + step) for step in range(1, new_tokens))
        return seconds + engine.drift * len(engine.runs) + engine.generator.normal(0, engine.noise)

    def close(self):
        assert self.is_open
        self.is_open = False
        self.engine.open -= 1


class KnownEngine:
    """Answers with times instead of tokens; keeps what it was asked."""

    name = "known"
    model = KnownModel
    version = "1"

    def __init__(self, *, noise=0.0, drift=0.0, room=2, fails_after=None, sign=1.0):
        self.generator = np.random.default_rng(0)
        self.noise, self.drift, self.room, self.sign = noise, drift, room, sign
        self.fails_after = fails_after
        self.open = self.loads = 0
        self.runs = []

    def load(self, checkpoint, *, max_batch_size, max_seq_len):
        if self.open == self.room:
            raise torch.OutOfMemoryError("no room")
        self.open += 1
        self.loads += 1
        config = json.loads((checkpoint / "config.json").read_text())
        assert config["max_position_embeddings"] >= max_seq_len
        return self.model(self, from_hf_config(config, name="model")[1].blocks, (max_batch_size, max_seq_len))


def measure(engine, spec, tmp_path, **changes):
    options = {"copies": 3, "batch_size": 4, "prompt_len": 32, "decode_tokens": 9, "workdir": tmp_path / "work"}
    return measure_stack(engine, spec, changes.pop("block", BLOCK), **{**options, **changes})


@pytest.mark.parametrize("head", [(), HEAD])
def test_known_costs_come_back(tmp_path, make_stack_spec, head):
    engine = KnownEngine()
    timings = measure(engine, make_stack_spec(1), tmp_path, head=head)
    assert (timings.batch_size, timings.prompt_len, timings.mean_context) == (4, 32, 36.5)
    assert timings.prefill.latency_us == pytest.approx(1e6 * 100 * block_seconds(BLOCK, 32))
    assert timings.decode.latency_us == pytest.approx(1e6 * block_seconds(BLOCK, timings.mean_context))
    rest = [REST + 100 * sum(block_seconds(block, 32) for block in head)]
    rest += [REST + sum(block_seconds(block, timings.mean_context) for block in head)]
    assert (timings.prefill.intercept_us, timings.decode.intercept_us) == pytest.approx([1e6 * value for value in rest])
    assert len(timings.prefill.samples) == len(timings.decode.samples) == 5
    assert engine.open == 0
    assert engine.loads == 2
    assert not list((tmp_path / "work").iterdir())


def test_runs_are_warmed_up_and_alternate(tmp_path, make_stack_spec):
    engine = KnownEngine()
    measure(engine, make_stack_spec(1), tmp_path, repeats=4)
    warm = [(3, 1), (3, 9)] * 2 + [(6, 1), (6, 9)] * 2
    forth, back = [(3, 1), (3, 9), (6, 1), (6, 9)], [(6, 9), (6, 1), (3, 9), (3, 1)]
    assert engine.runs == warm + (forth + back) * 2


def test_decode_steps_counted_from_a_longer_answer(tmp_path, make_stack_spec):
    engine = KnownEngine()
    timings = measure(engine, make_stack_spec(1), tmp_path, decode_from=4)
    assert timings.mean_context == 32 + (4 + 5 + 6 + 7 + 8) / 5
    assert timings.decode.latency_us == pytest.approx(1e6 * block_seconds(BLOCK, timings.mean_context))
    assert timings.prefill.latency_us == pytest.approx(1e6 * 100 * block_seconds(BLOCK, 32))
    assert engine.runs[-6:] == [(3, 1), (3, 4), (3, 9), (6, 1), (6, 4), (6, 9)]


def test_a_ragged_start_and_end_lengthen_decode_unless_counted_from_beyond_them(tmp_path, make_stack_spec):
    class Ragged(KnownModel):
        """A batch of which half comes a step late: one step more as soon as there is a second token."""

        def generate_seconds(self, *, batch_size, prompt_len, new_tokens):
            late = sum(block_seconds(block, prompt_len) for block in self.blocks) if new_tokens > 1 else 0
            return super().generate_seconds(batch_size=batch_size, prompt_len=prompt_len, new_tokens=new_tokens) + late

    class RaggedEngine(KnownEngine):
        model = Ragged

    timings = measure(RaggedEngine(), make_stack_spec(1), tmp_path)
    assert timings.decode.latency_us > 1.1e6 * block_seconds(BLOCK, timings.mean_context)
    timings = measure(RaggedEngine(), make_stack_spec(1), tmp_path, decode_from=2)
    assert timings.decode.latency_us == pytest.approx(1e6 * block_seconds(BLOCK, timings.mean_context))


def test_a_steady_drift_cancels_over_pairs_of_repeats(tmp_path, make_stack_spec):
    timings = measure(KnownEngine(drift=1e-5), make_stack_spec(1), tmp_path, repeats=10)
    truth = 1e6 * 100 * block_seconds(BLOCK, 32)
    assert timings.prefill.latency_us == pytest.approx(truth, rel=1e-6)
    assert timings.prefill.low_us < truth < timings.prefill.high_us


def test_the_interval_covers_known_costs_at_its_rate(tmp_path, make_stack_spec, monkeypatch):
    engine = KnownEngine(noise=2e-4)
    covered = {"prefill": 0, "decode": 0}
    truth = {"prefill": 1e6 * 100 * block_seconds(BLOCK, 32), "decode": 1e6 * block_seconds(BLOCK, 36.5)}
    trials = 40
    for _ in range(trials):
        timings = measure(engine, make_stack_spec(1, vocab_size=8), tmp_path)
        for phase, value in truth.items():
            slope = getattr(timings, phase)
            covered[phase] += slope.low_us <= value <= slope.high_us
    # 38 of 40 with a standard deviation of 1.4.
    assert min(covered.values()) >= 33


def test_stacks_that_do_not_fit_together_are_loaded_in_turn(tmp_path, make_stack_spec):
    engine = KnownEngine(room=1)
    timings = measure(engine, make_stack_spec(1), tmp_path, repeats=4)
    assert timings.prefill.latency_us == pytest.approx(1e6 * 100 * block_seconds(BLOCK, 32))
    assert engine.open == 0
    assert engine.loads == 5  # small, large (two visits), small (two), large (two), small
    timed = [run for run in engine.runs if run[1] == 9]
    assert len(timed) == 5 * 2 + 8  # every load is warmed up


def test_a_stack_that_does_not_fit_at_all_says_so(tmp_path, make_stack_spec):
    with pytest.raises(torch.OutOfMemoryError):
        measure(KnownEngine(room=0), make_stack_spec(1), tmp_path)
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("engine", "phase"), [(KnownEngine(sign=-1.0), "prefill"), (KnownEngine(noise=2e-2), "decode")]
)
def test_a_time_that_is_not_positive_is_refused(tmp_path, make_stack_spec, engine, phase):
    with pytest.raises(StackRefused, match=rf"{phase} of gqa_2 \+ mlp_512, batch 4, prompt 32: .* more than 3 copies"):
        measure(engine, make_stack_spec(1), tmp_path)
    assert engine.open == 0
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize("fails_after", [0, 3, 6, 11])
def test_a_failing_engine_leaves_nothing_open(tmp_path, make_stack_spec, fails_after):
    engine = KnownEngine(fails_after=fails_after)
    with pytest.raises(RuntimeError, match="fell over"):
        measure(engine, make_stack_spec(1), tmp_path)
    assert engine.open == 0
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"copies": 0}, "copies must be"),
        ({"decode_tokens": 1}, "decode_tokens must be at least 2"),
        ({"decode_from": 9}, "decode_from must be below decode_tokens 9, not 9"),
        ({"decode_from": 0}, "decode_from must be"),
        ({"repeats": 1}, "repeats must be at least 2"),
        ({"block": Block(attention=NoOp(), ffn=NoOp())}, "nothing to time"),
        ({"block": Block(attention=NoOp(), ffn=GatedMLP(intermediate_size=300))}, "256 or 512"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path, make_stack_spec, changes, message):
    engine = KnownEngine()
    with pytest.raises(ValueError, match=message):
        measure(engine, make_stack_spec(1), tmp_path, **changes)
    assert engine.loads == 0


def test_a_real_engine_gives_finite_positive_times(tmp_path, make_stack_spec):
    pytest.importorskip("transformers")
    # Big against the rest of the model, so that a busy machine does not hide it; a refusal is tried again.
    spec = make_stack_spec(1, hidden_size=128)
    for width in (768, 3072):
        block = Block(attention=GQA(num_key_value_heads=2), ffn=GatedMLP(intermediate_size=width))
        for attempt in range(4):
            try:
                sizes = {"block": block, "dtype": "float32", "decode_tokens": 5, "repeats": 3 + attempt}
                timings = measure(TransformersEngine(), spec, tmp_path, **sizes)
                break
            except StackRefused:
                continue
        else:
            pytest.skip("the machine is too busy to time anything")
        for slope in (timings.prefill, timings.decode):
            assert math.isfinite(slope.latency_us)
            assert 0 < slope.low_us <= slope.high_us
