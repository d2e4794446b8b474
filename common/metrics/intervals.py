"""95% intervals of proportions, of the metrics of a report, and of means over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 2000  # of the bootstrap
PER_CLASS = ("precision", "recall", "f1")  # the metrics of one class
Interval = Sequence[float]  # low, high


def wilson(successes: int, trials: int) -> Interval:
    """Return Wilson's score interval of a proportion p = successes / trials (Wilson 1927).

    (p + z**2 / (2 n) -+ z * sqrt(p (1 - p) / n + (z / (2 n))**2)) / (1 + z**2 / n), where n is
    the number of trials and z = 1.96. Zero division: without trials, the interval is (0, 1).

    >>> low, high = wilson(7, 23)
    >>> round(low, 3), round(high, 3)
    (0.156, 0.509)
    """
    if trials == 0:
        return 0.0, 1.0
    interval = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(confusion: np.ndarray) -> dict[str, Any]:
    """Return percentile intervals of a stratified bootstrap (Efron and Tibshirani 1993).

    confusion: counts (K, K). A draw of the n_k images of class k with replacement is a draw of
    row k from a multinomial distribution of n_k trials. Zero division: a metric whose
    denominator is 0 in a draw is 0. If each class is all right or all wrong, all draws are the
    same and the intervals have width 0. Returns [low, high] by name, or a list of K of them.

    >>> bootstrap(np.array([[3, 0], [0, 2]]))["g_mean"]
    [1.0, 1.0]
    """
    rng = np.random.default_rng(0)
    support = confusion.sum(1)
    shares = confusion / np.maximum(support, 1)[:, None]
    shares[support == 0, 0] = 1  # any distribution will do for a row without images
    rows = [rng.multinomial(n, row, RESAMPLES) for n, row in zip(support, shares, strict=True)]
    draws = np.stack(rows, 1)  # (RESAMPLES, K, K)
    hits = np.diagonal(draws, axis1=1, axis2=2)  # (RESAMPLES, K)
    predicted = draws.sum(1)
    precision = hits / np.maximum(predicted, 1)
    recall = hits / np.maximum(support, 1)
    f1 = 2 * hits / np.maximum(predicted + support, 1)
    recall_present = recall[:, support > 0]
    scores = {
        "balanced_accuracy": recall_present.mean(1),
        "g_mean": recall_present.prod(1) ** (1 / recall_present.shape[1]),
        "precision": precision,
        "f1": f1,
    }
    for name, values in zip(PER_CLASS, (precision, recall, f1), strict=True):
        scores[f"macro_{name}"] = values.mean(1)
        scores[f"weighted_{name}"] = values @ support / support.sum()
    tails = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]
    return {name: np.percentile(s, tails, axis=0).T.tolist() for name, s in scores.items()}


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """Return Student's interval of the mean of values (N,), for N of at least 2.

    mean -+ t * s / sqrt(N), with the sample standard deviation s and t the 97.5th percentile of
    Student's distribution with N - 1 degrees of freedom. If s is 0, both ends are the mean.

    >>> low, high = t_interval(np.array([1.0, 2.0, 3.0]))  # 2 -+ 4.303 * 1 / sqrt(3)
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    standard_error = stats.sem(values)
    if standard_error == 0:  # SciPy returns NaN
        return float(values.mean()), float(values.mean())
    low, high = stats.t.interval(LEVEL, len(values) - 1, values.mean(), standard_error)
    return float(low), float(high)
