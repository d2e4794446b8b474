"""Training on one device: no tensor of a step lies elsewhere, and no step waits for the device.

PyTorch's meta device stands in for a GPU: it refuses tensors of another device, and, because it
holds no data, every operation that needs a value on the host.
"""

from dataclasses import replace

import pytest
import torch
from conftest import random_part

from common.networks.build import build
from common.training import fit, progress
from common.training.recipes import RECIPES

META = torch.device("meta")
SAM = replace(RECIPES["best"], sam=0.1, sam_class_weighted=True, max_norm=1.0, loss="vs")
NAMED = RECIPES | {
    "sam": SAM,
    "trades": replace(RECIPES["robust"], trades=6.0),
    "label-aware-smoothing": replace(RECIPES["robust"], loss="label-aware-smoothing", sam=0.1),
}
TRAIN = random_part((24, 12, 12))


def meta_steps(monkeypatch, name):
    """Return a network on the meta device, and its training steps by a named recipe."""
    # The meta device has no generators; None is its default generator.
    monkeypatch.setattr(
        progress,
        "make_generator",
        lambda seed, device="cpu": None if device == META else torch.Generator(),
    )
    width = 4 if NAMED[name].network == "resnet9" else None
    recipe = replace(NAMED[name], batch_size=8, epochs=2, width=width, precision="float32")
    network = build(recipe.network, recipe.network_arguments(3)).to(META)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    state = progress.TrainingState(network, optimizer, None, progress.Generators(0, META))
    return network, fit.train_steps(TRAIN, recipe, state, device=META)


@pytest.mark.parametrize("name", NAMED)
def test_every_recipe_trains_on_one_device_without_waiting(monkeypatch, name):
    network, steps = meta_steps(monkeypatch, name)
    average = None
    for _ in range(7):  # into the second epoch
        assert next(steps).device.type == "meta"
        average = fit.update_ema(average, network, 0.9)
    assert all(p.grad.device.type == "meta" for p in network.parameters())


@pytest.mark.parametrize(
    ("broken", "words"),
    [(lambda loss: loss + torch.ones(3), "device"), (lambda loss: loss * loss.item(), "meta")],
    ids=["another device", "waiting"],
)
def test_the_meta_device_notices(monkeypatch, broken, words):
    monkeypatch.setattr(fit.losses, "batch_loss", lambda *args: broken(args[2].sum()))
    _, steps = meta_steps(monkeypatch, "baseline")
    with pytest.raises(RuntimeError, match=words):
        next(steps)
