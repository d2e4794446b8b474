"""THE CNN: the networks, their last layer, and the checkpoints that they are rebuilt from.

A network takes float32 images (N, 3, S, S) in [0, 1], which it normalises itself, and returns
logits (N, classes). Its attribute `head` is the last layer, a `heads.Head`.
"""

from __future__ import annotations

from typing import NamedTuple


class Architecture(NamedTuple):
    """The module and class of a network, and which arguments a recipe may set.

    The module is imported only when a network is built, so that `--help` stays fast.
    """

    module: str
    name: str
    options: tuple[str, ...] = ()


# To add a network: a module in this folder, and one line here.
ARCHITECTURES = {
    "simple-cnn": Architecture("simple_cnn", "SimpleCNN"),
    "resnet9": Architecture("resnet9", "ResNet9", options=("width",)),
}
