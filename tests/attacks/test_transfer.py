"""Transfer: which images are made, on which they are tried, and what is counted."""

import copy

import torch
from attack_cases import NETWORK, X, Y, generator
from torch import nn

from common.attacks import transfer as module
from common.attacks.gradients import logits_of
from common.attacks.pgd import pgd
from common.attacks.transfer import Transfer, transfer


class Blind(nn.Module):
    """Calls every image class 0."""

    def forward(self, x):
        return torch.tensor([1.0, 0, 0]).expand(len(x), 3) + 0 * x.sum((1, 2, 3))[:, None]


def test_the_images_are_made_to_transfer(monkeypatch):
    given = []

    def watched_pgd(network, x, labels, **settings):
        given.append(settings)
        return pgd(network, x, labels, **settings)

    monkeypatch.setattr(module, "pgd", watched_pgd)
    transfer({"one": NETWORK}, X, Y, epsilon=0.1, steps=2, seed=7)
    [settings] = given
    assert settings.pop("generator").initial_seed() == 7
    assert settings == {"epsilon": 0.1, "steps": 2, "momentum": 1.0, "stop": False}


def test_transfer_counts_images_that_both_networks_have_right():
    twin = copy.deepcopy(NETWORK)
    networks = {"one": NETWORK, "twin": twin, "blind": Blind()}
    settings = {"epsilon": 1 / 255, "steps": 4}
    table = transfer(networks, X, Y, **settings, seed=3)
    images = pgd(
        NETWORK, X, Y, **settings, momentum=1.0, stop=False, generator=generator(3)
    )  # fmt: skip
    fooled = int((logits_of(NETWORK, images).argmax(1) != Y).sum())
    assert fooled > 0
    assert table["one"]["one"] == table["one"]["twin"] == Transfer(fooled, len(X))
    zeros = int((Y == 0).sum())
    assert table["blind"]["blind"] == table["one"]["blind"] == Transfer(0, zeros)
    assert table["blind"]["one"].images == zeros
    assert list(table) == list(table["twin"]) == list(networks)
