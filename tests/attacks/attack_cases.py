"""A network and images that the tests of the attacks share."""

import torch
import torch.nn.functional as F
from conftest import random_part
from torch import nn

from common.attacks.gradients import logits_of
from common.networks.build import build
from common.networks.prediction import to_pixel_space

EPSILON = 8 / 255
X = to_pixel_space(random_part((24,)).images)
NETWORK = build("simple-cnn", {"classes": 3}, 1).eval()
with torch.no_grad():
    NETWORK.fc3.weight.mul_(40)  # logits that are far enough apart to be worth attacking
    NETWORK.fc3.bias.zero_()
    NETWORK.fc3.bias.sub_(NETWORK(X).mean(0))
Y = logits_of(NETWORK, X).argmax(1)  # labels that the network predicts correctly
TARGETS = (Y + 1) % 3
assert len(Y.unique()) == 3


def linear_images(margin: float = 3.0):
    """Return a network with logits +-w (x - 0.5) / 2, 6 images, their labels 0, and w.

    w (x - 0.5) is the margin for each image, so the smallest noise that fools is known.
    """
    w = torch.randn(3, 32, 32, generator=generator(1))
    network = nn.Sequential(nn.Flatten(), nn.Linear(w.numel(), 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.stack([w.flatten(), -w.flatten()]) / 2)
        network[1].bias.copy_(-network[1].weight.sum(1) / 2)
    x = 0.5 + 0.1 * torch.rand(6, 3, 32, 32, generator=generator())
    x += (margin - ((x - 0.5) * w).sum((1, 2, 3), keepdim=True)) * w / w.square().sum()
    return network, x, torch.zeros(6).long(), w


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def loss_of(network: nn.Module, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits_of(network, x), classes)
