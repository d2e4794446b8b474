from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY, random_part

from common import dataset, models, training
from common.options import InputError
from common.recipes import Recipe

CPU = torch.device("cpu")
TRAIN = random_part((6, 4, 3))  # 13 images: the last batch of 4 holds one
RECIPE = Recipe(epochs=3, learning_rate=0.05)


def fitted(recipe=RECIPE, seed=0, train=TRAIN, validation=EMPTY, dropout=0.5):
    network = models.build("simple-cnn", {"classes": 3, "dropout": dropout}, seed)
    history = training.fit(network, train, validation, recipe, seed=seed, device=CPU)
    return network, history


def plain_loop(recipe, seed):
    """The reports' loop: momentum written out, one image list per batch."""
    network = models.build("simple-cnn", {"classes": 3, "dropout": 0.0}, seed).train()
    velocity = [torch.zeros_like(p) for p in network.parameters()]
    generator = torch.Generator().manual_seed(seed)
    epoch_losses = []
    for _ in range(recipe.epochs):
        order = torch.randperm(len(TRAIN.labels), generator=generator).tolist()
        total = 0.0
        for start in range(0, len(order), recipe.batch_size):
            batch = order[start : start + recipe.batch_size]
            x = torch.stack([TRAIN.images[i] / 255 for i in batch])
            y = torch.tensor([int(TRAIN.labels[i]) for i in batch])
            loss = F.cross_entropy(network(x), y)
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for p, v, g in zip(network.parameters(), velocity, gradients, strict=True):
                    v.mul_(recipe.momentum).add_(g)
                    p.sub_(recipe.learning_rate * v)
            total += loss.item() * len(batch)
        epoch_losses.append(total / len(order))
    return network, epoch_losses


@pytest.mark.parametrize("seed", [0, 1])
def test_fit_equals_a_plain_loop(seed):
    network, history = fitted(seed=seed, dropout=0.0)
    reference, losses = plain_loop(RECIPE, seed)
    assert history.loss == pytest.approx(losses, rel=1e-4)
    for name, value in network.state_dict().items():
        assert torch.allclose(value, reference.state_dict()[name], atol=1e-5), name


def test_one_seed_gives_identical_weights_and_another_does_not():
    a, b, c = (fitted(seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)


def test_the_global_random_state_plays_no_part():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a = fitted()[0].fc1.weight
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(a, fitted()[0].fc1.weight)


@pytest.mark.parametrize(
    "change", [{"epochs": 2}, {"batch_size": 3}, {"learning_rate": 0.04}, {"momentum": 0.5}]
)
def test_each_field_changes_what_is_trained(change):
    plain = fitted()[0].fc1.weight
    assert not torch.equal(plain, fitted(replace(RECIPE, **change))[0].fc1.weight)


def test_validation_is_measured_and_never_trained_on():
    validation = random_part((3, 3, 3), seed=1)
    network, history = fitted(validation=validation)
    assert torch.equal(network.fc1.weight, fitted()[0].fc1.weight)
    logits = models.predict(network, validation.images)
    assert history.validation_loss[-1] == pytest.approx(
        F.cross_entropy(logits, validation.labels).item()
    )
    recalls = [(logits.argmax(1)[validation.labels == k] == k).float().mean() for k in range(3)]
    g_mean = float(torch.tensor(recalls).prod() ** (1 / 3))
    assert history.validation_g_mean[-1] == pytest.approx(g_mean, abs=1e-6)
    assert len(history.validation_loss) == RECIPE.epochs
    assert not network.training


def test_a_loss_that_is_not_finite_names_step_and_rate():
    with pytest.raises(InputError, match=r"not finite at step \d+; take .* below 1e\+10"):
        fitted(replace(RECIPE, learning_rate=1e10))


def test_synthetic_images_are_as_hard_as_they_should_be():
    """One epoch of the reports' recipe calls everything a car; ten balanced ones do not."""
    split = dataset.load("synthetic")
    recipe = Recipe()
    network, _ = fitted(replace(recipe, epochs=1), train=split.train)
    assert set(models.predict(network, split.test.images).argmax(1).tolist()) == {0}

    shares = torch.ones(3) / torch.tensor(split.train.counts(3))
    weights = shares[split.train.labels]
    drawn = torch.multinomial(
        weights, 5625, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    balanced = dataset.Part(split.train.images[drawn], split.train.labels[drawn])
    network, _ = fitted(recipe, train=balanced)
    found = models.predict(network, split.test.images).argmax(1) == split.test.labels
    recalls = [found[split.test.labels == k].float().mean().item() for k in range(3)]
    assert min(recalls) > 0.45, recalls
