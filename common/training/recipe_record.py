"""A recipe as a record of a file, and as options of the command line."""

from __future__ import annotations

import math
import shlex
from typing import Any

from common.errors import InputError
from common.training.recipe import FIELDS, Recipe, option_name


def from_record(record: dict[str, Any]) -> Recipe:
    """Return the recipe that a checkpoint holds; what the record lacks has its default.

    Raises InputError for a field or a value that no recipe has.
    """
    values = {}
    for name, value in record.items():
        if name not in FIELDS or not _is_possible(name, value):
            raise InputError(f"recipe: {name:.40} {value!r:.40} is not of this version")
        values[name] = tuple(value) if isinstance(value, list) else value
    return Recipe(**values)


def equals_saved(recipe: Recipe, saved: Any) -> bool:
    """Return whether `saved`, a recipe read from a JSON file, is this recipe.

    A field that `saved` lacks has its default: it was added after the file was written.
    """
    try:
        return isinstance(saved, dict) and from_record(saved) == recipe
    except InputError:
        return False


def _is_possible(name: str, value: Any) -> bool:
    """Return whether a field may have a value, by its type, choices and limits."""
    kind, limits = FIELDS[name].type, dict(FIELDS[name].metadata)
    del limits["help"]
    is_text = limits.pop("metavar", None) is not None
    choices, is_list = limits.pop("choices"), limits.pop("nargs", None) is not None
    if value is None or isinstance(value, bool):
        return "None" in kind if value is None else kind == "bool"
    if is_text:
        return isinstance(value, str)
    if kind == "bool" or is_list != isinstance(value, list | tuple):
        return False
    items = value if is_list else [value]
    if choices:
        return all(isinstance(item, str) and item in choices for item in items)
    numbers = int if kind.startswith("int") else int | float
    return all(isinstance(item, numbers) and within_limits(item, **limits) for item in items)


def within_limits(
    value: float,
    *,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
) -> bool:
    """Return whether a number is finite and within the limits that are given."""
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
    return (
        finite
        and (least is None or value >= least)
        and (above is None or value > above)
        and (most is None or value <= most)
        and (below is None or value < below)
    )


def command_line(recipe: Recipe, base: Recipe | None = None) -> str:
    """Return the options that turn the recipe `base` into `recipe`.

    base: by default, the recipe of the default values.

    >>> command_line(Recipe(epochs=20, resample="smote", nesterov=True))
    '--epochs 20 --nesterov --resample smote'
    >>> command_line(Recipe(network="nets:wide", weights="my file.pt"))
    "--network nets:wide --weights 'my file.pt'"
    """
    words = []
    for name, value in recipe.changes(base).items():
        flag = f"--{option_name(name)}"
        if isinstance(value, str) and value.startswith("-"):
            words.append(f"{flag}={value}")  # else it would be read as an option
            continue
        words.append(flag)
        if value is not True:
            words += map(str, value if isinstance(value, tuple) else [value])
    return shlex.join(words)
