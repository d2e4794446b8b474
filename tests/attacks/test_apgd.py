"""Auto-PGD: its objective, steps, checkpoints, targets and what is returned."""

from functools import partial

import pytest
import torch
from attack_cases import EPSILON, NETWORK, TARGETS, X, Y, generator, linear_images
from torch import nn

from common.attacks.apgd import apgd, checkpoints
from common.attacks.gradients import gradient, logits_of, objective
from common.errors import InputError

NORMS = {"linf": torch.inf, "l2": 2}
LOSSES = ["cross-entropy", "margin"]


def torchattacks():
    return pytest.importorskip("torchattacks", reason="compares with torchattacks")


def fooled_by(moved: torch.Tensor) -> torch.Tensor:
    return logits_of(NETWORK, moved).argmax(1) != Y


@pytest.mark.parametrize(
    ("logits", "label", "target", "value", "slopes"),
    [
        ([2, 5], 0, None, 3, [-1, 1]),
        ([2, 5], 1, None, -3, [1, -1]),
        ([2, 5], 1, 0, -3, [1, -1]),
        ([1, 4, 2], 1, None, -2 / 3, [-2 / 9, -1 / 9, 1 / 3]),
        ([1, 4, 2], 2, None, 2 / 3, [2 / 9, 1 / 9, -1 / 3]),
        ([1, 4, 2], 1, 0, -3, [1, -1, 0]),
        ([0, 4, 1, 3], 1, None, -1 / 4, [-1 / 16, -3 / 16, 0, 1 / 4]),
        ([0, 4, 1, 3], 1, 2, -3, [0, -1, 1, 0]),
    ],
)
def test_margin_and_gradient_by_hand(logits, label, target, value, slopes):
    """The pixels are the logits. The slopes of a quotient d / r are d' / r - d r' / r^2."""
    z, y = torch.tensor([logits], dtype=torch.float), torch.tensor([label])
    t = None if target is None else torch.tensor([target])
    assert objective(z, y, t, "margin").tolist() == pytest.approx([value])
    same, g = gradient(nn.Flatten(), z.view(1, -1, 1, 1), y, t, "margin")
    assert torch.equal(same, z)
    assert g.flatten().tolist() == pytest.approx(slopes)


def test_the_margin_of_equal_logits_has_a_finite_gradient():
    x = torch.full((1, 3, 1, 1), 0.5)
    assert gradient(nn.Flatten(), x, torch.tensor([0]), loss="margin")[1].isfinite().all()


def test_the_margin_of_three_classes_is_torchattacks_dlr_loss():
    logits, labels = torch.randn(200, 3, generator=generator()), torch.arange(200) % 3
    theirs = torchattacks().APGD(NETWORK).dlr_loss(logits, labels)
    torch.testing.assert_close(objective(logits, labels, loss="margin"), theirs)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100, {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}),
        (50, {11: 11, 21: 10, 30: 9, 38: 8, 45: 7}),
        (10, {2: 2, 3: 1, 4: 1, 5: 1, 6: 1, 7: 1, 8: 1, 9: 1, 10: 1}),
        (1, {1: 1}),
    ],
)
def test_periods_between_checkpoints_become_shorter(steps, expected):
    """The first period is 22% of the steps; then 3% less each time, down to 6%."""
    assert checkpoints(steps) == expected


# With 40 steps, the first checkpoints are at 8 and 15. An image starts at 0.5, epsilon is 0.4.
# The first gradient is 1: step 1 takes an image to 0.9. Where the gradient is 0, an image moves
# by a quarter of its last change. A gradient of -1 at step 1 takes an image to 0.4 in step 2,
# because 0.9 + 0.75 (-0.8) + 0.25 (0.4) = 0.4, and then on by 0.5 / 4, 0.5 / 16, ... A gradient
# of -1 at step 8 takes an image to 0.3 in step 9, and then on by 0.6 / 4, 0.6 / 16, ...
def quarters(n: int) -> float:
    return sum(0.25**i for i in range(1, n + 1))


HALVED_AT_8 = 0.9 + 0.75 * -0.4 + 0.25 * (0.9 - (0.4 - 0.5 * quarters(5)))  # from step 1
HALVED_AT_15 = 0.9 + 0.75 * -0.4 + 0.25 * (0.9 - (0.3 - 0.6 * quarters(5)))  # from step 8
SIX_RISES = [0, 10, 1, 2, 3, 4, 5, 6, 5.5]
EIGHT_RISES = [0, 1, 2, 3, 4, 5, 6, 7, 8]
CASES = {  # objectives, the step whose gradient is -1, and a step with the image at that step
    "6 of 8 rise": (SIX_RISES, 1, 9, HALVED_AT_8),
    "7 of 8 rise": ([*SIX_RISES[:-1], 7], 1, 9, 0.4 - 0.5 * quarters(7)),
    "7 of 8 rise, below the start": ([10, 1, 2, 3, 4, 5, 6, 7, 8], None, 9, 0.9),
    "no new highest": ([*EIGHT_RISES, 1, 2, 3, 4, 5, 6, 7], 8, 16, HALVED_AT_15),
    "a new highest": ([*EIGHT_RISES, 1, 2, 3, 4, 5, 6, 9], 8, 16, 0.3 - 0.6 * quarters(7)),
    "no new highest, just halved": (
        [*SIX_RISES, 1, 2, 3, 4, 5, 6, 7], 1, 16, 0.9 + (HALVED_AT_8 - 0.9) * (1 + quarters(7)),
    ),
}  # fmt: skip


def test_step_sizes_are_halved_at_checkpoints_by_hand(monkeypatch):
    """Images that make no progress go on from their best image with half the step size."""
    seen = []

    def objective_gradient(_network, images, *_args, **_options):
        step = len(seen)
        seen.append(images.flatten())
        objectives = [
            float(values[min(step, len(values) - 1)]) for values, *_ in CASES.values()
        ]
        signs = [1.0 if step == 0 else -float(step == down) for _, down, *_ in CASES.values()]
        return correct, torch.tensor(signs).view_as(images), torch.tensor(objectives)

    correct = torch.tensor([[1.0, 0.0]]).expand(len(CASES), 2)
    monkeypatch.setattr("common.attacks.apgd.objective_gradient", objective_gradient)
    monkeypatch.setattr("common.attacks.apgd.logits_of", lambda *_: correct)
    monkeypatch.setattr("common.attacks.apgd.random_start", lambda x, *_: torch.zeros_like(x))
    x = torch.full((len(CASES), 1, 1, 1), 0.5)
    apgd(None, x, torch.zeros(len(CASES)).long(), epsilon=0.4, steps=40)
    images = {name: float(seen[case[2]][row]) for row, (name, case) in enumerate(CASES.items())}
    assert images == pytest.approx({name: case[3] for name, case in CASES.items()}, abs=1e-5)


@pytest.mark.parametrize(("norm", "epsilon"), [("linf", 0.5 / 255), ("l2", 0.1)])
def test_the_same_steps_as_torchattacks_from_the_same_start(monkeypatch, norm, epsilon):
    """With another loss, torchattacks counts rises differently: it compares step 1 with 0."""

    def their_start(x, *_):
        draw = 2 * torch.rand(x.shape) - 1 if norm == "linf" else torch.randn(x.shape)
        return epsilon * draw / draw.flatten(1).norm(NORMS[norm], dim=1).view(-1, 1, 1, 1)

    monkeypatch.setattr("common.attacks.apgd.random_start", their_start)
    theirs = torchattacks().APGD(NETWORK, norm=norm.capitalize(), eps=epsilon, steps=30)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moved = apgd(NETWORK, X, Y, epsilon=epsilon, norm=norm, steps=30)
        torch.manual_seed(0)
        _, correct, highest, _ = theirs.attack_single_run(X, Y)
    fooled = fooled_by(moved)
    assert torch.equal(fooled, correct == 0)
    assert 3 < fooled.sum() < len(X) - 3
    ours = objective(logits_of(NETWORK, moved), Y)
    torch.testing.assert_close(ours[~fooled], highest[~fooled], rtol=0, atol=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", NORMS)
def test_apgd_fools_just_beyond_the_boundary(norm, loss):
    network, x, y, w = linear_images()
    least = 3.0 / (w.abs().sum() if norm == "linf" else w.norm())
    for factor, fooled in ((0.99, False), (1.01, True)):
        moved = apgd(network, x, y, epsilon=float(factor * least), norm=norm, loss=loss)
        assert ((logits_of(network, moved).argmax(1) != y) == fooled).all(), factor


def test_images_leave_the_batch_once_they_fool():
    sizes = []
    attack = partial(apgd, NETWORK, X, Y, epsilon=0.5 / 255, steps=6)
    with NETWORK.register_forward_hook(lambda _m, inputs, _y: sizes.append(len(inputs[0]))):
        one_start = attack()
        evaluations = 1 + 7  # of x, and of the images of each step
        assert len(sizes) == evaluations
        three_starts = attack(restarts=3)
    fooled = fooled_by(one_start)
    still = len(X) - int(fooled.sum())
    assert sizes[:evaluations] == sorted(sizes[:evaluations], reverse=True)
    assert len(X) == sizes[1] > sizes[evaluations - 1] >= still > 0
    # Only the images that don't fool start again.
    assert sizes[evaluations : 2 * evaluations] == sizes[:evaluations]
    assert sizes[2 * evaluations] == still
    assert len(sizes) == 2 * evaluations + 2 * 7
    assert torch.equal(one_start[fooled], three_starts[fooled])


def test_images_do_not_depend_on_the_others(monkeypatch):
    monkeypatch.setattr("common.attacks.apgd.random_start", lambda x, *_: torch.zeros_like(x))
    attack = partial(apgd, NETWORK, epsilon=0.5 / 255, loss="margin", steps=12)
    together = attack(X, Y, targets=TARGETS)
    few = range(0, len(X), 3)
    alone = [attack(X[[i]], Y[[i]], targets=TARGETS[[i]]) for i in few]
    assert 0 < fooled_by(together)[few].sum() < len(few)
    torch.testing.assert_close(together[few], torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
def test_every_image_is_returned_at_its_highest_objective(loss, targeted):
    seen, objectives = [], []
    x, y, t = X[4:], Y[4:], TARGETS[4:] if targeted else None

    def record(_module, inputs, logits):
        if len(logits) == len(x):  # not at first, with the misclassified images
            seen.append(inputs[0])
            objectives.append(objective(logits.detach(), y, t, loss))

    labels = torch.cat([TARGETS[:4], y])
    targets = torch.cat([Y[:4], t]) if targeted else None
    with NETWORK.register_forward_hook(record):
        attack = partial(apgd, epsilon=0.02 / 255, loss=loss, steps=4, restarts=3)
        moved = attack(NETWORK, X, labels, targets=targets)
    assert len(seen) == 15  # 3 starts with 5 evaluations each: no image left the batch
    highest = torch.stack(objectives).argmax(0)
    assert torch.equal(moved[4:], torch.stack(seen)[highest, range(len(x))])
    assert torch.equal(moved[:4], X[:4])
    assert len((highest // 5).unique()) == 3
    assert len((highest % 5).unique()) > 1


def test_images_that_are_misclassified_are_returned_unchanged():
    labels = torch.cat([TARGETS[:5], Y[5:]])
    moved = apgd(NETWORK, X, labels, epsilon=EPSILON, steps=3)
    unchanged = (moved == X).flatten(1).all(1)
    assert unchanged[:5].all()
    assert not unchanged[5:].any()
    assert torch.equal(apgd(NETWORK, X, TARGETS, epsilon=EPSILON), X)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rank", [1, 2])
def test_targets_are_approached_from_any_rank(loss, rank):
    """The class of the smallest logit, too: there a divided margin would have no gradient."""
    logits = logits_of(NETWORK, X)
    targets = logits.argsort(1, descending=True)[:, rank]
    moved = apgd(NETWORK, X, Y, epsilon=0.1 / 255, targets=targets, loss=loss, steps=5)

    def gain(z):
        if loss == "margin":
            return z.gather(1, targets[:, None]) - z.gather(1, Y[:, None])
        return z.log_softmax(1).gather(1, targets[:, None])

    still = ~fooled_by(moved)
    assert still.sum() > 12
    assert (gain(logits_of(NETWORK, moved)) > gain(logits))[still].all()


def test_an_image_fools_as_any_class_on_the_way_to_its_target():
    """Class 1 needs noise of 0.05 in a direction that the target, 10 away, needs as well."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[0.0, 0, 0], [2, 0, 0], [1, 1, 0]]))
        network[1].bias.copy_(torch.tensor([0.0, -1.1, -11]))
    x, y = torch.full((1, 3, 1, 1), 0.5), torch.tensor([0])
    seen = []
    network.register_forward_hook(lambda *_: seen.append(1))
    moved = apgd(network, x, y, epsilon=0.2, targets=torch.tensor([2]), loss="margin")
    assert network(moved).argmax(1).tolist() == [1]
    assert len(seen) <= 4  # x, the start, and one step, before the line above


def test_only_an_l2_epsilon_may_be_above_1():
    moved = apgd(NETWORK, X[:2], Y[:2], epsilon=3.0, norm="l2", steps=1)
    assert not torch.equal(moved, X[:2])
    with pytest.raises(InputError, match=r"epsilon 3: .*between 0 and 1"):
        apgd(NETWORK, X[:2], Y[:2], epsilon=3.0)
