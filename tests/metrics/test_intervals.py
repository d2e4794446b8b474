from functools import partial

import numpy as np
import pytest
from imblearn.metrics import geometric_mean_score
from scipy import stats
from sklearn import metrics as sk

from common.metrics.intervals import bootstrap, t_interval, wilson


def test_wilson_by_hand():
    # 7 of 23 with z = 1.959964: centre (7 + z^2/2) / (23 + z^2), half-width
    # z / (23 + z^2) * sqrt(7 * 16 / 23 + z^2 / 4).
    z = 1.959964
    centre = (7 + z**2 / 2) / (23 + z**2)
    half = z / (23 + z**2) * np.sqrt(7 * 16 / 23 + z**2 / 4)
    assert wilson(7, 23) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert wilson(0, 0) == (0, 1)


def test_bootstrap_equals_resampling_of_images():
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [150, 40, 20])
    p = np.where(rng.random(len(y)) < 0.7, y, rng.integers(0, 3, len(y)))
    scores = {
        "balanced_accuracy": sk.balanced_accuracy_score,
        "g_mean": geometric_mean_score,
        "f1": partial(sk.f1_score, average=None),
        "precision": partial(sk.precision_score, average=None),
    }
    classes = [np.flatnonzero(y == k) for k in range(3)]
    draws = [np.concatenate([rng.choice(c, len(c)) for c in classes]) for _ in range(800)]
    intervals = bootstrap(sk.confusion_matrix(y, p))
    for name, score in scores.items():
        values = [score(y[drawn], p[drawn]) for drawn in draws]
        expected = np.percentile(values, [2.5, 97.5], axis=0).T
        assert np.array(intervals[name]) == pytest.approx(expected, abs=0.02), name


def test_t_interval_is_students_and_defined_without_spread():
    values = np.array([0.2, 0.5, 0.6, 0.7])
    half = stats.t.ppf(0.975, 3) * values.std(ddof=1) / 2
    expected = (values.mean() - half, values.mean() + half)
    assert t_interval(values) == pytest.approx(expected)
    assert t_interval(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5)
