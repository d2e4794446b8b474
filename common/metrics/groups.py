"""Many classes: groups of them by their training images, and the largest confusions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.metrics.intervals import Interval, draw_rows, interval, proportion_interval

MANY, FEW = 100, 20  # more train images than MANY, or fewer than FEW


def shot_groups(train_counts: Sequence[int]) -> dict[str, list[int]]:
    """Return the labels of the many-, medium- and few-shot classes (Liu et al. 2019).

    Many: more than 100 train images; few: fewer than 20. Groups without classes are left out.

    >>> shot_groups([500, 101, 100, 20, 19])
    {'many-shot': [0, 1], 'medium-shot': [2, 3], 'few-shot': [4]}
    """
    groups: dict[str, list[int]] = {"many-shot": [], "medium-shot": [], "few-shot": []}
    for label, n in enumerate(train_counts):
        name = "many-shot" if n > MANY else "few-shot" if n < FEW else "medium-shot"
        groups[name].append(label)
    return {name: labels for name, labels in groups.items() if labels}


def group_recalls(
    confusion: np.ndarray, groups: dict[str, list[int]]
) -> dict[str, tuple[float, Interval]]:
    """Return the mean recall of each group of classes, and its 95% interval.

    confusion: counts (K, K), at least one in each row.
    """
    support = confusion.sum(1)
    recall, _ = draw_rows(confusion, support)
    found = np.diagonal(confusion) / support
    recalls = {}
    for name, labels in groups.items():
        value = float(found[labels].mean())
        ends = interval(recall[..., labels].mean(-1), value)
        if len(labels) == 1:  # the interval that the class's recall has
            ends = proportion_interval(int(confusion[labels[0], labels[0]]), support[labels[0]])
        recalls[name] = (value, ends)
    return recalls


def largest_confusions(confusion: np.ndarray, most: int = 10) -> list[tuple[int, int, int]]:
    """Return (images, true label, predicted label) of the most frequent confusions.

    >>> largest_confusions(np.array([[9, 2, 0], [1, 5, 0], [0, 3, 4]]), 2)
    [(3, 2, 1), (2, 0, 1)]
    """
    wrong = np.where(np.eye(len(confusion), dtype=bool), 0, confusion)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
    found = [(int(wrong[i, j]), int(i), int(j)) for i, j in pairs]
    return [each for each in found if each[0] > 0]
