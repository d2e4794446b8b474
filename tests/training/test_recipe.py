"""Recipes: contradictions, titles, and comparison with a saved recipe."""

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
        ({"loss": "logit-adjusted", "post_hoc": "logit-adjustment"}, "corrects .* twice"),
        ({"loss": "balanced-softmax", "post_hoc": "logit-adjustment"}, "corrects .* twice"),
        ({"classifier": "cosine", "post_hoc": "tau-normalisation"}, "no length"),
    ],
)
def test_contradicting_options_are_named(options, words):
    with pytest.raises(InputError, match=words):
        Recipe(**options)


def test_the_reports_recipes():
    """Batch 4, ten epochs (final: twenty), SGD 0.001, momentum 0.9, and one remedy each."""
    sgd = {"optimizer": "sgd", "learning_rate": 0.001, "momentum": 0.9}
    for name, recipe in recipes.REPORT_A.items():
        usual = sgd | {"network": "simple-cnn", "batch_size": 4}
        usual["epochs"] = 20 if name == "final" else 10
        assert asdict(recipe).items() >= usual.items(), name
    assert RECIPES["final-all-data"] == replace(RECIPES["final"], train_on_test=True)
    assert RECIPES["naive-100"].epochs == 100


def test_titles_name_the_changes_and_are_unique():
    changed = replace(RECIPES["tuned"], learning_rate=0.005, augment=("flip", "crop"))
    assert (
        recipes.variant_name("tuned", changed) == "tuned+learning-rate=0.005+augment=flip,crop"
    )
    assert recipes.variant_name("tuned", RECIPES["tuned"]) == "tuned"
    names = {recipes.variant_name("original", recipe) for recipe in RECIPES.values()}
    assert len(names) == len(set(RECIPES.values()))


def test_a_field_that_a_saved_recipe_lacks_has_its_default():
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
