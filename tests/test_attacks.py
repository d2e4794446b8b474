from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from conftest import random_part
from torch import nn

from common import attacks, models, noise, robustness, training
from common.dataset import Part
from common.options import InputError
from common.recipes import Recipe

CLASSES = ("car", "truck", "cat")
EPSILON = 8 / 255


class Linear(nn.Module):
    """Two classes apart by w x + b: the smallest noise that fools is known."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(3 * 32 * 32, generator=generator))

    def forward(self, x):
        margin = (x - 0.5).flatten(1) @ self.w
        return torch.stack([margin, -margin], 1) / 2


@pytest.fixture(scope="module")
def network():
    """A SimpleCNN whose logits are far enough apart to be worth attacking."""
    network = models.build("simple-cnn", {"classes": 3}, 1).eval()
    with torch.no_grad():
        network.fc3.weight.mul_(40)
        network.fc3.bias.zero_()
    return network


@pytest.fixture(scope="module")
def images(network):
    """24 images and what the network calls them; all classes are among it."""
    x = models.pixels(random_part((24,)).images)
    with torch.no_grad():
        mean = network(x).mean(0)
        network.fc3.bias.sub_(mean)
        y = network(x).argmax(1)
    assert len(y.unique()) == 3
    return x, y


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


BOUNDED = {
    "fgsm": (attacks.fgsm, {}),
    "pgd": (attacks.pgd, {"steps": 4}),
    "pgd, restarts": (attacks.pgd, {"steps": 3, "restarts": 2}),
    "pgd, every step": (attacks.pgd, {"steps": 3, "stop": False}),
    "mi-fgsm": (attacks.pgd, {"steps": 4, "momentum": 1.0}),
    "pgd, l2": (attacks.pgd, {"steps": 4, "norm": "l2"}),
}
OPTIMISED = {
    "optimise": (noise.optimise, {"steps": 20, "c": 0.01}),
    "optimise, gaussian": (noise.optimise, {"steps": 20, "c": 0.01, "start": "gaussian"}),
    "optimise, l2": (noise.optimise, {"steps": 20, "c": 0.01, "norm": "l2"}),
    "minimise": (noise.minimise, {"steps": 15, "rounds": 3}),
    "minimise, l2": (noise.minimise, {"steps": 15, "rounds": 3, "norm": "l2"}),
}


def loss_of(network, x, classes):
    return F.cross_entropy(attacks.logits_of(network, x), classes)


def share_right(network, x, y):
    return (attacks.logits_of(network, x).argmax(1) == y).float().mean()


@pytest.mark.parametrize("name", BOUNDED)
@pytest.mark.parametrize("targeted", [False, True])
def test_images_stay_valid_and_within_epsilon(network, images, name, targeted):
    x, y = images
    attack, options = BOUNDED[name]
    # Black and white values, from where half of all moves would leave the valid range.
    x = torch.where(torch.rand(x.shape, generator=generator()) < 0.3, x.round(), x)
    targets = (y + 1) % 3 if targeted else None
    for epsilon in (EPSILON, 0.5):
        moved = attack(network, x, y, epsilon=epsilon, targets=targets, **options)
        assert moved.min() >= 0
        assert moved.max() <= 1
        p = 2 if options.get("norm") == "l2" else torch.inf
        size = (moved - x).flatten(1).norm(p, dim=1)
        assert size.max() <= epsilon + 1e-6
        # and the whole of it is used, so that the bound is what holds
        assert size.max() > 0.5 * epsilon
    moved = attack(network, x, y, epsilon=0.0, targets=targets, **options)
    assert torch.equal(moved, x)


@pytest.mark.parametrize("name", BOUNDED)
def test_untargeted_attacks_raise_the_true_class_loss(network, images, name):
    x, y = images
    attack, options = BOUNDED[name]
    epsilon = 0.5 if options.get("norm") == "l2" else 4 / 255
    moved = attack(network, x, y, epsilon=epsilon, **options)
    before, after = (loss_of(network, v, y) for v in (x, moved))
    assert after > before + 0.1


@pytest.mark.parametrize("name", [*BOUNDED, *OPTIMISED])
def test_targeted_attacks_lower_the_targets_loss(network, images, name):
    x, y = images
    attack, options = (BOUNDED | OPTIMISED)[name]
    if name in BOUNDED:
        options = options | {"epsilon": 0.5 if options.get("norm") == "l2" else 4 / 255}
    targets = (y + 1) % 3
    moved = attack(network, x, y, targets=targets, **options)
    before, after = (
        F.cross_entropy(attacks.logits_of(network, v), targets) for v in (x, moved)
    )
    assert after < before - 0.3
    assert moved.min() >= 0
    assert moved.max() <= 1


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("name", [*BOUNDED, *OPTIMISED, "universal"])
def test_gradients_and_modes_are_as_before(images, name, fails):
    x, y = images
    network = models.build("simple-cnn", {"classes": 3}, 1).train()
    network.conv1.eval()
    network.fc1.requires_grad_(False)
    network.fc2.weight.grad = torch.full_like(network.fc2.weight, 7.0)
    modes = [module.training for module in network.modules()]
    seen = []
    network.register_forward_hook(lambda *_: seen.append(network.training))
    if fails:
        network.register_forward_hook(lambda *_: 1 / 0)
    options = {"epsilon": EPSILON} if name not in OPTIMISED else {}
    if name in OPTIMISED:
        options["targets"] = (y + 1) % 3
    if name == "universal":
        attack, more = noise.universal, {"steps": 2}
    else:
        attack, more = (BOUNDED | OPTIMISED)[name]
    state = torch.random.get_rng_state()
    try:
        attack(network, x, y, **options, **more)
    except ZeroDivisionError:
        assert fails
    assert not any(seen)  # dropout was off
    assert [module.training for module in network.modules()] == modes
    assert not network.fc1.weight.requires_grad
    assert network.conv1.weight.requires_grad
    assert network.conv1.weight.grad is None
    assert (network.fc2.weight.grad == 7).all()
    assert not x.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)


def test_batch_norms_averages_stay(images):
    network = models.build("resnet9", {"classes": 3, "width": 2}).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    attacks.pgd(network, *images, epsilon=EPSILON, steps=2)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())


def test_fgsm_equals_torchattacks(network, images):
    peer = pytest.importorskip("torchattacks", reason="the peer to compare with")
    x, y = images
    for epsilon in (1 / 255, EPSILON):
        theirs = peer.FGSM(network, eps=epsilon)(x, y)
        assert (attacks.fgsm(network, x, y, epsilon=epsilon) - theirs).abs().max() <= 1e-6
    theirs = peer.FGSM(network, eps=EPSILON)
    theirs.set_mode_targeted_by_label(quiet=True)
    ours = attacks.fgsm(network, x, y, epsilon=EPSILON, targets=(y + 1) % 3)
    assert (ours - theirs(x, (y + 1) % 3)).abs().max() <= 1e-6


def test_pgd_is_as_strong_as_torchattacks(network, images):
    peer = pytest.importorskip("torchattacks", reason="the peer to compare with")
    x, y = images
    for epsilon in (0.5 / 255, 1 / 255):
        settings = {"steps": 10, "epsilon": epsilon, "step_size": epsilon / 4}
        ours = attacks.pgd(network, x, y, **settings)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            theirs = peer.PGD(network, eps=epsilon, alpha=epsilon / 4, steps=10)(x, y)
        left, peers = (
            (attacks.logits_of(network, v).argmax(1) == y).float().mean()
            for v in (ours, theirs)
        )
        assert left <= peers + 0.01
    assert 0 < peers < 1


def test_fgsm_takes_one_gradient_for_all_epsilons(network, images):
    calls = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    epsilons = [0.0, 1 / 255, EPSILON]
    found = list(attacks.fgsm_sweep(network, *images, epsilons=epsilons))
    handle.remove()
    assert len(calls) == 1
    for epsilon, moved in zip(epsilons, found, strict=True):
        assert torch.equal(moved, attacks.fgsm(network, *images, epsilon=epsilon))


def test_gradients_are_each_images_own(network, images):
    x, y = (torch.cat([v] * 7) for v in images)  # more than one batch
    g = attacks.gradient(network, x, y)[1]
    alone = x[5:6].clone().requires_grad_()
    F.cross_entropy(network(alone), y[5:6]).backward()
    network.zero_grad()
    network.requires_grad_(True)
    for place in (5, 5 + 24, 5 + 6 * 24):
        assert torch.allclose(g[place], alone.grad[0], atol=1e-6)


def linear_images(margin=3.0):
    """A Linear network, 6 grey-ish images of class 0, and their margins."""
    network = Linear()
    x = 0.5 + 0.1 * torch.rand(6, 3, 32, 32, generator=generator())
    w = network.w.detach().view(3, 32, 32)
    now = ((x - 0.5) * w).sum((1, 2, 3), keepdim=True)
    x = x + (margin - now) * w / w.square().sum()
    return network, x, torch.zeros(6).long(), w


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_fools_just_beyond_the_boundary(norm):
    network, x, y, w = linear_images()
    least = 3.0 / (w.abs().sum() if norm == "linf" else w.norm())
    for factor, fooled in ((0.97, False), (1.03, True)):
        moved = attacks.pgd(network, x, y, epsilon=float(factor * least), norm=norm, steps=40)
        called = attacks.logits_of(network, moved).argmax(1)
        assert ((called != y) == fooled).all(), factor


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_only_noise_outside_the_ball_is_moved(norm):
    inside = torch.tensor([0.3, -0.4]).view(1, 2, 1, 1)  # length 0.5
    assert torch.equal(attacks._project(inside, 0.51, norm), inside)
    moved = attacks._project(inside, 0.25, norm).flatten()
    expected = [0.25, -0.25] if norm == "linf" else [0.15, -0.2]
    assert torch.allclose(moved, torch.tensor(expected))


def test_restarts_and_steps_leave_an_image_once_it_fools(network, images):
    x, y = images
    sizes = []
    handle = network.register_forward_hook(lambda _m, inputs, _y: sizes.append(len(inputs[0])))
    one = attacks.pgd(network, x, y, epsilon=1 / 255, steps=3)
    first, sizes[:] = list(sizes), []
    three = attacks.pgd(network, x, y, epsilon=1 / 255, steps=3, restarts=3)
    handle.remove()
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == len(x) > sizes[-1]
    assert sizes[: len(first)] == first
    right = [attacks.logits_of(network, v).argmax(1) == y for v in (one, three)]
    assert not (right[1] & ~right[0]).any()
    assert torch.equal(one[~right[0]], three[~right[0]])


def test_without_stop_the_worst_point_is_kept(network, images):
    x, y = images
    lost = {}
    for stop in (True, False):
        moved = attacks.pgd(network, x, y, epsilon=2 / 255, steps=6, stop=stop)
        lost[stop] = F.cross_entropy(attacks.logits_of(network, moved), y)
    assert lost[False] > lost[True] + 0.1


def test_without_stop_an_image_ends_at_its_highest_loss_of_all_steps(network, images):
    x, y = images
    how = {"epsilon": 4 / 255, "step_size": 8 / 255, "stop": False}  # from side to side
    losses, last = [], []
    for steps in range(1, 6):
        moved = attacks.pgd(network, x, y, steps=steps, **how)
        logits = attacks.logits_of(network, moved)
        losses.append(F.cross_entropy(logits, y, reduction="none"))
        last.append(moved)
    assert all((after >= before).all() for before, after in pairwise(losses))
    kept = [(a == b).flatten(1).all(1) for a, b in pairwise(last)]
    assert any(k.any() for k in kept)  # a step that was worse for some
    assert not all(k.all() for k in kept)


@pytest.mark.parametrize(("momentum", "second"), [(0.0, -1), (0.5, -1), (1.0, 0), (2.0, 1)])
def test_momentum_keeps_the_last_direction(monkeypatch, momentum, second):
    """The second gradient is half as long in all and, in the first colour, the other way."""
    g = torch.ones(1, 3, 32, 32)
    turned = g.clone()
    turned[:, 0] = -1
    replies = [(g, 0.0), (turned / 2, 1.0), (None, 2.0)]

    def uphill(network, x, labels, targets, last=False):
        g, loss = replies.pop(0)
        return torch.tensor([[1.0, 0.0]]), g, torch.tensor([loss])

    monkeypatch.setattr(attacks, "uphill", uphill)
    monkeypatch.setattr(attacks, "_random_start", lambda x, *_: torch.zeros_like(x))
    x = torch.full((1, 3, 32, 32), 0.5)
    moved = attacks.pgd(
        None, x, torch.tensor([0]), epsilon=0.4, steps=2, step_size=0.01, momentum=momentum
    )
    expected = torch.full_like(x, 0.52)
    expected[:, 0] = 0.51 + 0.01 * second
    assert torch.allclose(moved, expected, atol=1e-6)


@pytest.mark.parametrize(
    "attack",
    [
        lambda network, x, y, g: attacks.pgd(network, x, y, epsilon=0.02, steps=2, generator=g),
        lambda network, x, y, g: noise.minimise(
            network, x, y, targets=1 - y, steps=5, rounds=2, start="gaussian", generator=g
        ),
        lambda network, x, y, g: noise.universal(
            network, x, y, epsilon=0.02, steps=3, batch_size=2, generator=g
        ),
    ],
)
def test_one_seed_gives_the_same_images(attack):
    network, x, y, _ = linear_images(0.5)
    y[3:] = 1
    first, again, other = (attack(network, x, y, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, attack(network, x, y, None))
    assert not torch.equal(first, other)


def test_proximal_step_by_hand():
    x = torch.tensor([0.5, 0.5, 0.9, 0.1]).view(1, 1, 2, 2)
    moved = torch.tensor([0.3, -0.05, 0.4, -0.6]).view(1, 1, 2, 2)
    threshold = torch.full((1, 1, 1, 1), 0.1)
    # Towards 0 by 0.1, then x + noise no lower than 0 and no higher than 1.
    got = noise.proximal(moved, x, threshold, "l1").flatten()
    assert torch.allclose(got, torch.tensor([0.2, 0.0, 0.1, -0.1]))
    assert got[1] == 0
    # 0.3, 0.4 has length 0.5, which becomes 0.4; then nothing; then all of it.
    moved = torch.tensor([0.3, 0.4, 0.0, 0.0]).view(1, 1, 2, 2)
    got = noise.proximal(moved, torch.full_like(x, 0.5), threshold, "l2").flatten()
    assert torch.allclose(got, torch.tensor([0.24, 0.32, 0.0, 0.0]))
    assert (noise.proximal(moved, x, 6 * threshold, "l2") == 0).all()


@pytest.mark.parametrize("start", ["zeros", "gaussian"])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_minimise_finds_the_smallest_noise(norm, start):
    """Of a linear network: along w for L2; for L1 all in the steepest value, which has room."""
    network, x, y, w = linear_images(1.0)
    moved = noise.minimise(
        network, x, y, targets=1 - y, norm=norm, start=start, steps=150, rounds=6
    )
    assert (attacks.logits_of(network, moved).argmax(1) == 1).all()
    size = (moved - x).flatten(1).norm(1 if norm == "l1" else 2, dim=1)
    least = 1.0 / (w.abs().max() if norm == "l1" else w.norm())
    assert (size >= 0.999 * least).all()
    assert (size <= (1.3 if norm == "l1" else 1.05) * least).all()


def test_bisection_follows_what_each_image_allows(monkeypatch):
    """A round that finds a smaller noise raises an image's C; one that doesn't lowers it."""
    network, x, y, _ = linear_images(1.0)
    seen = []
    descend = noise._descend

    def watch(network, x, targets, noise, c, *options):
        seen.append(c.clone())
        return descend(network, x, targets, noise, c, *options)

    monkeypatch.setattr(noise, "_descend", watch)
    noise.minimise(network, x, y, targets=1 - y, steps=3, rounds=6)
    high = attacks.gradient(network, x, 1 - y)[1].abs().amax((1, 2, 3))
    assert torch.allclose(seen[0], (noise.LEAST_C * high * high).sqrt())
    low, fails = noise.LEAST_C * high, []
    for c, following in pairwise(seen):
        up, down = (c * high).sqrt(), (low * c).sqrt()
        rose = torch.isclose(following, up)
        assert (rose | torch.isclose(following, down)).all()
        low, high = torch.where(rose, c, low), torch.where(rose, high, c)
        fails += (~rose).tolist()
    assert any(fails)
    assert not all(fails)


def test_c_decides_how_large_the_noise_gets(network, images):
    x, y = images
    targets, sizes = (y + 1) % 3, []
    steepest = attacks.gradient(network, x, targets)[1].abs().max()
    for c in (0.001, 0.1, float(1.01 * steepest)):
        moved = noise.optimise(network, x, y, targets=targets, c=c, steps=30)
        sizes.append((moved - x).abs().sum((1, 2, 3)).mean())
    assert sizes[0] > 1.5 * sizes[1] > 0
    assert torch.equal(moved, x)  # dearer than any value is worth: exactly zero noise
    assert (
        noise.optimise(network, x, y, targets=targets, c=0.03, steps=60).ne(x).float().mean()
        < 1
    )


def test_noise_counts_its_evaluations(network, images):
    x, y = (v[:4] for v in images)
    calls = []
    handle = network.register_forward_hook(lambda *_: calls.append(1))
    noise.minimise(network, x, y, targets=(y + 1) % 3, steps=7, rounds=3)
    assert len(calls) == 3 * 7 + 1
    calls.clear()
    noise.optimise(network, x, y, targets=(y + 1) % 3, c=0.1, steps=7)
    handle.remove()
    assert len(calls) == 7


@pytest.mark.parametrize("targeted", [False, True])
def test_universal_noise_works_on_images_it_never_saw(network, images, targeted):
    x, y = (v[images[1] != 1] for v in images)
    unseen = models.pixels(random_part((48,), seed=1).images)
    called = attacks.logits_of(network, unseen).argmax(1)
    targets = torch.ones_like(y) if targeted else None
    one = noise.universal(network, x, y, epsilon=EPSILON, targets=targets, steps=20)
    assert one.shape == (1, 3, 32, 32)
    assert one.abs().max() <= EPSILON + 1e-6
    noisy = (unseen + one).clamp(0, 1)
    if targeted:
        ones = torch.ones_like(called)
        assert loss_of(network, noisy, ones) < loss_of(network, unseen, ones) - 0.1
    else:
        y = called[called != 1]
        others = loss_of(network, unseen[called != 1], y)
        assert loss_of(network, noisy[called != 1], y) > others + 0.1
    assert (noise.universal(network, x, y[: len(x)], epsilon=0.0, steps=2) == 0).all()


def test_balanced_universal_noise_draws_each_class_as_often(monkeypatch):
    part, drawn = random_part((90, 9, 1)), []

    def watch(network, x, labels, targets, last=False):
        drawn.append(labels)
        return None, torch.zeros_like(x), None

    monkeypatch.setattr(noise, "uphill", watch)
    for balanced, shares in ((False, (0.9, 0.09, 0.01)), (True, (1 / 3, 1 / 3, 1 / 3))):
        drawn.clear()
        noise.universal(None, *part, epsilon=EPSILON, balanced=balanced, steps=50)
        counts = torch.bincount(torch.cat(drawn), minlength=3) / 5000
        assert torch.allclose(counts, torch.tensor(shares), atol=0.03)


@pytest.mark.parametrize("epsilon", [-0.1, 1.1, float("nan")])
@pytest.mark.parametrize("attack", [attacks.fgsm, attacks.pgd, noise.universal])
def test_an_epsilon_out_of_range_is_named(network, images, attack, epsilon):
    with pytest.raises(InputError, match=f"epsilon {epsilon:g}.*between 0 and 1"):
        attack(network, *images, epsilon=epsilon)


def test_a_target_that_is_the_true_class_is_named(network, images):
    x, y = images
    targets = (y + 1) % 3
    targets[7] = y[7]
    for attack, options in (
        (attacks.fgsm, {"epsilon": EPSILON}),
        (attacks.pgd, {"epsilon": EPSILON}),
        (noise.optimise, {"c": 0.1}),
        (noise.minimise, {}),
        (noise.universal, {"epsilon": EPSILON}),
    ):
        with pytest.raises(InputError, match=f"target {y[7]}.*true class"):
            attack(network, x, y, targets=targets, **options)


# What the attacks are measured with


def test_images_that_were_wrong_stay_wrong(network, images):
    x, y = images
    wrong = y.clone()
    wrong[:6] = (y[:6] + 1) % 3

    def attack(x, y, aims):
        assert len(x) == 18
        assert aims is None
        yield x
        yield 1 - x

    found = list(robustness.outcomes(network, x, wrong, CLASSES, attack))
    assert [o.attacked for o in found] == [18, 18]
    assert found[0].report.accuracy == 18 / 24
    assert found[0].flipped == 0
    assert found[0].norms == {"L1": 0, "L2": 0, "Linf": 0}
    flipped = attacks.logits_of(network, 1 - x[6:]).argmax(1) != y[6:]
    assert found[1].flipped == flipped.sum() > 0
    assert found[1].report.accuracy == (18 - flipped.sum()) / 24
    noise = (1 - 2 * x[6:]).flatten(1)
    assert found[1].norms["L1"] == pytest.approx(float(noise.abs().sum(1).mean()), rel=1e-5)
    assert found[1].norms["L2"] == pytest.approx(
        float(noise.square().sum(1).sqrt().mean()), rel=1e-5
    )
    assert found[1].norms["Linf"] == pytest.approx(float(noise.abs().amax(1).mean()))


def test_a_targeted_attack_counts_targets_reached(network, images):
    x, y = images
    targets = (y + 1) % 3
    attack = BOUNDED["fgsm"][0]
    o = next(
        robustness.outcomes(
            network, x, y, CLASSES,
            lambda x, y, aims: [attack(network, x, y, epsilon=4 / 255, targets=aims)], targets,
        )
    )  # fmt: skip
    called = attacks.logits_of(network, attack(network, x, y, epsilon=4 / 255, targets=targets))
    assert o.flipped == (called.argmax(1) == targets).sum()


def test_no_image_that_is_right_is_named(network, images):
    x, y = images
    with pytest.raises(InputError, match="gets none of the 24"):
        robustness.correct(network, x, (y + 1) % 3)


def test_a_sample_takes_classes_alike(network, images):
    x, y = images
    part = Part(x, y)
    targets = torch.zeros_like(y)
    at = robustness.sample(network, part, targets, 6, 0)
    assert torch.bincount(y[at], minlength=3).tolist() == [0, 3, 3]
    every = robustness.sample(network, part, targets, "all", 0)
    assert every.tolist() == (y != 0).nonzero().flatten().tolist()
    targets = (y + 1) % 3
    few = min(torch.bincount(y).tolist())
    n = 3 * few + 4
    counts = torch.bincount(y[robustness.sample(network, part, targets, n, 0)]).tolist()
    assert (sum(counts), min(counts)) == (n, few)
    with pytest.raises(InputError, match="target"):
        robustness.sample(network, part, y, 6, 0)


def test_pairs_and_targets_are_of_known_classes():
    assert robustness.class_pairs(None, CLASSES) == [(0, 1), (0, 2)]
    assert robustness.class_pairs(["cat:car"], CLASSES) == [(2, 0)]
    for text, words in (
        ("cat:cat", "true class"),
        ("cat", "TRUE:TARGET"),
        ("dog:cat", "of car"),
    ):
        with pytest.raises(InputError, match=words):
            robustness.class_pairs([text], CLASSES)
    labels = torch.tensor([0, 1, 2])
    assert robustness.targets(None, labels, CLASSES).tolist() == [1, 2, 0]
    assert robustness.targets("cat", labels, CLASSES).tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="dog"):
        robustness.targets("dog", labels, CLASSES)


def test_adversarial_training_sees_pgds_images(monkeypatch):
    part, given = random_part((6, 4, 3)), []
    pgd = attacks.pgd

    def watch(network, x, labels, **options):
        assert network.training
        moved = pgd(network, x, labels, **options)
        assert network.training
        given.append((options["epsilon"], options["steps"], options["stop"]))
        assert 0 < (moved - x).abs().max() <= 6 / 255 + 1e-6
        inputs.append(moved)
        return moved

    inputs, weights = [], {}
    monkeypatch.setattr(attacks, "pgd", watch)
    monkeypatch.setattr(training, "fits", lambda network: False)  # Step calls no hook
    for recipe in (Recipe(epochs=1), Recipe(epochs=1, adversarial=6, adversarial_steps=2)):
        network = models.build("simple-cnn", {"classes": 3})
        seen = []
        network.register_forward_hook(
            lambda module, x, _y, seen=seen: seen.append(x[0]) if module.training else None
        )
        empty = random_part((0, 0, 0))
        training.fit(network, part, empty, recipe, seed=0, device=torch.device("cpu"))
        weights[recipe.adversarial] = network.fc3.weight.detach()
    assert given == [(6 / 255, 2, False)] * 4
    assert all(torch.equal(a, b) for a, b in zip(seen, inputs, strict=True))
    assert not torch.equal(weights[0], weights[6])
