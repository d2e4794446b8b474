from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY
from PIL import Image

from common.dataset import duplicates, synthetic
from common.dataset.duplicates import THRESHOLD, Pair


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


def mirror(images):
    return images.flip(3)


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
    "mirrored": mirror,
    "JPEG 75": lambda images: recode(images, 75),
    "JPEG 50": lambda images: recode(images, 50),
    "up and left": lambda images: shift(images, -1, -1),
    "mirrored, shifted": lambda images: shift(mirror(images), 1, 0),
    "mirrored, shifted, brighter, JPEG": lambda images: recode(
        brighten(shift(mirror(images), 0, 1), 1.02), 75
    ),
}


def slow_distance(x, y):
    """Return 1 - the greatest correlation over the shifts of two images (3, 32, 32)."""
    greatest = -1.0
    framed = np.pad(y.astype(float), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    for top in range(3):
        for left in range(3):
            window = framed[:, top : top + 32, left : left + 32]
            overlap = ~np.isnan(window)
            greatest = max(greatest, np.corrcoef(x[overlap], window[overlap])[0, 1])
    return 1 - greatest


def slow_pairs(a, b):
    """Return (first, second) -> (distance, mirrored), by comparing every pair."""
    found = {}
    for i, x in enumerate(a.numpy()):
        for j, y in enumerate(b.numpy()):
            if (x == y).all():
                found[i, j] = (0, False)
                continue
            plain, mirrored = slow_distance(x, y), slow_distance(x, y[:, :, ::-1])
            if min(plain, mirrored) <= THRESHOLD:
                found[i, j] = (min(plain, mirrored), mirrored < plain)
    return found


def as_dict(pairs):
    assert len({pair[:2] for pair in pairs}) == len(pairs)  # no pair occurs twice
    return {
        (p.first, p.second): (pytest.approx(p.distance, abs=1e-5), p.mirrored) for p in pairs
    }


@pytest.fixture(scope="module")
def images_and_copies():
    """Nine drawings, and five changed copies of the first five in another order."""
    images = drawings(9)
    copies = [
        shift(images[[4]], 1, -1),
        images[[0]],
        mirror(images[[3]]),
        recode(images[[1]], 30),
        brighten(mirror(shift(images[[2]], 0, 1)), 1.1),
    ]
    return images, torch.cat(copies)


@pytest.mark.parametrize("chunk", [duplicates.CHUNK, 4])
def test_search_equals_a_slow_loop(images_and_copies, monkeypatch, chunk):
    monkeypatch.setattr(duplicates, "CHUNK", chunk)
    a, b = images_and_copies
    expected = slow_pairs(a, b)
    assert set(expected) == {(4, 0), (0, 1), (3, 2), (1, 3), (2, 4)}
    assert expected == as_dict(duplicates.between(a, b))
    both = torch.cat([a, b])
    expected = {(i, j): pair for (i, j), pair in slow_pairs(both, both).items() if i < j}
    assert set(expected) == {(4, 9), (0, 10), (3, 11), (1, 12), (2, 13)}
    assert expected == as_dict(duplicates.within(both))


def found_shares(images, copies):
    """Return the shares of images paired with their own copy, and with another copy."""
    pairs = duplicates.between(images, copies)
    own = {pair.first for pair in pairs if pair.first == pair.second}
    other = {pair.first for pair in pairs if pair.first != pair.second}
    return len(own) / len(images), len(other) / len(images)


@pytest.mark.parametrize("change", CHANGES)
def test_copies_of_drawings_are_found(change):
    images = drawings(60, seed=1)
    own, other = found_shares(images, CHANGES[change](images))
    assert own >= 0.95
    assert other <= 0.01


def test_copies_of_photographs_are_found(real_split):
    images = real_split.train.images[-200:]
    for name, change in CHANGES.items():
        own, other = found_shares(images, change(images))
        assert own >= 0.95, name
        assert other <= 0.01, name


def test_only_identical_pixels_are_exact():
    a = drawings(3)
    for copies in (mirror(a), shift(a, 0, 1), brighten(a, 1.02)):
        pairs = duplicates.between(a, copies)
        assert [pair[:2] for pair in sorted(pairs)] == [(0, 0), (1, 1), (2, 2)]
        assert not any(pair.exact for pair in pairs)
    one_value_differs = a.clone()
    one_value_differs[:, 2, 31, 31] ^= 1
    assert not any(pair.exact for pair in duplicates.between(a, one_value_differs))
    same = duplicates.between(a, a.clone())
    assert same == [Pair(i, i, 0.0, False) for i in range(3)]
    assert all(pair.exact for pair in same)


def test_symmetrical_image_is_not_mirrored():
    image = drawings(1)
    image[..., 16:] = image[..., :16].flip(3)
    (same,) = duplicates.between(image, image)
    (brighter,) = duplicates.between(image, brighten(image, 1.02))
    assert same == Pair(0, 0, 0.0, False)
    assert not brighter.exact
    assert not brighter.mirrored


def test_closer_of_plain_and_mirrored_wins():
    image = drawings(1)
    image[..., 16:] = image[..., :16].flip(3)
    image[..., :4, :4] ^= 16
    assert [pair.mirrored for pair in duplicates.between(image, mirror(image))] == [True]
    assert THRESHOLD > slow_distance(*image.numpy(), *mirror(image).numpy()) > 1e-3


def test_more_copies_than_a_chunk_are_found(monkeypatch):
    monkeypatch.setattr(duplicates, "CHUNK", 4)
    images = drawings(2)
    copies = torch.cat([brighten(images, 1 + k / 50) for k in range(1, 8)])
    found = sorted(pair[:2] for pair in duplicates.between(images, copies))
    assert found == [(i, j) for i in range(2) for j in range(i, 14, 2)]


def test_every_two_of_many_copies_are_a_pair():
    images = drawings(1).repeat(4, 1, 1, 1)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert duplicates.within(images) == [Pair(i, j, 0.0, False) for i, j in pairs]


def test_most_similar_pairs_come_first():
    images = drawings(4)
    copies = torch.cat(
        [recode(images[[0]], 30), shift(images[[1]], 1, 0), images[[2]],
         brighten(images[[3]], 1.3)]
    )  # fmt: skip
    pairs = duplicates.between(images, copies)
    distances = [pair.distance for pair in pairs]
    assert distances == sorted(distances)
    assert [pair.first for pair in pairs][:2] == [2, 1]
    assert sorted(pair.first for pair in pairs) == [0, 1, 2, 3]


def test_almost_uniform_images_have_exact_duplicates_only():
    faint = torch.full((6, 3, 32, 32), 100, dtype=torch.uint8)
    faint[1] = 101
    faint[2, :, :, 16:] += 1
    faint[3, :, :, 16:] += 1
    faint[3] += 50
    faint[4] += torch.randint(0, 2, (3, 32, 32), generator=torch.Generator().manual_seed(0))
    assert duplicates.within(torch.cat([faint, drawings(20)])) == [Pair(0, 5, 0.0, False)]


def test_dim_copies_are_found():
    images = drawings(20)
    dim = brighten(images, 0.1)
    expected = {(i, i) for i in range(20)}
    assert {p[:2] for p in duplicates.between(images, dim)} >= expected
    assert {p[:2] for p in duplicates.between(dim, shift(mirror(dim), 0, 1))} >= expected


def test_leaks_are_train_images_with_a_copy_in_test():
    train = drawings(12)
    test = torch.cat(
        [drawings(3, seed=5), mirror(train[[9]]), train[[4, 3]], recode(train[[9]], 75)]
    )
    found = duplicates.leaks(train, test)
    assert found.dtype == torch.int64
    assert found.tolist() == [3, 4, 9]


def test_empty_parts_have_no_duplicates():
    images = drawings(2)
    assert duplicates.between(images, EMPTY.images) == []
    assert duplicates.between(EMPTY.images, images) == []
    assert duplicates.within(EMPTY.images) == []
    none = duplicates.leaks(images, EMPTY.images)
    assert none.dtype == torch.int64
    assert none.tolist() == []


def test_rows_describe_the_pairs():
    pairs = [Pair(1, 0, 0.0, False), Pair(0, 2, 0.012345, True), Pair(2, 1, 0.05, False)]
    labels = (torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0]))
    files = (["a.png", "b.png", "c.png"], ())
    classes = ("car", "truck", "cat")
    rows = duplicates.rows(pairs, ("train", "test"), labels, files, classes)
    assert rows[1] == {
        "first_part": "train", "first_index": 0, "first_file": "a.png", "first_label": "car",
        "second_part": "test", "second_index": 2, "second_file": "", "second_label": "car",
        "kind": "near", "mirrored": "yes", "distance": 0.0123, "conflict": "",
    }  # fmt: skip
    assert [row["kind"] for row in rows] == ["exact", "near", "near"]
    assert [row["conflict"] for row in rows] == ["", "", "yes"]
    assert [row["mirrored"] for row in rows] == ["", "yes", ""]
    assert [row["first_file"] for row in rows] == ["b.png", "a.png", "c.png"]
    assert {row["second_file"] for row in rows} == {""}
