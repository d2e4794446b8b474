"""Training on one device: no tensor of a step lies elsewhere, and no step waits for the device.

PyTorch's meta device stands in for a GPU: it refuses tensors of another device, and, because it
holds no data, everything that the host would have to read.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import random_part

from common.networks.build import build
from common.training import fit
from common.training.recipes import RECIPES

META = torch.device("meta")
TRAIN = random_part((24, 12, 12))


def meta_steps(monkeypatch, recipe):
    # The meta device has no generators; None is its default generator.
    monkeypatch.setattr(
        fit,
        "make_generator",
        lambda seed, device="cpu": None if device == META else torch.Generator(),
    )
    recipe = replace(recipe, batch_size=8, epochs=2, precision="float32")
    if recipe.network == "resnet9":
        recipe = replace(recipe, width=4)
    network = build(recipe.network, recipe.network_arguments(3)).to(META)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return network, fit.train_steps(network, TRAIN, recipe, optimizer, seed=0, device=META)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_on_one_device_without_waiting(monkeypatch, name):
    network, steps = meta_steps(monkeypatch, RECIPES[name])
    average = None
    for _ in range(7):  # into the second epoch
        assert next(steps).device == META
        average = fit.update_ema(average, network, 0.9)
    assert all(p.grad.device == META for p in network.parameters())


@pytest.mark.parametrize(
    ("attribute", "broken", "words"),
    [
        ("batch_loss", lambda loss, *_: loss.sum() + torch.ones(3), "device"),
        ("batch_loss", lambda loss, *_: loss.sum() * loss.sum().item(), "meta"),
    ],
    ids=["another device", "waiting"],
)
def test_the_meta_device_notices(monkeypatch, attribute, broken, words):
    monkeypatch.setattr(
        fit.losses, attribute, lambda loss, weights, logits, *targets: broken(logits).sum()
    )
    _, steps = meta_steps(monkeypatch, RECIPES["baseline"])
    with pytest.raises((RuntimeError, NotImplementedError), match=words):
        next(steps)
