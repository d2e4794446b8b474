"""What the fields of a checkpoint may be. Anything else is refused with the field's name."""

from __future__ import annotations

import math
import re
from typing import Any

from common.errors import InputError
from common.networks import ARCHITECTURES, argument_names, is_function, is_torchvision

FIELDS = (
    "architecture", "arguments", "weights", "classes", "recipe", "seed", "data",
    "trained_on_test",
)  # fmt: skip
# Far more than the recipe and data of any run; they bound the time that a result file takes.
MAX_DEPTH = 10
MAX_VALUES = 100_000
MAX_CHARACTERS = 2**20
MOST_PIXELS = 224  # the side of the largest images, as of --image-size
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
    image_size = content.get("image_size", 32)  # older checkpoints do not have it
    possible = type(image_size) is int and image_size in range(1, MOST_PIXELS + 1)
    require(possible, f"image_size is not a whole number from 1 to {MOST_PIXELS}")
    _require_arguments(
        content["architecture"], content["arguments"], len(content["classes"]), image_size
    )
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


def _require_arguments(
    architecture: Any, arguments: Any, classes: int, image_size: int
) -> None:
    """Raise InputError unless `build` takes these arguments for such classes and images."""
    _require_architecture(architecture)
    require(isinstance(arguments, dict), "arguments are not a dict")
    require("classes" in arguments, "arguments name no number of classes")
    allowed = {"classes", "classifier", "flip_average", "logit_offset"}
    options = argument_names(architecture)
    allowed.update(options)
    for name, value in arguments.items():
        require(name in allowed, f"arguments are not those of {architecture}")
        possible = _is_argument(name, value, classes, image_size)
        require(possible, f"argument {name} has no possible value")
    if "image_size" in options:
        same = arguments.get("image_size", 32) == image_size
        require(same, "image_size is not that of the arguments")


def _require_architecture(architecture: Any) -> None:
    """Raise InputError unless it is a network that exists, or may be one of the user's."""
    if isinstance(architecture, str) and is_torchvision(architecture):
        # Only such files need torchvision, which takes a second to import.
        from common.networks.torchvision_networks import require_torchvision_name

        require_torchvision_name(architecture)
        return
    require(
        isinstance(architecture, str)
        and (architecture in ARCHITECTURES or is_function(architecture)),
        f"architecture is not one of {', '.join(ARCHITECTURES)}, torchvision:NAME or"
        " MODULE:FUNCTION",
    )


def _is_argument(name: str, value: Any, classes: int, image_size: int) -> bool:
    match name:
        case "classes":
            return type(value) is int and value == classes
        case "classifier":
            return value in ("linear", "cosine")
        case "flip_average" | "early_pool":
            return type(value) is bool
        case "logit_offset":
            return value is None or (
                isinstance(value, list | tuple)
                and len(value) == classes
                and all(type(item) in (int, float) and math.isfinite(item) for item in value)
            )
        case "image_size":
            return type(value) is int and value == image_size
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
