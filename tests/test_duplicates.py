from __future__ import annotations

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY
from PIL import Image

from common import contact_sheets, duplicates, figures, synthetic
from common.duplicates import THRESHOLD, Pair

CLASSES = ("car", "truck", "cat")


def drawings(n, seed=0):
    """n different drawings, uint8 (n, 3, 32, 32), as smooth as photographs are."""
    drawn = np.stack([synthetic.draw(i % 3, (seed, i)) for i in range(n)])
    x = torch.from_numpy(drawn.transpose(0, 3, 1, 2)).float()
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False).to(torch.uint8)


def brightened(images, factor):
    return (images * factor).round().clamp(0, 255).to(torch.uint8)


def moved(images, down, right):
    """Moved by up to one pixel, with its edge repeated."""
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    return torch.from_numpy(padded[:, :, 1 - down : 33 - down, 1 - right : 33 - right].copy())


def mirrored(images):
    return images.flip(3)


def recoded(images, quality):
    """Saved as JPEG and read again."""
    read = []
    for image in images.permute(0, 2, 3, 1).numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=quality)
        read.append(np.array(Image.open(file)))
    return torch.from_numpy(np.stack(read).transpose(0, 3, 1, 2).copy())


PLANTED = {
    "brighter": lambda images: brightened(images, 1.02),
    "darker": lambda images: brightened(images, 0.98),
    "up": lambda images: moved(images, -1, 0),
    "down": lambda images: moved(images, 1, 0),
    "left": lambda images: moved(images, 0, -1),
    "right": lambda images: moved(images, 0, 1),
    "mirrored": mirrored,
    "JPEG 75": lambda images: recoded(images, 75),
    "JPEG 50": lambda images: recoded(images, 50),
}
COMBINED = {
    "up and left": lambda images: moved(images, -1, -1),
    "mirrored, moved": lambda images: moved(mirrored(images), 1, 0),
    "mirrored, moved, brighter, JPEG": lambda images: recoded(
        brightened(moved(mirrored(images), 0, 1), 1.02), 75
    ),
}


def slow_distance(x, y):
    """1 - the greatest correlation over shifts of two images (3, 32, 32)."""
    greatest = -1.0
    framed = np.pad(y.astype(float), ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
    for top in range(3):
        for left in range(3):
            window = framed[:, top : top + 32, left : left + 32]
            overlap = ~np.isnan(window)
            greatest = max(greatest, np.corrcoef(x[overlap], window[overlap])[0, 1])
    return 1 - greatest


def slow_pairs(a, b):
    """(first, second) -> distance and whether mirrored, by comparing everything."""
    found = {}
    for i, x in enumerate(a.numpy()):
        for j, y in enumerate(b.numpy()):
            if (x == y).all():
                found[i, j] = (0, False)
                continue
            plain, mirror = slow_distance(x, y), slow_distance(x, y[:, :, ::-1])
            if min(plain, mirror) <= THRESHOLD:
                found[i, j] = (min(plain, mirror), mirror < plain)
    return found


def as_found(pairs):
    assert len({pair[:2] for pair in pairs}) == len(pairs)  # no pair twice
    return {
        (p.first, p.second): (pytest.approx(p.distance, abs=1e-5), p.mirrored) for p in pairs
    }


@pytest.fixture(scope="module")
def family():
    """Nine drawings, and copies of the first five in another order, changed in five ways."""
    images = drawings(9)
    copies = [
        moved(images[[4]], 1, -1),
        images[[0]],
        mirrored(images[[3]]),
        recoded(images[[1]], 30),
        brightened(mirrored(moved(images[[2]], 0, 1)), 1.1),
    ]
    return images, torch.cat(copies)


@pytest.mark.parametrize("chunk", [duplicates.CHUNK, 4])
def test_between_equals_a_slow_loop(family, monkeypatch, chunk):
    monkeypatch.setattr(duplicates, "CHUNK", chunk)
    a, b = family
    expected = slow_pairs(a, b)
    assert set(expected) == {(4, 0), (0, 1), (3, 2), (1, 3), (2, 4)}
    assert expected == as_found(duplicates.between(a, b))


@pytest.mark.parametrize("chunk", [duplicates.CHUNK, 4])
def test_within_equals_a_slow_loop(family, monkeypatch, chunk):
    monkeypatch.setattr(duplicates, "CHUNK", chunk)
    images = torch.cat(family)
    everything = slow_pairs(images[:9], images) | slow_pairs(images[9:], images[9:])
    expected = {(i, j): how for (i, j), how in everything.items() if i < j}
    assert set(expected) == {(4, 9), (0, 10), (3, 11), (1, 12), (2, 13)}
    assert expected == as_found(duplicates.within(images))


def own_and_other(images, copies):
    """The share of copies found as their original's, and that of images found as others'."""
    pairs = duplicates.between(images, copies)
    own = {pair.first for pair in pairs if pair.first == pair.second}
    other = {pair.first for pair in pairs if pair.first != pair.second}
    return len(own) / len(images), len(other) / len(images)


@pytest.mark.parametrize("kind", PLANTED | COMBINED)
def test_planted_copies_of_drawings_are_found(kind):
    images = drawings(60, seed=1)
    own, other = own_and_other(images, (PLANTED | COMBINED)[kind](images))
    assert own >= 0.95
    assert other <= 0.01


def test_planted_copies_of_photographs_are_found(real_split):
    images = real_split.train.images[-200:]
    for kind, change in (PLANTED | COMBINED).items():
        own, other = own_and_other(images, change(images))
        assert own >= 0.95, kind
        assert other <= 0.01, kind


def test_only_identical_pixels_are_exact():
    a = drawings(3)
    for copies in (mirrored(a), moved(a, 0, 1), brightened(a, 1.02)):
        pairs = duplicates.between(a, copies)
        assert [pair[:2] for pair in sorted(pairs)] == [(0, 0), (1, 1), (2, 2)]
        assert not any(pair.exact for pair in pairs)
    one_value_differs = a.clone()
    one_value_differs[:, 2, 31, 31] ^= 1
    assert not any(pair.exact for pair in duplicates.between(a, one_value_differs))
    same = duplicates.between(a, a.clone())
    assert same == [Pair(i, i, 0.0, False) for i in range(3)]
    assert all(pair.exact for pair in same)


def test_a_symmetrical_image_is_not_called_mirrored():
    image = drawings(1)
    image[..., 16:] = image[..., :16].flip(3)
    (same,) = duplicates.between(image, image)
    (brighter,) = duplicates.between(image, brightened(image, 1.02))
    assert same == Pair(0, 0, 0.0, False)
    assert not brighter.exact
    assert not brighter.mirrored


def test_the_closer_of_plain_and_mirrored_is_told():
    image = drawings(1)
    image[..., 16:] = image[..., :16].flip(3)
    image[..., :4, :4] ^= 16
    assert [pair.mirrored for pair in duplicates.between(image, mirrored(image))] == [True]
    assert THRESHOLD > slow_distance(*image.numpy(), *mirrored(image).numpy()) > 1e-3


def test_more_copies_than_a_chunk_holds_are_all_found(monkeypatch):
    monkeypatch.setattr(duplicates, "CHUNK", 4)
    images = drawings(2)
    copies = torch.cat([brightened(images, 1 + k / 50) for k in range(1, 8)])
    found = sorted(pair[:2] for pair in duplicates.between(images, copies))
    assert found == [(i, j) for i in range(2) for j in range(i, 14, 2)]


def test_each_of_many_copies_is_a_pair():
    images = drawings(1).repeat(4, 1, 1, 1)
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert duplicates.within(images) == [Pair(i, j, 0.0, False) for i, j in pairs]


def test_the_most_similar_come_first():
    images = drawings(4)
    copies = torch.cat(
        [recoded(images[[0]], 30), moved(images[[1]], 1, 0), images[[2]],
         brightened(images[[3]], 1.3)]
    )  # fmt: skip
    pairs = duplicates.between(images, copies)
    distances = [pair.distance for pair in pairs]
    assert distances == sorted(distances)
    assert [pair.first for pair in pairs][:2] == [2, 1]
    assert sorted(pair.first for pair in pairs) == [0, 1, 2, 3]


def test_what_is_as_good_as_uniform_has_exact_duplicates_only():
    faint = torch.full((6, 3, 32, 32), 100, dtype=torch.uint8)
    faint[1] = 101
    faint[2, :, :, 16:] += 1
    faint[3, :, :, 16:] += 1
    faint[3] += 50
    faint[4] += torch.randint(0, 2, (3, 32, 32), generator=torch.Generator().manual_seed(0))
    assert duplicates.within(torch.cat([faint, drawings(20)])) == [Pair(0, 5, 0.0, False)]


def test_dim_copies_are_found():
    images = drawings(20)
    dim = brightened(images, 0.1)
    assert {p[:2] for p in duplicates.between(images, dim)} >= {(i, i) for i in range(20)}
    again = duplicates.between(dim, moved(mirrored(dim), 0, 1))
    assert {p[:2] for p in again} >= {(i, i) for i in range(20)}


def test_leaks_are_the_train_images_found_in_test():
    train = drawings(12)
    test = torch.cat(
        [drawings(3, seed=5), mirrored(train[[9]]), train[[4, 3]], recoded(train[[9]], 75)]
    )
    found = duplicates.leaks(train, test)
    assert found.dtype == torch.int64
    assert found.tolist() == [3, 4, 9]


def test_parts_without_images_have_no_duplicates():
    images = drawings(2)
    assert duplicates.between(images, EMPTY.images) == []
    assert duplicates.between(EMPTY.images, images) == []
    assert duplicates.within(EMPTY.images) == []
    none = duplicates.leaks(images, EMPTY.images)
    assert none.dtype == torch.int64
    assert none.tolist() == []


def pairs_as_rows(files=((), ())):
    pairs = [Pair(1, 0, 0.0, False), Pair(0, 2, 0.012345, True), Pair(2, 1, 0.05, False)]
    labels = (torch.tensor([0, 1, 2]), torch.tensor([1, 0, 0]))
    return duplicates.rows(pairs, ("train", "test"), labels, files, CLASSES)


def test_rows_by_hand():
    rows = pairs_as_rows((["a.png", "b.png", "c.png"], ()))
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


@pytest.fixture
def sheet(tmp_path, monkeypatch):
    """The figure that is saved, and that its file is a PNG."""

    def draw(rows, **options):
        seen = []
        save = figures.Figure.savefig
        monkeypatch.setattr(
            figures.Figure, "savefig", lambda self, path: seen.append(self) or save(self, path)
        )
        images = {"train": drawings(3), "test": drawings(3, seed=1)}
        path = tmp_path / "figures" / "duplicates.png"
        source = ("a source that is named", "3 train, 3 test")
        assert contact_sheets.duplicates(path, rows, images, *source, **options) == path
        with Image.open(path) as image:
            assert image.format == "PNG"
        return seen[0]

    return draw


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


def test_conflicts_come_first_and_are_marked(sheet):
    figure = sheet(pairs_as_rows()[::-1])
    assert titles(figure) == [
        "train 2 cat | test 1 car\nCONFLICT, near 0.0500",
        "train 1 truck | test 0 truck\nexact",
        "train 0 car | test 2 car\nnear 0.0123, mirrored",
    ]
    marked = [(axes.title.get_color(), axes.title.get_fontweight()) for axes in figure.axes[:3]]
    assert marked[0] == (contact_sheets.RED, "bold")
    assert contact_sheets.RED not in {shade for shade, _ in marked[1:]}


def test_both_pictures_of_a_pair_are_shown(sheet):
    axes = sheet(pairs_as_rows()).axes[0]
    shown = torch.from_numpy(np.array(axes.images[0].get_array())).permute(2, 0, 1)
    assert torch.equal(shown[:, :, :32], drawings(3)[2])
    assert torch.equal(shown[:, :, -32:], drawings(3, seed=1)[1])


def test_the_caption_says_how_many_of_how_many(sheet):
    figure = sheet(pairs_as_rows(), most=2)
    assert len(titles(figure)) == 2
    caption = figure.get_supxlabel()
    for words in ("a source that is named", "n = 3 train, 3 test", "2 of 3 pairs", "1 of all"):
        assert words in caption


def test_long_titles_neither_overlap_nor_are_clipped(sheet):
    rows = [
        row | {"first_part": "validation", "first_label": "an automobile", "conflict": "yes"}
        for row in pairs_as_rows() * 3
    ]
    rows = [row | {"first_part": "train", "first_index": 2} for row in rows]
    figure = sheet(rows)
    width, height = figure.canvas.get_width_height()
    texts = [axes.title for axes in figure.axes] + [figure._suptitle, figure._supxlabel]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    for k, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:k])
