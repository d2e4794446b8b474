import io
import itertools
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY
from PIL import Image

from common.dataset import duplicates, synthetic
from common.dataset.duplicates import LARGE_GROUP, MIN_NEAR_DISTANCE, THRESHOLD, Pair
from common.dataset.stratified import connected_groups


def drawings(n, seed=0):
    """Return n different drawings, uint8 (n, 3, 32, 32), as smooth as photographs."""
    drawn = np.stack([synthetic.draw(i % 3, (seed, i)) for i in range(n)])
    x = torch.from_numpy(drawn.transpose(0, 3, 1, 2)).float()
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False).to(torch.uint8)


def brighten(images, factor):
    return (images * factor).round().clamp(0, 255).to(torch.uint8)


def shift(images, down, right):
    """Shift images by up to one pixel, and repeat their edge."""
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    return torch.from_numpy(padded[:, :, 1 - down : 33 - down, 1 - right : 33 - right].copy())


def recode(images, quality):
    """Save images as JPEG, and read them."""
    decoded = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        decoded.append(np.array(Image.open(file)))
    return torch.from_numpy(np.stack(decoded).transpose(0, 3, 1, 2).copy())


CHANGES = {
    "brighter": lambda images: brighten(images, 1.02),
    "darker": lambda images: brighten(images, 0.98),
    "up": lambda images: shift(images, -1, 0),
    "down": lambda images: shift(images, 1, 0),
    "left": lambda images: shift(images, 0, -1),
    "right": lambda images: shift(images, 0, 1),
    "mirrored": lambda images: images.flip(3),
    "JPEG 75": lambda images: recode(images, 75),
    "JPEG 50": lambda images: recode(images, 50),
    "up and left": lambda images: shift(images, -1, -1),
    "mirrored, shifted": lambda images: shift(images.flip(3), 1, 0),
    "mirrored, shifted, brighter, JPEG": lambda images: recode(
        brighten(shift(images.flip(3), 0, 1), 1.02), 75
    ),
}


def slow_distance(x, y):
    """Return 1 - the greatest correlation over the shifts of two images (3, 32, 32)."""
    correlations = []
    framed = np.pad(y.astype(float), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    for top, left in itertools.product(range(3), repeat=2):
        window = framed[:, top : top + 32, left : left + 32]
        overlap = ~np.isnan(window)
        correlations.append(np.corrcoef(x[overlap], window[overlap])[0, 1])
    return 1 - max(correlations)


def slow_pairs(a, b):
    """Return (first, second) -> (distance, mirrored), by comparing every pair."""
    found = {}
    for (i, x), (j, y) in itertools.product(enumerate(a.numpy()), enumerate(b.numpy())):
        plain, mirrored = slow_distance(x, y), slow_distance(x, y[:, :, ::-1])
        if (x == y).all():
            found[i, j] = (0, False)
        elif min(plain, mirrored) <= THRESHOLD:
            found[i, j] = (max(min(plain, mirrored), MIN_NEAR_DISTANCE), mirrored < plain)
    return found


def check_pairs(pairs, expected):
    """Check the pairs against those of `slow_pairs`, and their order."""
    assert pairs == sorted(pairs, key=operator.attrgetter("distance", "first", "second"))
    assert len(pairs) == len(expected)
    for pair in pairs:
        distance, mirrored = expected[pair.first, pair.second]
        assert pair.distance == pytest.approx(distance, abs=1e-5)
        assert (pair.mirrored, pair.exact) == (mirrored, distance == 0)


def test_search_equals_a_slow_loop(monkeypatch):
    """Nine drawings, and copies of the first five: more candidate pairs than a chunk of 4."""
    a = drawings(9)
    copies = [
        shift(a[[4]], 1, -1), a[[0]], a[[3]].flip(3), recode(a[[1]], 30),
        brighten(shift(a[[2]], 0, 1).flip(3), 1.1), brighten(a[[0]], 1.02), a[[0]],
    ]  # fmt: skip
    b = torch.cat(copies)
    both = torch.cat([a, b])
    between = slow_pairs(a, b)
    within = {(i, j): pair for (i, j), pair in slow_pairs(both, both).items() if i < j}
    assert set(between) == {(4, 0), (0, 1), (3, 2), (1, 3), (2, 4), (0, 5), (0, 6)}
    assert set(within) == {(i, j + 9) for i, j in between} | {(10, 14), (10, 15), (14, 15)}
    for pair in ((10, 14), (10, 15), (14, 15)):
        del within[pair]  # 10 and 15 are copies of 0, which has these pairs
    for chunk in (duplicates.CHUNK, 4):
        monkeypatch.setattr(duplicates, "CHUNK", chunk)
        check_pairs(duplicates.between(a, b), between)
        check_pairs(duplicates.within(both), within)


def check_copies_are_found(change, images):
    """Check that 95% of the images are paired with their own copy, and 1% with another."""
    pairs = duplicates.between(images, CHANGES[change](images))
    own = {pair.first for pair in pairs if pair.first == pair.second}
    other = {pair.first for pair in pairs if pair.first != pair.second}
    assert len(own) >= 0.95 * len(images), change
    assert len(other) <= 0.01 * len(images), change


@pytest.mark.parametrize("change", CHANGES)
def test_copies_of_drawings_are_found(change):
    check_copies_are_found(change, drawings(60, seed=1))


def test_copies_of_photographs_are_found(real_split):
    for change in CHANGES:
        check_copies_are_found(change, real_split.train.images[-200:])


def test_only_identical_pixels_are_exact():
    a = drawings(3)
    one_value_differs = a.clone()
    one_value_differs[:, 2, 31, 31] ^= 1
    for copies in (a.flip(3), shift(a, 0, 1), brighten(a, 1.02), one_value_differs):
        pairs = duplicates.between(a, copies)
        assert [pair[:2] for pair in sorted(pairs)] == [(0, 0), (1, 1), (2, 2)]
        assert not any(pair.exact for pair in pairs)
    assert duplicates.between(a, a.clone()) == [Pair(i, i, 0.0, False) for i in range(3)]


def test_closer_of_plain_and_mirrored_wins():
    image = drawings(1)
    image[..., 16:] = image[..., :16].flip(3)
    (brighter,) = duplicates.between(image, brighten(image, 1.02))
    assert (brighter.exact, brighter.mirrored) == (False, False)
    assert duplicates.between(image, image) == [Pair(0, 0, 0.0, False)]
    image[..., :4, :4] ^= 16
    assert [pair.mirrored for pair in duplicates.between(image, image.flip(3))] == [True]
    assert THRESHOLD > slow_distance(*image.numpy(), *image.flip(3).numpy()) > 1e-3


def test_almost_uniform_images_have_exact_duplicates_only():
    faint = torch.full((6, 3, 32, 32), 100, dtype=torch.uint8)
    faint[1] = 101
    faint[2:4, :, :, 16:] += 1
    faint[3] += 50
    faint[4] += torch.randint(0, 2, (3, 32, 32), generator=torch.Generator().manual_seed(0))
    assert duplicates.within(torch.cat([faint, drawings(20)])) == [Pair(0, 5, 0.0, False)]


def test_dim_copies_are_found():
    images = drawings(20)
    dim = brighten(images, 0.1)
    expected = {(i, i) for i in range(20)}
    assert {p[:2] for p in duplicates.between(images, dim)} >= expected
    assert {p[:2] for p in duplicates.between(dim, shift(dim.flip(3), 0, 1))} >= expected


def test_leaks_are_train_images_with_a_copy_in_test():
    train = drawings(12)
    copies = [train[[9]].flip(3), train[[4, 3]], recode(train[[9]], 75)]
    for test, expected in (
        (torch.cat([drawings(3, seed=5), *copies]), [3, 4, 9]),
        (EMPTY.images, []),
    ):
        found = duplicates.leaks(train, test)
        assert (found.dtype, found.tolist()) == (torch.int64, expected)


def test_a_thousand_copies_make_a_thousand_pairs():
    first, other = drawings(2)
    near = recode(first[None], 30)[0]
    train = torch.stack([other, *[first] * 600, near])
    found = {pair[:2]: pair.exact for pair in duplicates.within(train)}
    exact = {(1, i): True for i in range(2, 601)}
    assert found == exact | {(1, 601): False}
    test = torch.stack([near, first, other, first, near])
    found = {pair[:2]: pair.exact for pair in duplicates.between(train, test)}
    expected = {(i, 1): True for i in range(1, 601)} | {(0, 2): True, (1, 3): True}
    expected |= {(i, 0): False for i in range(1, 601)} | {(1, 4): False}
    expected |= {(601, 0): True, (601, 4): True, (601, 1): False, (601, 3): False}
    assert found == expected
    assert duplicates.leaks(train, test).tolist() == list(range(602))


def test_empty_parts_have_no_duplicates():
    assert duplicates.between(drawings(2), EMPTY.images) == []
    assert duplicates.between(EMPTY.images, drawings(2)) == []
    assert duplicates.within(EMPTY.images) == []


def test_rows_describe_the_pairs():
    pairs = [Pair(1, 0, 0.0, False), Pair(0, 2, 0.012345, True), Pair(2, 1, 0.05, False)]
    labels = (torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0]))
    files = (["a.png", "b.png", "c.png"], ())
    rows = duplicates.rows(pairs, ("train", "test"), labels, files, ("car", "truck", "cat"))
    assert [tuple(row) for row in rows] == [duplicates.COLUMNS] * 3
    assert [tuple(row.values()) for row in rows] == [
        ("train", 1, "b.png", "truck", "test", 0, "", "truck", "exact", "", 0.0, ""),
        ("train", 0, "a.png", "car", "test", 2, "", "car", "near", "yes", 0.0123, ""),
        ("train", 2, "c.png", "cat", "test", 1, "", "car", "near", "", 0.05, "yes"),
    ]


def test_images_of_another_size_are_compared_whole():
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(6, 3, 6, 6, generator=generator)
    images = (F.interpolate(small, 96, mode="bicubic").clamp(0, 1) * 255).to(torch.uint8)
    images[1, :, :48, :48] = images[0, :, :48, :48]  # only a corner is the same
    images[3] = images[2].flip(-1)
    images[5] = images[4] // 2 + 40
    images[5, :, :8, :8] = 0
    found = {(pair.first, pair.second): pair.mirrored for pair in duplicates.within(images)}
    assert found == {(2, 3): True, (4, 5): False}


def frames(n, seed=0):
    """Return frames of one scene, uint8 (n, 3, 32, 32): a drawing, and noise in each."""
    noise = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    return (drawings(1) + 4 * noise).clamp(0, 255).to(torch.uint8)


def changing_scenes(seed):
    """Return three scenes that change, frame by frame, in random order, and three copies.

    Frames resemble the next ones, not all of their scene; a third of them is mirrored.
    """
    generator = torch.Generator().manual_seed(seed)
    x = []
    for k in range(3):
        first, last = drawings(2, seed=3 * seed + k).float()
        x += [first + (last - first) * t for t in torch.linspace(0, 1, 16)]
    x = torch.stack(x).round().to(torch.uint8)
    mirrored = torch.rand(len(x), generator=generator) < 1 / 3
    x[mirrored] = x[mirrored].flip(3)
    x = torch.cat([x, x[:3]])
    return x[torch.randperm(len(x), generator=generator)]


def groups_of(pairs, n, offset=0):
    return connected_groups(n, [(p.first, p.second + offset) for p in pairs]).tolist()


@pytest.mark.parametrize("seed", range(5))
def test_groups_and_leaks_do_not_depend_on_the_pairs_that_are_left_out(monkeypatch, seed):
    x = changing_scenes(seed)
    a, b = x.split([30, len(x) - 30])
    pairs = duplicates.within(x, complete=len(x))
    crossing = duplicates.between(a, b, complete=len(x))
    monkeypatch.setattr(duplicates, "CHUNK", 4)
    for complete in (1, 6):
        fewer = duplicates.within(x, complete)
        assert {p[:2] for p in fewer} < {p[:2] for p in pairs}
        assert groups_of(fewer, len(x)) == groups_of(pairs, len(x))
        fewer = duplicates.between(a, b, complete)
        assert {p[:2] for p in fewer} < {p[:2] for p in crossing}
        assert groups_of(fewer, len(x), 30) == groups_of(crossing, len(x), 30)
        for side in ("first", "second"):
            ends = [{getattr(p, side) for p in found} for found in (fewer, crossing)]
            assert ends[0] == ends[1]
    assert duplicates.leaks(a, b).tolist() == sorted({p.first for p in crossing})


def test_pairs_are_left_out_of_large_groups_only(monkeypatch):
    monkeypatch.setattr(duplicates, "CHUNK", 4)
    n = 12
    every = list(itertools.combinations(range(n), 2))
    x = torch.cat([frames(n), drawings(2, seed=5)])
    assert sorted(p[:2] for p in duplicates.within(x, complete=n)) == every
    assert n - 1 <= len(duplicates.within(x, complete=n - 1)) < len(every)
    half = n // 2
    a, b = x[:half], x[half:]
    assert len(duplicates.between(a, b, complete=n)) == half**2
    assert n - 1 <= len(duplicates.between(a, b, complete=n - 1)) < half**2


@pytest.mark.parametrize("complete", [1, LARGE_GROUP])
def test_a_scene_takes_about_as_many_comparisons_as_it_has_frames(monkeypatch, complete):
    compared = []
    distances = duplicates._distances
    monkeypatch.setattr(
        duplicates, "_distances", lambda a, b: compared.append(len(a)) or distances(a, b)
    )
    n = 150
    for search, most in (
        (lambda: duplicates.within(frames(n), complete), 2 * n),
        (lambda: duplicates.between(frames(n), frames(n, seed=1), complete), 2 * 2 * n),
    ):
        pairs = search()
        assert len(pairs) <= sum(compared) <= most
        assert all(0 < pair.distance <= THRESHOLD for pair in pairs)
        compared.clear()
