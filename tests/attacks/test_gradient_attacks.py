"""FGSM, and the rules that every attack follows (see common/attacks/__init__.py)."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from attack_cases import EPSILON, NETWORK, TARGETS, X, Y, generator, loss_of
from conftest import EMPTY, random_part
from torch import nn

from common.attacks.apgd import apgd
from common.attacks.deepfool import deepfool
from common.attacks.fgsm import fgsm, fgsm_per_epsilon
from common.attacks.gradients import fools, gradient, objective_gradient
from common.attacks.minimal_noise import minimal_noise
from common.attacks.optimised_noise import minimise, optimise
from common.attacks.pgd import pgd
from common.attacks.square import square
from common.attacks.universal_noise import universal
from common.errors import InputError
from common.networks.build import build
from common.training import adversarial, fit
from common.training.recipe import Recipe

BOUNDED = {
    "fgsm": fgsm,
    "pgd": partial(pgd, steps=4),
    "pgd, restarts": partial(pgd, steps=3, restarts=2),
    "pgd, without stop": partial(pgd, steps=3, stop=False),
    "mi-fgsm": partial(pgd, steps=4, momentum=1.0),
    "pgd, l2": partial(pgd, steps=4, norm="l2"),
    "apgd": partial(apgd, steps=4),
    "apgd, margin": partial(apgd, steps=4, loss="margin"),
    "apgd, l2": partial(apgd, steps=4, norm="l2"),
}
short_optimise = partial(optimise, steps=20, c=0.01)
short_minimise = partial(minimise, steps=15, rounds=3)
OPTIMISED = {
    "optimise": short_optimise,
    "optimise, gaussian": partial(short_optimise, start="gaussian"),
    "optimise, l2": partial(short_optimise, norm="l2"),
    "minimise": short_minimise,
    "minimise, l2, gaussian": partial(short_minimise, norm="l2", start="gaussian"),
}
ALL = BOUNDED | OPTIMISED | {"universal": partial(universal, steps=2)}

ALONE = {  # without targets
    "square": partial(square, epsilon=4 / 255, queries=3),
    "deepfool": partial(deepfool, steps=2),
    "minimal noise": partial(minimal_noise, steps=2),
}


def run(name: str, network: nn.Module = NETWORK, **options) -> torch.Tensor:
    """Run an attack on X and Y, with a small epsilon unless the attack has none."""
    if name not in OPTIMISED:
        options = {"epsilon": 0.5 if "l2" in name else 4 / 255} | options
    return ALL[name](network, X, Y, **options)


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("targets", [None, TARGETS], ids=["untargeted", "targeted"])
def test_images_stay_valid_and_within_epsilon(name, targets):
    # At values 0 and 1, half of all changes would leave the valid range.
    x = torch.where(torch.rand(X.shape, generator=generator()) < 0.3, X.round(), X)
    for epsilon in (EPSILON, 0.5):
        moved = BOUNDED[name](NETWORK, x, Y, epsilon=epsilon, targets=targets)
        assert 0 <= moved.min() <= moved.max() <= 1
        size = (moved - x).flatten(1).norm(2 if "l2" in name else torch.inf, dim=1)
        assert 0.5 * epsilon < size.max() <= epsilon + 1e-6  # so the bound is active
    assert BOUNDED[name](NETWORK, x, Y, epsilon=0.0, targets=targets) is x
    moved = BOUNDED[name](NETWORK, x, Y, epsilon=1.0, targets=targets)
    assert (moved - x).abs().max() > 0.2 if "l2" not in name else True


@pytest.mark.parametrize("name", BOUNDED | OPTIMISED)
def test_attacks_raise_the_loss_of_the_label_or_lower_that_of_the_target(name):
    moved = run(name, targets=TARGETS)
    assert loss_of(NETWORK, moved, TARGETS) < loss_of(NETWORK, X, TARGETS) - 0.3
    assert 0 <= moved.min() <= moved.max() <= 1
    if name in BOUNDED:  # the others need targets
        assert loss_of(NETWORK, run(name), Y) > loss_of(NETWORK, X, Y) + 0.1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", [*ALL, *ALONE])
def test_modes_gradients_and_random_state_are_restored(name, fails):
    network = build("simple-cnn", {"classes": 3}, 1).train()
    network.conv1.eval()
    network.fc1.requires_grad_(False)
    network.fc2.weight.grad = torch.full_like(network.fc2.weight, 7.0)
    parameters = [*network.parameters(), X]

    def state():
        modes = [module.training for module in network.modules()]
        requires_grad = [p.requires_grad for p in parameters]
        gradients = [None if p.grad is None else p.grad.tolist() for p in parameters]
        return modes, requires_grad, gradients, torch.random.get_rng_state().tolist()

    before, modes_of_calls = state(), []
    network.register_forward_hook(lambda *_: modes_of_calls.extend(state()[0]))
    if fails:
        network.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError) if fails else nullcontext():
        ALONE[name](network, X, Y) if name in ALONE else run(name, network, targets=TARGETS)
    # Dropout was off, and BatchNorm would not have updated the running averages.
    assert not any(modes_of_calls)
    assert state() == before


@pytest.mark.parametrize(
    "name", ["pgd", "apgd", "optimise, gaussian", "minimise, l2, gaussian", "universal"]
)
def test_one_seed_gives_the_same_images(name):
    generators = (generator(), generator(), None, generator(1))
    first, *others = (run(name, targets=TARGETS, generator=g) for g in generators)
    assert [torch.equal(first, images) for images in others] == [True, True, False]


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("attack", [fgsm, pgd, apgd, universal])
def test_an_epsilon_out_of_range_is_rejected(attack, epsilon):
    with pytest.raises(InputError, match=f"epsilon {epsilon:g}.*between 0 and 1"):
        attack(NETWORK, X, Y, epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [3.0, 1000.0])
def test_an_l2_epsilon_above_1_is_an_attack_of_its_size(epsilon):
    """A black image is sqrt(3 S S) = 55.4 from a white one; 1000 leaves no limit."""
    moved = pgd(NETWORK, X, Y, epsilon=epsilon, norm="l2", stop=False)
    size = (moved - X).flatten(1).norm(dim=1)
    assert 2 < size.max() <= min(epsilon, 55.5) + 1e-4
    assert 0 <= moved.min() <= moved.max() <= 1
    weaker = pgd(NETWORK, X, Y, epsilon=1.0, norm="l2", stop=False)
    assert loss_of(NETWORK, moved, Y) > loss_of(NETWORK, weaker, Y)
    with pytest.raises(InputError, match="epsilon nan"):
        pgd(NETWORK, X, Y, epsilon=float("nan"), norm="l2")


@pytest.mark.parametrize("name", ALL)
def test_a_target_that_is_the_true_class_is_rejected(name):
    targets = torch.cat([TARGETS[:7], Y[7:8], TARGETS[8:]])
    with pytest.raises(InputError, match=f"target {Y[7]}.*true class"):
        run(name, targets=targets)


def test_gradients_do_not_depend_on_the_batch():
    g = gradient(NETWORK, torch.cat([X] * 7), torch.cat([Y] * 7))[1]  # more than one batch
    alone = X[5:6].clone().requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(NETWORK(alone), Y[5:6]), alone)[0][0]
    for position in (5, 5 + 24, 5 + 6 * 24):
        assert torch.allclose(g[position], expected, atol=1e-6)


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["untargeted", "targeted"])
def test_the_objective_is_the_loss_of_the_label_or_minus_that_of_the_target(targets):
    x = X.clone().requires_grad_()
    logits = NETWORK(x)
    if targets is None:
        expected = F.cross_entropy(logits, Y, reduction="none")
    else:
        expected = -F.cross_entropy(logits, targets, reduction="none")
    (gradient_of_sum,) = torch.autograd.grad(expected.sum(), x)
    found_logits, found_gradient, objective = objective_gradient(NETWORK, X, Y, targets)
    torch.testing.assert_close(found_logits, logits)
    torch.testing.assert_close(found_gradient, gradient_of_sum, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(objective, expected)
    found_logits, no_gradient, objective = objective_gradient(NETWORK, X, Y, targets, False)
    torch.testing.assert_close(found_logits, logits)
    assert no_gradient is None
    torch.testing.assert_close(objective, expected)


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["untargeted", "targeted"])
def test_fgsm_steps_along_the_sign_of_one_gradient(targets):
    x, calls, epsilons = X.clone().requires_grad_(), [], [0.0, 1 / 255, EPSILON]
    loss = F.cross_entropy(NETWORK(x), Y if targets is None else targets)
    step = torch.autograd.grad(loss, x)[0].sign() * (1 if targets is None else -1)
    with NETWORK.register_forward_hook(lambda *_: calls.append(1)):
        batches = list(fgsm_per_epsilon(NETWORK, X, Y, epsilons=epsilons, targets=targets))
    assert len(calls) == 1
    assert batches[0] is X
    for epsilon, moved in zip(epsilons, batches, strict=True):
        difference = moved - (X + epsilon * step).clamp(0, 1)
        # Rounding decides the sign of a gradient near 0.
        assert (difference.abs() > 1e-6).float().mean() < 1e-4
        assert torch.equal(moved, fgsm(NETWORK, X, Y, epsilon=epsilon, targets=targets))


def test_adversarial_training_uses_the_images_of_pgd(monkeypatch):
    settings, attacked, inputs = [], [], []

    def watched_pgd(network, x, labels, **options):
        assert network.training
        moved = pgd(network, x, labels, **options)
        assert 0 < (moved - x).abs().max() <= 6 / 255 + 1e-6
        settings.append((options["epsilon"], options["steps"], options["stop"]))
        attacked.append(moved)
        return moved

    def record(module, x, _y):
        if module.training:
            inputs.append(x[0])

    monkeypatch.setattr(adversarial, "pgd", watched_pgd)
    for recipe in (Recipe(epochs=1), Recipe(epochs=1, adversarial=6, adversarial_steps=2)):
        network = build("simple-cnn", {"classes": 3})
        inputs.clear()
        network.register_forward_hook(record)
        fit.fit(network, random_part((6, 4, 3)), EMPTY, recipe, seed=0, device=X.device)
    assert settings == [(6 / 255, 2, False)] * 4
    assert all(torch.equal(a, b) for a, b in zip(inputs, attacked, strict=True))


def test_a_targeted_attack_fools_only_as_its_target():
    logits, labels = torch.eye(3)[[0, 1, 2, 1]], torch.tensor([0, 0, 0, 1])  # called 0, 1, 2, 1
    assert fools(logits, labels, None).tolist() == [False, True, True, False]
    targets = torch.tensor([1, 1, 1, 2])
    assert fools(logits, labels, targets).tolist() == [False, True, False, False]
