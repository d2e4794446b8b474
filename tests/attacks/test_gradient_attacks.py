"""FGSM and PGD, and the rules that every attack follows (see common/attacks/__init__.py)."""

from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from attack_cases import EPSILON, NETWORK, TARGETS, X, Y, generator, linear_images, loss_of
from conftest import EMPTY, random_part
from torch import nn

from common.attacks.fgsm import fgsm, fgsm_per_epsilon
from common.attacks.gradients import fools, gradient, logits_of
from common.attacks.optimised_noise import minimise, optimise
from common.attacks.pgd import _project, pgd
from common.attacks.universal_noise import universal
from common.errors import InputError
from common.networks.build import build
from common.training import fit
from common.training.recipe import Recipe

BOUNDED = {
    "fgsm": fgsm,
    "pgd": partial(pgd, steps=4),
    "pgd, restarts": partial(pgd, steps=3, restarts=2),
    "pgd, without stop": partial(pgd, steps=3, stop=False),
    "mi-fgsm": partial(pgd, steps=4, momentum=1.0),
    "pgd, l2": partial(pgd, steps=4, norm="l2"),
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
    moved = BOUNDED[name](NETWORK, x, Y, epsilon=0.0, targets=targets)
    assert torch.equal(moved, x)


@pytest.mark.parametrize("name", BOUNDED | OPTIMISED)
def test_attacks_raise_the_loss_of_the_label_or_lower_that_of_the_target(name):
    moved = run(name, targets=TARGETS)
    assert loss_of(NETWORK, moved, TARGETS) < loss_of(NETWORK, X, TARGETS) - 0.3
    assert 0 <= moved.min() <= moved.max() <= 1
    if name in BOUNDED:  # the others need targets
        assert loss_of(NETWORK, run(name), Y) > loss_of(NETWORK, X, Y) + 0.1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", ALL)
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
        run(name, network, targets=TARGETS)
    # Dropout was off, and BatchNorm would not have updated the running averages.
    assert not any(modes_of_calls)
    assert state() == before


@pytest.mark.parametrize(
    "name", ["pgd", "optimise, gaussian", "minimise, l2, gaussian", "universal"]
)
def test_one_seed_gives_the_same_images(name):
    generators = (generator(), generator(), None, generator(1))
    first, *others = (run(name, targets=TARGETS, generator=g) for g in generators)
    assert [torch.equal(first, images) for images in others] == [True, True, False]


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("attack", [fgsm, pgd, universal])
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
def test_fgsm_steps_along_the_sign_of_one_gradient(targets):
    x, calls, epsilons = X.clone().requires_grad_(), [], [0.0, 1 / 255, EPSILON]
    loss = F.cross_entropy(NETWORK(x), Y if targets is None else targets)
    step = torch.autograd.grad(loss, x)[0].sign() * (1 if targets is None else -1)
    with NETWORK.register_forward_hook(lambda *_: calls.append(1)):
        batches = list(fgsm_per_epsilon(NETWORK, X, Y, epsilons=epsilons, targets=targets))
    assert len(calls) == 1
    for epsilon, moved in zip(epsilons, batches, strict=True):
        difference = moved - (X + epsilon * step).clamp(0, 1)
        # Rounding decides the sign of a gradient near 0.
        assert (difference.abs() > 1e-6).float().mean() < 1e-4
        assert torch.equal(moved, fgsm(NETWORK, X, Y, epsilon=epsilon, targets=targets))


def test_pgd_is_as_strong_as_torchattacks():
    torchattacks = pytest.importorskip("torchattacks", reason="compares with torchattacks")
    for epsilon in (0.5 / 255, 1 / 255):
        ours = pgd(NETWORK, X, Y, epsilon=epsilon, steps=10, step_size=epsilon / 4)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            theirs = torchattacks.PGD(NETWORK, eps=epsilon, alpha=epsilon / 4, steps=10)(X, Y)
        our_accuracy, their_accuracy = (
            (logits_of(NETWORK, v).argmax(1) == Y).float().mean() for v in (ours, theirs)
        )
        assert our_accuracy <= their_accuracy + 0.01
    assert 0 < their_accuracy < 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_fools_just_beyond_the_boundary(norm):
    network, x, y, w = linear_images()
    least = 3.0 / (w.abs().sum() if norm == "linf" else w.norm())
    for factor, fooled in ((0.97, False), (1.03, True)):
        moved = pgd(network, x, y, epsilon=float(factor * least), norm=norm, steps=40)
        assert ((logits_of(network, moved).argmax(1) != y) == fooled).all(), factor


@pytest.mark.parametrize(("norm", "expected"), [("linf", (0.25, -0.25)), ("l2", (0.15, -0.2))])
def test_projection_changes_only_noise_outside_the_ball(norm, expected):
    noise = torch.tensor([0.3, -0.4]).view(1, 2, 1, 1)  # of L2 norm 0.5
    assert torch.equal(_project(noise, 0.51, norm), noise)
    assert torch.allclose(_project(noise, 0.25, norm).flatten(), torch.tensor(expected))


def test_an_image_is_left_unchanged_once_it_fools():
    sizes = []
    attack = partial(pgd, NETWORK, X, Y, epsilon=1 / 255, steps=3)
    with NETWORK.register_forward_hook(lambda _m, inputs, _y: sizes.append(len(inputs[0]))):
        one_start, three_starts = attack(), attack(restarts=3)
    assert sizes[4:] == sorted(sizes[4:], reverse=True)
    assert len(X) == sizes[0] > sizes[-1]
    assert sizes[4:8] == sizes[:4]
    assert len(sizes) > 8  # the images that do not fool start again
    fooled = logits_of(NETWORK, one_start).argmax(1) != Y
    assert torch.equal(one_start[fooled], three_starts[fooled])


def test_without_stop_an_image_is_returned_at_its_highest_loss():
    stopped, unstopped = (
        loss_of(NETWORK, pgd(NETWORK, X, Y, epsilon=2 / 255, steps=6, stop=stop), Y)
        for stop in (True, False)
    )
    assert unstopped > stopped + 0.1
    # A step crosses the whole ball, so some steps lower the loss.
    options = {"epsilon": 4 / 255, "step_size": 8 / 255, "stop": False}
    batches = [pgd(NETWORK, X, Y, steps=steps, **options) for steps in range(1, 6)]
    losses = [F.cross_entropy(logits_of(NETWORK, v), Y, reduction="none") for v in batches]
    assert all((after >= before).all() for before, after in pairwise(losses))
    unchanged = torch.stack([(a == b).flatten(1).all(1) for a, b in pairwise(batches)])
    assert 0 < unchanged.sum() < unchanged.numel()


@pytest.mark.parametrize(("momentum", "second"), [(0.0, -1), (0.5, -1), (1.0, 0), (2.0, 1)])
def test_momentum_weighs_earlier_gradients(monkeypatch, momentum, second):
    """The second gradient has half the length, and the opposite sign in the first channel."""
    first = torch.ones(1, 3, 32, 32)
    signs = torch.tensor([-1.0, 1.0, 1.0]).view(1, 3, 1, 1)
    logits, label = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    replies = [
        (logits, g, torch.tensor([objective]))
        for objective, g in enumerate((first, first * signs / 2, None))
    ]
    monkeypatch.setattr("common.attacks.pgd.objective_gradient", Mock(side_effect=replies))
    monkeypatch.setattr("common.attacks.pgd._random_start", lambda x, *_: torch.zeros_like(x))
    options = {"epsilon": 0.4, "steps": 2, "step_size": 0.01, "momentum": momentum}
    moved = pgd(None, 0.5 * first, label, **options)
    expected = torch.tensor([0.51 + 0.01 * second, 0.52, 0.52]).view(1, 3, 1, 1)
    assert torch.allclose(moved, expected.expand_as(moved), atol=1e-6)


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

    monkeypatch.setattr(fit, "pgd", watched_pgd)
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
