"""THE CNN: the networks, their last layer, and the checkpoints that they are rebuilt from.

A network takes float32 images (N, 3, S, S) in [0, 1], which it normalises itself, and returns
logits (N, classes), `head(features(x))`: `features` returns (N, D), and `head`, the last layer,
is a `heads.Head`.

Beside the project's own networks there are torchvision's, "torchvision:NAME", and those that a
function of the user's returns, "MODULE:FUNCTION". Only the latter may have the head None.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple


class Architecture(NamedTuple):
    """The module and class of a network, and which arguments it takes beside those of all.

    new: the arguments of every new network, where its class has another default: checkpoints of
    earlier versions, which lack them, are rebuilt as they were. The module is imported only
    when a network is built, so that `--help` stays fast.
    """

    module: str
    name: str
    options: tuple[str, ...] = ()
    new: tuple[tuple[str, Any], ...] = ()


# To add a network: a module in this folder, and one line here.
ARCHITECTURES = {
    "simple-cnn": Architecture("simple_cnn", "SimpleCNN", options=("image_size",)),
    "resnet9": Architecture(
        "resnet9",
        "ResNet9",
        options=("width", "early_pool"),
        new=(("early_pool", True),),
    ),
}
TORCHVISION = "torchvision:"
IDENTIFIER = r"[^\W\d]\w{0,99}"
FUNCTION = re.compile(rf"{IDENTIFIER}(\.{IDENTIFIER}){{0,9}}:{IDENTIFIER}")


def is_torchvision(architecture: str) -> bool:
    """Return whether the text is torchvision:NAME; there may be no network of that name."""
    return architecture.startswith(TORCHVISION) and FUNCTION.fullmatch(architecture) is not None


def is_function(architecture: str) -> bool:
    """Return whether the text is MODULE:FUNCTION; there may be no such function.

    >>> is_function("my.networks:wide"), is_function("resnet9"), is_function("torchvision:x")
    (True, False, False)
    """
    return (
        not architecture.startswith(TORCHVISION)
        and FUNCTION.fullmatch(architecture) is not None
    )


def argument_names(architecture: str) -> tuple[str, ...]:
    """Return the names of the arguments that this network takes beside those of all networks.

    The last layer of a function's network is found with images of a size that it takes.
    """
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture].options
    return ("image_size",) if is_function(architecture) else ()


def new_arguments(architecture: str) -> dict[str, Any]:
    """Return the arguments that new networks have, and those of earlier versions lack."""
    return dict(ARCHITECTURES[architecture].new) if architecture in ARCHITECTURES else {}
