"""ResNet9, a small residual network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.networks.heads import Head

FEATURE_SCALE = 0.125  # Page's factor: without it the logits of a new network lie too far apart


def conv_block(inputs: int, outputs: int, *pool: nn.Module) -> nn.Sequential:
    """Return a 3x3 convolution with batch normalisation and ReLU, and `pool` before these."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        *pool,
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Sequential):
    """x + f(x), where f is the modules in sequence."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class ResNet9(nn.Module):
    """Nine layers with two residual blocks (Page 2018, "How to train your ResNet").

    width: channels of the first layer; the last has eight times as many. Width 16 has 0.4
    million weights, width 64 the original's 6.6 million. early_pool: whether pooling comes
    before batch normalisation, which then has a quarter of the pixels to work on, or after
    ReLU, as in the original and in checkpoints of earlier versions. head: further arguments of
    `Head`.

    x: float32 images (N, 3, S, S) in [0, 1], S at least 8. Returns logits (N, classes).
    """

    def __init__(
        self, classes: int, width: int = 16, early_pool: bool = False, **head: Any
    ) -> None:
        super().__init__()
        w1, w2, w4, w8 = width, 2 * width, 4 * width, 8 * width

        def pooled(inputs: int, outputs: int) -> list[nn.Module]:
            pool = nn.MaxPool2d(2)
            if early_pool:
                return [conv_block(inputs, outputs, pool)]
            return [conv_block(inputs, outputs), pool]

        self.layers = nn.Sequential(
            conv_block(3, w1),
            *pooled(w1, w2),  # (N, w2, 16, 16) of 32x32 images
            Residual(conv_block(w2, w2), conv_block(w2, w2)),
            *pooled(w2, w4),  # (N, w4, 8, 8)
            *pooled(w4, w8),  # (N, w8, 4, 4)
            Residual(conv_block(w8, w8), conv_block(w8, w8)),
        )
        self.head = Head(w8, classes, bias=False, **head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the last layer gets, (N, 8 width)."""
        x = self.layers(2 * x - 1)  # from [0, 1] to [-1, 1]
        # Adaptive pooling is not deterministic on CUDA.
        return FEATURE_SCALE * F.max_pool2d(x, x.shape[-2:]).flatten(1)
