"""The command line: values, options of a recipe, and the parsers of the scripts."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import math
import re
import runpy
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import is_one_line
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from common import options
from common.errors import InputError
from common.files import ROOT
from common.training.recipe import FIELDS, NEEDS, Recipe, option_name
from common.training.recipe_record import command_line
from common.training.recipes import RECIPES

SCRIPTS = ("inspect_data.py", "evaluate.py", "train.py", "lr_sweep.py", "adversarial.py")


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
    elif "metavar" in field.metadata:
        values = ["nets:wide"]
    else:
        values = ["0.25" if "float" in field.type else "7"]
    extra = {
        "width": ["--network", "resnet9"],
        "pretrained": ["--network", "torchvision:resnet18"],
        "weights": ["--network", "torchvision:resnet18"],
        "frozen": ["--network", "torchvision:resnet18", "--pretrained"],
        "loss": needs.get(values[0] if values else "", []),
        "sampler_weights": ["--sampler", "weighted"],
        "sam_class_weighted": ["--sam", "0.05"],
        "trades": ["--adversarial", "4"],
        "crt_loss": ["--post-hoc", "crt"],
    }.get(name, [])
    for other, possible in itertools.islice(NEEDS.get(name, {}).items(), 1):
        value = possible[-1] if possible else "1"
        extra = [f"--{option_name(other)}", value, *needs.get(value, [])]
    recipe = chosen(flag, *values, *extra)["original"]
    assert getattr(recipe, name) != field.default


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--focal-gamma", "3"],
            r"--focal-gamma: .* without --loss focal; leave it out, or add",
        ),
        (
            ["--tau", "2"],
            r"--loss logit-adjusted or vs, or --post-hoc logit-adjustment or tau-",
        ),
        (["--sam-from", "0.5"], r"--sam-from: does nothing without --sam above 0"),
        (["--optimizer", "adamw", "--momentum", "0.5"], "--momentum: .* --optimizer sgd"),
    ],
)
def test_an_option_that_does_nothing_is_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        chosen(*arguments)


def test_an_option_may_be_for_one_recipe_of_several():
    found = chosen("--tau", "2", names=("original", "logit-adjusted"))
    assert [recipe.tau for recipe in found.values()] == [2, 2]


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


SPECIAL = st.sampled_from([math.inf, -math.inf, math.nan, 1e300, 10**400])


@given(
    kind=st.sampled_from([int, float]),
    value=st.integers() | st.integers(-9, 9) | st.floats(-9, 9) | SPECIAL,
    limits=st.dictionaries(
        st.sampled_from(["least", "above", "most", "below"]), st.floats(-5, 5), max_size=2
    ),
)
@settings(max_examples=300)
def test_a_number_is_accepted_exactly_within_its_limits(kind, value, limits):
    text = str(value)
    number = kind is float or isinstance(value, int)  # int() refuses "1.0"
    low = value >= limits.get("least", -math.inf) and value > limits.get("above", -math.inf)
    high = value <= limits.get("most", math.inf) and value < limits.get("below", math.inf)
    finite = -sys.float_info.max <= value <= sys.float_info.max
    parse = options.number(kind, **limits)
    if number and finite and low and high:
        assert (parse(text), type(parse(text))) == (kind(value), kind)
    else:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
            parse(text)


def value_of(field):
    """Return a strategy for the values that a field's option accepts."""
    limits = field.metadata
    if field.type == "bool":
        return st.booleans()
    if "tuple[str" in field.type:
        return st.lists(st.sampled_from(limits["choices"])).map(tuple)
    if limits["choices"]:
        return st.sampled_from(limits["choices"])
    if field.name == "network":
        names = ["simple-cnn", "resnet9", "torchvision:resnet18", "a.b:c"]
        return st.sampled_from(names) | st.text()
    if field.name == "weights":
        return st.text() | st.sampled_from(["-", "-1", "--tau", "a b", "it's", "~", "$x"])
    low = limits.get("least", limits.get("above"))
    high = limits.get("most", limits.get("below"))
    if "int" in field.type:
        return st.integers(low, high)
    excluded = {"exclude_min": "above" in limits, "exclude_max": "below" in limits}
    number = st.floats(low, high, **excluded)
    return st.lists(number, min_size=1).map(tuple) if "tuple" in field.type else number


@given(st.fixed_dictionaries({}, optional={n: value_of(f) for n, f in FIELDS.items()}))
def test_any_recipe_is_what_its_command_line_says(values):
    try:
        recipe = Recipe(**values)
    except InputError:  # the values contradict each other
        reject()
    # The command line refuses what does nothing.
    recipe = Recipe(**{n: value for n, value in values.items() if not recipe.needs(n)})
    assert chosen(*shlex.split(command_line(recipe)))["original"] == recipe


@pytest.mark.parametrize("weights", ["-", "-1", "--tau", "a b", "it's", "~", "$x", "\n"])
def test_any_file_of_weights_is_what_the_command_line_says(weights):
    recipe = Recipe(network="own.nets:wide", weights=weights)
    assert chosen(*shlex.split(command_line(recipe)))["original"] == recipe


def test_every_number_of_a_recipe_has_two_limits():
    for name, field in FIELDS.items():
        if ("int" in field.type or "float" in field.type) and not field.metadata["choices"]:
            assert {"least", "above"} & set(field.metadata), name
            assert {"most", "below"} & set(field.metadata), name


@pytest.fixture(scope="module")
def parsers():
    """The parser of each script, which is not run."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            options, "run", lambda main, parser, *_: found.update({parser.prog: parser})
        )
        for name in SCRIPTS:
            patch.setattr("sys.argv", [name])
            runpy.run_path(str(ROOT / name), run_name="__main__")
    return found


def outcome(parser, words):
    """Parse the words; return the namespace or exit code, and what went to stderr."""
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            result = parser.parse_args(words)
        except SystemExit as end:
            result = end.code
    return result, errors.getvalue()


VALUES = st.sampled_from(
    ["", "0", "1", "-1", "0.5", "1e300", "-inf", "nan", "1" * 5000, "full", "all", "cat:0.2",
     "~nouser/x", "~", "/", "cpu", "l1", "flip", "smote", "--", "-", "-h", "=", "\ud800",
     "\udcff", "\x1b[31m", "a\nb", "%s", "%(prog)s", "{0}", "car:cat"]
)  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
@given(data=st.data())
def test_any_words_are_parsed_or_refused_in_one_line(parsers, name, data):
    parser = parsers[name]
    flags = sorted(parser._option_string_actions)
    flag = st.sampled_from(flags)
    joined = st.tuples(flag, VALUES | st.text()).map("=".join)
    words = data.draw(st.lists(flag | VALUES | st.text() | joined, max_size=6))
    result, errors = outcome(parser, words)
    if isinstance(result, argparse.Namespace):
        assert errors == ""
    elif result == 0:
        assert {"-h", "--help", "--list"} & set(words) or any(w[:2] == "-h" for w in words)
    else:
        assert result == 2
        assert is_one_line(errors, f"{name}: ", f"(see {name} --help)")
        assert errors[:-1].isprintable()


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_option_of_a_script_can_be_abbreviated(parsers, name):
    parser = parsers[name]
    flags = {flag for flag in parser._option_string_actions if flag.startswith("--")}
    for flag in flags:
        if flag[:-1] not in flags and len(flag) > 3:
            assert outcome(parser, [flag[:-1]])[0] == 2, flag


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_empty_value_is_no_value(parsers, name):
    """As of --data "$SOURCE" where there is no such variable."""
    parser = parsers[name]
    for action in parser._actions:
        if action.option_strings and action.nargs != 0:
            flag = action.option_strings[0]
            result, errors = outcome(parser, [f"{flag}="])
            assert result == 2, flag
            assert is_one_line(errors, flag)


def test_a_path_knows_home_folders(monkeypatch):
    monkeypatch.setenv("HOME", "/here")
    assert options.path("~/a") == Path("/here/a")
    assert options.path("a~/~b") == Path("a~/~b")
    with pytest.raises(argparse.ArgumentTypeError, match=r"no such user; write ./~nouser/x"):
        options.path("~nouser/x")
