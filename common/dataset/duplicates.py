"""Exact and near duplicates among images: the same photograph twice, perhaps with changes.

Images larger than 32x32 are reduced to that for near duplicates, since the thresholds were
measured there. The search reduces every image to a blurred thumbnail; pairs of images with
similar thumbnails, one of them mirrored or not, are candidates. The check then compares each
candidate pair at every shift of up to one pixel.

Thousands of frames of one scene have millions of pairs. Once pairs have connected a large
group of images, further candidates within it are neither checked nor returned, so a pair that
was found is not checked mirrored. The groups, and which images have a duplicate, are exact.
"""

import hashlib
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from common.dataset.stored_images import Images, select

# Measured on the cars, trucks and cats of CIFAR-10. Copies of 2,812 train images, with the
# brightness changed by 2%, shifted by a pixel along one or both axes, mirrored or saved as JPEG
# of quality 50, were within 0.065 of their originals. Among 5,625 train and 1,800 test images,
# all 319 pairs within 0.07 were, by eye, the same photograph; the closest pair that was not,
# two smooth landscapes, was at 0.082.
THRESHOLD = 0.07
# The threshold between thumbnails: 98% of the copies shifted along both axes are within 0.09,
# and more of the other copies. Of a million pairs of photographs, about 400 are candidates.
THUMBNAIL_THRESHOLD = 0.1
SEARCH_SIZE = 32  # pixels: larger images are reduced to this
THUMBNAIL_SIZE = 8  # pixels
BLUR = 5  # pixels: the side of the box filter before the reduction, so that shifts matter less
# An image whose standard deviation, in grey levels (0 to 255), is at most this counts as
# uniform: the remainder is rounding, which would resemble any other smooth image if scaled up.
UNIFORM_STD = 1.0
# Above the rounding error of float32, and above 0, which only identical pixels have.
MIN_NEAR_DISTANCE = 1e-6
# Of a group of at most so many images all pairs are returned. The largest group among the cars,
# trucks and cats of CIFAR-10 has 64 images, with 195 pairs.
LARGE_GROUP = 100
COLUMNS = (
    "first_part", "first_index", "first_file", "first_label",
    "second_part", "second_index", "second_file", "second_label",
    "kind", "mirrored", "distance", "conflict",
)  # fmt: skip
CHUNK = 128  # images to search, or pairs to check, at once


class Pair(NamedTuple):
    """Two duplicates, as positions.

    distance: 0 for identical pixels, otherwise from above 0 to THRESHOLD: 1 minus the greatest
    correlation of the overlapping pixels over all shifts by -1 to 1 pixels.
    mirrored: whether one image is closer to the mirror image of the other.
    """

    first: int
    second: int
    distance: float
    mirrored: bool

    @property
    def exact(self) -> bool:
        """Whether the pixels are identical; a mirrored or shifted copy is a near duplicate."""
        return self.distance == 0


def between(a: Images, b: Images, complete: int = LARGE_GROUP) -> list[Pair]:
    """Return the duplicates with one image in a and one in b, the most similar first.

    a: uint8 (N, 3, S, S), b: uint8 (M, 3, S, S). Near duplicates are within THRESHOLD; an
    almost uniform image (see UNIFORM_STD) has exact duplicates only. Copies with identical
    pixels are not all paired with each other: each copy in a is paired with the first of the
    copies in b, and each in b with the first in a. Images with different pixels, of a and b
    together, that such pairs connect are a group: of a group of at most `complete` images all
    pairs are returned, of a larger one at least as many as connect its images.
    """
    (copies_a, a), (copies_b, b) = _originals(a), _originals(b)
    position_of = {digest: j for j, digest in enumerate(copies_b)}
    identical = [
        Pair(i, position_of[digest], 0.0, False)
        for i, digest in enumerate(copies_a)
        if digest in position_of
    ]
    positions_a, positions_b = list(copies_a.values()), list(copies_b.values())
    pairs = []
    for pair in [*identical, *_near_of_originals(a, b, complete, {p[:2] for p in identical})]:
        first, second = positions_a[pair.first], positions_b[pair.second]
        pairs += [pair._replace(first=i, second=second[0]) for i in first]
        pairs += [pair._replace(first=first[0], second=j) for j in second[1:]]
    return sorted(pairs, key=_most_similar_first)


def within(images: Images, complete: int = LARGE_GROUP) -> list[Pair]:
    """Return the duplicates among images, uint8 (N, 3, S, S), with first < second.

    Of images with identical pixels each is paired with the first, and only that with others.
    complete: as for `between`.
    """
    copies, originals = _originals(images)
    positions = list(copies.values())
    pairs = [
        pair._replace(first=positions[pair.first][0], second=positions[pair.second][0])
        for pair in _near_of_originals(originals, None, complete)
    ]
    pairs += [Pair(first, i, 0.0, False) for first, *others in positions for i in others]
    return sorted(pairs, key=_most_similar_first)


def leaks(train_images: Images, test_images: Images) -> torch.Tensor:
    """Return the sorted positions, int64, of train images with a duplicate in the test part."""
    found = {pair.first for pair in between(train_images, test_images, complete=1)}
    return torch.tensor(sorted(found), dtype=torch.int64)


def rows(
    pairs: Sequence[Pair],
    parts: tuple[str, str],
    labels: tuple[torch.Tensor, torch.Tensor],
    files: tuple[Sequence[str], Sequence[str]],
    classes: Sequence[str],
) -> list[dict[str, str | int | float]]:
    """Return the pairs as rows of a table with COLUMNS, in the same order.

    parts: the names of the parts that `first` and `second` are positions in. labels, files:
    for each of the two parts, its labels (N,) and its file names, which may be empty.
    The column conflict is "yes" for two images of different classes.
    """
    table = []
    for pair in pairs:
        first, second = (
            (parts[k], i, files[k][i] if len(files[k]) else "", classes[int(labels[k][i])])
            for k, i in enumerate((pair.first, pair.second))
        )
        kind = "exact" if pair.exact else "near"
        mirrored = "yes" if pair.mirrored else ""
        conflict = "yes" if first[-1] != second[-1] else ""
        values = (*first, *second, kind, mirrored, round(pair.distance, 4), conflict)
        table.append(dict(zip(COLUMNS, values, strict=True)))
    return table


def _most_similar_first(pair: Pair) -> tuple[float, int, int]:
    return pair.distance, pair.first, pair.second


def _originals(images: Images) -> tuple[dict[bytes, list[int]], Images]:
    """Return the positions of each image's copies by their digest, and the first of each.

    Copies have identical pixels; their positions are in order.
    """
    copies = defaultdict(list)
    for i, digest in enumerate(_digests(images)):
        copies[digest].append(i)
    if len(copies) == len(images):
        return copies, images
    return copies, select(images, torch.tensor([first for first, *_ in copies.values()]))


def _near_of_originals(
    a: Images,
    b: Images | None,
    complete: int,
    identical: Container[tuple[int, int]] = (),
) -> Iterable[Pair]:
    """Return the near duplicates of a and b, each pair once, but those that are identical.

    No two images of a, and no two of b, have identical pixels. Without b: those within a, with
    first < second. Not all pairs of groups of more than `complete` images.
    """
    same, a = b is None, _reduced(a)
    b = a if same else _reduced(b)
    groups = _Groups(len(a) if same else len(a) + len(b), complete)
    closest: dict[tuple[int, int], Pair] = {}
    # The order matters: of equal distances the first wins, so a symmetrical image does not
    # count as mirrored.
    for pair in (*_near(a, b, same, False, groups), *_near(a, b, same, True, groups)):
        key = (pair.first, pair.second)
        if key not in identical and (
            key not in closest or pair.distance < closest[key].distance
        ):
            closest[key] = pair
    return closest.values()


class _Groups:
    """Groups of the images that pairs connect, each image alone at first.

    of: the number of each image's group, (n,). sizes: of the groups, by their numbers.
    complete: in larger groups, pairs of connected images are needless.
    """

    def __init__(self, n: int, complete: int) -> None:
        self.of, self.sizes = np.arange(n), np.ones(n, np.int64)
        self.complete = complete

    def connect(self, i: int, j: int) -> None:
        kept, merged = self.of[i], self.of[j]
        if kept != merged:
            self.of[self.of == merged] = kept
            self.sizes[kept] += self.sizes[merged]

    def need(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Return which pairs are not needless, bool (m,), of the images i and j, (m,) each."""
        return (self.of[i] != self.of[j]) | (self.sizes[self.of[i]] <= self.complete)


def _digests(images: Images) -> Iterator[bytes]:
    for block in images.split(CHUNK):
        for image in block:
            yield hashlib.sha256(image.contiguous().numpy().data).digest()


def _reduced(images: Images) -> np.ndarray:
    """Return images (N, 3, S, S), at most SEARCH_SIZE wide, as uint8 in NumPy.

    The search goes on in NumPy, because the check consists of thousands of short steps, and on
    busy cores the threads of torch waited for each other at every step (8 times as long,
    measured beside trainings).
    """
    size = min(images.shape[-1], SEARCH_SIZE)
    reduced = np.empty((len(images), 3, size, size), np.uint8)
    for start in range(0, len(images), CHUNK):
        block = images[start : start + CHUNK]
        if block.shape[-1] > size:
            block = F.adaptive_avg_pool2d(block.float(), size).round().to(torch.uint8)
        reduced[start : start + CHUNK] = block.numpy()
    return reduced


def _near(
    a: np.ndarray, b: np.ndarray, same: bool, mirrored: bool, groups: _Groups
) -> Iterator[Pair]:
    """Yield the pairs within THRESHOLD; `mirrored`: with the images of b mirrored.

    groups: of the images of a, followed by those of b if not `same`. The pairs that are found
    connect them, and needless pairs are left out.
    """
    if mirrored:
        b = b[..., ::-1]
    offset = 0 if same else len(a)
    thumbnails_a, thumbnails_b = _thumbnails(a), _thumbnails(b)
    generator = np.random.default_rng(0)
    for start in range(0, len(a), CHUNK):
        correlation = thumbnails_a[start : start + CHUNK] @ thumbnails_b.T
        candidates = correlation > 1 - THUMBNAIL_THRESHOLD
        if same:
            candidates = np.triu(candidates, start + 1)
        # In random order, since one image's pairs with a group, side by side, would all be
        # checked before the first of them makes the others needless.
        first, second = generator.permutation(np.argwhere(candidates)).T
        first += start
        for k in range(0, len(first), CHUNK):
            i, j = first[k : k + CHUNK], second[k : k + CHUNK]
            needed = groups.need(i, j + offset)
            if not needed.any():
                continue
            i, j = i[needed], j[needed]
            distances = _distances(a[i], b[j])
            for n in np.flatnonzero(distances <= THRESHOLD):
                groups.connect(i[n], j[n] + offset)
                yield Pair(int(i[n]), int(j[n]), float(distances[n]), mirrored)


def _thumbnails(images: np.ndarray) -> np.ndarray:
    """Return standardised blurred thumbnails, float32 (N, 192), of images (N, 3, S, S)."""
    identity = torch.eye(images.shape[-1])
    blurred = F.avg_pool1d(identity, BLUR, 1, BLUR // 2, count_include_pad=False)
    # Column k holds the weights of a line's pixels in pixel k of the thumbnail's line.
    weights = F.adaptive_avg_pool1d(blurred, THUMBNAIL_SIZE).numpy()
    thumbnails = np.empty((len(images), 3 * THUMBNAIL_SIZE**2), np.float32)
    for start in range(0, len(images), CHUNK):
        x = images[start : start + CHUNK].astype(np.float32)
        thumbnails[start : start + CHUNK] = _standardise(weights.T @ x @ weights)
    return thumbnails


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return 1 - the greatest correlation over all shifts, (N,), of pairs (N, 3, H, W)."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    height, width = a.shape[2:]
    greatest = np.full(len(a), -1, np.float32)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            # The pixels of a, and of b, where a overlaps b shifted down and right.
            overlap_a = a[:, :, max(down, 0) : height + down, max(right, 0) : width + right]
            overlap_b = b[:, :, max(-down, 0) : height - down, max(-right, 0) : width - right]
            x, y = _standardise(overlap_a), _standardise(overlap_b)
            greatest = np.maximum(greatest, np.einsum("np,np->n", x, y))
    return np.maximum(1 - greatest, MIN_NEAR_DISTANCE)


def _standardise(x: np.ndarray) -> np.ndarray:
    """Return images as vectors (N, values) of mean 0 and length 1.

    The product of two vectors is the correlation of the images, which does not depend on
    brightness and contrast. The vector of an almost uniform image is shorter, which
    keeps its correlations low.
    """
    x = x.reshape(len(x), -1)
    x = x - x.mean(1, keepdims=True)
    length = np.sqrt(np.einsum("np,np->n", x, x))[:, None]
    return x / np.maximum(length, UNIFORM_STD * x.shape[1] ** 0.5)
