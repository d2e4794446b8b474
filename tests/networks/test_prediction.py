"""The batches of `predict`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from common.networks.prediction import predict, predict_shifted


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


def test_half_of_the_weight_is_on_four_shifts_with_the_border_reflected():
    class Pixels(nn.Module):
        """A network whose logits are the first channel's pixels."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            return x[:, 0].flatten(1)

    images = torch.randint(256, (501, 3, 5, 5), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    found = predict_shifted(Pixels(), images).reshape(501, 5, 5)
    for n in (0, 500):
        plain = images[n, 0].numpy() / 255
        expected = plain / 2
        padded = np.pad(plain, 1, mode="reflect")
        for top, left in ((0, 0), (0, 2), (2, 0), (2, 2)):
            expected += padded[top : top + 5, left : left + 5] / 8
        np.testing.assert_allclose(found[n].numpy(), expected, rtol=1e-5)
