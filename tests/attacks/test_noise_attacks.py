"""Noise that is optimised for each image, and universal noise."""

from functools import partial
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
from attack_cases import EPSILON, NETWORK, TARGETS, X, Y, generator, linear_images, loss_of
from conftest import random_part
from torch import nn

from common.attacks import optimised_noise
from common.attacks.gradients import gradient, logits_of
from common.attacks.optimised_noise import LEAST_C, _noise_start, minimise, optimise, proximal
from common.attacks.universal_noise import universal
from common.networks.prediction import to_pixel_space


@pytest.mark.parametrize(
    ("norm", "noise", "threshold", "expected"),
    [
        # 0.1 towards 0, then x + noise is clamped to [0, 1].
        ("l1", [0.3, -0.05, 0.4, -0.6], 0.1, [0.2, 0.0, 0.1, -0.1]),
        # (0.3, 0.4) has the norm 0.5, which becomes 0.4, and 0 with the larger threshold.
        ("l2", [0.3, 0.4, 0.0, 0.0], 0.1, [0.24, 0.32, 0.0, 0.0]),
        ("l2", [0.3, 0.4, 0.0, 0.0], 0.6, [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_proximal_step_by_hand(norm, noise, threshold, expected):
    x, noise = (torch.tensor(v).view(1, 1, 2, 2) for v in ([0.5, 0.5, 0.9, 0.1], noise))
    result = proximal(noise, x, torch.full((1, 1, 1, 1), threshold), norm).flatten().tolist()
    assert result == pytest.approx(expected)
    assert [v == 0 for v in result] == [v == 0 for v in expected]


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
    descend = Mock(wraps=optimised_noise._descend)
    monkeypatch.setattr(optimised_noise, "_descend", descend)
    minimise(network, x, y, targets=1 - y, steps=3, rounds=6)
    c_of_rounds = [c for _, _, _, _, c, *_ in (call.args for call in descend.mock_calls)]
    high = gradient(network, x, 1 - y)[1].abs().amax((1, 2, 3))
    low, lowered = LEAST_C * high, []
    assert torch.allclose(c_of_rounds[0], (low * high).sqrt())
    for c, next_c in pairwise(c_of_rounds):
        raised = torch.isclose(next_c, (c * high).sqrt())
        assert (raised | torch.isclose(next_c, (low * c).sqrt())).all()
        low, high = torch.where(raised, c, low), torch.where(raised, high, c)
        lowered += (~raised).tolist()
    assert 0 < sum(lowered) < len(lowered)


@pytest.mark.parametrize(
    ("norm", "dense", "smallest"),
    [("l1", 0.2, "sparse"), ("l2", 0.2, "dense"), ("l2", 0.28, "sparse")],
)
def test_minimise_returns_the_smallest_noise_that_fools(monkeypatch, norm, dense, smallest):
    """Of 0.5 in one value (norm 0.5), and `dense` in 4 (L1 norm 4 dense, L2 norm 2 dense)."""
    x = torch.full((2, 1, 2, 2), 0.5)
    noises = {"sparse": torch.zeros(1, 2, 2), "dense": torch.full((1, 2, 2), dense)}
    noises["sparse"][0, 0, 0] = 0.5
    smaller = noises.pop(smallest)
    [larger] = noises.values()
    label, target, other = torch.eye(3)  # logits that call an image 0, 1 or 2
    steps = [  # of the first image; the second is never called 1
        (label, 0.1 * smaller),
        (other, 0.2 * smaller),
        (target, larger),
        (target, smaller),
        (target, 1.1 * larger),
    ]
    replies = [
        (torch.stack([logits, other]), x + torch.stack([noise, noise]))
        for logits, noise in steps
    ]
    gradient = Mock(return_value=(None, torch.ones_like(x)))
    monkeypatch.setattr(optimised_noise, "gradient", gradient)
    monkeypatch.setattr(optimised_noise, "_descend", lambda *_: iter(replies))
    labels = torch.tensor([0, 0])
    moved = minimise(None, x, labels, targets=1 - labels, norm=norm, rounds=1)
    assert torch.equal(moved[0], x[0] + smaller)
    assert torch.equal(moved[1], x[1])


@pytest.mark.parametrize("attack", [minimise, partial(optimise, c=0.01)])
def test_noise_starts_from_zeros_by_default(attack):
    options = {"targets": TARGETS[:4], "steps": 2}
    default, zeros, gaussian = (
        attack(NETWORK, X[:4], Y[:4], **options, **start)
        for start in ({}, {"start": "zeros"}, {"start": "gaussian"})
    )
    assert torch.equal(default, zeros)
    assert not torch.equal(default, gaussian)


@pytest.mark.parametrize(
    ("c", "noises"),
    [
        # Steps of 0.1, then 0.1 * 2 / 3 with 0.8 times the last one.
        (0.0, [0, 0.1, 0.1 + 0.08 + 0.2 / 3]),
        # In L1, c reduces each step by its half.
        (0.5, [0, 0.05, 0.05 + 0.04 + 0.1 / 3]),
    ],
)
def test_steps_shrink_and_have_momentum(monkeypatch, c, noises):
    x = torch.full((2, 3, 1, 1), 0.5)
    gradient = Mock(return_value=(None, -7 * torch.ones_like(x)))
    monkeypatch.setattr(optimised_noise, "gradient", gradient)
    # The threshold is divided by the gradient's largest value, 7, as the step is.
    arguments = None, x, None, torch.zeros_like(x), torch.tensor([7 * c] * 2), "l1", 3
    steps = optimised_noise._descend(*arguments)
    moves = [float((images - x).mean()) for _, images in steps]
    assert moves == pytest.approx(noises, abs=1e-6)


def test_a_gaussian_start_has_deviation_a_tenth_and_stays_valid():
    noise = _noise_start(X, "gaussian", generator(3))
    unclamped = 0.1 * torch.randn(X.shape, generator=generator(3))
    assert torch.equal(noise, (X + unclamped).clamp(0, 1) - X)
    assert torch.equal(
        _noise_start(X, "gaussian", None), _noise_start(X, "gaussian", generator())
    )


def test_a_larger_c_gives_a_smaller_noise():
    steepest = float(gradient(NETWORK, X, TARGETS)[1].abs().max())
    large, sparse, small, none = (
        optimise(NETWORK, X, Y, targets=TARGETS, c=c, steps=30) - X
        for c in (0.001, 0.03, 0.1, 1.01 * steepest)
    )
    assert large.abs().sum() > 1.5 * small.abs().sum() > 0
    assert (sparse == 0).float().mean() > 0.5  # of L1 noise
    assert (none == 0).all()  # no change of a value is worth its cost


@pytest.mark.parametrize(
    ("attack", "evaluations"),
    [(partial(minimise, steps=7, rounds=3), 22), (partial(optimise, c=0.1, steps=7), 7)],
)
def test_evaluations_are_those_of_the_docstring(attack, evaluations):
    calls = []
    with NETWORK.register_forward_hook(lambda *_: calls.append(1)):
        attack(NETWORK, X[:4], Y[:4], targets=TARGETS[:4])
    assert len(calls) == evaluations


@pytest.mark.parametrize("targeted", [False, True])
def test_universal_noise_works_on_other_images(targeted):
    x, y = X[Y != 1], Y[Y != 1]
    other = to_pixel_space(random_part((48,), seed=1).images)
    predictions = logits_of(NETWORK, other).argmax(1)
    other, predictions = other[predictions != 1], predictions[predictions != 1]
    targets = torch.ones_like(y) if targeted else None
    noise = universal(NETWORK, x, y, epsilon=EPSILON, targets=targets, steps=20)
    assert noise.abs().max() <= EPSILON + 1e-6
    classes = torch.ones_like(predictions) if targeted else predictions
    before = loss_of(NETWORK, other, classes)
    change = loss_of(NETWORK, (other + noise).clamp(0, 1), classes) - before
    assert change < -0.1 if targeted else change > 0.1
    assert (universal(NETWORK, x, y, epsilon=0.0, steps=2) == 0).all()


@pytest.mark.parametrize(
    ("balanced", "shares"), [(False, (0.9, 0.09, 0.01)), (True, (1 / 3, 1 / 3, 1 / 3))]
)
def test_balanced_universal_noise_draws_all_classes_equally(monkeypatch, balanced, shares):
    zero_gradient = Mock(side_effect=lambda _, x, *__: (None, torch.zeros_like(x), None))
    monkeypatch.setattr("common.attacks.universal_noise.objective_gradient", zero_gradient)
    images, labels = random_part((90, 9, 1))
    options = {"epsilon": EPSILON, "balanced": balanced, "steps": 50}
    noise = universal(nn.Linear(1, 1), images[..., :16, :16], labels, **options)
    assert noise.shape == (1, 3, 16, 16)
    batches = [labels for _, _, labels, _ in (call.args for call in zero_gradient.mock_calls)]
    counts = torch.bincount(torch.cat(batches), minlength=3) / 5000
    assert torch.allclose(counts, torch.tensor(shares), atol=0.03)


@pytest.mark.parametrize("targeted", [False, True])
def test_universal_noise_by_hand(monkeypatch, targeted):
    """Steps of 0.1 and 0.05 epsilon, the second with 0.9 times the first gradient."""
    images, labels = random_part((2, 1))
    images = images[..., :1, :1]
    targets = 1 - labels if targeted else None
    gradients = iter([(1.0, 0.0, 0.0), (-1.0, -0.25, -0.25)])
    seen = []

    def given_gradient(_network, x, y, t):
        seen.append(x)
        assert len(x) == len(y) == 5
        assert t is None if targets is None else torch.equal(t, 1 - y)
        return None, 7 * torch.tensor(next(gradients)).view(1, 3, 1, 1).expand_as(x), None

    monkeypatch.setattr("common.attacks.universal_noise.objective_gradient", given_gradient)
    options = {"epsilon": 0.4, "targets": targets, "steps": 2, "batch_size": 5}
    noise = universal(nn.Linear(1, 1), images, labels, **options)
    # Divided by their L1 norms, the gradients are (1, 0, 0) and (-2/3, -1/6, -1/6).
    expected = 0.4 * torch.tensor([0.1 + 0.05, -0.05, -0.05]).view(1, 3, 1, 1)
    assert torch.allclose(noise, expected)
    # The second batch has the noise of the first step, in the first channel.
    assert all(x.min() >= 0 and x.max() <= 1 for x in seen)
    pixels, moved = to_pixel_space(images), to_pixel_space(images)
    moved[:, 0] = (moved[:, 0] + 0.04).clamp(max=1)
    for x, candidates in zip(seen, (pixels, moved), strict=True):
        assert all(any(torch.allclose(image, c) for c in candidates) for image in x)


def test_universal_noise_takes_100_steps_of_100_images(monkeypatch):
    zero_gradient = Mock(side_effect=lambda _, x, *__: (None, torch.zeros_like(x), None))
    monkeypatch.setattr("common.attacks.universal_noise.objective_gradient", zero_gradient)
    images, labels = random_part((3, 1))
    universal(nn.Linear(1, 1), images[..., :1, :1], labels, epsilon=0.5)
    assert [len(call.args[1]) for call in zero_gradient.mock_calls] == [100] * 100
