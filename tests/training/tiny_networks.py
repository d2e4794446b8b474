"""Functions that make small networks, as a user's own module has them."""

from __future__ import annotations

from torch import nn


def small(classes: int) -> nn.Module:
    """Return a network with 24 features, whose statistics differ in training."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=4),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(24, classes),
    )


def without_head(classes: int) -> nn.Module:
    """Return a network that does not end in a linear layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes), nn.Tanh())
