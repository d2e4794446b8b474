"""The smallest noise that fools: networks where it is known, other attacks, and edge cases."""

import pytest
import torch
from attack_cases import NETWORK, X, Y, generator, linear_images
from torch import nn

from common.attacks.deepfool import deepfool
from common.attacks.gradients import logits_of
from common.attacks.minimal_noise import _shrink, minimal_noise
from common.attacks.pgd import pgd

NORMS = ("linf", "l2")
P = {"linf": torch.inf, "l2": 2}


def sizes(noise: torch.Tensor, norm: str) -> torch.Tensor:
    return noise.flatten(1).norm(P[norm], dim=1)


@pytest.mark.parametrize("norm", NORMS)
def test_the_radius_of_a_linear_network(norm):
    network, x, y, w = linear_images()
    images, radii = minimal_noise(network, x, y, norm=norm)
    assert (logits_of(network, images).argmax(1) == 1).all()
    assert torch.equal(radii, sizes(images - x, norm))
    least = 3.0 / (w.abs().sum() if norm == "linf" else w.norm())
    assert (radii > 0.9999 * least).all()
    assert (radii < 1.0005 * least).all()


@pytest.mark.parametrize("norm", NORMS)
def test_the_radius_of_a_linear_network_where_images_are_clamped(norm):
    """The smallest noise moves values in proportion to |w| (L2) or equally, up to 0 or 1.

    The proportion at which it removes the margin is found by bisection.
    """
    network, *_, w = linear_images()
    x = torch.rand(8, 3, 32, 32, generator=generator(2))
    x = torch.where(torch.rand(x.shape, generator=generator(3)) < 0.3, x.round(), x)
    y = torch.zeros(8).long()
    shift = 0.1 * w.abs().sum()  # each margin is about as large as this
    network[1].bias.data += torch.stack([shift, -shift]) / 2
    margins = ((x - 0.5) * w).sum((1, 2, 3)) + shift
    room = torch.where(w > 0, x, 1 - x)
    low, high = torch.zeros(8, 1, 1, 1), torch.ones(8, 1, 1, 1)
    for _ in range(30):
        middle = (low + high) / 2
        noise = torch.minimum(middle * (1 if norm == "linf" else w.abs()), room)
        over = ((noise * w.abs()).sum((1, 2, 3)) > margins).view(-1, 1, 1, 1)
        low, high = torch.where(over, low, middle), torch.where(over, middle, high)
    least = sizes(noise, norm)
    assert (least > 1.05 * margins / (w.abs().sum() if norm == "linf" else w.norm())).all()
    images, radii = minimal_noise(network, x, y, norm=norm)
    assert (logits_of(network, images).argmax(1) != y).all()
    assert 0 <= images.min() <= images.max() <= 1
    assert (radii > 0.9999 * least).all()
    assert (radii < 1.0005 * least).all()


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("norm", NORMS)
def test_the_radius_of_a_curved_network_is_that_of_a_grid(norm, classes):
    """Images have two values, so the predictions on a grid show the nearest other class."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, classes))
    with torch.no_grad():
        network[1].weight.copy_(1.5 * torch.randn(16, 2, generator=generator(5)))
        network[1].bias.copy_(-0.5 * network[1].weight.sum(1))
        network[3].weight.copy_(torch.randn(classes, 16, generator=generator(6)))
        network[3].bias.zero_()
        line = torch.linspace(0, 1, 251)
        grid = torch.cartesian_prod(line, line)
        predictions = network(grid).argmax(1)
    assert len(predictions.unique()) == classes
    x = torch.rand(30, 1, 1, 2, generator=generator(7))
    y = logits_of(network, x).argmax(1)
    images, radii = minimal_noise(network, x, y, norm=norm)
    assert (logits_of(network, images).argmax(1) != y).all()
    least = torch.stack(
        [
            (grid[predictions != label] - image.flatten()).norm(P[norm], dim=1).amin()
            for image, label in zip(x, y, strict=True)
        ]
    )
    assert (radii > least - 0.004).all()  # the spacing of the grid
    # An image between two boundaries may be moved to the farther one: at most 2 of 30 here.
    assert (radii < 1.01 * least + 0.001).sum() >= 28
    by_deepfool = sizes(deepfool(network, x, y, norm=norm) - x, norm)
    assert (by_deepfool < 1.03 * least + 0.001).sum() < 25


@pytest.mark.parametrize("norm", NORMS)
def test_the_noise_is_smaller_than_that_of_other_attacks(norm):
    _, radii = minimal_noise(NETWORK, X, Y, norm=norm)
    by_deepfool = sizes(deepfool(NETWORK, X, Y, norm=norm) - X, norm)
    assert (radii <= by_deepfool).all()
    assert radii.mean() < 0.97 * by_deepfool.mean()
    # PGD with as many steps fools none of the first images at 97% of their radii.
    for i in range(6):
        options = {"epsilon": 0.97 * float(radii[i]), "norm": norm, "steps": 40}
        moved = pgd(NETWORK, X[[i]], Y[[i]], **options)
        assert logits_of(NETWORK, moved).argmax(1) == Y[i]


@pytest.mark.parametrize(
    ("norm", "their_norm", "epsilon"), [("linf", "Linf", 1), ("l2", "L2", 60)]
)
def test_the_noise_is_at_most_as_large_as_that_of_fab(norm, their_norm, epsilon):
    torchattacks = pytest.importorskip("torchattacks", reason="compares with torchattacks")
    fab = torchattacks.FAB(NETWORK, norm=their_norm, eps=epsilon, steps=20, n_classes=3)
    theirs = fab(X, Y)
    assert (logits_of(NETWORK, theirs).argmax(1) != Y).all()
    ratio = minimal_noise(NETWORK, X, Y, norm=norm)[1] / sizes(theirs - X, norm)
    assert ratio.median() < 1.001
    assert ratio.max() < 1.01


def test_more_steps_find_smaller_noise():
    x, y = X[:12], Y[:12]
    radii = {n: minimal_noise(NETWORK, x, y, steps=n)[1] for n in (0, 5, 40, 80)}
    by_deepfool = sizes(deepfool(NETWORK, x, y, norm="linf") - x, "linf")
    assert torch.equal(radii[0], by_deepfool)
    assert (radii[5] <= radii[0]).all()
    assert radii[5].mean() > radii[40].mean() > radii[80].mean() > 0.98 * radii[40].mean()
    assert torch.equal(minimal_noise(NETWORK, x, y, norm="linf")[1], radii[40])


@pytest.mark.parametrize("norm", NORMS)
def test_after_noise_that_fools_all_noise_is_smaller(norm):
    # At values 0 and 1, clamping makes the noise smaller than epsilon.
    x = torch.where(torch.rand(X.shape, generator=generator()) < 0.5, X.round(), X)
    y = logits_of(NETWORK, x).argmax(1)
    seen = []
    hook = NETWORK.register_forward_hook(lambda _m, inputs, out: seen.append((*inputs, out)))
    with hook:
        _, radii = minimal_noise(NETWORK, x, y, norm=norm, steps=30)
    smallest = torch.full((len(x),), torch.inf)
    for images, logits in seen[-31:]:
        size = sizes(images.detach() - x, norm)
        assert (size <= smallest + 2e-7).all()  # rounding of values near 1
        smallest = size.where(logits.argmax(1) != y, smallest)
    assert torch.allclose(radii, smallest, rtol=0, atol=2e-7)


@pytest.mark.parametrize(
    ("second_fools", "norms", "radius"),
    [(True, (0.4, 0.3526, 0.3327), 0.3327), (False, (0.4, 0.3526, 0.3750), 0.3750)],
)
def test_two_steps_by_hand(monkeypatch, second_fools, norms, radius):
    """The gradient is (1, 1) / sqrt(2); of the image's two values, the first is 1 already.

    Epsilon is 0.95 * 0.4 = 0.38, and the first step as long: from noise (0, 0.4) to
    (0.2687, 0.6687), scaled to (0.1417, 0.3526) and clamped to (0, 0.3526). Half the cosine is
    then left: the rate is 0.0255, and the step size 0.505. After noise that fools, epsilon is
    0.9745 * 0.3526 = 0.3436: noise (0.1227, 0.4753), scaled to (0.0859, 0.3327). Otherwise it
    is 1.0255 * 0.38 = 0.3897: noise (0.1392, 0.4918), scaled to (0.1061, 0.3750).
    """
    x = torch.tensor([1.0, 0.5]).view(1, 1, 1, 2)
    fools, seen = iter((True, second_fools, True)), []

    def objective_gradient(_network, images, *_, **__):
        seen.append(float((images - x).norm()))
        logits = torch.tensor([[0.0, 1.0] if next(fools) else [1.0, 0.0]])
        return logits, torch.ones_like(images), None

    monkeypatch.setattr("common.attacks.minimal_noise.objective_gradient", objective_gradient)
    start = x + torch.tensor([0.0, 0.4])
    found = _shrink(None, x, torch.tensor([0]), start, torch.tensor([0.4]), "l2", 2)
    assert seen == pytest.approx(norms, abs=1e-4)
    assert [float((found[0] - x).norm()), float(found[1])] == pytest.approx(
        [radius] * 2, abs=1e-4
    )


@pytest.mark.parametrize("norm", NORMS)
def test_misclassified_images_have_radius_0_and_are_not_attacked(norm):
    y = Y.clone()
    y[:5] = (Y[:5] + 1) % 3
    seen = []
    with NETWORK.register_forward_hook(lambda _m, inputs, _y: seen.append(len(inputs[0]))):
        images, radii = minimal_noise(NETWORK, X, y, norm=norm, steps=7)
    assert torch.equal(images[:5], X[:5])
    assert (radii == 0).nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
    assert seen[-8:] == [19] * 8  # the start and 7 steps
    seen.clear()
    with NETWORK.register_forward_hook(lambda _m, inputs, _y: seen.append(len(inputs[0]))):
        images, radii = minimal_noise(NETWORK, X, (Y + 1) % 3, norm=norm)
    assert torch.equal(images, X)
    assert not radii.any()
    assert len(seen) == 2


class Threshold(nn.Module):
    """Predicts 1 for images whose mean is above the threshold, else 0, without gradients."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean((1, 2, 3))
        above = (mean > self.threshold).float() + 0 * mean
        return torch.stack([1 - above, above], 1)


@pytest.mark.parametrize(
    ("threshold", "value", "radius"),
    [
        (0.45, 0.3, 0.15),  # grey fools
        (0.45, 0.6, 0.15),  # black fools
        (0.55, 0.3, 0.25),  # white fools
        (-1, 0.6, torch.inf),  # nothing does
        (2, 0.6, torch.inf),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_without_gradients_a_plain_image_shows_the_boundary(norm, threshold, value, radius):
    network = Threshold(threshold)
    x = torch.full((2, 3, 4, 4), value)
    y = logits_of(network, x).argmax(1)
    y[1] = 1 - y[1]
    seen = []
    with network.register_forward_hook(lambda _m, inputs, _y: seen.append(len(inputs[0]))):
        images, radii = minimal_noise(network, x, y, norm=norm, steps=60)
    assert radii[1] == 0
    assert torch.equal(images[1], x[1])
    expected = radius * (1 if norm == "linf" else 48**0.5)
    assert float(radii[0]) == pytest.approx(expected, rel=0.01)
    if radius == torch.inf:
        assert torch.equal(images, x)
        assert len(seen) < 100  # DeepFool, and three plain images, but no step from there
    else:
        assert (logits_of(network, images).argmax(1) != y).all()
        assert torch.equal(radii, sizes(images - x, norm))


@pytest.mark.parametrize("norm", NORMS)
def test_results_do_not_depend_on_the_other_images(norm):
    options = {"norm": norm, "steps": 20}
    images, radii = minimal_noise(NETWORK, X[:4], Y[:4], **options)
    for i in range(4):
        _, alone = minimal_noise(NETWORK, X[[i]], Y[[i]], **options)
        assert float(alone) == pytest.approx(float(radii[i]), rel=0.002)
        # Near the boundary, rounding could change a prediction.
        assert logits_of(NETWORK, images[[i]]).argmax(1) != Y[i]
