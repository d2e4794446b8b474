"""What the fields of a checkpoint may be. Anything else is refused with the field's name."""

from __future__ import annotations

import math
import re
from typing import Any

from common.errors import InputError
from common.networks import ARCHITECTURES

FIELDS = (
    "architecture", "arguments", "weights", "classes", "recipe", "seed", "data",
    "trained_on_test",
)  # fmt: skip
# Far more than the recipe and data of any run; they bound the time that a result file takes.
MAX_DEPTH = 10
MAX_VALUES = 100_000
MAX_CHARACTERS = 2**20
MAX_NAME = 255  # a folder's name is no longer
CONTROL_CHARACTER = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def require(condition: bool, reason: str) -> None:
    """Raise InputError with this reason unless the condition holds."""
    if not condition:
        raise InputError(reason)


def require_fields(content: dict[str, Any]) -> None:
    """Raise InputError unless all fields but `weights` have possible values."""
    for name in FIELDS:
        require(name in content, f"{name} is missing")
    require(
        _is_class_names(content["classes"]),
        "classes are not two or more different names of printable characters",
    )
    _require_arguments(content["architecture"], content["arguments"], len(content["classes"]))
    require(
        content["seed"] is None or type(content["seed"]) is int, "seed is not a whole number"
    )
    require(type(content["trained_on_test"]) is bool, "trained_on_test is not true or false")
    for name in ("recipe", "data"):
        value = content[name]
        plain = value is None or (isinstance(value, dict) and _is_plain(value))
        require(plain, f"{name} does not consist of plain values by name")
    if content["data"] is not None:
        for name in ("source", "fingerprint"):
            require(isinstance(content["data"].get(name), str), f"data has no {name}")


def _is_class_names(classes: Any) -> bool:
    return (
        isinstance(classes, list | tuple)
        and all(
            isinstance(name, str) and 1 <= len(name) <= MAX_NAME and name.isprintable()
            for name in classes
        )
        and len(set(classes)) == len(classes) >= 2
    )


def _require_arguments(architecture: Any, arguments: Any, classes: int) -> None:
    """Raise InputError unless `build` takes these arguments for so many classes."""
    require(
        isinstance(architecture, str) and architecture in ARCHITECTURES,
        f"architecture is not one of {', '.join(ARCHITECTURES)}",
    )
    require(isinstance(arguments, dict), "arguments are not a dict")
    require("classes" in arguments, "arguments name no number of classes")
    allowed = {"classes", "classifier", "flip_average", "logit_offset"}
    allowed.update(ARCHITECTURES[architecture].options)
    for name, value in arguments.items():
        require(name in allowed, f"arguments are not those of {architecture}")
        require(_is_argument(name, value, classes), f"argument {name} has no possible value")


def _is_argument(name: str, value: Any, classes: int) -> bool:
    match name:
        case "classes":
            return type(value) is int and value == classes
        case "classifier":
            return value in ("linear", "cosine")
        case "flip_average":
            return type(value) is bool
        case "logit_offset":
            return value is None or (
                isinstance(value, list | tuple)
                and len(value) == classes
                and all(type(item) in (int, float) and math.isfinite(item) for item in value)
            )
        case _:  # an option of the architecture, such as its width
            return type(value) is int and value >= 1


def _is_plain(value: Any) -> bool:
    """Return whether a value consists of what JSON has, without control characters.

    The levels of the value are gone through one after another: a pickle of some bytes can
    repeat a list so often that a recursion would not end.
    """
    level, characters = [value], 0
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                if not all(isinstance(key, str) for key in item):
                    return False
                below += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple):
                below += item
            elif isinstance(item, str):
                characters += len(item)
                if characters > MAX_CHARACTERS or CONTROL_CHARACTER.search(item):
                    return False
            elif isinstance(item, float):
                if not math.isfinite(item):
                    return False
            elif not (item is None or isinstance(item, int)):
                return False
            if len(below) > MAX_VALUES:
                return False
        level = below
    return not level
