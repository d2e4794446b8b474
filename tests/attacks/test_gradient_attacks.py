"""FGSM and PGD, and the rules that every attack follows (see common/attacks/__init__.py)."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from attack_cases import EPSILON, NETWORK, TARGETS, X, Y, generator, linear_images, loss_of
from conftest import EMPTY, random_part

from common.attacks.fgsm import fgsm, fgsm_per_epsilon
from common.attacks.gradients import gradient, logits_of
from common.attacks.optimised_noise import minimise, optimise
from common.attacks.pgd import _project, pgd
from common.attacks.universal_noise import universal
from common.errors import InputError
from common.networks.build import build
from common.training import fit
from common.training.recipe import Recipe

CPU = torch.device("cpu")
BOUNDED = {
    "fgsm": fgsm,
    "pgd": partial(pgd, steps=4),
    "pgd, restarts": partial(pgd, steps=3, restarts=2),
    "pgd, without stop": partial(pgd, steps=3, stop=False),
    "mi-fgsm": partial(pgd, steps=4, momentum=1.0),
    "pgd, l2": partial(pgd, steps=4, norm="l2"),
}
OPTIMISED = {
    "optimise": partial(optimise, steps=20, c=0.01),
    "optimise, gaussian": partial(optimise, steps=20, c=0.01, start="gaussian"),
    "optimise, l2": partial(optimise, steps=20, c=0.01, norm="l2"),
    "minimise": partial(minimise, steps=15, rounds=3),
    "minimise, l2, gaussian": partial(
        minimise, steps=15, rounds=3, norm="l2", start="gaussian"
    ),
}
ALL = BOUNDED | OPTIMISED | {"universal": partial(universal, steps=2)}


def options_of(name: str) -> dict[str, float]:
    return {} if name in OPTIMISED else {"epsilon": 0.5 if "l2" in name else 4 / 255}


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("targets", [None, TARGETS], ids=["untargeted", "targeted"])
def test_images_stay_valid_and_within_epsilon(name, targets):
    # At values 0 and 1, half of all changes would leave the valid range.
    x = torch.where(torch.rand(X.shape, generator=generator()) < 0.3, X.round(), X)
    for epsilon in (EPSILON, 0.5):
        moved = BOUNDED[name](NETWORK, x, Y, epsilon=epsilon, targets=targets)
        assert moved.min() >= 0
        assert moved.max() <= 1
        size = (moved - x).flatten(1).norm(2 if "l2" in name else torch.inf, dim=1)
        assert size.max() <= epsilon + 1e-6
        assert size.max() > 0.5 * epsilon  # so the bound is active
    moved = BOUNDED[name](NETWORK, x, Y, epsilon=0.0, targets=targets)
    assert torch.equal(moved, x)


@pytest.mark.parametrize("name", BOUNDED)
def test_untargeted_attacks_raise_the_loss_of_the_true_class(name):
    moved = BOUNDED[name](NETWORK, X, Y, **options_of(name))
    assert loss_of(NETWORK, moved, Y) > loss_of(NETWORK, X, Y) + 0.1


@pytest.mark.parametrize("name", [*BOUNDED, *OPTIMISED])
def test_targeted_attacks_lower_the_loss_of_the_target(name):
    moved = ALL[name](NETWORK, X, Y, targets=TARGETS, **options_of(name))
    assert loss_of(NETWORK, moved, TARGETS) < loss_of(NETWORK, X, TARGETS) - 0.3
    assert moved.min() >= 0
    assert moved.max() <= 1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_modes_gradients_and_random_state_are_restored(name, fails):
    network = build("simple-cnn", {"classes": 3}, 1).train()
    network.conv1.eval()
    network.fc1.requires_grad_(False)
    network.fc2.weight.grad = torch.full_like(network.fc2.weight, 7.0)
    modes = [module.training for module in network.modules()]
    modes_of_calls = []
    network.register_forward_hook(lambda *_: modes_of_calls.append(network.training))
    if fails:
        network.register_forward_hook(lambda *_: 1 / 0)
    state = torch.random.get_rng_state()
    try:
        ALL[name](network, X, Y, targets=TARGETS, **options_of(name))
    except ZeroDivisionError:
        assert fails
    assert not any(modes_of_calls)  # dropout was off
    assert [module.training for module in network.modules()] == modes
    assert not network.fc1.weight.requires_grad
    assert network.conv1.weight.requires_grad
    assert network.conv1.weight.grad is None
    assert (network.fc2.weight.grad == 7).all()
    assert not X.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)


def test_batch_norm_averages_are_unchanged():
    network = build("resnet9", {"classes": 3, "width": 2}).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    pgd(network, X, Y, epsilon=EPSILON, steps=2)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


@pytest.mark.parametrize(
    "name", ["pgd", "optimise, gaussian", "minimise, l2, gaussian", "universal"]
)
def test_one_seed_gives_the_same_images(name):
    attack = partial(ALL[name], NETWORK, X, Y, targets=TARGETS, **options_of(name))
    first, again, other = (attack(generator=generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, attack())
    assert not torch.equal(first, other)


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("attack", [fgsm, pgd, universal])
def test_an_epsilon_out_of_range_is_rejected(attack, epsilon):
    with pytest.raises(InputError, match=f"epsilon {epsilon:g}.*between 0 and 1"):
        attack(NETWORK, X, Y, epsilon=epsilon)


@pytest.mark.parametrize("name", ALL)
def test_a_target_that_is_the_true_class_is_rejected(name):
    targets = TARGETS.clone()
    targets[7] = Y[7]
    with pytest.raises(InputError, match=f"target {Y[7]}.*true class"):
        ALL[name](NETWORK, X, Y, targets=targets, **options_of(name))


def test_gradients_do_not_depend_on_the_batch():
    g = gradient(NETWORK, torch.cat([X] * 7), torch.cat([Y] * 7))[1]  # more than one batch
    alone = X[5:6].clone().requires_grad_()
    expected = torch.autograd.grad(F.cross_entropy(NETWORK(alone), Y[5:6]), alone)[0][0]
    for position in (5, 5 + 24, 5 + 6 * 24):
        assert torch.allclose(g[position], expected, atol=1e-6)


@pytest.mark.parametrize("targets", [None, TARGETS], ids=["untargeted", "targeted"])
@pytest.mark.parametrize("epsilon", [1 / 255, EPSILON])
def test_fgsm_equals_torchattacks(epsilon, targets):
    torchattacks = pytest.importorskip("torchattacks", reason="compares with torchattacks")
    peer = torchattacks.FGSM(NETWORK, eps=epsilon)
    if targets is not None:
        peer.set_mode_targeted_by_label(quiet=True)
    difference = fgsm(NETWORK, X, Y, epsilon=epsilon, targets=targets)
    difference -= peer(X, Y if targets is None else targets)
    # Rounding decides the sign of a gradient near 0.
    assert (difference.abs() > 1e-6).float().mean() < 1e-4


def test_pgd_is_as_strong_as_torchattacks():
    torchattacks = pytest.importorskip("torchattacks", reason="compares with torchattacks")
    for epsilon in (0.5 / 255, 1 / 255):
        ours = pgd(NETWORK, X, Y, epsilon=epsilon, steps=10, step_size=epsilon / 4)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            theirs = torchattacks.PGD(NETWORK, eps=epsilon, alpha=epsilon / 4, steps=10)(X, Y)
        our_accuracy, their_accuracy = (
            (logits_of(NETWORK, moved).argmax(1) == Y).float().mean()
            for moved in (ours, theirs)
        )
        assert our_accuracy <= their_accuracy + 0.01
    assert 0 < their_accuracy < 1


def test_fgsm_computes_one_gradient_for_all_epsilons():
    calls, epsilons = [], [0.0, 1 / 255, EPSILON]
    handle = NETWORK.register_forward_hook(lambda *_: calls.append(1))
    batches = list(fgsm_per_epsilon(NETWORK, X, Y, epsilons=epsilons))
    handle.remove()
    assert len(calls) == 1
    for epsilon, moved in zip(epsilons, batches, strict=True):
        assert torch.equal(moved, fgsm(NETWORK, X, Y, epsilon=epsilon))


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
    handle = NETWORK.register_forward_hook(lambda _m, inputs, _y: sizes.append(len(inputs[0])))
    one_start = pgd(NETWORK, X, Y, epsilon=1 / 255, steps=3)
    first_sizes, sizes[:] = list(sizes), []
    three_starts = pgd(NETWORK, X, Y, epsilon=1 / 255, steps=3, restarts=3)
    handle.remove()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == len(X) > sizes[-1]
    assert sizes[: len(first_sizes)] == first_sizes
    fooled = [logits_of(NETWORK, v).argmax(1) != Y for v in (one_start, three_starts)]
    assert (fooled[1] | ~fooled[0]).all()
    assert torch.equal(one_start[fooled[0]], three_starts[fooled[0]])


def test_without_stop_the_loss_is_higher():
    losses = [
        loss_of(NETWORK, pgd(NETWORK, X, Y, epsilon=2 / 255, steps=6, stop=stop), Y)
        for stop in (True, False)
    ]
    assert losses[1] > losses[0] + 0.1


def test_without_stop_an_image_is_returned_at_its_highest_loss():
    # A step crosses the whole ball, so some steps lower the loss.
    options = {"epsilon": 4 / 255, "step_size": 8 / 255, "stop": False}
    batches = [pgd(NETWORK, X, Y, steps=steps, **options) for steps in range(1, 6)]
    losses = [F.cross_entropy(logits_of(NETWORK, v), Y, reduction="none") for v in batches]
    assert all((after >= before).all() for before, after in pairwise(losses))
    unchanged = [(a == b).flatten(1).all(1) for a, b in pairwise(batches)]
    assert any(images.any() for images in unchanged)
    assert not all(images.all() for images in unchanged)


@pytest.mark.parametrize(("momentum", "second"), [(0.0, -1), (0.5, -1), (1.0, 0), (2.0, 1)])
def test_momentum_weighs_earlier_gradients(monkeypatch, momentum, second):
    """The second gradient has half the length, and the opposite sign in the first channel."""
    g = torch.ones(1, 3, 32, 32)
    opposite = g.clone()
    opposite[:, 0] = -1
    replies = [(g, 0.0), (opposite / 2, 1.0), (None, 2.0)]

    def objective_gradient(*_, **__):
        g, objective = replies.pop(0)
        return torch.tensor([[1.0, 0.0]]), g, torch.tensor([objective])

    monkeypatch.setattr("common.attacks.pgd.objective_gradient", objective_gradient)
    monkeypatch.setattr("common.attacks.pgd._random_start", lambda x, *_: torch.zeros_like(x))
    x = torch.full((1, 3, 32, 32), 0.5)
    moved = pgd(
        None, x, torch.tensor([0]), epsilon=0.4, steps=2, step_size=0.01, momentum=momentum
    )
    expected = torch.full_like(x, 0.52)
    expected[:, 0] = 0.51 + 0.01 * second
    assert torch.allclose(moved, expected, atol=1e-6)


def test_adversarial_training_uses_the_images_of_pgd(monkeypatch):
    settings, attacked, inputs = [], [], []

    def watched_pgd(network, x, labels, **options):
        assert network.training
        moved = pgd(network, x, labels, **options)
        assert network.training
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
        fit.fit(network, random_part((6, 4, 3)), EMPTY, recipe, seed=0, device=CPU)
    assert settings == [(6 / 255, 2, False)] * 4
    assert all(torch.equal(a, b) for a, b in zip(inputs, attacked, strict=True))
