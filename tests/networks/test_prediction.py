"""The batches of `predict`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.networks.prediction import predict


class MeanAndSize(nn.Module):
    """A network whose logits are the mean of each image; it records the size of each batch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.sizes = []

    def forward(self, x):
        self.sizes.append(len(x))
        return self.weight * x.flatten(1).mean(1, keepdim=True)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((1001, 3, 32, 32), [500, 500, 1]),
        ((501, 3, 16, 16), [500, 1]),
        ((60, 3, 128, 128), [31, 29]),  # 500 / 16
        ((12, 3, 224, 224), [10, 2]),
        ((501, 7), [500, 1]),  # features
        ((501, 2, 7), [500, 1]),  # of images and their mirror images
    ],
)
def test_a_batch_has_as_many_pixels_as_500_images_of_32x32(shape, sizes):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    network = MeanAndSize()
    logits = predict(network, x)
    assert network.sizes == sizes
    torch.testing.assert_close(logits, x.flatten(1).mean(1, keepdim=True))
