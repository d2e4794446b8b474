"""Noise that is optimised for each image, and universal noise."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from attack_cases import EPSILON, NETWORK, TARGETS, X, Y, linear_images, loss_of
from conftest import random_part
from torch import nn

from common.attacks import optimised_noise
from common.attacks.gradients import gradient, logits_of
from common.attacks.optimised_noise import LEAST_C, minimise, optimise, proximal
from common.attacks.universal_noise import universal
from common.networks.prediction import to_pixel_space


def test_proximal_step_by_hand():
    x = torch.tensor([0.5, 0.5, 0.9, 0.1]).view(1, 1, 2, 2)
    noise = torch.tensor([0.3, -0.05, 0.4, -0.6]).view(1, 1, 2, 2)
    threshold = torch.full((1, 1, 1, 1), 0.1)
    # 0.1 towards 0, then x + noise is clamped to [0, 1].
    result = proximal(noise, x, threshold, "l1").flatten()
    assert torch.allclose(result, torch.tensor([0.2, 0.0, 0.1, -0.1]))
    assert result[1] == 0
    # (0.3, 0.4) has the norm 0.5, which becomes 0.4.
    noise = torch.tensor([0.3, 0.4, 0.0, 0.0]).view(1, 1, 2, 2)
    result = proximal(noise, torch.full_like(x, 0.5), threshold, "l2").flatten()
    assert torch.allclose(result, torch.tensor([0.24, 0.32, 0.0, 0.0]))
    assert (proximal(noise, x, 6 * threshold, "l2") == 0).all()


@pytest.mark.parametrize("start", ["zeros", "gaussian"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_minimise_finds_the_smallest_noise(norm, start):
    """Of a linear network, that is along w in L2; in L1 it changes one value, the steepest."""
    network, x, y, w = linear_images(1.0)
    moved = minimise(network, x, y, targets=1 - y, norm=norm, start=start, steps=150, rounds=6)
    assert (logits_of(network, moved).argmax(1) == 1).all()
    size = (moved - x).flatten(1).norm(1 if norm == "l1" else 2, dim=1)
    least = 1.0 / (w.abs().max() if norm == "l1" else w.norm())
    assert (size >= 0.999 * least).all()
    assert (size <= (1.3 if norm == "l1" else 1.05) * least).all()


def test_bisection_raises_c_when_a_smaller_noise_fools(monkeypatch):
    network, x, y, _ = linear_images(1.0)
    c_of_rounds, descend = [], optimised_noise._descend

    def watched_descend(network, x, targets, noise, c, *options):
        c_of_rounds.append(c.clone())
        return descend(network, x, targets, noise, c, *options)

    monkeypatch.setattr(optimised_noise, "_descend", watched_descend)
    minimise(network, x, y, targets=1 - y, steps=3, rounds=6)
    high = gradient(network, x, 1 - y)[1].abs().amax((1, 2, 3))
    low, lowered = LEAST_C * high, []
    assert torch.allclose(c_of_rounds[0], (low * high).sqrt())
    for c, next_c in pairwise(c_of_rounds):
        raised = torch.isclose(next_c, (c * high).sqrt())
        assert (raised | torch.isclose(next_c, (low * c).sqrt())).all()
        low, high = torch.where(raised, c, low), torch.where(raised, high, c)
        lowered += (~raised).tolist()
    assert any(lowered)
    assert not all(lowered)


def test_a_larger_c_gives_a_smaller_noise():
    steepest = float(gradient(NETWORK, X, TARGETS)[1].abs().max())
    noise = [
        optimise(NETWORK, X, Y, targets=TARGETS, c=c, steps=30) - X
        for c in (0.001, 0.03, 0.1, 1.01 * steepest)
    ]
    sizes = [n.abs().sum((1, 2, 3)).mean() for n in noise]
    assert sizes[0] > 1.5 * sizes[2] > 0
    assert (noise[1] == 0).float().mean() > 0.5  # L1 noise is sparse
    assert (noise[3] == 0).all()  # no change of a value is worth its cost


@pytest.mark.parametrize(
    ("attack", "evaluations"),
    [(partial(minimise, steps=7, rounds=3), 22), (partial(optimise, c=0.1, steps=7), 7)],
)
def test_evaluations_are_those_of_the_docstring(attack, evaluations):
    calls = []
    handle = NETWORK.register_forward_hook(lambda *_: calls.append(1))
    attack(NETWORK, X[:4], Y[:4], targets=TARGETS[:4])
    handle.remove()
    assert len(calls) == evaluations


@pytest.mark.parametrize("targeted", [False, True])
def test_universal_noise_works_on_other_images(targeted):
    x, y = X[Y != 1], Y[Y != 1]
    other = to_pixel_space(random_part((48,), seed=1).images)
    predictions = logits_of(NETWORK, other).argmax(1)
    targets = torch.ones_like(y) if targeted else None
    noise = universal(NETWORK, x, y, epsilon=EPSILON, targets=targets, steps=20)
    assert noise.shape == (1, 3, 32, 32)
    assert noise.abs().max() <= EPSILON + 1e-6
    noisy = (other + noise).clamp(0, 1)
    if targeted:
        ones = torch.ones_like(predictions)
        assert loss_of(NETWORK, noisy, ones) < loss_of(NETWORK, other, ones) - 0.1
    else:
        used = predictions != 1
        before = loss_of(NETWORK, other[used], predictions[used])
        assert loss_of(NETWORK, noisy[used], predictions[used]) > before + 0.1
    assert (universal(NETWORK, x, y, epsilon=0.0, steps=2) == 0).all()


def test_universal_noise_has_the_size_of_the_images():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    noise = universal(network, X[..., :16, :16], Y, epsilon=EPSILON, steps=2)
    assert noise.shape == (1, 3, 16, 16)


@pytest.mark.parametrize(
    ("balanced", "shares"), [(False, (0.9, 0.09, 0.01)), (True, (1 / 3, 1 / 3, 1 / 3))]
)
def test_balanced_universal_noise_draws_all_classes_equally(monkeypatch, balanced, shares):
    batches = []

    def objective_gradient(network, x, labels, targets):
        batches.append(labels)
        return None, torch.zeros_like(x), None

    monkeypatch.setattr("common.attacks.universal_noise.objective_gradient", objective_gradient)
    universal(None, *random_part((90, 9, 1)), epsilon=EPSILON, balanced=balanced, steps=50)
    counts = torch.bincount(torch.cat(batches), minlength=3) / 5000
    assert torch.allclose(counts, torch.tensor(shares), atol=0.03)
