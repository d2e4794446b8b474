"""DeepFool: linear networks by hand, torchattacks, and which images are attacked how long."""

import pytest
import torch
from attack_cases import NETWORK, X, Y, generator, linear_images
from torch import nn

from common.attacks.deepfool import deepfool
from common.attacks.gradients import logits_of

NORMS = ("linf", "l2")


def linear_network(weights: torch.Tensor, biases: torch.Tensor) -> nn.Module:
    """Return a network with logits weights x + biases, of weights (K, D)."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(weights.shape[1], len(weights)))
    with torch.no_grad():
        network[1].weight.copy_(weights)
        network[1].bias.copy_(biases)
    return network


@pytest.mark.parametrize("overshoot", [0.02, 0.5])
@pytest.mark.parametrize("norm", NORMS)
def test_one_step_crosses_the_boundary_of_a_linear_network(norm, overshoot):
    network, x, y, w = linear_images()
    moved = deepfool(network, x, y, norm=norm, overshoot=overshoot, steps=1)
    size = 3.0 / (w.abs().sum() if norm == "linf" else w.norm())
    direction = w.sign() if norm == "linf" else w / w.norm()
    expected = x - (1 + overshoot) * size * direction
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)
    assert (logits_of(network, moved).argmax(1) == 1).all()
    assert torch.equal(deepfool(network, x, y, norm=norm, overshoot=overshoot), moved)


def test_the_nearest_boundary_depends_on_the_norm():
    """Class 1 differs from class 0 in one value, class 2 less steeply in 100 values.

    The logit of class 1 is 0.2 too low and rises by 1 in one value: 0.2 away in both norms.
    That of class 2 is 0.5 too low and rises by 0.2 in each value: 0.5 / 2 away in L2, and
    0.5 / 20 in L-infinity.
    """
    weights = torch.zeros(3, 100)
    weights[1, 7], weights[2] = 1, 0.2
    x = torch.full((1, 1, 10, 10), 0.5)
    network = linear_network(weights, torch.tensor([0.0, -0.2, -0.5]) - 0.5 * weights.sum(1))
    label = torch.tensor([0])
    for norm, size, values in (("l2", 0.2, 1), ("linf", 0.025, 100)):
        noise = deepfool(network, x, label, norm=norm) - x
        changed = noise[noise.abs() > 1e-6]
        assert len(changed) == values
        assert torch.allclose(changed, torch.tensor(1.02 * size), atol=1e-6), norm


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_is_fooled_at_the_nearest_of_all_boundaries(norm, classes):
    """Image by image and class by class, in a loop."""
    weights = torch.randn(classes, 48, generator=generator())
    network = linear_network(weights, -0.5 * weights.sum(1))
    x = 0.5 + 0.05 * torch.randn(40, 3, 4, 4, generator=generator(1))
    y = logits_of(network, x).argmax(1)
    assert len(y.unique()) == classes
    moved = deepfool(network, x, y, norm=norm, overshoot=0.01)
    for image, label, noise in zip(x, y.tolist(), (moved - x).flatten(1), strict=True):
        noises = []
        for k in set(range(classes)) - {label}:
            w = weights[label] - weights[k]
            margin = float(w @ (image.flatten() - 0.5))
            if norm == "linf":
                noises.append(-margin * w.sign() / w.abs().sum())
            else:
                noises.append(-margin * w / w.square().sum())
        nearest = min(noises, key=lambda v: v.abs().max() if norm == "linf" else v.norm())
        torch.testing.assert_close(noise, 1.01 * nearest, rtol=1e-3, atol=2e-5)
    assert (logits_of(network, moved).argmax(1) != y).all()


def test_images_are_those_of_torchattacks():
    torchattacks = pytest.importorskip("torchattacks", reason="compares with torchattacks")
    theirs = torchattacks.DeepFool(NETWORK, steps=50, overshoot=0.02)(X, Y)
    ours = deepfool(NETWORK, X, Y)
    assert (logits_of(NETWORK, ours).argmax(1) != Y).all()
    # Theirs has no shortest step: some images stop short of the boundary.
    fooled = logits_of(NETWORK, theirs).argmax(1) != Y
    assert fooled.float().mean() > 0.8
    torch.testing.assert_close(ours[fooled], theirs[fooled], rtol=0, atol=2e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_images_stay_valid_and_cross_the_boundary_where_clamping_shortens_every_step(norm):
    """Of two values that count equally, one is 1 already: each step goes half the way."""
    network = linear_network(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([1.8, 0.0]))
    x = torch.tensor([1.0, 0.2]).view(1, 1, 1, 2)
    moved = deepfool(network, x, torch.tensor([0]), norm=norm)
    assert moved[0, 0, 0, 0] == 1
    assert 0.8 < moved[0, 0, 0, 1] < 0.8003


def test_images_leave_the_batch_once_they_fool():
    y = Y.clone()
    y[:5] = (Y[:5] + 1) % 3  # misclassified from the start
    sizes = []
    with NETWORK.register_forward_hook(lambda _m, inputs, _y: sizes.append(len(inputs[0]))):
        moved = deepfool(NETWORK, X, y)
    assert torch.equal(moved[:5], X[:5])
    assert sizes[:2] == [24, 19]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) > 3
    for steps, left in enumerate([*sizes[2:], 0], start=1):
        # An image that fools is as after all steps; another is returned as last reached.
        fewer = deepfool(NETWORK, X, y, steps=steps)
        fooled = logits_of(NETWORK, fewer).argmax(1) != y
        assert int((~fooled).sum()) == left
        assert torch.allclose(fewer[fooled], moved[fooled], atol=1e-6)
        assert ((fewer - X)[~fooled].flatten(1).norm(dim=1) > 0.01).all()


def test_results_do_not_depend_on_the_other_images():
    for norm in NORMS:
        together = deepfool(NETWORK, X[:8], Y[:8], norm=norm)
        alone = [deepfool(NETWORK, X[[i]], Y[[i]], norm=norm) for i in range(8)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_without_gradients_images_are_unchanged(norm):
    network = linear_network(torch.zeros(3, 48), torch.tensor([1.0, 0.0, 0.0]))
    x = torch.rand(4, 3, 4, 4, generator=generator())
    assert torch.equal(deepfool(network, x, torch.zeros(4).long(), norm=norm), x)


def test_more_images_than_a_batch(monkeypatch):
    expected = deepfool(NETWORK, X, Y)
    monkeypatch.setattr("common.attacks.deepfool.BATCH", 7)
    torch.testing.assert_close(deepfool(NETWORK, X, Y), expected, rtol=0, atol=1e-5)
