"""95% intervals of everything that a confusion matrix tells, from one posterior.

The images of each true class are draws from an unknown distribution over the predictions. Its
posterior is a Dirichlet distribution: the row of the confusion matrix plus Jeffreys' prior on
right and wrong, 0.5 for the right prediction and 0.5 / (K - 1) for each other one. A recall
then has the posterior Beta(right + 0.5, wrong + 0.5) of Brown, Cai and DasGupta (2001). All
rows are drawn once, and the interval of each number is read off the same draws, so that equal
numbers have equal intervals.

Where a class is always wrong, or always right, the prior alone would move the mean of several
recalls off what the images show. Brown et al. set the end of a recall's interval to 0 or 1
there. The same for any metric: a second half of the draws has the prior only on the cells that
hold images, so that the others stay empty, and an interval reaches to the farther end of both.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
TAILS = [50 * (1 - LEVEL), 50 * (1 + LEVEL)]  # percentiles
DRAWS = 4000  # an end of an interval is then exact to about a fiftieth of the width
PER_CLASS = ("precision", "recall", "f1")  # the metrics of one class
Interval = Sequence[float]  # low, high


def row_prior(classes: int) -> np.ndarray:
    """Return the prior of each true class's row, (K, K); each row sums to 1.

    >>> row_prior(3)
    array([[0.5 , 0.25, 0.25],
           [0.25, 0.5 , 0.25],
           [0.25, 0.25, 0.5 ]])
    """
    prior = np.full((classes, classes), 0.5 / (classes - 1))
    np.fill_diagonal(prior, 0.5)
    return prior


def seen_prior(confusion: np.ndarray) -> np.ndarray:
    """Return the prior (K, K) on those cells of a confusion matrix that hold images.

    0.5 for the right prediction and 0.5 for all wrong ones together, if there are any. A row
    without images has the whole prior.

    >>> seen_prior(np.array([[7, 0, 2], [0, 0, 4], [0, 0, 3]]))
    array([[0.5, 0. , 0.5],
           [0. , 0. , 0.5],
           [0. , 0. , 0.5]])
    """
    whole = row_prior(len(confusion))
    diagonal = np.eye(len(confusion), dtype=bool)
    wrong = (confusion > 0) & ~diagonal
    prior = np.where((confusion > 0) & diagonal, 0.5, 0)
    prior = prior + 0.5 * wrong / np.maximum(wrong.sum(1, keepdims=True), 1)
    return np.where(confusion.any(1, keepdims=True), prior, whole)


def scores(recall: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> dict[str, Any]:
    """Return the metrics of a report from recalls (..., K), by name.

    predicted: how many images are predicted to be of each class, (..., K). support: images of
    each class, (K,). Both may be shares. Zero division: a metric whose denominator is 0 is 0;
    balanced accuracy and G-mean leave out a class without images.
    """
    hits, present = recall * support, recall[..., support > 0]
    by_class = {
        "precision": hits / np.where(predicted > 0, predicted, 1),
        "recall": recall,
        "f1": 2 * hits / np.where(predicted + support > 0, predicted + support, 1),
    }
    averages = {
        "accuracy": hits.sum(-1) / support.sum(),
        "balanced_accuracy": present.mean(-1),
        "g_mean": stats.gmean(present, axis=-1),
    }
    for name, values in by_class.items():
        # The recall of a class without images counts as 0 in the averages.
        values = np.where(support > 0, values, 0)
        averages[f"macro_{name}"] = values.mean(-1)
        averages[f"weighted_{name}"] = values @ support / support.sum()
    return averages | by_class


def row_draws(confusion: np.ndarray) -> Iterator[np.ndarray]:
    """Yield draws of each true class's shares of the predictions, (2, DRAWS, K).

    confusion: counts (K, K). The first half has the whole prior, the second `seen_prior`. The
    draws of a recall depend on the class's right and wrong predictions alone, not on which
    ones are wrong, so that equal recalls have equal draws.
    """
    classes = len(confusion)
    priors = row_prior(classes), seen_prior(confusion)
    for k, (counts, *of_halves) in enumerate(zip(confusion, *priors, strict=True)):
        rng = np.random.default_rng([0, k])
        wrong = np.arange(classes) != k
        recall = stats.beta.ppf(random_levels(rng), counts[k] + 0.5, counts[wrong].sum() + 0.5)
        rows = np.empty((2, DRAWS, classes))
        for half, prior in zip(rows, of_halves, strict=True):
            # Gamma variables, divided by their sum, are a draw of a Dirichlet distribution.
            split = rng.standard_gamma((counts + prior)[wrong], (DRAWS, classes - 1))
            half[:, k] = recall
            if not prior[k]:
                half[:, k] = 0
            if not prior[wrong].any():
                half[:, k] = 1
            total = np.maximum(split.sum(1, keepdims=True), np.finfo(float).tiny)
            half[:, wrong] = (1 - half[:, [k]]) * split / total
        yield rows


def random_levels(rng: np.random.Generator) -> np.ndarray:
    """Return DRAWS numbers between 0 and 1, evenly spaced, in random order.

    A distribution's quantiles at these levels are draws of it whose percentiles are exact.
    """
    return (rng.permutation(DRAWS) + 0.5) / DRAWS


def draw_rows(confusion: np.ndarray, support: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return draws of the recalls and of the predicted counts, both (2, DRAWS, K).

    They are those of `row_draws`. support: images of each class, (K,), or their shares.
    """
    recall = np.empty((2, DRAWS, len(confusion)))
    predicted = np.zeros_like(recall)
    for k, rows in enumerate(row_draws(confusion)):
        recall[..., k] = rows[..., k]
        predicted += support[k] * rows
    return recall, predicted


def interval(draws: np.ndarray, value: Any) -> Any:
    """Return [low, high] of draws (2, DRAWS, ...) for the number `value`, (...), as lists.

    The lower of both halves' 2.5th percentiles and the higher of their 97.5th; the number
    itself is never outside.
    """
    low, high = np.percentile(draws, TAILS, axis=1)
    ends = [np.minimum(low.min(0), value), np.maximum(high.max(0), value)]
    return np.stack(ends, -1).tolist()


def scores_and_intervals(
    confusion: np.ndarray, support: np.ndarray | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the metrics of a confusion matrix, counts (K, K), and their intervals, by name.

    support: the share of each class, (K,), where the metrics are to hold; by default that of
    the counts. A number that no image could change has the interval [0, 1]. The intervals of
    recalls are exact, see `proportion_interval`.

    >>> values, intervals = scores_and_intervals(np.array([[3, 0], [0, 2]]))
    >>> float(values["g_mean"]), [round(end, 2) for end in intervals["g_mean"]]
    (1.0, [0.51, 1.0])
    """
    counts = confusion.sum(1)
    shares = confusion / np.maximum(counts, 1)[:, None]
    support = counts if support is None else support
    values = scores(np.diagonal(shares), support @ shares, support)
    draws = scores(*draw_rows(confusion, support), support)
    intervals = {}
    for name, value in values.items():
        ends = np.array(interval(draws[name], value))
        # The precision and the F1 of a class without images, or the precision without others.
        without_width = ends[..., 0] == ends[..., 1]
        intervals[name] = np.where(without_width[..., None], [0.0, 1.0], ends).tolist()
    hits = np.diagonal(confusion).tolist()
    intervals["recall"] = list(map(proportion_interval, hits, counts.tolist()))
    return values, intervals


def proportion_interval(successes: int, trials: int) -> list[float]:
    """Return the interval of successes / trials: of the same posterior, with two cells.

    The quantiles of Beta(successes + 0.5, trials - successes + 0.5); the lower end is 0 without
    successes, the upper 1 without failures (Brown et al. 2001).

    >>> [round(end, 3) for end in proportion_interval(7, 23)]
    [0.148, 0.507]
    >>> [round(end, 3) for end in proportion_interval(23, 23)]
    [0.898, 1.0]
    """
    failures = trials - successes
    low, high = stats.beta.interval(LEVEL, successes + 0.5, failures + 0.5)
    low = 0.0 if not successes else low
    high = 1.0 if not failures else high
    return [float(low), float(high)]


def median_with_interval(values: Sequence[float] | np.ndarray) -> tuple[float, list[float]]:
    """Return the median of values (N,), each from 0 to infinity, and its interval.

    A number t is outside the interval if the `proportion_interval` of the share of values below
    t lies above one half, or that of the share of values up to t lies below one half. So the
    interval of a median radius that fools agrees with the intervals of the shares of images
    that are fooled. Its ends are values, of ranks k and N + 1 - k: infinite values and equal
    values need no rule of their own. Three values or fewer tell nothing: their interval is
    [0, inf]. An interval has no width only where all values from rank k to rank N + 1 - k are
    equal, as the radii of a class whose images are all misclassified are 0. The median of an
    even number of values is the mean of the middle two; of no values, it is nan.

    >>> median_with_interval([3, 1, 2, 5, 4])
    (3.0, [1.0, 5.0])
    >>> median_with_interval([2.0])
    (2.0, [0.0, inf])
    """
    n = len(values)
    ranked = np.concatenate([[0.0], np.sort(values), [np.inf]])
    # The first count of n whose interval reaches one half; by symmetry, n - k is the last.
    k = bisect_left(range(n + 1), 0.5, key=lambda count: proportion_interval(count, n)[1])
    median = float(np.median(values)) if n else np.nan
    return median, [float(ranked[k]), float(ranked[n + 1 - k])]
