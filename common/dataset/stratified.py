"""Stratified splits that keep images which belong together on one side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np


def connected_groups(n: int, pairs: Iterable[tuple[int, int]]) -> np.ndarray:
    """Return a group's number for each of n items, int64 (n,), equal for connected ones.

    pairs: positions of two items that belong together. The number is the smallest position in
    the group.

    >>> connected_groups(5, [(1, 3), (3, 4)])
    array([0, 1, 2, 1, 1])
    """
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for i, j in pairs:
        first, second = sorted((root(i), root(j)))
        parent[second] = first
    return np.array([root(i) for i in range(n)], dtype=np.int64)


def hold_out(
    labels: np.ndarray, groups: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, list[int]]:
    """Return the sorted positions of a stratified share of images, in whole groups.

    labels, groups: of each image, (N,). Of the n images of a class about share * n are held
    out: its groups are drawn in random order, and each that still fits is taken; if none fits,
    the smallest. A group with images of several classes, such as near duplicates with
    contradictory labels, is never held out. Returns also the labels of the classes of which
    nothing can be held out, because that would leave no image.
    """
    members = defaultdict(list)
    for i, group in enumerate(groups.tolist()):
        members[group].append(i)
    groups_of = defaultdict(list)
    for positions in members.values():
        label, *others = set(labels[positions].tolist())
        if not others:
            groups_of[label].append(positions)
    held_out, impossible = [], []
    for label, n in zip(*np.unique(labels, return_counts=True), strict=True):
        wanted, taken = max(1, round(share * n)), []
        candidates = [g for g in groups_of[label] if len(g) < n]
        order = np.random.default_rng([seed, label]).permutation(len(candidates))
        for group in (candidates[i] for i in order):
            if len(taken) + len(group) <= min(wanted, n - 1):
                taken += group
        if not taken and candidates:
            taken = min(candidates, key=len)
        if not taken:
            impossible.append(int(label))
        held_out += taken
    return np.sort(np.array(held_out, dtype=np.int64)), impossible
