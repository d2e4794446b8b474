"""Statistics of a data set: pixel statistics, outliers, and tests of order and distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import chi2_contingency, ks_2samp, median_abs_deviation, norm

from common.dataset.stored_images import Images
from common.networks.prediction import to_pixel_space

BLOCK = 128  # images at once
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


class Moments(NamedTuple):
    """Mean and variance of each image's channels in [0, 1], both float64 (N, 3).

    pixels: H * W, the values that each mean is taken over.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    pixels: int


def moments(images: Images, device: torch.device | str = "cpu") -> Moments:
    """Return the moments of images, uint8 (N, 3, H, W), computed on `device`."""
    # Made before the loop: small results between large blocks would keep the memory of each.
    mean, variance = torch.empty(2, len(images), 3, dtype=torch.float64)
    for k, block in enumerate(images.split(BLOCK)):
        x = to_pixel_space(block.to(device)).flatten(2)
        mean_of_block = x.mean(2)
        # torch.var_mean took 4 times as long at 128 pixels, and more at 32 (Intel Xeon, AMX).
        variance_of_block = (x - mean_of_block[..., None]).square_().mean(2)
        rows = slice(k * BLOCK, (k + 1) * BLOCK)
        mean[rows], variance[rows] = mean_of_block.cpu(), variance_of_block.cpu()
    return Moments(mean, variance, images.shape[2] * images.shape[3])


def channel_statistics(m: Moments) -> dict[str, list[float]]:
    """Return mean and standard deviation of red, green and blue over all pixels."""
    mean = m.mean.mean(0)
    variance = m.variance.mean(0) + ((m.mean - mean) ** 2).mean(0)
    n = len(m.mean) * m.pixels
    deviation = (variance * n / (n - 1)).sqrt()
    return {"mean": mean.tolist(), "st. dev.": deviation.tolist()}


def image_statistics(m: Moments) -> dict[str, np.ndarray]:
    """Return the brightness (mean) and contrast (standard deviation) of each image, (N,)."""
    brightness = m.mean.mean(1)
    variance = m.variance.mean(1) + ((m.mean - brightness[:, None]) ** 2).mean(1)
    n = 3 * m.pixels
    contrast = (variance * n / (n - 1)).sqrt()
    return {"brightness": brightness.numpy(), "contrast": contrast.numpy()}


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
