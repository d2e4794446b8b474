"""Groups of classes, and the largest confusions."""

import numpy as np
import pytest
from sklearn.metrics import recall_score

from common.metrics.groups import group_recalls, largest_confusions, shot_groups
from common.metrics.intervals import proportion_interval, scores_and_intervals


def random_confusion(classes=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 5, (classes, classes)) + np.diag(rng.integers(1, 30, classes))


def test_groups_are_by_train_images():
    counts = [5000, 101, 100, 20, 19, 1]
    groups = {"many-shot": [0, 1], "medium-shot": [2, 3], "few-shot": [4, 5]}
    assert shot_groups(counts) == groups
    assert shot_groups([500, 500]) == {"many-shot": [0, 1]}


def test_the_recall_of_a_group_is_the_mean_of_its_classes():
    confusion = random_confusion()
    y, p = (np.repeat(index.ravel(), confusion.ravel()) for index in np.indices((12, 12)))
    recall = recall_score(y, p, average=None)
    groups = {"a": [0, 3, 7], "all": list(range(12)), "one": [5]}
    found = group_recalls(confusion, groups)
    for name, labels in groups.items():
        value, (low, high) = found[name]
        assert value == pytest.approx(recall[labels].mean())
        assert low < value < high
    # All classes together are the balanced accuracy, and one class is its own recall.
    _, intervals = scores_and_intervals(confusion)
    assert found["all"][1] == pytest.approx(intervals["balanced_accuracy"])
    support = int(confusion[5].sum())
    assert found["one"][1] == proportion_interval(int(confusion[5, 5]), support)


def test_the_largest_confusions_are_those_of_a_loop():
    confusion = random_confusion(6, 1)
    pairs = [(confusion[i, j], i, j) for i in range(6) for j in range(6) if i != j]
    found = largest_confusions(confusion)
    assert [n for n, _, _ in found] == sorted((n for n, _, _ in pairs), reverse=True)[:10]
    assert all(confusion[i, j] == n and i != j for n, i, j in found)
    assert len(set(found)) == 10


def test_confusions_that_never_happen_are_not_listed():
    assert largest_confusions(np.array([[5, 0], [2, 3]])) == [(2, 1, 0)]
    assert largest_confusions(np.diag([5, 3])) == []
