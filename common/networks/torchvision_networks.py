"""torchvision's classification networks, torchvision:NAME."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.networks import TORCHVISION
from common.networks.build import OnMeta
from common.networks.external import ExternalNetwork, find_last_layer, replace_layer
from common.networks.heads import Head

# Without the auxiliary classifiers, which the two networks have only in training; and with the
# normalisation that their published weights ask for, beside the one of their transforms.
WITHOUT_AUXILIARY = {"aux_logits": False, "transform_input": True, "init_weights": True}
OPTIONS = {"googlenet": WITHOUT_AUXILIARY, "inception_v3": WITHOUT_AUXILIARY}


def import_torchvision(part: str) -> ModuleType:
    """Return torchvision.`part`; raise InputError if torch and torchvision do not match."""
    try:
        return import_module(f"torchvision.{part}")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise InputError(
            f"torch {torch.__version__} and the installed torchvision are not a matching pair"
            " (operator torchvision::nms does not exist): install both together with"
            " pip install --force-reinstall torch torchvision"
        ) from None


class Normalise(nn.Module):
    """Subtract the mean of each channel, and divide by its standard deviation."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / self.std


def torchvision_network(architecture: str, classes: int, **head: Any) -> ExternalNetwork:
    """Return the network torchvision:NAME with random weights, for so many classes.

    It normalises images as its published weights ask for. Nothing is downloaded. head: further
    arguments of `Head`.
    """
    name = architecture.removeprefix(TORCHVISION)
    transforms = published_weights(architecture).transforms()
    last_layer = _last_layer(name)
    backbone = import_torchvision("models").get_model(name, **OPTIONS.get(name, {}))
    inputs = backbone.get_submodule(last_layer).in_features
    replace_layer(backbone, last_layer, nn.Identity())
    normalise = Normalise(transforms.mean, transforms.std)
    return ExternalNetwork(backbone, last_layer, Head(inputs, classes, **head), normalise)


def require_torchvision_name(architecture: str) -> None:
    """Raise InputError unless torchvision has such a classification network."""
    models = import_torchvision("models")
    names = models.list_models(module=models)
    name = architecture.removeprefix(TORCHVISION)
    if name not in names:
        similar = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or ["resnet18"]
        offered = ", ".join(f"{TORCHVISION}{each}" for each in similar)
        raise InputError(f"--network {architecture}: torchvision has none; try {offered}")


def published_weights(architecture: str) -> Any:
    """Return the weights of torchvision:NAME that torchvision recommends, a WeightsEnum."""
    require_torchvision_name(architecture)
    name = architecture.removeprefix(TORCHVISION)
    return import_torchvision("models").get_model_weights(name).DEFAULT


@cache
def _last_layer(name: str) -> str:
    """Return the name of the last Linear layer of a network of torchvision's."""
    with OnMeta():
        network = import_torchvision("models").get_model(name, **OPTIONS.get(name, {}))
    images = torch.empty(2, 3, 224, 224, device="meta")  # a size that all of them take
    last_layer, _ = find_last_layer(network.to("meta").eval(), images)
    if last_layer is None:
        raise InputError(
            f"--network {TORCHVISION}{name}: it does not end in a linear layer; take another,"
            f" such as {TORCHVISION}mobilenet_v3_small"
        )
    return last_layer
