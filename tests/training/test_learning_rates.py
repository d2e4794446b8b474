"""Verdicts on learning rates, the loss before training, and the range test."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY, random_part

from common.errors import DivergedError
from common.networks.build import build
from common.networks.prediction import predict
from common.training import learning_rates
from common.training.fit import fit
from common.training.learning_rates import best_rate, range_test, start_loss, verdict
from common.training.recipe import Recipe

CPU = torch.device("cpu")
TRAIN = random_part((12, 8, 6))


@pytest.mark.parametrize(
    ("curve", "diverged_at", "expected"),
    [
        ([1.1, 1.1, 1.09], None, "too small, hardly moved"),
        ([1.0, 0.5, 0.2], None, "converges"),
        ([1.0, 0.5, 0.45, 0.5, 0.2], None, "converges"),  # rises 0.05, falls 0.85
        ([1.0, 0.9, 0.31], None, "slow"),  # more than 1.5 times 0.2
        ([1.0, 0.9, 0.29], None, "converges"),
        ([1.13, 0.5, 0.2], None, "unstable"),  # above the start
        ([1.12, 0.5, 0.2], None, "converges"),  # by less than 2%
        ([0.5, 0.3, 0.45, 0.4], None, "unstable"),  # rises 0.15, falls 0.25
        ([0.5, 0.3], 1234, "diverges at step 1,234"),
        ([], 1, "diverges at step 1"),
        ([0.3], None, "converges"),
    ],
)
def test_verdicts(curve, diverged_at, expected):
    history = {"loss": curve, "diverged_at": diverged_at}
    assert verdict(1.1, history, lowest=0.2) == expected


def test_the_best_rate_has_the_best_g_mean_and_of_equals_the_lower_loss():
    def result(g_mean, loss, diverged=None):
        history = {"validation_loss": [9.0, loss]}
        return {"validation": {"g_mean": g_mean}, "history": history, "diverged": diverged}

    rates = {0.1: result(0.5, 0.4), 0.2: result(0.7, 0.5), 0.3: result(0.7, 0.3)}
    assert best_rate(rates) == 0.3
    assert best_rate({0.1: {"diverged": "x"}, 0.2: result(0.0, 1.0)}) == 0.2
    assert best_rate({0.1: {"diverged": "x"}}) is None


@pytest.mark.parametrize(
    ("change", "weights"),
    [
        ({}, [1, 1, 1]),
        ({"class_weights": "inverse"}, [26 / 12, 26 / 8, 26 / 6]),
        ({"class_weights": "inverse", "reweight_from": 0.5}, [1, 1, 1]),
    ],
)
def test_the_loss_before_training_is_that_of_a_slow_loop(change, weights):
    network = build("simple-cnn", {"classes": 3, "dropout": 0.0})
    total = counted = 0.0
    with torch.no_grad():
        for image, label in zip(TRAIN.images, TRAIN.labels.tolist(), strict=True):
            p = network(image[None] / 255).softmax(1)[0, label].item()
            total -= weights[label] * math.log(p)
            counted += weights[label]
    found = start(network, batch_size=26, **change)
    assert found == pytest.approx(total / counted, rel=1e-5)


def test_the_loss_before_training_is_of_what_is_drawn():
    network = build("simple-cnn", {"classes": 3, "dropout": 0.0})
    drawn = torch.multinomial(
        (1 / torch.tensor([12.0, 8, 6]))[TRAIN.labels].double(), 26, replacement=True,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    logits = predict(network, TRAIN.images)
    expected = F.cross_entropy(logits[drawn], TRAIN.labels[drawn]).item()
    assert start(network, batch_size=26, sampler="balanced") == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(
    "change", [{}, {"mix": "cutmix"}, {"weight_decay": 0.1, "augment": ("colour",)}]
)
def test_the_loss_before_training_is_what_a_rate_near_0_keeps(change):
    """With dropout, mixing and augmentation, which the epochs' losses have too."""
    network = build("simple-cnn", {"classes": 3})
    before = network.fc1.weight.clone()
    found = start(network, batch_size=13, **change)
    assert torch.equal(network.fc1.weight, before)
    recipe = Recipe(batch_size=13, learning_rate=1e-12, epochs=1, **change)
    history = fit(network, TRAIN, EMPTY, recipe, seed=5, device=CPU)
    assert found == pytest.approx(history.loss[0], rel=1e-5)


def start(network, **change):
    return start_loss(network, TRAIN, Recipe(**change), seed=5, device=CPU)


def ranged(network=None, examples=TRAIN, lowest=1e-4, highest=1.0, **change):
    return range_test(
        network or build("simple-cnn", {"classes": 3}),
        examples,
        replace(Recipe(batch_size=1), **change),
        lowest=lowest,
        highest=highest,
        seed=0,
        device=CPU,
    )


def test_the_range_test_leaves_the_network_as_it_is():
    network = build("simple-cnn", {"classes": 3})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    test = ranged(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert ranged(network).losses == test.losses


def test_the_rates_grow_by_a_constant_factor_whatever_the_schedule(monkeypatch):
    used = []

    def steps(network, examples, recipe, optimizer, scheduler, **_):
        for _ in range(26):
            used.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
            yield torch.tensor(1.0)

    monkeypatch.setattr(learning_rates, "train_steps", steps)
    test = ranged(schedule="one-cycle")
    assert test.rates == pytest.approx(np.geomspace(1e-4, 1.0, 26).tolist())
    assert used == pytest.approx(test.rates)
    assert test.edge is None


@pytest.mark.parametrize("centre", [1e-3, 1e-2])
def test_suggestion_and_edge_of_a_known_curve(monkeypatch, centre):
    noise = np.random.default_rng(0)

    def steps(network, examples, recipe, optimizer, scheduler, **_):
        while True:
            rate = optimizer.param_groups[0]["lr"]
            fall = 1 / (1 + math.exp(-4 * math.log(rate / centre)))
            explosion = rate / 0.3 if rate > 0.3 else 0.0
            yield torch.tensor(1.1 - 0.8 * fall + explosion**2 + noise.normal() * 0.02)
            optimizer.step()
            scheduler.step()

    monkeypatch.setattr(learning_rates, "train_steps", steps)
    test = ranged(examples=random_part((400, 300, 300)), highest=10.0)
    assert test.suggestion == pytest.approx(centre, rel=0.25)
    assert 0.3 < test.edge < 1.0
    assert test.rates[-1] <= test.edge


def test_a_loss_that_is_not_finite_ends_the_range_test():
    test = ranged(lowest=1e-3, highest=1e12, batch_size=2)
    assert test.edge is not None
    assert len(test.losses) < 13
    with pytest.raises(DivergedError, match="lower range"):
        ranged(lowest=1e30, highest=1e31)
