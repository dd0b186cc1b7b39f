from __future__ import annotations

import json

import pytest

from puzzlebench.distillation.recipe import DistilRecipe, LossWeights, Stage


def test_rates_follow_the_width_unless_stated():
    usual = DistilRecipe().with_rates(256)
    assert (usual.lr, usual.other_lr) == (pytest.approx(1e-3), pytest.approx(1e-4))
    wide = DistilRecipe(optimiser="muon").with_rates(4096)
    assert (wide.lr, wide.other_lr) == (pytest.approx(0.512 / 4096), pytest.approx(0.0256 / 4096))
    stated = DistilRecipe(lr=0.01).with_rates(256)
    assert (stated.lr, stated.other_lr) == (0.01, pytest.approx(0.001))
    both = DistilRecipe(lr=0.01, other_lr=0.02).with_rates(256)
    assert (both.lr, both.other_lr) == (0.01, 0.02)


def test_counts_of_all_stages():
    recipe = DistilRecipe(
        stages=(Stage(length=8, sequences=11, batch_size=4), Stage(length=16, sequences=4, batch_size=2))
    )
    assert (recipe.steps, recipe.tokens) == (2 + 2, 2 * 4 * 8 + 2 * 2 * 16)


def test_to_json_says_everything():
    stated = json.loads(json.dumps(DistilRecipe(losses=LossWeights(lm=0.5)).to_json()))
    assert stated["losses"]["lm"] == 0.5
    again = DistilRecipe(
        **stated
        | {"losses": LossWeights(**stated["losses"]), "stages": tuple(Stage(**one) for one in stated["stages"])}
    )
    assert again == DistilRecipe(losses=LossWeights(lm=0.5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ()}, "at least one stage"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"other_lr": 1.0}, "other_lr must be above 0"),
        ({"warmup": 0}, "warmup must be"),
        ({"evaluations": 0}, "evaluations must be"),
        ({"seed": -1}, "seed must be"),
        ({"clip": 0.0}, "clip must be"),
        ({"weight_decay": 1.0}, "weight_decay must be"),
        ({"optimiser": "sgd"}, "optimiser must be muon or adamw, not 'sgd'"),
    ],
)
def test_recipes_that_are_none(change, message):
    with pytest.raises(ValueError, match=message):
        DistilRecipe(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 1}, "length must be at least 2"),
        ({"sequences": 3}, "3 sequences are less than one step of 4"),
        ({"batch_size": 0}, "batch_size must be a whole number"),
    ],
)
def test_stages_that_are_none(change, message):
    with pytest.raises(ValueError, match=message):
        Stage(**{"length": 8, "sequences": 8, "batch_size": 4} | change)
