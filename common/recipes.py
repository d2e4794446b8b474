"""Recipes: how a network is trained, as data. `RECIPES` names those of the reports."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from common.options import InputError, positive, rate, share


def option(default: Any, kind: Any, text: str, **extra: Any) -> Any:
    """A Recipe field that is also a command-line option, with its type and help."""
    return field(default=default, metadata={"type": kind, "help": text, **extra})


@dataclass(frozen=True)
class Recipe:
    """One way to train. The defaults are the reports' own; every field is an option."""

    network: str = option(
        "simple-cnn", str, "network of common/models.py", choices=("simple-cnn", "resnet9")
    )
    width: int | None = option(None, positive, "channels of resnet9's first layer; None is 16")
    epochs: int = option(10, positive, "passes over the training images")
    batch_size: int = option(4, positive, "images per step")
    learning_rate: float = option(0.001, rate, "of stochastic gradient descent")
    momentum: float = option(0.9, share, "of stochastic gradient descent")

    def __post_init__(self) -> None:
        if self.width is not None and self.network != "resnet9":
            raise InputError(f"--width {self.width}: only --network resnet9 has a width")

    def network_arguments(self, classes: int) -> dict[str, Any]:
        """What the network is built with."""
        return {"classes": classes} | ({} if self.width is None else {"width": self.width})


RECIPES = {
    "original": Recipe(),
    "baseline": Recipe(epochs=1),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """One option for each field of Recipe; a recipe's own value stands where none is given."""
    group = parser.add_argument_group("recipe (default of each: the recipe's own value)")
    for each in fields(Recipe):
        metadata = dict(each.metadata)
        text = f"{metadata.pop('help')} (original: {each.default})"
        if "choices" not in metadata:
            metadata["metavar"] = "N"
        group.add_argument(f"--{each.name.replace('_', '-')}", help=text, **metadata)


def named(names: Sequence[str], args: argparse.Namespace) -> dict[str, Recipe]:
    """The recipes of these names, with the options that were given in place of their values.

    A dry run takes two epochs at most. Raises InputError for an unknown name, offering the
    nearest, and for options that don't go together.
    """
    given = {each.name: getattr(args, each.name) for each in fields(Recipe)}
    changes = {name: value for name, value in given.items() if value is not None}
    chosen = {}
    for name in names:
        if name not in RECIPES:
            near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.3) or RECIPES
            raise InputError(f"recipe {name!r}: there is none; try {', '.join(near)}")
        recipe = replace(RECIPES[name], **changes)
        if args.dry_run:
            recipe = replace(recipe, epochs=min(recipe.epochs, 2))
        chosen[name] = recipe
    return chosen
