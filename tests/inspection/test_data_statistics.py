from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import random_part
from scipy.stats import norm

from common.inspection import data_statistics
from common.inspection.data_statistics import image_statistics, moments, outliers, runs_test


def count_runs(labels):
    return 1 + sum(a != b for a, b in pairwise(labels))


def test_runs_mean_and_variance_equal_those_of_shuffled_labels():
    labels = np.repeat([0, 1, 2], [60, 25, 15])
    rng = np.random.default_rng(0)
    simulated = [count_runs(rng.permutation(labels).tolist()) for _ in range(4000)]
    shuffled = rng.permutation(labels)
    test = runs_test(shuffled)
    assert test.runs == count_runs(shuffled.tolist())
    assert test.expected == pytest.approx(np.mean(simulated), abs=0.3)
    assert (test.runs - test.expected) / test.z == pytest.approx(np.std(simulated), rel=0.05)


def test_runs_of_two_classes_follow_the_formula_of_wald_and_wolfowitz():
    labels = [0, 0, 1, 0, 1, 1, 1, 1, 0, 0]
    a = b = 5
    mean = 1 + 2 * a * b / (a + b)
    variance = 2 * a * b * (2 * a * b - a - b) / ((a + b) ** 2 * (a + b - 1))
    z = (5 - mean) / variance**0.5
    assert runs_test(labels) == pytest.approx((5, mean, z, 2 * norm.sf(-z)))


def test_only_random_orders_have_a_large_p():
    for labels in (np.repeat([0, 1, 2], 50), np.tile([0, 1, 2], 50)):
        assert runs_test(labels).p < 1e-6
    for labels in ([0, 0, 0], [0, 1, 2]):  # every order has the same number of runs
        assert runs_test(labels)[2:] == (0, 1)


def test_shares_test_by_hand():
    # The expected counts of both rows are 15 and 10: 2 (5^2 / 15 + 5^2 / 10) = 25 / 3.
    test = data_statistics.shares_test([20, 5], [10, 15])
    assert test == pytest.approx((25 / 3, 0.00389), abs=1e-5)
    assert data_statistics.shares_test([4949, 466, 210], [551, 51, 23]).p > 0.9


def test_pixel_statistics_equal_a_loop():
    images = random_part((3, 2)).images
    images[:4] //= 5  # dark images: the means differ too
    pixels = images.numpy() / 255
    found = moments(images)
    channel, image = data_statistics.channel_statistics(found), image_statistics(found)
    by_channel = [pixels[:, k] for k in range(3)]
    for mean, deviation, parts in (
        (channel["mean"], channel["st. dev."], by_channel),
        (image["brightness"], image["contrast"], pixels),
    ):
        assert mean == pytest.approx([part.mean() for part in parts], abs=1e-5)
        assert deviation == pytest.approx([part.std() for part in parts], rel=1e-3)


def test_outliers_by_hand():
    # The median is 5 and the median absolute deviation 2: the limit is 3 x 1.4826 x 2 = 8.8956.
    values = np.array([5, 3, 7, 5 + 8.89, 5 - 8.90, 20, 5])
    assert outliers(values).tolist() == [5, 4]
    # A black and a white image are outliers.
    images = random_part((200,)).images
    images[17], images[90] = 0, 255
    assert set(outliers(image_statistics(moments(images))["brightness"])[:2]) == {17, 90}


def test_a_change_of_brightness_is_significant():
    images = random_part((300,)).images
    same = image_statistics(moments(images))["brightness"]
    darker = image_statistics(moments((images * 0.9).to(torch.uint8)))["brightness"]
    assert data_statistics.same_distribution_test(same[::2], same[1::2]).p > 0.01
    assert data_statistics.same_distribution_test(same, darker).p < 1e-6
