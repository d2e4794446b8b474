"""How many images of each class are drawn."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.dataset.class_counts import EXERCISE, class_counts, imbalanced_counts
from common.errors import InputError

CLASSES = ("car", "truck", "cat")
PLENTY = (5000, 5000, 5000)


def counts(requested, available=PLENTY, part="train", is_cifar10=False, dry_run=False):
    return class_counts(
        part, requested, available, CLASSES, is_cifar10=is_cifar10, dry_run=dry_run
    )


def test_cifar_10_lt_has_the_counts_of_the_papers():
    """Cui et al. 2019, as their code and LDAM's have them: 12,406 images at ratio 100."""
    hundred = imbalanced_counts("exp", 100, 5000, 10)
    assert hundred == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert sum(hundred) == 12406
    assert sum(imbalanced_counts("exp", 50, 5000, 10)) == 13996
    assert imbalanced_counts("exp", 10, 5000, 10)[-1] == 500
    assert sum(imbalanced_counts("exp", 100, 500, 100)) == 10847  # CIFAR-100-LT


@given(ratio=st.integers(1, 10**4), largest=st.integers(1, 10**6), classes=st.integers(2, 200))
def test_the_last_class_has_exactly_one_nth_of_the_first(ratio, largest, classes):
    found = imbalanced_counts("exp", ratio, largest, classes)
    assert (found[0], found[-1]) == (largest, largest // ratio)
    for k, n in enumerate(found):  # of whole numbers: n <= n_0 r^(-k/(K-1)) < n + 1
        power = math.log(largest) - k / (classes - 1) * math.log(ratio)
        assert math.log(max(n, 1)) < power + 1e-6 or n == 0
        assert math.log(n + 1) > power - 1e-6


def test_a_step_has_two_sizes():
    assert imbalanced_counts("step", 10, 5000, 10) == [5000] * 5 + [500] * 5
    assert imbalanced_counts("step", 3, 100, 3) == [100, 33, 33]


def test_defaults():
    assert counts(None, is_cifar10=True) == list(EXERCISE["train"])
    assert counts(None, (7, 5, 3)) == [7, 5, 3]
    four = class_counts("train", None, (7, 5, 3, 1), "abcd", is_cifar10=True, dry_run=False)
    assert four == [7, 5, 3, 1]
    assert counts(["full"], (7, 5, 3), is_cifar10=True) == [7, 5, 3]
    assert counts([4, "full", 1], (7, 5, 3)) == [4, 5, 1]
    assert counts(["exp:4"], (80, 90, 90)) == [80, 40, 20]
    assert counts(["step:2"], (80, 90, 90)) == [80, 40, 40]


def test_a_dry_run_takes_what_there_is():
    assert counts(None, (100, 100, 5), dry_run=True) == [60, 20, 5]
    assert counts(None, (100, 100, 5), part="test", dry_run=True) == [20, 6, 5]
    assert counts([50, 50, 50], (100, 40, 5), dry_run=True) == [50, 40, 5]
    assert counts(["exp:100"], (5000, 90, 90), dry_run=True) == [60, 6, 1]


@pytest.mark.parametrize(
    ("requested", "words"),
    [
        ([1, 2], "--train-counts: 2 numbers for 3 classes"),
        ([1, 2, 99], "99 images of cat requested, there are 20"),
        (["exp:2", 1, 1], "stands alone"),
        (["step:100"], "0 images of truck requested"),
        (["step:2"], "45 images of truck requested, there are 30"),
    ],
)
def test_impossible_counts_are_named(requested, words):
    with pytest.raises(InputError, match=words):
        counts(requested, (90, 30, 20))
