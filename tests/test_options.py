"""The command line's recipe options and numbers."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import replace

import pytest

from common import options
from common.training.recipe import FIELDS, command_line, option_name
from common.training.recipes import RECIPES


def chosen(*arguments, names=("original",), dry_run=False):
    parser = options.Parser("")
    options.add_recipe(parser)
    args = parser.parse_args(list(arguments))
    args.dry_run = dry_run
    return options.chosen_recipes(list(names), args)


@pytest.mark.parametrize("name", RECIPES)
def test_the_options_of_a_recipe_turn_original_into_it(name):
    given = shlex.split(command_line(RECIPES[name]))
    assert chosen(*given)["original"] == RECIPES[name]


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_has_an_option(name):
    field = FIELDS[name]
    flag, needs = f"--{option_name(name)}", {"ldam": ["--classifier", "cosine"]}
    if field.type == "bool":
        values = []
    elif field.metadata["choices"]:
        values = [next(c for c in field.metadata["choices"] if c != field.default)]
    else:
        values = ["0.25" if "float" in field.type else "7"]
    extra = {
        "width": ["--network", "resnet9"],
        "loss": needs.get(values[0] if values else "", []),
        "sampler_weights": ["--sampler", "weighted"],
    }.get(name, [])
    recipe = chosen(flag, *values, *extra)["original"]
    assert getattr(recipe, name) != field.default


def test_an_option_overrides_the_named_recipe():
    found = chosen("--epochs", "20", "--learning-rate", "0.005", names=("smote", "final"))
    expected = replace(RECIPES["smote"], epochs=20, learning_rate=0.005)
    assert found == {"smote": expected, "final": expected}
    assert chosen("--no-nesterov", names=("resnet9",))["resnet9"].nesterov is False
    assert chosen("--augment", names=("resnet9",))["resnet9"].augment == ()


def test_a_dry_run_is_short():
    assert chosen(names=("naive-100",), dry_run=True)["naive-100"].epochs == 2


@pytest.mark.parametrize("text", ["-1", "1", "nan", "inf", "x", ""])
def test_a_number_outside_its_limits_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="of at least 0 and below 1"):
        options.SHARE(text)


def test_options_have_no_abbreviations(capsys):
    with pytest.raises(SystemExit):
        chosen("--epoch", "3")
    assert "--epoch" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["0", "1.5", "1000001", "9" * 400, "9" * 5000])
def test_a_whole_number_outside_its_limits_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number of at least 1"):
        options.POSITIVE(text)
