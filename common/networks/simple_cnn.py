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

    x: float32 images (N, 3, 32, 32) in [0, 1]. Returns logits (N, classes). head: further
    arguments of `Head`.
    """

    def __init__(self, classes: int, dropout: float = 0.5, **head: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5)
        self.conv2 = nn.Conv2d(16, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = Head(84, classes, **head)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = 2 * x - 1  # from [0, 1] to [-1, 1]: the reports' mean 0.5 and deviation 0.5
        # ReLU after pooling has the same result as before it, on a quarter of the values.
        x = F.relu(F.max_pool2d(self.conv1(x), 2))  # (N, 16, 14, 14)
        x = F.relu(F.max_pool2d(self.conv2(x), 2))  # (N, 16, 5, 5)
        x = x.flatten(1)  # (N, 400)
        x = self.dropout(F.relu(self.fc1(x)))  # (N, 120)
        x = self.dropout(F.relu(self.fc2(x)))  # (N, 84)
        return self.fc3(x)

    @property
    def head(self) -> Head:
        return self.fc3
