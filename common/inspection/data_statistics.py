"""Statistics of a data set: pixel statistics, outliers, and tests of order and distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import chi2_contingency, ks_2samp, median_abs_deviation, norm

from common.networks.prediction import to_pixel_space

# Robust standard deviations from the median beyond which a value is an outlier.
OUTLIER_DISTANCE = 3.0


class SignificanceTest(NamedTuple):
    """A test statistic and its p-value."""

    statistic: float
    p: float


class RunsTest(NamedTuple):
    """The number of runs of equal labels, its mean in a random order, z-score and p-value."""

    runs: int
    expected: float
    z: float
    p: float


def channel_statistics(images: torch.Tensor) -> dict[str, list[float]]:
    """Return mean and standard deviation of each channel in [0, 1], of images (N, 3, H, W)."""
    x = to_pixel_space(images)
    return {"mean": x.mean((0, 2, 3)).tolist(), "st. dev.": x.std((0, 2, 3)).tolist()}


def image_statistics(images: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the brightness (mean) and contrast (standard deviation) of each image.

    images: (N, 3, H, W). Both statistics are (N,), in [0, 1].
    """
    x = to_pixel_space(images).flatten(1)
    return {"brightness": x.mean(1).cpu().numpy(), "contrast": x.std(1).cpu().numpy()}


def outliers(values: np.ndarray) -> np.ndarray:
    """Return the positions of the outliers among values (N,), the most extreme first.

    An outlier is farther than OUTLIER_DISTANCE robust standard deviations from the median. The
    robust standard deviation is 1.4826 times the median absolute deviation, which equals the
    standard deviation for normally distributed values (Hampel 1974). Outliers hardly change
    the median and the median absolute deviation.

    >>> outliers(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 30.0, -40.0]))
    array([6, 5])
    """
    distance = np.abs(values - np.median(values))
    spread = median_abs_deviation(values, scale="normal")
    ranked = np.argsort(-distance, kind="stable")
    return ranked[distance[ranked] > OUTLIER_DISTANCE * spread]


def runs_test(labels: Sequence[int]) -> RunsTest:
    """Test whether labels (N,) are in random order (Wald and Wolfowitz's two-sided runs test).

    For two or more classes (Barton and David 1957), with n_k of N labels in class k, the
    number of runs in a random order has mean N + 1 - sum n_k^2 / N and variance
    [S2 (S2 + N(N + 1)) - 2 N S3 - N^3] / [N^2 (N - 1)], where Si = sum n_k^i.

    A negative z means few runs: equal labels are grouped. A positive z means many runs: the
    labels alternate. With one class, or one label of each class, every order has the same
    number of runs; z is then 0 and p is 1.

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


def shares_test(train_counts: Sequence[int], test_counts: Sequence[int]) -> SignificanceTest:
    """Test whether train and test set have equal class shares (Pearson's chi-square test)."""
    result = chi2_contingency([train_counts, test_counts], correction=False)
    return SignificanceTest(float(result.statistic), float(result.pvalue))


def same_distribution_test(a: np.ndarray, b: np.ndarray) -> SignificanceTest:
    """Test whether values (N,) and (M,) have one distribution (Kolmogorov-Smirnov test)."""
    result = ks_2samp(a, b)
    return SignificanceTest(float(result.statistic), float(result.pvalue))
