"""Recipes: what contradicts, what they are called, and what a saved one equals."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from common.errors import InputError
from common.training import recipes
from common.training.recipe import Recipe
from common.training.recipes import RECIPES


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 8}, "--network resnet9"),
        ({"loss": "ldam"}, "--classifier cosine"),
        ({"optimizer": "adamw", "nesterov": True}, "--optimizer sgd"),
        ({"sampler": "weighted"}, "--sampler-weights"),
        ({"sampler_weights": (1.0, 2.0, 3.0)}, "--sampler weighted"),
        ({"loss": "focal", "label_smoothing": 0.1}, "--loss focal"),
        ({"nesterov": True, "momentum": 0.0}, "--momentum above 0"),
        ({"adversarial": 4.0, "mix": "cutmix"}, "--mix cutmix"),
    ],
)
def test_contradicting_options_are_named(options, words):
    with pytest.raises(InputError, match=words):
        Recipe(**options)


def test_the_reports_recipes():
    """Batch 4, ten epochs, SGD 0.001, momentum 0.9, and one remedy each."""
    for recipe in recipes.REPORT_A.values():
        assert (recipe.batch_size, recipe.learning_rate, recipe.momentum) == (4, 0.001, 0.9)
        assert (recipe.network, recipe.optimizer) == ("simple-cnn", "sgd")
    assert {n: r.epochs for n, r in recipes.REPORT_A.items() if n != "final"} == dict.fromkeys(
        ["original", "augmentation", "sampler", "weights", "augmentation+sampler", "smote"], 10
    )
    assert RECIPES["final"].epochs == RECIPES["final-all-data"].epochs == 20
    assert RECIPES["final-all-data"].train_on_test
    assert RECIPES["naive-100"].epochs == 100


def test_a_changed_recipe_has_a_name_of_its_own():
    changed = replace(RECIPES["tuned"], learning_rate=0.005, augment=("flip", "crop"))
    assert recipes.title("tuned", changed) == "tuned+learning-rate=0.005+augment=flip,crop"
    assert recipes.title("tuned", RECIPES["tuned"]) == "tuned"
    names = {recipes.title("original", recipe) for recipe in RECIPES.values()}
    assert len(names) == len(set(RECIPES.values()))


def test_a_saved_recipe_equals_itself_and_lacks_no_field_that_has_its_default():
    recipe = RECIPES["tuned"]
    saved = json.loads(json.dumps(asdict(recipe)))
    assert recipe.equals_saved(saved)
    del saved["flip_average"]  # as if the field had been added after the file was written
    assert recipe.equals_saved(saved)
    assert not replace(recipe, flip_average=True).equals_saved(saved)
    assert not recipe.equals_saved(saved | {"epochs": 29})
    assert not recipe.equals_saved(saved | {"removed_field": 1})
    assert not recipe.equals_saved(None)


def test_an_unknown_name_offers_the_most_similar():
    with pytest.raises(InputError, match=r"'smot': .*smote"):
        recipes.select(["smot"], {})
