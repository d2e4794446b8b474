from __future__ import annotations

import argparse
import shlex
from dataclasses import fields, replace

import pytest

from common import recipes
from common.options import InputError
from common.recipes import RECIPES, Recipe


def parse(*arguments, dry_run=False):
    parser = argparse.ArgumentParser()
    recipes.add_options(parser)
    args = parser.parse_args(list(arguments))
    args.dry_run = dry_run
    return args


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_original_with_the_options_that_it_lists(name):
    written = recipes.differences(RECIPES[name])
    assert (
        recipes.named(["original"], parse(*shlex.split(written)))["original"] == RECIPES[name]
    )


def test_every_field_has_an_option_that_overrides_it():
    other = {bool: [], str: None}
    for field in fields(Recipe):
        kind = field.metadata["type"]
        flag = f"--{field.name.replace('_', '-')}"
        if "choices" in field.metadata:
            values = [c for c in field.metadata["choices"] if c != field.default][:1]
        else:
            values = other.get(kind, ["0.25" if isinstance(field.default, float) else "7"])
        given = [flag, *values]
        if field.name == "sampler":
            given = [flag, "balanced"]
        if field.name == "sampler_weights":
            given += ["1", "2", "--sampler", "weighted"]
        if field.name == "width":
            given += ["--network", "resnet9"]
        if values == ["ldam"]:
            given += ["--classifier", "cosine"]
        changed = recipes.named(["original"], parse(*given))["original"]
        assert getattr(changed, field.name) != field.default, flag


def test_an_option_overrides_the_named_recipe():
    chosen = recipes.named(
        ["smote", "final"], parse("--epochs", "20", "--learning-rate", "0.005")
    )
    expected = replace(RECIPES["smote"], epochs=20, learning_rate=0.005)
    assert chosen == {"smote": expected, "final": expected}
    assert recipes.named(["resnet9"], parse("--no-nesterov"))["resnet9"].nesterov is False
    assert recipes.named(["resnet9"], parse("--augment"))["resnet9"].augment == ()


def test_a_dry_run_is_short():
    assert recipes.named(["naive-100"], parse(dry_run=True))["naive-100"].epochs == 2


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(InputError, match=r"'smot': .*smote"):
        recipes.named(["smot"], parse())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 8}, "--network resnet9"),
        ({"loss": "ldam"}, "--classifier cosine"),
        ({"optimizer": "adamw", "nesterov": True}, "--optimizer sgd"),
        ({"sampler": "weighted"}, "--sampler-weights"),
        ({"sampler_weights": (1.0, 2.0, 3.0)}, "--sampler weighted"),
        ({"loss": "focal", "label_smoothing": 0.1}, "--loss focal"),
    ],
)
def test_options_that_do_not_go_together_are_named(options, words):
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
