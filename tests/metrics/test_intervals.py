import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from metric_cases import confusions, metrics_by_loop, predictions_of
from scipy import stats

from common.metrics.intervals import bootstrap, t_interval, wilson


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_the_formula(case):
    successes, n = case
    low, high = wilson(successes, n)
    z, p = 1.959963984540054, successes / n
    half = z * math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2)
    expected = [(p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert (low, high) == pytest.approx(expected, abs=1e-9)
    assert 0 <= low <= p <= high <= 1
    assert low < high
    # The interval of the share of errors is the mirror image.
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_wilson_without_trials_knows_nothing():
    assert wilson(0, 0) == (0, 1)


@given(confusions(sure=True))
def test_bootstrap_of_predictions_without_chance_has_the_metrics_as_both_ends(confusion):
    """All images of a class have one prediction, so that all draws are the same."""
    y, p = predictions_of(confusion)
    expected = metrics_by_loop(y, p, len(confusion))
    intervals = bootstrap(confusion)
    for name, interval in intervals.items():
        both = np.stack([expected[name]] * 2, -1)
        assert np.array(interval) == pytest.approx(both), name
    assert intervals.keys() == expected.keys() - {"accuracy", "recall"}


def test_bootstrap_equals_resampling_of_images():
    rng = np.random.default_rng(1)
    confusion = np.array([[120, 20, 10], [8, 30, 2], [3, 4, 13]])
    y, p = map(np.array, predictions_of(confusion))
    classes = [np.flatnonzero(y == k) for k in range(3)]
    draws = [np.concatenate([rng.choice(c, len(c)) for c in classes]) for _ in range(1000)]
    scores = [metrics_by_loop(y[i].tolist(), p[i].tolist(), 3) for i in draws]
    intervals = bootstrap(confusion)
    assert len(intervals) == 10
    for name, interval in intervals.items():
        values = np.array([score[name] for score in scores])
        low, high = np.percentile(values, [2.5, 97.5], axis=0)
        # The ends' standard error over draws is about a tenth of the width.
        assert np.abs(np.array(interval).T - (low, high)).max() < 0.1 * (high - low).max()
    assert intervals == bootstrap(confusion)


VALUES = st.lists(st.integers(0, 20).map(lambda n: n / 20), min_size=2, max_size=6)


@given(VALUES)
def test_t_interval_is_students(values):
    n, mean = len(values), statistics.fmean(values)
    half = stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
    assert t_interval(np.array(values)) == pytest.approx((mean - half, mean + half), abs=1e-9)


def test_t_interval_without_spread_is_the_mean():
    assert t_interval(np.array([0.5, 0.5, 0.5])) == (0.5, 0.5)
