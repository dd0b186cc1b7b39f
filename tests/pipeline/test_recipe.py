"""Recipes: what is stated is read, everything else is the default, and what is wrong is one line that names the key."""

import pytest
import yaml

from puzzlebench.pipeline.recipe import RunRecipe, read_recipe, recipe_from_json, recipe_to_json, recipe_yaml


def written(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(text)
    return file


def test_an_empty_file_is_the_default(tmp_path):
    assert read_recipe(written(tmp_path, "")) == RunRecipe() == read_recipe(None)


def test_sections_lists_and_paths_are_read(tmp_path):
    text = """
parent: some/model
data: train.txt
validation_data: other.txt
library: {kv_heads: [4, 2], training: {steps: 5}}
search: {speed_up: null, limits: {max-memory: 80GiB}}
evaluate: {tasks: [arc_easy, gsm8k]}
"""
    recipe = read_recipe(written(tmp_path, text))
    assert recipe.library.kv_heads == (4, 2)
    assert recipe.library.training.steps == 5
    assert recipe.library.training.batch_size == RunRecipe().library.training.batch_size
    assert recipe.search.limits == {"max-memory": "80GiB"}
    assert recipe.evaluate.tasks == ("arc_easy", "gsm8k")
    assert str(recipe.data) == "train.txt"


def test_overrides_come_after_the_file(tmp_path):
    file = written(tmp_path, "search: {speed_up: 3.0}\nparent: a")
    recipe = read_recipe(file, ["search.speed_up=1.5", "score.metric=lm_loss", "library.kv_heads=[2]"])
    assert (recipe.search.speed_up, recipe.score.metric, recipe.library.kv_heads) == (1.5, "lm_loss", (2,))
    assert recipe.parent == "a"


def test_a_recipe_survives_being_written():
    recipe = read_recipe(None, ["data=a.txt", "validation_data=b.txt", "library.kv_heads=[2,1]", "distil.seed=7"])
    assert recipe_from_json(recipe_to_json(recipe)) == recipe
    assert recipe_from_json(yaml.safe_load(recipe_yaml(recipe))) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("serch: {}", "no key is named serch; did you mean search?"),
        ("search: {speedup: 2}", r"no key is named search.speedup; did you mean search.speed_up\?"),
        (
            "library: {training: {stepz: 2}}",
            "no key is named library.training.stepz; did you mean library.training.steps",
        ),
        ("search: 2", "search must be a section of keys, not 2"),
        ("search: {speed_up: fast}", "search.speed_up: .* not 'fast'"),
        ("search: {speed_up: 0.5}", "search: speed_up must be at least 1, not 0.5"),
        ("scenario: {batch_size: 0}", "scenario: batch_size must be"),
        ("scenario: {batch_size: '4'}", "scenario.batch_size: .* not '4'"),
        ("library: {training: {steps: -1}}", "library.training: steps must be a whole number of at least 0, not -1"),
        ("score: {metric: bleu}", "score.metric: .*'kl', 'lm_loss' or 'top1_agreement', not 'bleu'"),
        ("data: a.txt", "give validation_data too"),
        ("- a", "a recipe is a mapping of keys, not a list"),
        ("a: [", "is no YAML that can be read"),
        ("search: {speed_up: null}", "a search needs a target"),
        ("parent: 2024-01-01", "a recipe holds text, numbers, lists and mappings"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_recipe(written(tmp_path, text))
    assert "recipe.yaml" in str(caught.value)


@pytest.mark.parametrize("override", ["speed_up", "=3", "search.speed_up=[", "search.speed_up.x=1"])
def test_overrides_that_are_none_are_refused(tmp_path, override):
    with pytest.raises(ValueError, match=r"--set|must be"):
        read_recipe(written(tmp_path, "search: {speed_up: 2}"), [override])


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_recipe(tmp_path / "none.yaml")
