"""The Square attack: schedule, windows, patterns, queries and what is returned."""

from functools import cache
from itertools import pairwise, product

import pytest
import torch
from attack_cases import NETWORK, X, generator, linear_images
from torch import nn

from common.attacks import square as module
from common.attacks.gradients import logits_of
from common.attacks.square import share_of_pixels, square
from common.errors import InputError

NORMS = ["linf", "l2"]
SMALL = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14**2, 3))
for parameter in SMALL.parameters():
    nn.init.normal_(parameter, std=0.3, generator=generator(5))
IMAGES = torch.rand(20, 3, 16, 16, generator=generator(1)).mul(1.4).sub(0.2).clamp(0, 1)
LABELS = logits_of(SMALL, IMAGES).argmax(1)
EPSILONS = {"linf": 0.05, "l2": 0.9}  # of 20 images, some fool and some don't
# With 40 queries, a query of the search is 250 of the authors' 10,000, and the share of pixels
# is 0.8 / 2^k for these k. The sides are those of 16 x 16 images.
HALVED = [0, 3, 3, 4, 4] + 4 * [5] + 8 * [6] + 8 * [7] + 8 * [8] + 5 * [9]
SIDES = {
    "linf": {0: 14, 3: 5, 4: 4, 5: 3, 6: 2, 7: 1, 8: 1, 9: 1},
    "l2": {0: 15, 3: 5, 4: 5, 5: 3, 6: 3, 7: 3, 8: 3, 9: 3},
}


def margins(network, images, labels):
    """Return each image's logit of the label minus the largest other one, by a plain loop."""
    return torch.tensor(
        [
            row[y] - max(v for k, v in enumerate(row) if k != y)
            for row, y in zip(logits_of(network, images).tolist(), labels.tolist(), strict=True)
        ]
    )


def recorded(network, *arguments, **options):
    """Return the images of an attack, and the batches that the network was given."""
    seen = []
    with network.register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[0].clone())):
        return square(network, *arguments, **options), seen


@cache
def each_alone(norm):
    """Attack each image alone; return it, its label, the result and the images evaluated."""
    attacked = []
    for i in range(len(IMAGES)):
        x, y = IMAGES[i : i + 1], LABELS[i : i + 1]
        options = {"epsilon": EPSILONS[norm], "norm": norm, "queries": 40}
        result, seen = recorded(SMALL, x, y, **options, generator=generator(i))
        attacked.append((x[0], y, result[0], torch.cat(seen)))
    return attacked


def box(mask):
    """Return the larger side of the smallest box around a mask (3, S, S)."""
    places = mask.any(0).nonzero()
    return int((places.amax(0) - places.amin(0)).max()) + 1 if len(places) else 0


@pytest.mark.parametrize(
    ("queries", "halvings"),
    [
        (10_000, (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)),
        (500, (0, 2, 10, 25, 50, 100, 200, 300, 400)),
    ],
)
def test_the_share_of_pixels_is_halved_on_the_authors_schedule(queries, halvings):
    for k, query in enumerate(halvings):
        assert share_of_pixels(0.8, query, queries) == 0.8 / 2**k
        assert share_of_pixels(0.8, query + 1, queries) == 0.8 / 2 ** (k + 1)
    assert share_of_pixels(0.8, queries - 1, queries) == 0.8 / 512


@pytest.mark.parametrize("norm", NORMS)
def test_a_query_changes_windows_of_the_image_of_lowest_margin(norm):
    """The windows have the sides of the schedule, and the result has the lowest margin."""
    boxes = [[0] for _ in HALVED]
    fooled = []
    for x, y, result, seen in each_alone(norm):
        losses = margins(SMALL, seen, y.expand(len(seen)))
        assert torch.equal(result, seen[losses.argmin()])
        assert (losses[:-1] > 0).all()  # the search stops at the first image that fools
        fooled.append(bool(losses[-1] < 0))
        assert len(seen) == 40 or fooled[-1]
        for query, image in enumerate(seen[2:]):
            best = seen[1 + losses[1 : 2 + query].argmin()]
            changed = image != best
            if norm == "linf":
                for noise in (image - x)[changed.any(0).expand(3, -1, -1)].view(3, -1):
                    assert len(noise.sign()[noise != 0].unique()) <= 1  # one colour
            else:
                changed &= image != x  # without the window that loses its noise
            boxes[query].append(box(changed))
    assert [max(sides) for sides in boxes[:38]] == [SIDES[norm][k] for k in HALVED[:38]]
    assert 3 < sum(fooled) < 17


@pytest.mark.parametrize(("norm", "sides"), [("linf", (5, 1)), ("l2", (5, 3))])
def test_share_is_that_of_the_first_windows(norm, sides):
    """A network of constant logits: all queries change the first noise."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16**2, 2))
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.copy_(torch.tensor([1, 0]))
    options = {"epsilon": 0.1, "norm": norm, "queries": 40, "share": 0.1}
    _, seen = recorded(network, IMAGES, torch.zeros(20).long(), **options)
    changed = [(images != seen[1]) & (images != IMAGES) for images in (seen[2], seen[-1])]
    assert tuple(max(box(mask) for mask in masks) for masks in changed) == sides


@pytest.mark.parametrize("norm", NORMS)
def test_noise_stays_in_the_ball_and_images_in_0_to_1(norm):
    epsilon = EPSILONS[norm]
    for x, _, _, seen in each_alone(norm):
        assert (seen.amin() >= 0) & (seen.amax() <= 1)
        noise = (seen[1:] - x).flatten(1)
        if norm == "linf":  # every value is at epsilon, or at 0 or 1
            expected = [(x + s * epsilon).clamp(0, 1) for s in (1, -1)]
            assert all(((v == expected[0]) | (v == expected[1])).all() for v in seen[1:])
        else:
            assert noise.norm(dim=1).amax() <= epsilon * (1 + 1e-5)
            assert noise.norm(dim=1).amin() > epsilon / 2


def test_linf_starts_with_vertical_stripes():
    _, seen = recorded(SMALL, IMAGES, LABELS, epsilon=0.05, queries=2)
    signs = (seen[1] - IMAGES).sign()
    inside = (IMAGES > 0.05) & (IMAGES < 0.95)
    columns = (signs * inside).sum(2) / inside.sum(2)  # (N, 3, S)
    assert torch.equal(columns.abs(), torch.ones(20, 3, 16))
    assert abs(columns.mean()) < 0.1
    assert (columns[:, 0] != columns[:, 1]).any()
    assert (columns[0] != columns[1]).any()


def bump(rows, columns):
    """Return concentric squares of sides 1, 3, 5, ... and heights 1, 1/4, 1/9, ..., norm 1."""
    half = torch.zeros(rows, columns, dtype=torch.float64)
    i, j = rows // 2, columns // 2
    for r in range(max(i, j) + 1):
        half[max(i - r, 0) : i + r + 1, max(j - r, 0) : j + r + 1] += 1 / (r + 1) ** 2
    return half / half.norm()


def eta(side):
    """Return the authors' pattern and its transpose."""
    pattern = torch.cat([bump(side // 2, side), -bump(side - side // 2, side)])
    return [pattern / 2**0.5, pattern.T / 2**0.5]


def test_the_pattern_is_the_authors():
    top = torch.tensor([0.25, 1.25, 0.25]) / (0.0625 * 2 + 1.5625) ** 0.5
    bottom = torch.tensor([[0.25, 0.25, 0.25], [0.25, 1.25, 0.25]]) / (0.3125 + 1.5625) ** 0.5
    by_hand = torch.stack([top, *-bottom]) / 2**0.5
    torch.testing.assert_close(module._patterns(3, X), torch.stack([by_hand, by_hand.T]))
    for side in (4, 9, 16):
        torch.testing.assert_close(module._patterns(side, X), torch.stack(eta(side)).float())


@pytest.mark.parametrize(("size", "side", "edge"), [(16, 3, 0), (19, 3, 2), (32, 6, 1)])
def test_l2_starts_with_tiles_of_the_pattern(size, side, edge):
    x = torch.full((9, 3, size, size), 0.5, dtype=torch.float64)
    noise = (module._tiles(x, 0.5, generator()) - x) / 0.5 * 75**0.5
    torch.testing.assert_close(noise.square().sum((1, 2, 3)), torch.full((9,), 75.0).to(x))
    patterns, found = eta(side), []  # which of the four patterns each tile is
    for image, i, j in product(noise, range(5), range(5)):
        rows, columns = (slice(edge + side * k, edge + side * (k + 1)) for k in (i, j))
        for tile in image[:, rows, columns]:
            near = [(tile - s * p).abs().amax() < 1e-6 for p in patterns for s in (1, -1)]
            assert sum(near) == 1
            found.append(near.index(True))
    upright = [k // 2 for k in found]
    assert upright[::3] == upright[1::3] == upright[2::3]  # the channels of an image
    assert set(zip(found[::3], found[1::3], strict=True)) == {
        (a, b) for a, b in product(range(4), range(4)) if a // 2 == b // 2
    }


def authors_move(x, best, to, source, pattern, signs, epsilon):
    """Return the L2 proposal of the authors' code for one image and two windows."""
    noise = best - x
    both = torch.zeros_like(x)
    both[to] = both[source] = 1
    both_norms = (noise * both).square().sum((1, 2)).sqrt()  # (3,)
    lacking = max(epsilon**2 - float(noise.square().sum()), 0)
    old = noise[to] / (1e-12 + noise[to].square().sum((1, 2), keepdim=True).sqrt())
    new = signs.view(3, 1, 1) * pattern + old
    new = new / new.square().sum((1, 2), keepdim=True).sqrt()
    new = new * (lacking / 3 + both_norms**2).sqrt().view(3, 1, 1)
    noise[source] = 0
    noise[to] = new
    return (x + epsilon * noise / noise.norm()).clamp(0, 1)


@pytest.mark.parametrize("side", [3, 7, 15])
def test_l2_moves_noise_as_the_authors_do(monkeypatch, side):
    windows = []

    def window(*arguments, original=module._window):
        windows.append(original(*arguments))
        return windows[-1]

    monkeypatch.setattr(module, "_window", window)
    x, active = IMAGES.double(), torch.arange(1, 20, 2)
    best = module._tiles(x, 0.5, generator())
    for seed in range(3):  # the later moves meet the noise of earlier ones
        moved = module._move_noise(x, best, active, side, 0.5, generator(seed))
        (to, _), (source, _) = windows[-2:]
        for n, i in enumerate(active.tolist()):
            slices = []
            for _, _, rows, columns in (to, source):
                top, left = rows[n].amin(), columns[n].amin()
                slices.append((slice(None), slice(top, top + side), slice(left, left + side)))
            candidates = [
                authors_move(x[i], best[i], *slices, p, torch.tensor(s), 0.5)
                for p, s in product(eta(side), product((-1, 1), repeat=3))
            ]
            differences = [float((moved[n] - c).abs().amax()) for c in candidates]
            assert min(differences) < 1e-6
        best[active] = moved


def test_windows_are_uniform_and_reach_every_edge():
    (image, channel, rows, columns), _ = module._window(
        torch.zeros(3000, 3, 16, 16), torch.arange(1, 3000, 2), 14, generator()
    )
    assert torch.equal(image.flatten(), torch.arange(1, 3000, 2))
    assert channel.flatten().tolist() == [0, 1, 2]
    top, left = rows[:, 0, 0, 0], columns[:, 0, 0, 0]
    assert torch.equal(rows.flatten(1), top[:, None] + torch.arange(14))
    assert torch.equal(columns.flatten(1), left[:, None] + torch.arange(14))
    counts = torch.bincount(3 * top + left, minlength=9)
    assert counts.shape == (9,)
    assert ((counts - 1500 / 9).square() / (1500 / 9)).sum() < 26.1  # chi squared, p = 0.001


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_network_is_fooled_only_beyond_the_smallest_noise(norm):
    network, x, y, w = linear_images()  # random search needs much more than the smallest
    least = float(3.0 / (w.abs().sum() if norm == "linf" else w.norm()))
    for factor, fooled in ((0.99, False), (8, True)):
        moved = square(network, x, y, epsilon=factor * least, norm=norm, queries=200)
        assert ((logits_of(network, moved).argmax(1) != y) == fooled).all(), factor


def test_a_network_that_sees_one_channel_is_fooled_there():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16**2, 2))
    with torch.no_grad():  # the logits are the mean of the second channel, and 0.45
        network[1].weight.zero_()[0, 256:512] = 1 / 256
        network[1].bias.copy_(torch.tensor([0, 0.45]))
    x, y = torch.full((8, 3, 16, 16), 0.5), torch.zeros(8).long()
    for epsilon, fooled in ((0.0499, False), (0.09, True)):
        moved = square(network, x, y, epsilon=epsilon, queries=200)
        assert ((logits_of(network, moved).argmax(1) != y) == fooled).all(), epsilon


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("queries", [1, 2, 17])
def test_each_image_is_evaluated_as_often_as_queries_say(norm, queries):
    """At a tiny epsilon no image fools; the first five are misclassified from the start."""
    labels = LABELS.clone()
    labels[:5] = (labels[:5] + 1) % 3
    options = {"epsilon": 1e-5, "norm": norm, "queries": queries}
    moved, seen = recorded(SMALL, IMAGES, labels, **options)
    assert [len(batch) for batch in seen] == [20] + (queries - 1) * [15]
    assert torch.equal(seen[0], IMAGES)
    assert torch.equal(moved[:5], IMAGES[:5])
    assert torch.equal(moved, IMAGES) == (queries == 1)


@pytest.mark.parametrize("norm", NORMS)
def test_an_image_that_fools_leaves_the_batch(norm):
    options = {"epsilon": EPSILONS[norm], "norm": norm, "queries": 40}
    moved, seen = recorded(SMALL, IMAGES, LABELS, **options)
    sizes = [len(batch) for batch in seen]
    left = int((logits_of(SMALL, moved).argmax(1) == LABELS).sum())
    assert all(a >= b for a, b in pairwise(sizes))
    assert 20 == sizes[0] == sizes[1] > sizes[-1] >= left > 0
    _, seen = recorded(SMALL, IMAGES, LABELS, **options | {"epsilon": 10 * EPSILONS[norm]})
    assert len(seen) < 40


def test_an_image_whose_margin_only_rises_is_returned_unchanged():
    class Distance(nn.Module):
        def forward(self, x):
            distance = (x - 0.5).square().sum((1, 2, 3))
            return torch.stack([1 + distance, 0 * distance], 1)

    x = torch.full((3, 3, 16, 16), 0.5)
    moved, seen = recorded(Distance(), x, torch.zeros(3).long(), epsilon=0.1, queries=30)
    assert torch.equal(moved, x)
    assert len(seen) == 30


def test_an_image_fools_with_equal_logits_if_the_predicted_class_is_another():
    class Tied(nn.Module):
        def forward(self, x):
            moved = (x != x[:, :, :1]).any((1, 2, 3)).float()  # by more than stripes
            return torch.stack([moved, torch.ones_like(moved), 1 - moved], 1)

    x, y = torch.full((3, 3, 16, 16), 0.5), torch.ones(3).long()
    moved = square(Tied(), x, y, epsilon=0.1, queries=20)
    assert logits_of(Tied(), moved).argmax(1).tolist() == [0, 0, 0]


class Rounded(nn.Module):
    """NETWORK's logits in steps of 0.1; "one-hot": 1 for the predicted class, otherwise 0."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        logits = NETWORK(x)
        if self.how == "one-hot":
            return nn.functional.one_hot(logits.argmax(1), 3).float()
        return (10 * logits).round() / 10


@pytest.mark.parametrize(("how", "epsilon"), [("rounded", 8 / 255), ("one-hot", 16 / 255)])
def test_a_network_without_gradient_is_fooled(how, epsilon):
    network = Rounded(how)
    labels = logits_of(network, X).argmax(1)
    moved = square(network, X, labels, epsilon=epsilon, queries=60)
    fooled = int((logits_of(network, moved).argmax(1) != labels).sum())
    assert fooled >= 6


def test_random_numbers_come_from_the_generator_alone():
    options = {"epsilon": 0.001, "queries": 10}
    for norm in NORMS:
        first, again, other = (
            square(SMALL, IMAGES, LABELS, norm=norm, generator=generator(seed), **options)
            for seed in (3, 3, 4)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
        assert torch.equal(
            square(SMALL, IMAGES, LABELS, norm=norm, **options),
            square(SMALL, IMAGES, LABELS, norm=norm, generator=generator(0), **options),
        )


@pytest.mark.parametrize("norm", NORMS)
def test_other_images_do_not_change_the_windows_of_an_image(norm):
    options = {"epsilon": EPSILONS[norm], "norm": norm, "queries": 20}
    labels = LABELS.clone()
    labels[::2] = (labels[::2] + 1) % 3  # misclassified, so not attacked
    all_moved, half_moved = (square(SMALL, IMAGES, y, **options) for y in (LABELS, labels))
    torch.testing.assert_close(all_moved[1::2], half_moved[1::2])


@pytest.mark.parametrize("norm", NORMS)
def test_square_is_as_strong_as_torchattacks(norm):
    torchattacks = pytest.importorskip("torchattacks", reason="compares with torchattacks")
    x = torch.rand(100, 3, 16, 16, generator=generator(2))
    y = logits_of(SMALL, x).argmax(1)
    epsilon = {"linf": 0.03, "l2": 0.6}[norm]
    options = {"loss": "margin", "n_queries": 100, "eps": epsilon}
    with torch.random.fork_rng():
        theirs = torchattacks.Square(SMALL, norm.capitalize(), **options)(x, y)
    ours = square(SMALL, x, y, epsilon=epsilon, norm=norm, queries=100)
    left, left_by_theirs = (
        int((logits_of(SMALL, v).argmax(1) == y).sum()) for v in (ours, theirs)
    )
    assert left <= left_by_theirs + 5  # chance
    assert 20 < left_by_theirs < 80


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("size", "classes"), [(16, 2), (19, 4), (33, 10)])
def test_any_size_and_any_number_of_classes(norm, size, classes):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * size**2, classes))
    nn.init.normal_(network[1].weight, generator=generator(2))
    x = torch.rand(6, 3, size, size, generator=generator())
    y = logits_of(network, x).argmax(1)
    moved = square(network, x, y, epsilon=0.9 if norm == "linf" else 20, norm=norm, queries=60)
    assert (logits_of(network, moved).argmax(1) != y).all()


def test_at_epsilon_0_the_images_are_returned_and_bad_epsilons_are_refused():
    assert square(SMALL, IMAGES, LABELS, epsilon=0) is IMAGES
    for epsilon, norm in ((-0.1, "linf"), (1.1, "linf"), (-0.1, "l2"), (float("nan"), "l2")):
        with pytest.raises(InputError, match="epsilon"):
            square(SMALL, IMAGES, LABELS, epsilon=epsilon, norm=norm)
