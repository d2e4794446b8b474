"""Recipes as records: read, refused, and compared with a recipe."""

import json
from dataclasses import asdict, replace

import pytest

from common.errors import InputError
from common.training.recipe import Recipe
from common.training.recipe_record import equals_saved, from_record
from common.training.recipes import RECIPES


def test_a_field_that_a_saved_recipe_lacks_has_its_default():
    recipe = RECIPES["tuned"]
    saved = json.loads(json.dumps(asdict(recipe)))
    assert equals_saved(recipe, saved)
    del saved["flip_average"]  # as if the field had been added after the file was written
    assert equals_saved(recipe, saved)
    assert not equals_saved(replace(recipe, flip_average=True), saved)
    assert not equals_saved(recipe, saved | {"epochs": 29})
    assert not equals_saved(recipe, saved | {"removed_field": 1})
    assert not equals_saved(recipe, None)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_read_from_its_record(name):
    recipe = RECIPES[name]
    assert from_record(asdict(recipe)) == recipe
    assert from_record(json.loads(json.dumps(asdict(recipe)))) == recipe  # tuples are lists


def test_a_record_of_an_earlier_version_has_the_defaults_of_what_it_lacks():
    assert from_record({"epochs": 3}) == Recipe(epochs=3)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("epochs", 1.5), ("epochs", True), ("epochs", "3"), ("tau", 11),
        ("learning_rate", 0), ("momentum", 1.0), ("loss", "none"), ("loss", ["focal"]),
        ("augment", "flip"), ("augment", ["turn"]), ("width", "wide"), ("nesterov", "yes"),
        ("network", "resnet18"), ("network", None), ("network", 3), ("network", ["a:b"]),
        ("weights", 3), ("weights", ["f"]), ("pretrained", "yes"), ("frozen", 1),
        ("unknown", 1), ("tau", None), ("epochs", 10**400), ("tau", float("nan")),
    ],
)  # fmt: skip
def test_a_record_that_no_recipe_has_is_refused(name, value):
    with pytest.raises(InputError, match=name):
        from_record({name: value})
