from __future__ import annotations

from dataclasses import replace

import pytest

from puzzlebench.library.initialise import InitRecipe
from puzzlebench.library.recipe import Recipe, Training

RECIPE = Recipe(data="0" * 64, sequences=8, length=16)


def test_the_id_is_of_everything_that_decides_a_block():
    others = [
        RECIPE,
        replace(RECIPE, mode="coupled"),
        replace(RECIPE, init=InitRecipe(linear="product")),
        replace(RECIPE, training=Training(lr=2e-3)),
        replace(RECIPE, training=Training(seed=1)),
        replace(RECIPE, data="1" * 64),
        replace(RECIPE, sequences=9),
        replace(RECIPE, length=17),
        replace(RECIPE, precision="bf16"),
    ]
    assert len({one.id for one in others}) == len(others)
    assert RECIPE.id == replace(RECIPE).id
    assert len(RECIPE.id) == 12


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": -1}, r"steps must be a whole number of at least 0, not -1"),
        ({"steps": 1.5}, r"steps must be a whole number"),
        ({"seed": True}, r"seed must be a whole number"),
        ({"patience": -1}, r"patience must be a whole number"),
        ({"batch_size": 0}, r"batch_size"),
        ({"evaluations": 0}, r"evaluations"),
        ({"warmup": 0}, r"warmup"),
        ({"lr": 0}, r"lr must be above 0 and below 1, not 0"),
        ({"other_lr": 1.0}, r"other_lr must be above 0 and below 1"),
        ({"lr": float("nan")}, r"lr must be above 0"),
        ({"optimiser": "sgd"}, r"optimiser must be muon or adamw, not 'sgd'"),
    ],
)
def test_training_is_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        Training(**changes)


def test_no_steps_and_no_patience_are_possible():
    assert Training(steps=0, patience=0).steps == 0
