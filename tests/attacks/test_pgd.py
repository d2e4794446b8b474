"""Projected gradient descent: steps, starts, norms, momentum and what is returned."""

from functools import partial
from itertools import pairwise
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from attack_cases import NETWORK, X, Y, generator, linear_images, loss_of

from common.attacks.ball import project, random_start
from common.attacks.gradients import logits_of
from common.attacks.pgd import pgd


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
    assert torch.equal(project(noise, 0.51, norm), noise)
    assert torch.allclose(project(noise, 0.25, norm).flatten(), torch.tensor(expected))


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
    ("momentum", "second"), [(None, -1), (0.0, -1), (0.5, -1), (2.5, -1), (3.5, 1)]
)
def test_momentum_weighs_earlier_gradients(monkeypatch, momentum, second):
    """The second gradient has the opposite sign in two channels, and is small in the second.

    Divided by their L1 norms, the first channels are 1 / 3 and -0.5 / 0.51, of a third of the
    values each: a momentum of 3 / 1.02 = 2.94 makes their sum 0. In the second channel, 0.03
    does.
    """
    first = torch.ones(1, 3, 32, 32)
    second_gradient = first * torch.tensor([-0.5, -0.005, 0.005]).view(1, 3, 1, 1)
    logits, label = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
    replies = [
        (logits, g, torch.tensor([objective]))
        for objective, g in enumerate((first, second_gradient, None))
    ]
    monkeypatch.setattr("common.attacks.pgd.objective_gradient", Mock(side_effect=replies))
    monkeypatch.setattr("common.attacks.pgd.random_start", lambda x, *_: torch.zeros_like(x))
    options = {"epsilon": 0.4, "steps": 2, "step_size": 0.01}
    options |= {} if momentum is None else {"momentum": momentum}
    moved = pgd(None, 0.5 * first, label, **options)
    expected = torch.tensor([0.51 + 0.01 * second, 0.52 if momentum else 0.5, 0.52])
    expected = expected.view(1, 3, 1, 1)
    assert torch.allclose(moved, expected.expand_as(moved), atol=1e-6)


@pytest.fixture
def steep(monkeypatch):
    """Replace the gradient by ones and the start by x; every image is called class 2.

    Return a list of the images of each evaluation, and whether it computes a gradient.
    """
    seen = []

    def objective_gradient(_network, images, _labels, _targets, need_gradient):
        seen.append((images, need_gradient))
        logits = torch.tensor([[0.0, 0.0, 1.0]]).expand(len(images), 3)
        gradient = torch.ones_like(images) if need_gradient else None
        return logits, gradient, torch.zeros(len(images))

    monkeypatch.setattr("common.attacks.pgd.objective_gradient", objective_gradient)
    monkeypatch.setattr("common.attacks.pgd.random_start", lambda x, *_: torch.zeros_like(x))
    return seen


@pytest.mark.parametrize(("options", "steps"), [({}, 10), ({"steps": 4}, 4)])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_cross_the_ball_by_default(steep, norm, options, steps):
    """A constant gradient moves an image by 2.5 epsilon / steps, up to epsilon."""
    x = torch.full((2, 3, 2, 1), 0.25)
    pgd(None, x, torch.tensor([2, 2]), epsilon=0.5, norm=norm, **options)
    p = torch.inf if norm == "linf" else 2
    moves = [(images - x).flatten(1).norm(p, dim=1).tolist() for images, _ in steep]
    expected = [[0.5 * min(1, 2.5 * step / steps)] * 2 for step in range(steps + 1)]
    torch.testing.assert_close(torch.tensor(moves), torch.tensor(expected))
    assert [needed for _, needed in steep] == [True] * steps + [False]


@pytest.mark.parametrize(
    ("label", "target", "evaluations"), [(2, None, 8), (0, None, 1), (0, 1, 8), (0, 2, 1)]
)
def test_an_image_that_does_not_fool_is_attacked_in_all_restarts(
    steep, label, target, evaluations
):
    targets = None if target is None else torch.tensor([target])
    options = {"epsilon": 0.5, "steps": 3, "restarts": 2, "targets": targets}
    pgd(None, torch.full((1, 3, 2, 1), 0.25), torch.tensor([label]), **options)
    assert len(steep) == evaluations


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_first_images_are_random_starts(norm):
    seen = []
    with NETWORK.register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[0])):
        pgd(NETWORK, X, Y, epsilon=0.01, norm=norm, steps=1, generator=generator(3))
    start = (X + random_start(X, 0.01, norm, generator(3))).clamp(0, 1)
    assert torch.equal(seen[0], start)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_starts_are_uniform_in_the_ball(norm):
    x = torch.zeros(4000, 3, 1, 1, dtype=torch.float64)
    start = random_start(x, 0.25, norm, generator())
    assert (start.shape, start.dtype) == (x.shape, x.dtype)
    assert random_start(x[:1], 0.25, norm, generator()).shape == x[:1].shape
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
