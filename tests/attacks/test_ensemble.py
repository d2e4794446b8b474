"""The ensemble: its order, what each attack adds, and masked gradients."""

import math

import pytest
import torch
from attack_cases import NETWORK, X, Y, generator, linear_images
from torch import nn

from common.attacks import ensemble as module
from common.attacks import rounding
from common.attacks import strength as strength_module
from common.attacks.ensemble import MINIMAL_NOISE, Budget, ensemble, members
from common.attacks.gradients import logits_of
from common.attacks.minimal_noise import minimal_noise
from common.attacks.strength import measure_strength
from common.metrics.report import report

FEW = Budget(steps=10, queries=50)
CLASSES = ("car", "truck", "cat")


def wrong(images, network=NETWORK, labels=Y):
    return logits_of(network, images).argmax(1) != labels


def strength_of(
    network=NETWORK, x=X, labels=Y, norm="linf", epsilons=(1 / 255,), budget=FEW, seed=0
):
    texts = {f"{255 * e:g}": e for e in epsilons}
    classes = CLASSES[: logits_of(network, x[:1]).shape[1]]
    settings = {"norm": norm, "epsilons": texts, "budget": budget, "seed": seed}
    return measure_strength(network, x, labels, classes, **settings)


@pytest.mark.parametrize("known", [True, False], ids=["minimal noise", "no noise known"])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.6 / 255), ("l2", 0.05)])
def test_an_image_keeps_the_first_noise_that_fools(norm, epsilon, known):
    smallest = minimal_noise(NETWORK, X, Y, norm=norm)[0] if known else X
    order = torch.inf if norm == "linf" else 2
    before, names = X, []
    fooled = torch.zeros(len(X), dtype=torch.bool)
    stages = ensemble(NETWORK, X, Y, smallest, epsilon=epsilon, norm=norm, budget=FEW)
    for name, images in stages:
        names.append(name)
        assert ((images - X).flatten(1).norm(order, dim=1) <= epsilon + 1e-6).all()
        assert 0 <= images.min() <= images.max() <= 1
        changed = (images != before).flatten(1).any(1)
        assert not (changed & fooled).any()
        assert wrong(images)[changed].all()
        assert torch.equal(images[~wrong(images)], X[~wrong(images)])
        before, fooled = images, fooled | changed
    assert names == [
        "minimal noise", "APGD, cross-entropy", "APGD, margin", "APGD, each target", "Square"
    ]  # fmt: skip
    assert 0 < fooled.sum() < len(X)


def test_misclassified_images_are_not_attacked():
    labels = Y.clone()
    labels[:5] = (Y[:5] + 1) % 3
    smallest, _ = minimal_noise(NETWORK, X, labels)
    *_, (_, images) = ensemble(NETWORK, X, labels, smallest, epsilon=8 / 255, budget=FEW)
    assert torch.equal(images[:5], X[:5])
    assert wrong(images)[5:].any()
    strength = strength_of(labels=labels)
    assert strength.attacked == len(X) - 5
    assert (strength.radii[:5] == 0).all()
    assert (strength.radii[5:] > 0).all()


def test_two_classes_have_no_targets_and_a_known_radius():
    network, x, y, w = linear_images()
    least = float(3.0 / w.abs().sum())
    names = [member.name for member in members(2)]
    assert names == ["APGD, cross-entropy", "APGD, margin", "Square"]
    strength = strength_of(network, x, y, epsilons=(0.97 * least, 1.05 * least))
    below, above = strength.results.values()
    assert below.report().accuracy == 1
    assert above.report().accuracy == 0
    assert torch.allclose(strength.radii, torch.tensor(least), rtol=0.02)


def test_each_target_is_tried_in_the_order_of_the_logits(monkeypatch):
    """With five classes: the most probable other class first, and only images that stand."""
    logits = torch.tensor([[9.0, 1, 4, 2, 3], [1, 9, 2, 3, 4]])
    tried = []

    def apgd(_network, x, labels, *, targets, **_):
        tried.append((labels.tolist(), targets.tolist()))
        return x + (targets == 3).view(-1, 1, 1, 1)  # class 3 fools

    def logits_of(_network, x):
        changed = (x.flatten(1) >= 1).any(1)
        rows = logits[:2].clone() if len(x) == 2 else logits[[0]].clone()
        rows[changed] = 0
        rows[changed, 3] = 1
        return rows

    monkeypatch.setattr(module, "apgd", apgd)
    monkeypatch.setattr(module, "logits_of", logits_of)
    x = torch.zeros(2, 3, 2, 2)
    labels = torch.tensor([0, 1])
    module._apgd_targeted(None, x, labels, budget=FEW, epsilon=0.1)
    assert tried == [([0, 1], [2, 4]), ([0, 1], [4, 3]), ([0], [3])]


def test_the_report_of_each_stage_is_that_of_its_predictions():
    epsilons = (0.4 / 255, 0.8 / 255)
    strength = strength_of(epsilons=epsilons[::-1])
    assert list(strength.results) == ["0.4", "0.8"]
    smaller, larger = strength.results.values()
    for result in (smaller, larger):
        fooled = 0
        for stage in result.stages.values():
            fooled += stage.added
            assert stage.report.accuracy == pytest.approx(1 - fooled / len(X))
        assert result.report() is list(result.stages.values())[-1].report
    # An image that is fooled at an epsilon is fooled at every larger one.
    assert larger.stages[MINIMAL_NOISE].added >= sum(s.added for s in smaller.stages.values())
    for result, epsilon in zip((smaller, larger), epsilons, strict=True):
        standing = (strength.radii > epsilon).sum()
        assert result.report().accuracy == pytest.approx(standing / len(X))


def test_noise_that_the_ensemble_finds_lowers_the_radius(monkeypatch):
    """As if no noise was known: what fools at the first epsilon is known at the second."""
    radii = torch.full((len(X),), torch.inf)
    monkeypatch.setattr(strength_module, "minimal_noise", lambda *_, **__: (X, radii.clone()))
    strength = strength_of(epsilons=(0.6 / 255, 2 / 255))
    smaller, larger = strength.results.values()
    found = sum(stage.added for stage in smaller.stages.values())
    assert 0 < found < len(X)
    assert smaller.stages[MINIMAL_NOISE].added == 0
    assert larger.stages[MINIMAL_NOISE].added == found
    assert (strength.radii <= 0.6 / 255 + 1e-6).sum() == found
    standing = larger.report().accuracy * len(X)
    assert strength.radii.isinf().sum() == pytest.approx(standing)


def test_the_budget_reaches_each_attack(monkeypatch):
    given = []

    def attack(_network, x, _labels, **settings):
        given.append(settings)
        return x

    for name in ("apgd", "square"):
        monkeypatch.setattr(module, name, attack)
    list(ensemble(NETWORK, X, Y, X, epsilon=0.1, norm="l2", budget=Budget(7, 11)))
    losses = ["cross-entropy", *["margin"] * 3, None]
    assert [settings.get("loss") for settings in given] == losses
    assert [settings.get("steps") for settings in given] == [7] * 4 + [None]
    assert given[-1]["queries"] == 11
    assert all(s["norm"] == "l2" and s["epsilon"] == 0.1 for s in given)


def test_at_epsilon_0_nothing_changes():
    for _, images in ensemble(NETWORK, X, Y, X, epsilon=0.0, budget=FEW):
        assert torch.equal(images, X)


class Rounding(nn.Module):
    """A network without gradients: it sees images of 16 grey values."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network((x * 15).round() / 15)


def test_masked_gradients_are_noticed():
    masked = Rounding(NETWORK)
    y = logits_of(masked, X).argmax(1)
    budget = Budget(steps=5, queries=300)
    strength = strength_of(masked, labels=y, epsilons=(10 / 255,), budget=budget)
    [result] = strength.results.values()
    added = {name: stage.added for name, stage in result.stages.items()}
    # Random starts fool by chance.
    assert added["Square"] > 5 >= added["APGD, cross-entropy"] + added["APGD, margin"]
    assert strength.masked()
    assert not strength_of(epsilons=(10 / 255,), budget=budget).masked()


def test_images_in_8_bits_still_fool():
    x = (X * 255).round() / 255
    y = logits_of(NETWORK, x).argmax(1)
    strength = strength_of(x=x, labels=y, epsilons=(1 / 255,))
    [result] = strength.results.values()
    pixels = result.rounded * 255
    assert torch.allclose(pixels, pixels.round(), atol=1e-4)
    assert (result.rounded - x).abs().max() <= 1 / 255 + 1e-6
    fools = wrong(result.rounded, labels=y)
    assert result.rounded_fools == fools.sum() > 0
    predictions = logits_of(NETWORK, result.rounded).argmax(1)
    assert result.rounded_report == report(y, predictions, CLASSES)
    # The smallest noise is less than half of 1/255: rounding alone would undo it.
    assert strength.radii[fools].min() < 0.5 / 255
    assert result.rounded_fools >= 0.9 * sum(s.added for s in result.stages.values())


def test_images_that_rounding_undoes_are_attacked_to_the_highest_loss(monkeypatch):
    """On a line: 0.1 / 255 beyond the boundary rounding undoes it, at epsilon it doesn't."""
    network, x, y, w = linear_images()
    x = (x * 255).round() / 255
    margins = ((x - 0.5) * w).sum((1, 2, 3))
    least = (margins / w.abs().sum()).view(-1, 1, 1, 1)  # of an attack of equal steps
    barely = x - (least + 1e-4) * w.sign()
    epsilon = math.ceil(2 * 255 * float(least.max())) / 255
    assert wrong(barely, network, y).all()
    settings = {"epsilon": epsilon, "norm": "linf"}
    assert not wrong(rounding.round_to_8_bits(barely, x, **settings), network, y).any()
    found = rounding.fool_in_8_bits(network, x, y, barely, **settings, generator=generator())
    assert wrong(found, network, y).all()
    # Without the clamp to [0, 1], the highest loss is at -epsilon sign(w).
    farthest = rounding.round_to_8_bits((x - epsilon * w.sign()).clamp(0, 1), x, **settings)
    assert torch.allclose(found, farthest)


@pytest.mark.parametrize(
    ("norm", "epsilon"),
    [("linf", 0.5 / 255), ("linf", 4.5 / 255), ("linf", 8 / 255), ("l2", 0.125), ("l2", 0.5)],
)
def test_rounded_images_stay_within_epsilon(norm, epsilon):
    x = (torch.rand(20, 3, 32, 32, generator=generator()) * 255).round() / 255
    noise = torch.randn(x.shape, generator=generator())
    size = noise.abs().flatten(1).amax(1) if norm == "linf" else noise.flatten(1).norm(dim=1)
    images = (x + epsilon * noise / size.view(-1, 1, 1, 1)).clamp(0, 1)
    rounded = rounding.round_to_8_bits(images, x, epsilon=epsilon, norm=norm)
    steps = rounded * 255
    assert torch.allclose(steps, steps.round(), atol=1e-4)
    assert 0 <= rounded.min() <= rounded.max() <= 1
    changed = (rounded - x).flatten(1)
    sizes = changed.abs().amax(1) if norm == "linf" else changed.norm(dim=1)
    assert sizes.max() <= epsilon * (1 + 1e-4)
    if epsilon > 1 / 255:
        assert sizes.median() > 0.8 * epsilon  # no more than needed is taken away


def test_the_seed_repeats_every_image(monkeypatch):
    one, same = (strength_of(epsilons=(0.5 / 255,)) for _ in range(2))
    assert torch.equal(one.radii, same.radii)
    assert torch.equal(one.results["0.5"].rounded, same.results["0.5"].rounded)
    seeds = []

    def watched_ensemble(*images, generator, **settings):
        seeds.append(generator.initial_seed())
        return ensemble(*images, generator=generator, **settings)

    monkeypatch.setattr(strength_module, "ensemble", watched_ensemble)
    strength_of(epsilons=(0.5 / 255,), seed=7)
    assert seeds == [7]


@pytest.mark.parametrize(("steps", "taken"), [(5, 5), (100, 40)])
def test_the_budget_limits_the_search_for_the_smallest_noise(steps, taken):
    radii = strength_of(epsilons=(), budget=Budget(steps=steps)).radii
    assert torch.equal(radii, minimal_noise(NETWORK, X, Y, steps=taken)[1])
    assert not torch.equal(radii, minimal_noise(NETWORK, X, Y, steps=taken + 1)[1])
