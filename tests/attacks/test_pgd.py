"""Projected gradient descent: steps, starts, norms, momentum and what is returned."""

from functools import partial
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from attack_cases import NETWORK, X, Y, generator, linear_images, loss_of

from common.attacks.gradients import logits_of
from common.attacks.pgd import _project, _random_start, pgd


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


@pytest.mark.parametrize(
    ("momentum", "second"), [(None, -1), (0.0, -1), (0.5, -1), (1.0, 0), (2.0, 1)]
)
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
    options = {"epsilon": 0.4, "steps": 2, "step_size": 0.01}
    options |= {} if momentum is None else {"momentum": momentum}
    moved = pgd(None, 0.5 * first, label, **options)
    expected = torch.tensor([0.51 + 0.01 * second, 0.52, 0.52]).view(1, 3, 1, 1)
    assert torch.allclose(moved, expected.expand_as(moved), atol=1e-6)


@pytest.mark.parametrize(("options", "steps"), [({}, 10), ({"steps": 4}, 4)])
def test_steps_cross_the_ball_by_default(monkeypatch, options, steps):
    """A constant gradient moves each value by 2.5 epsilon / steps, up to epsilon."""
    seen = []

    def constant_gradient(_network, images, labels, _targets, need_gradient):
        seen.append(images)
        logits = F.one_hot(labels, 2).float()
        return logits, torch.ones_like(images) if need_gradient else None, torch.zeros(2)

    monkeypatch.setattr("common.attacks.pgd.objective_gradient", constant_gradient)
    monkeypatch.setattr("common.attacks.pgd._random_start", lambda x, *_: torch.zeros_like(x))
    x = torch.full((2, 3, 1, 1), 0.25)
    pgd(None, x, torch.tensor([0, 1]), epsilon=0.5, **options)
    moves = [float((images - x).mean()) for images in seen]
    expected = [0.5 * min(1, 2.5 * step / steps) for step in range(steps + 1)]
    assert moves == pytest.approx(expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_are_uniform_in_the_ball(norm):
    x = torch.zeros(4000, 3, 1, 1, dtype=torch.float64)
    start = _random_start(x, 0.25, norm, generator())
    assert (start.shape, start.dtype) == (x.shape, x.dtype)
    noise = start.flatten(1) / 0.25  # in a ball of radius 1
    if norm == "linf":
        shares = (noise + 1) / 2
    else:
        # A ball of r times the radius has the share r^3 of the volume, and a slab's share of a
        # sphere's surface is its share of the height.
        radius = noise.norm(dim=1, keepdim=True)
        shares = torch.cat([radius**3, (noise / radius + 1) / 2], 1)
    uniform = (torch.arange(4000) / 4000).double()
    for column in shares.T:
        assert (column.sort().values - uniform).abs().max() < 1.95 / 4000**0.5  # p = 0.001
    assert shares.T.corrcoef().fill_diagonal_(0).abs().max() < 0.06
