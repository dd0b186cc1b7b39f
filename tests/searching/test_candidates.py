"""Which choices are left after fixes, exclusions and an engine's rules, and what is said where none is."""

import re

import pytest

from puzzlebench.model.engine_rules import EngineRule, EngineRules, load_engine_rules
from puzzlebench.searching.candidates import Removal, scored_candidates, select_candidates
from puzzlebench.searching.layer_rules import parse_layer_rule

from .conftest import pairs, scores_of

ATTENTION, FFN = ("gqa_8", "gqa_4", "no_op"), ("mlp_14336", "mlp_7168", "no_op")


@pytest.fixture(scope="module")
def scores(llama):
    return scores_of(llama, [pairs(ATTENTION, FFN)] * 3 + [["gqa_8+mlp_14336", "linear+linear"]])


def rules(*texts):
    return [parse_layer_rule(text) for text in texts]


def left(found):
    layers = [[] for _ in range(4)]
    for layer, block in zip(found.layers.tolist(), found.blocks, strict=True):
        layers[layer].append(block)
    return layers


def test_choices_keep_the_order_of_the_table(scores):
    shuffled = scores.frame.sort_values("score", kind="stable", ascending=False)
    found = scored_candidates(type(scores)(frame=shuffled, metadata=scores.metadata))
    assert left(found)[0] == pairs(ATTENTION, FFN)[::-1]
    assert found.layers.tolist() == sorted(found.layers.tolist())
    assert found.names[0] == "0:no_op+no_op"
    assert found.scores[0] == 4.0
    assert found.direction == "minimise"


def test_fixes_and_exclusions(scores, llama):
    found = select_candidates(
        scores,
        llama.spec,
        fixes=rules("0=parent", "1-2=gqa_*+*"),
        exclusions=rules("*=*+no_op", "2=gqa_8+*"),
    )
    assert left(found) == [
        ["gqa_8+mlp_14336"],
        pairs(ATTENTION[:2], FFN[:2]),
        pairs(ATTENTION[1:2], FFN[:2]),
        ["gqa_8+mlp_14336", "linear+linear"],
    ]
    assert found.removed == (
        Removal(reason="fix 0=parent", count=8),
        Removal(reason="fix 1-2=gqa_*+*", count=6),
        Removal(reason="exclusion *=*+no_op", count=4),
        Removal(reason="exclusion 2=gqa_8+*", count=2),
    )
    assert found.scores.tolist()[:3] == [0, 0, 0.5]


@pytest.mark.parametrize(
    ("fixes", "exclusions", "message"),
    [
        (["2-3=gqa_4+*"], [], "fix '2-3=gqa_4+*' matches no scored block of layer 3"),
        (["*=*+linear"], [], "fix '*=*+linear' matches no scored block of layer 0"),
        (["2=gqa_4+*", "2=gqa_8+*"], [], "fix '2=gqa_8+*' leaves layer 2 without a choice"),
        ([], ["0-2=linear+*"], "exclusion '0-2=linear+*' matches no scored block of layers 0 to 2"),
        ([], ["1=linear+*"], "exclusion '1=linear+*' matches no scored block of layer 1"),
        ([], ["*=*+*"], "exclusion '*=*+*' leaves layer 0 without a choice"),
        (["3=parent"], ["3=parent"], "exclusion '3=parent' leaves layer 3 without a choice"),
        (["4=parent"], [], "'4=parent' names layer 4, but the layers are 0 to 3"),
    ],
)
def test_rules_that_cannot_be(scores, llama, fixes, exclusions, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        select_candidates(scores, llama.spec, fixes=rules(*fixes), exclusions=rules(*exclusions))


def test_an_engine_takes_out_what_it_does_not_load(scores, llama):
    found = select_candidates(scores, llama.spec, engine_rules=load_engine_rules("vllm"))
    blocks = left(found)
    assert blocks[0] == pairs(ATTENTION[:2], FFN)
    assert blocks[1] == pairs(ATTENTION, FFN)
    assert blocks[3] == ["gqa_8+mlp_14336"]
    assert sum(removal.count for removal in found.removed) == len(scores.frame) - len(found.blocks)
    assert all(re.match(r"vllm \(.*\) does not load \[\w+\]: ", removal.reason) for removal in found.removed)


def test_a_layer_that_no_engine_choice_is_left_in(scores, llama):
    rule = EngineRule(refuses="ffn_linear", value=None, reason="it has none.", version="1", seen="not verified")
    engine = EngineRules(engine="mine", aliases=(), rules=(rule,))
    message = "layer 3 is left without a choice: mine (1) does not load linear+linear [ffn_linear]: it has none."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        select_candidates(scores, llama.spec, engine_rules=engine, exclusions=rules("3=gqa_8+*"))
