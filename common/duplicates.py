"""Exact and near duplicates among images: the same photograph again, perhaps a little changed.

First the search: every image becomes a small blurred picture, and pairs whose small pictures
are alike, as they are or mirrored, are candidates. Then the check: each candidate pair is
compared at full size, at every shift by up to one pixel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

# Measured on CIFAR-10's cars, trucks and cats. Copies of 2,812 train images, changed in
# brightness by 2%, moved by a pixel along one or both axes, mirrored or saved as JPEG of
# quality 50, were within 0.065 of their originals. Among 5,625 train and 1,800 test images all
# 319 pairs within 0.07 were, by eye, one photograph twice; the first that were not, two smooth
# landscapes, were at 0.082.
THRESHOLD = 0.07
# The same of the small pictures: 98% of copies moved along both axes are within 0.09, more of
# the others, and of a million pairs of photographs only some 400 are left to be checked.
SMALL_THRESHOLD = 0.1
SMALL = 8  # pixels, the side of a small picture
BLUR = 5  # pixels, the side of the box that is averaged first, so that shifts matter less
# Standard deviation, in grey levels (0 to 255), up to which an image is as good as uniform:
# what is left then is rounding, and scaled up it would look like whatever is equally smooth.
LEAST_CONTRAST = 1.0
# Above the rounding of float32, and above 0, which is kept for identical pixels.
LEAST_DISTANCE = 1e-6
COLUMNS = (
    "first_part", "first_index", "first_file", "first_label",
    "second_part", "second_index", "second_file", "second_label",
    "kind", "mirrored", "distance", "conflict",
)  # fmt: skip
CHUNK = 128  # images that are searched at once, and pairs that are checked at once


class Pair(NamedTuple):
    """Two duplicates: their positions, how far apart they are and whether one is mirrored.

    distance: 0 for identical pixels, else above 0 and up to THRESHOLD: 1 minus the greatest
    correlation of their pixels over the shifts by -1 to 1 pixels, on the overlap.
    """

    first: int
    second: int
    distance: float
    mirrored: bool

    @property
    def exact(self) -> bool:
        """Whether the pixels are identical; a mirrored or shifted copy is a near duplicate."""
        return self.distance == 0


def between(a: torch.Tensor, b: torch.Tensor) -> list[Pair]:
    """All duplicates with one image in a and one in b, the most similar first.

    a: uint8 (N, 3, 32, 32), b: uint8 (M, 3, 32, 32). Near duplicates are those within
    THRESHOLD; what is as good as uniform (LEAST_CONTRAST) has exact duplicates only.
    """
    return _search(a, b, same=False)


def within(images: torch.Tensor) -> list[Pair]:
    """All duplicates among images, uint8 (N, 3, 32, 32), as `between`; first < second."""
    return _search(images, images, same=True)


def leaks(train_images: torch.Tensor, test_images: torch.Tensor) -> torch.Tensor:
    """Positions, int64 and sorted, of the train images that have a duplicate in the test's."""
    found = {pair.first for pair in between(train_images, test_images)}
    return torch.tensor(sorted(found), dtype=torch.int64)


def rows(
    pairs: Sequence[Pair],
    parts: tuple[str, str],
    labels: tuple[torch.Tensor, torch.Tensor],
    files: tuple[Sequence[str], Sequence[str]],
    classes: Sequence[str],
) -> list[dict[str, str | int | float]]:
    """The pairs as rows of a table, in their order.

    parts: the names of what `first` and `second` are positions in; for each, labels (N,) and
    file names, which may be empty. A pair of two classes has "yes" as its conflict.
    """
    table = []
    for pair in pairs:
        row: dict[str, str | int | float] = {}
        at = (pair.first, pair.second)
        for side, part, i, y, names in zip(
            ("first", "second"), parts, at, labels, files, strict=True
        ):
            row[f"{side}_part"] = part
            row[f"{side}_index"] = i
            row[f"{side}_file"] = names[i] if len(names) else ""
            row[f"{side}_label"] = classes[int(y[i])]
        row["kind"] = "exact" if pair.exact else "near"
        row["mirrored"] = "yes" if pair.mirrored else ""
        row["distance"] = round(pair.distance, 4)
        row["conflict"] = "yes" if row["first_label"] != row["second_label"] else ""
        table.append(row)
    return table


def _search(a: torch.Tensor, b: torch.Tensor, same: bool) -> list[Pair]:
    """Duplicates of a and b, each pair once, at its closest; same: only with first < second."""
    # In numpy: the check is thousands of short steps, and on busy cores torch's threads waited
    # for each other at every one (eight times as long, measured beside trainings).
    a, b = a.numpy(), b.numpy()
    best: dict[tuple[int, int], Pair] = {}
    # In this order, and the first of equals stays: a symmetrical image is not called mirrored.
    for pair in (*_exact(a, b, same), *_near(a, b, same, False), *_near(a, b, same, True)):
        key = (pair.first, pair.second)
        if key not in best or pair.distance < best[key].distance:
            best[key] = pair
    return sorted(best.values(), key=lambda pair: (pair.distance, pair.first, pair.second))


def _exact(a: np.ndarray, b: np.ndarray, same: bool) -> Iterator[Pair]:
    places = defaultdict(list)
    for j, image in enumerate(b):
        places[image.tobytes()].append(j)
    for i, image in enumerate(a):
        for j in places.get(image.tobytes(), ()):
            if i < j or not same:
                yield Pair(i, j, 0.0, False)


def _near(a: np.ndarray, b: np.ndarray, same: bool, mirrored: bool) -> Iterator[Pair]:
    if mirrored:
        b = b[..., ::-1]
    small_a, small_b = _small(a), _small(b)
    for start in range(0, len(a), CHUNK):
        alike = small_a[start : start + CHUNK] @ small_b.T > 1 - SMALL_THRESHOLD
        if same:
            alike = np.triu(alike, start + 1)
        first, second = alike.nonzero()
        first += start
        for at in range(0, len(first), CHUNK):
            i, j = first[at : at + CHUNK], second[at : at + CHUNK]
            distances = _distances(a[i], b[j])
            for k in np.flatnonzero(distances <= THRESHOLD):
                yield Pair(int(i[k]), int(j[k]), float(distances[k]), mirrored)


def _small(images: np.ndarray) -> np.ndarray:
    """Small blurred pictures of images (N, 3, 32, 32), standardised: float32 (N, 192)."""
    pixels = torch.eye(images.shape[-1])
    blurred = F.avg_pool1d(pixels, BLUR, 1, BLUR // 2, count_include_pad=False)
    # Column k has the weights of the pixels of a line in the k-th of its small picture.
    weights = F.adaptive_avg_pool1d(blurred, SMALL).numpy()
    small = np.empty((len(images), 3 * SMALL * SMALL), np.float32)
    for start in range(0, len(images), CHUNK):
        x = images[start : start + CHUNK].astype(np.float32)
        small[start : start + CHUNK] = _standardised(weights.T @ x @ weights)
    return small


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For pairs of images (N, 3, H, W): 1 - the greatest correlation over the shifts, (N,)."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    height, width = a.shape[2:]
    greatest = np.full(len(a), -1, np.float32)
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            # The overlap of a with b moved by so much: its pixels in a, and in b.
            of_a = a[:, :, max(down, 0) : height + down, max(right, 0) : width + right]
            of_b = b[:, :, max(-down, 0) : height - down, max(-right, 0) : width - right]
            correlation = np.einsum("np,np->n", _standardised(of_a), _standardised(of_b))
            greatest = np.maximum(greatest, correlation)
    return np.maximum(1 - greatest, LEAST_DISTANCE)


def _standardised(x: np.ndarray) -> np.ndarray:
    """Images as vectors (N, values) of mean 0 and length 1; shorter if as good as uniform.

    So brightness and contrast don't matter, and the product of two is their correlation.
    """
    x = x.reshape(len(x), -1)
    x = x - x.mean(1, keepdims=True)
    length = np.sqrt(np.einsum("np,np->n", x, x))[:, None]
    return x / np.maximum(length, LEAST_CONTRAST * x.shape[1] ** 0.5)
