"""Descriptions of a data set: pixel statistics, outliers, and tests of order and likeness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import chi2_contingency, ks_2samp, norm

from common.models import pixels

# A standardised distance from the median beyond which an image is called an outlier.
OUTLIER_DISTANCE = 3.0


class Outcome(NamedTuple):
    """A statistic and the probability of one at least as extreme if nothing is going on."""

    statistic: float
    p: float


class RunsTest(NamedTuple):
    """Runs of equal labels: how many, how many a random order has on average, z and p."""

    runs: int
    expected: float
    z: float
    p: float


def channel_statistics(images: torch.Tensor) -> dict[str, list[float]]:
    """Mean and standard deviation of red, green and blue, in [0, 1]; images (N, 3, H, W)."""
    x = pixels(images)
    return {"mean": x.mean((0, 2, 3)).tolist(), "st. dev.": x.std((0, 2, 3)).tolist()}


def image_statistics(images: torch.Tensor) -> dict[str, np.ndarray]:
    """Each image's brightness (mean) and contrast (standard deviation), (N,), in [0, 1]."""
    x = pixels(images).flatten(1)
    return {"brightness": x.mean(1).cpu().numpy(), "contrast": x.std(1).cpu().numpy()}


def outliers(values: np.ndarray) -> np.ndarray:
    """Positions of values (N,) beyond OUTLIER_DISTANCE, the most extreme first.

    Distances are from the median in units of the median absolute deviation, times 1.4826 to
    equal a standard deviation for normal values (Hampel 1974): the outliers themselves hardly
    move either.

    >>> outliers(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 30.0, -40.0]))
    array([6, 5])
    """
    distance = np.abs(values - np.median(values))
    spread = 1.4826 * np.median(distance)
    ranked = np.argsort(-distance, kind="stable")
    return ranked[distance[ranked] > OUTLIER_DISTANCE * spread]


def runs_test(labels: Sequence[int]) -> RunsTest:
    """Whether labels (N,) lie in random order: Wald and Wolfowitz's runs test, two-sided.

    For two or more classes (Barton and David 1957), with n_k of N labels in class k, the
    number of runs in a random order has mean N + 1 - sum n_k^2 / N and variance
    [S2 (S2 + N(N + 1)) - 2 N S3 - N^3] / [N^2 (N - 1)], where Si = sum n_k^i.

    Few runs (z below 0): equal labels lie together; many: they alternate. With one class, or
    one label of each class, there is only one number of runs: z is 0 and p is 1.

    >>> runs_test([0, 0, 0, 1, 1, 1]).runs, runs_test([0, 0, 0, 1, 1, 1]).expected
    (2, 4.0)
    """
    y = np.asarray(labels)
    n = len(y)
    sizes = np.bincount(y).astype(float)
    s2, s3 = (sizes**2).sum(), (sizes**3).sum()
    runs = 1 + int((y[1:] != y[:-1]).sum())
    expected = n + 1 - s2 / n
    variance = (s2 * (s2 + n * (n + 1)) - 2 * n * s3 - n**3) / (n**2 * (n - 1))
    if variance <= 0:
        return RunsTest(runs, float(expected), 0.0, 1.0)
    z = float((runs - expected) / np.sqrt(variance))
    return RunsTest(runs, float(expected), z, float(2 * norm.sf(abs(z))))


def shares_test(train_counts: Sequence[int], test_counts: Sequence[int]) -> Outcome:
    """Pearson's chi-square test that train and test have the same class shares."""
    result = chi2_contingency([train_counts, test_counts], correction=False)
    return Outcome(float(result.statistic), float(result.pvalue))


def same_distribution_test(a: np.ndarray, b: np.ndarray) -> Outcome:
    """Kolmogorov and Smirnov's two-sample test on values (N,) and (M,)."""
    result = ks_2samp(a, b)
    return Outcome(float(result.statistic), float(result.pvalue))
