"""Adversarial training: which images are trained on, the loss of TRADES, and validation."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY, random_part

from common.attacks.gradients import logits_of
from common.attacks.pgd import pgd
from common.networks.build import build
from common.networks.prediction import predict, to_pixel_space
from common.training import adversarial
from common.training.adversarial import VALIDATION_STEPS, adversarial_images, divergence
from common.training.fit import fit
from common.training.recipe import Recipe

CPU = torch.device("cpu")
TRAIN = random_part((8, 8, 8))
RECIPE = Recipe(
    network="resnet9", width=4, epochs=1, batch_size=12, learning_rate=0.05, momentum=0.0,
    adversarial=8.0, adversarial_steps=2,
)  # fmt: skip


def test_divergence_by_hand():
    """(1/2) log((1/2) / (1/4)) + (1/2) log((1/2) / (3/4)) = 0.1438, and 0 for equal logits."""
    logits = torch.tensor([[0.0, 0.0], [2.0, -1.0]])
    attacked = torch.tensor([[1.0, 3.0], [2.0, -1.0]]).log()
    attacked[1] = logits[1]
    assert divergence(logits, attacked).item() == pytest.approx(0.1438 / 2, abs=1e-4)


def test_trades_images_raise_the_divergence_and_not_the_loss_of_a_label():
    network = build("resnet9", {"classes": 3, "width": 4}, 1).eval()
    x, y = to_pixel_space(TRAIN.images), TRAIN.labels
    generator = torch.Generator().manual_seed(0)
    recipe = replace(RECIPE, trades=6.0, adversarial_steps=5)
    images = adversarial_images(network, x, y, recipe, generator)
    assert 0 < (images - x).abs().max() <= 8 / 255 + 1e-6
    given = logits_of(network, x)
    random_noise = (x + 8 / 255 * (2 * torch.rand_like(x) - 1)).clamp(0, 1)
    against_labels = pgd(network, x, y, epsilon=8 / 255, steps=5, stop=False)
    apart, random_apart, other = (
        divergence(given, logits_of(network, each))
        for each in (images, random_noise, against_labels)
    )
    assert apart > 5 * random_apart
    assert apart > other
    # The labels play no part.
    generator.manual_seed(0)
    again = adversarial_images(network, x, (y + 1) % 3, recipe, generator)
    assert torch.equal(images, again)


def smooth_attack(network, x, labels, recipe, generator):
    """Return images that depend on all of these, but not on the sign of a gradient near 0."""
    noise = torch.rand(x.shape, generator=generator) * recipe.adversarial / 255
    shares = logits_of(network, x).softmax(1)[torch.arange(len(x)), labels]
    return x + noise * shares[:, None, None, None]


# From the second step on the weights differ by rounding, which turns signs of PGD's gradients.
@pytest.mark.parametrize(
    ("attack", "batch_size"),
    [(adversarial_images, 24), (smooth_attack, 12)],
    ids=["pgd", "smooth"],
)
@pytest.mark.parametrize("trades", [0.0, 6.0])
def test_adversarial_training_equals_a_slow_loop(monkeypatch, trades, attack, batch_size):
    monkeypatch.setattr("common.training.fit.adversarial_images", attack)
    recipe = replace(RECIPE, trades=trades, batch_size=batch_size)
    arguments = recipe.network_arguments(3)
    network = build("resnet9", arguments, 0)
    slow = copy.deepcopy(network).to(memory_format=torch.channels_last)
    history = fit(network, TRAIN, EMPTY, recipe, seed=0, device=CPU)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    order = torch.randperm(24, generator=generators[0])
    optimizer = torch.optim.SGD(slow.parameters(), lr=0.05)
    losses = []
    for batch in order.split(batch_size):
        n = len(batch)
        x, y = to_pixel_space(TRAIN.images[batch]), TRAIN.labels[batch]
        x = x.to(memory_format=torch.channels_last)
        attacked = attack(slow, x, y, recipe, generators[1])
        slow.train()
        if trades:
            logits = slow(torch.cat([x, attacked]))
            p, q = logits[:n].softmax(1), logits[n:].softmax(1)
            distance = (p * (p.log() - q.log())).sum() / n
            loss = F.cross_entropy(logits[:n], y) + trades * distance
        else:
            loss = F.cross_entropy(slow(attacked), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert history.loss == [pytest.approx(sum(losses) / len(losses), rel=1e-4)]
    for name, value in slow.state_dict().items():
        assert torch.allclose(network.state_dict()[name], value, atol=1e-4), name


def test_validation_is_on_the_images_of_pgd():
    validation = random_part((8, 8, 8), seed=1)
    network = build("resnet9", RECIPE.network_arguments(3), 0)
    history = fit(network, TRAIN, validation, RECIPE, seed=0, device=CPU)
    x = to_pixel_space(validation.images)
    attacked = pgd(network, x, validation.labels, epsilon=8 / 255, steps=VALIDATION_STEPS)
    clean, under_attack = (
        F.cross_entropy(predict(network, images), validation.labels).item()
        for images in (x, attacked)
    )
    assert history.validation_loss == [pytest.approx(under_attack, rel=1e-6)]
    assert under_attack > clean + 1e-4


def test_the_first_pass_of_sam_has_the_divergence_too():
    """With equal class counts, class weights in the ascent change nothing."""
    weights = []
    for weighted in (False, True):
        recipe = replace(RECIPE, trades=6.0, sam=0.2, sam_class_weighted=weighted)
        network = build("resnet9", recipe.network_arguments(3), 0)
        fit(network, TRAIN, EMPTY, recipe, seed=0, device=CPU)
        weights.append(torch.cat([p.flatten() for p in network.parameters()]))
    assert torch.allclose(*weights, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_attack_has_the_precision_of_the_training(monkeypatch, precision):
    seen = []

    def watched_pgd(network, x, labels, **settings):
        seen.append(network(x).dtype)
        return pgd(network, x, labels, **settings)

    monkeypatch.setattr(adversarial, "pgd", watched_pgd)
    recipe = replace(RECIPE, precision=precision)
    network = build("resnet9", recipe.network_arguments(3), 0)
    fit(network, TRAIN, EMPTY, recipe, seed=0, device=CPU)
    assert seen == [getattr(torch, precision)] * 2
