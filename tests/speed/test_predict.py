"""Predictions against the search's own recount, and what cannot be predicted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from puzzlebench.estimate import Interval
from puzzlebench.model.blocks import GQA, Architecture, Block, NoOp
from puzzlebench.searching.recheck import recheck
from puzzlebench.searching.scenarios import ServingScenario
from puzzlebench.speed.predict import SpeedScenario, predict

from ..searching.conftest import edited, llama, random_architectures  # noqa: F401

SCENARIO = SpeedScenario(batch_size=4, prefill_len=300, decode_len=200)


@pytest.mark.parametrize("prefill_len", [128, 300])
def test_it_is_what_the_recount_of_a_search_gives(llama, prefill_len):  # noqa: F811
    scenario = replace(SCENARIO, prefill_len=prefill_len)
    asked = ServingScenario(name="x", prefill_len=prefill_len, decode_len=200)
    for architecture in random_architectures(llama, 6):
        speed = predict(llama.table, llama.spec, architecture, scenario)
        values = recheck(llama.table, llama.spec, architecture, [asked], 4).values
        assert speed.prefill_ms.value == pytest.approx(1e3 * values["ttft"])
        assert speed.tpot_ms.value == pytest.approx(1e3 * values["tpot"])
        assert speed.generate_ms.value == pytest.approx(1e3 * values["latency"])
        assert speed.generated_tokens_per_s.value == pytest.approx(values["throughput"])


def test_errors_of_blocks_add_up(llama):  # noqa: F811
    def widen(frame):
        frame["latency_low_us"], frame["latency_high_us"] = 0.9 * frame["latency_us"], 1.2 * frame["latency_us"]

    speed = predict(edited(llama.table, widen), llama.spec, llama.parent, SCENARIO)
    for name in ("prefill_ms", "tpot_ms", "generate_ms"):
        one: Interval = getattr(speed, name)
        assert (one.low, one.high) == pytest.approx((0.9 * one.value, 1.2 * one.value))
    rate = speed.generated_tokens_per_s
    assert (rate.low, rate.high) == pytest.approx((rate.value / 1.2, rate.value / 0.9))
    assert rate.value == pytest.approx(4 * 200 / speed.generate_ms.value * 1e3)


def test_the_names_of_model_and_checkpoint_may_differ(llama):  # noqa: F811
    spec = replace(llama.spec, name="a_folder", torch_dtype="float32")
    assert predict(llama.table, spec, llama.parent, SCENARIO) == predict(
        llama.table, llama.spec, llama.parent, SCENARIO
    )
    with pytest.raises(ValueError, match="whose shapes are not those of"):
        predict(llama.table, replace(spec, hidden_size=2 * spec.hidden_size), llama.parent, SCENARIO)


def test_a_model_of_nothing_costs_embedding_and_head(llama):  # noqa: F811
    nothing = Architecture(blocks=(Block(attention=NoOp(), ffn=NoOp()),) * 4)
    frame = llama.table.frame
    rows = frame[frame["part"].isin(["embedding", "head"]) & (frame["batch_size"] == 4) & (frame["phase"] == "prefill")]
    expected = rows[rows["context_len"] == 512]["latency_us"].sum() / 1e3
    speed = predict(llama.table, llama.spec, nothing, replace(SCENARIO, prefill_len=512))
    assert speed.prefill_ms.value == pytest.approx(expected)


def test_what_the_table_lacks(llama):  # noqa: F811
    with pytest.raises(ValueError, match="no batch size 3; it has 1, 4, 16"):
        predict(llama.table, llama.spec, llama.parent, replace(SCENARIO, batch_size=3))
    with pytest.raises(ValueError, match="steps that attend to 2049 to 5047 tokens lie outside"):
        predict(llama.table, llama.spec, llama.parent, SpeedScenario(batch_size=4, prefill_len=2048, decode_len=3000))
    odd = Architecture(blocks=(Block(attention=GQA(num_key_value_heads=16), ffn=NoOp()), *llama.parent.blocks[1:]))
    with pytest.raises(ValueError, match="no cells for attention gqa_16"):
        predict(llama.table, llama.spec, odd, SCENARIO)

    def without(frame):
        return frame[~((frame["sub_block"] == "gqa_8") & (frame["phase"] == "decode") & (frame["context_len"] == 512))]

    with pytest.raises(ValueError, match="no cell for attention gqa_8, decode, batch 4, length 512"):
        predict(edited(llama.table, without), llama.spec, llama.parent, SCENARIO)


@pytest.mark.parametrize(
    ("name", "value"), [("batch_size", 0), ("prefill_len", -1), ("decode_len", 1), ("batch_size", True)]
)
def test_scenarios_that_are_not_possible(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a whole number of at least"):
        replace(SCENARIO, **{name: value})
