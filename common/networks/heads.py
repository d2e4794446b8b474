"""What follows a network's features: the last layer, and averaging over mirror images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

COSINE_SCALE = 30.0  # the scale that LDAM's authors use


class Head(nn.Linear):
    """The last layer: features (N, inputs) to logits (N, classes).

    classifier: "linear", x W^T + b; or "cosine", COSINE_SCALE times the cosine of features and
    class weights, without bias (Wang et al. 2018). logit_offset: one number for each class,
    added to the logits (post-hoc logit adjustment; Menon et al. 2021).
    """

    def __init__(
        self,
        inputs: int,
        classes: int,
        classifier: str = "linear",
        bias: bool = True,
        logit_offset: Sequence[float] | None = None,
    ) -> None:
        super().__init__(inputs, classes, bias=bias and classifier == "linear")
        self.classifier = classifier
        offset = None if logit_offset is None else torch.tensor(logit_offset)
        # Not persistent: the offset is an argument, and the course's checkpoint has none.
        self.register_buffer("logit_offset", offset, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.classifier == "cosine":
            x, weight = F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1)
            logits = COSINE_SCALE * F.linear(x, weight)
        else:
            logits = super().forward(x)
        return logits if self.logit_offset is None else logits + self.logit_offset


class FlipAverage(nn.Module):
    """Average a network's logits over each image and its mirror image, in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.network(x)
        return (self.network(x) + self.network(x.flip(-1))) / 2

    @property
    def head(self) -> Head:
        return self.network.head
