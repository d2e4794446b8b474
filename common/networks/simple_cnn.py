"""SimpleCNN, the reports' network."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.networks.heads import Head


class SimpleCNN(nn.Module):
    """Two 5x5 convolutions and three fully connected layers, with 66,171 weights.

    PyTorch's CIFAR-10 tutorial network with 16 channels in the first layer, and dropout after
    each hidden fully connected layer. The layers have the names of the course's checkpoint.

    x: float32 images (N, 3, S, S) in [0, 1], where S is `image_size`, at least 16; other sizes
    than 32 have another number of weights. Returns logits (N, classes). head: further arguments
    of `Head`.
    """

    def __init__(
        self, classes: int, image_size: int = 32, dropout: float = 0.5, **head: Any
    ) -> None:
        super().__init__()
        side = ((image_size - 4) // 2 - 4) // 2  # after both convolutions, each pooled
        self.conv1 = nn.Conv2d(3, 16, 5)
        self.conv2 = nn.Conv2d(16, 16, 5)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = Head(84, classes, **head)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the last layer gets, (N, 84). The shapes are those of 32x32 images."""
        x = 2 * x - 1  # from [0, 1] to [-1, 1]: the reports' mean 0.5 and deviation 0.5
        # ReLU after pooling has the same result as before it, on a quarter of the values.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (N, 16, 14, 14)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 16, 5, 5)
        x = x.flatten(1)  # (N, 400)
        x = self.dropout(F.relu(self.fc1(x)))  # (N, 120)
        return self.dropout(F.relu(self.fc2(x)))  # (N, 84)

    @property
    def head(self) -> Head:
        return self.fc3
