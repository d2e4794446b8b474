"""Stratified splits in whole groups."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from common.dataset.stratified import connected_groups, hold_out


@given(
    n=st.integers(1, 12),
    pairs=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 11)), max_size=12),
)
def test_groups_are_the_connected_components(n, pairs):
    pairs = [(i, j) for i, j in pairs if max(i, j) < n]
    reachable = np.eye(n, dtype=bool)
    for i, j in pairs:
        reachable[i, j] = reachable[j, i] = True
    for _ in range(n):
        reachable = reachable @ reachable
    groups = connected_groups(n, pairs)
    assert ((groups[:, None] == groups) == reachable).all()
    assert groups.tolist() == [int(np.flatnonzero(row)[0]) for row in reachable]


labelled = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=60)


@given(images=labelled, share=st.floats(0.05, 0.95), seed=st.integers(0, 99))
def test_whole_groups_of_one_class_are_held_out(images, share, seed):
    labels, groups = (np.array(each) for each in zip(*images, strict=True))
    groups = groups + 10 * labels  # a group has one class
    held_out, impossible = hold_out(labels, groups, share, seed)
    assert held_out.tolist() == sorted(set(held_out.tolist()))
    inside = np.isin(np.arange(len(labels)), held_out)
    assert not set(groups[inside]) & set(groups[~inside])
    for label in set(labels.tolist()):
        of_class = labels == label
        alone = len(set(groups[of_class])) == 1
        assert (label in impossible) == alone
        assert 0 < inside[of_class].sum() < of_class.sum() or alone


def test_the_share_is_exact_for_images_of_their_own():
    labels = np.repeat([0, 1, 2], [100, 20, 2])
    held_out, _ = hold_out(labels, np.arange(122), 0.2, 0)
    assert np.bincount(labels[held_out]).tolist() == [20, 4, 1]
    other, _ = hold_out(labels, np.arange(122), 0.2, 1)
    assert set(held_out.tolist()) != set(other.tolist())
    again, _ = hold_out(labels, np.arange(122), 0.2, 0)
    assert np.array_equal(held_out, again)


def test_groups_that_span_classes_stay_in_train():
    labels = np.array([0] * 10 + [1] * 10)
    groups = np.arange(20)
    groups[[3, 12]] = 3
    for seed in range(30):
        held_out, impossible = hold_out(labels, groups, 0.5, seed)
        assert not impossible
        assert not {3, 12} & set(held_out.tolist())


def test_the_smallest_group_is_taken_where_none_fits():
    labels = np.zeros(20, dtype=int)
    groups = np.repeat([0, 1, 2], [9, 5, 6])
    held_out, _ = hold_out(labels, groups, 0.1, 0)
    assert held_out.tolist() == [9, 10, 11, 12, 13]
