"""Predictions to a Report: the metrics for imbalanced classes, each with its 95% interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from imblearn.metrics import geometric_mean_score
from scipy.stats import binomtest
from sklearn.metrics import (
    accuracy_score,
    classification_report,
    confusion_matrix,
    precision_recall_fscore_support,
    recall_score,
)

LEVEL = 0.95
RESAMPLES = 2000
PER_CLASS = ("precision", "recall", "f1")
Interval = Sequence[float]  # low, high


@dataclass(frozen=True)
class Report:
    """All metrics of one set of predictions.

    confusion: counts (K, K), row true class, column predicted. recall, precision, f1 and
    support: one value per class. balanced_accuracy: mean recall; g_mean: geometric mean of
    recalls; both over the classes that have images. macro, weighted: averages of precision,
    recall and f1 over all K classes. intervals: 95%, one for each number or list of numbers.
    undefined: metrics that are 0 only for want of a denominator ("precision of cat").
    """

    classes: tuple[str, ...]
    confusion: list[list[int]]
    accuracy: float
    balanced_accuracy: float
    g_mean: float
    recall: list[float]
    precision: list[float]
    f1: list[float]
    support: list[int]
    macro: dict[str, float]
    weighted: dict[str, float]
    intervals: dict[str, Any]
    undefined: list[str]
    table: str = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for a result file."""
        return {name: value for name, value in asdict(self).items() if name != "table"}


def report(labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]) -> Report:
    """The Report of `predictions` (N,) against `labels` (N,), both ints below len(classes).

    Zero division: a precision whose class is never predicted, and a recall whose class has no
    images, are 0 and listed as undefined; so is the F1 where both are undefined. A class with
    no images counts in neither balanced accuracy nor G-mean (as in scikit-learn's
    balanced_accuracy_score). Raises ValueError where there are no images at all.

    >>> r = report([0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 2, 0], ["car", "truck", "cat"])
    >>> [round(recall, 3) for recall in r.recall], round(r.balanced_accuracy, 3)
    ([0.667, 1.0, 0.5], 0.722)
    >>> round(r.g_mean, 3)  # the cube root of 2/3 * 1 * 1/2
    0.693
    >>> r.undefined
    []
    """
    y, p = np.asarray(labels), np.asarray(predictions)
    every = np.arange(len(classes))
    confusion = confusion_matrix(y, p, labels=every)
    support, predicted = confusion.sum(1), confusion.sum(0)
    present = every[support > 0]
    shared = {"labels": every, "zero_division": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(y, p, **shared)
    averages = {}
    for kind in ("macro", "weighted"):
        values = precision_recall_fscore_support(y, p, average=kind, **shared)[:3]
        averages[kind] = dict(
            zip(("precision", "recall", "f1"), map(float, values), strict=True)
        )
    undefined = [f"precision of {classes[k]}" for k in every if predicted[k] == 0]
    undefined += [f"recall of {classes[k]}" for k in every if support[k] == 0]
    undefined += [f"f1 of {classes[k]}" for k in every if predicted[k] + support[k] == 0]
    return Report(
        classes=tuple(classes),
        confusion=confusion.tolist(),
        accuracy=float(accuracy_score(y, p)),
        balanced_accuracy=float(recall_score(y, p, labels=present, average="macro")),
        g_mean=float(geometric_mean_score(y, p, labels=present)),
        recall=recall.tolist(),
        precision=precision.tolist(),
        f1=f1.tolist(),
        support=support.tolist(),
        intervals={
            "accuracy": wilson(int(confusion.trace()), len(y)),
            "recall": [wilson(int(confusion[k, k]), int(support[k])) for k in every],
            **bootstrap(confusion),
        },
        undefined=undefined,
        table=classification_report(y, p, target_names=classes, digits=3, **shared),
        **averages,
    )


def from_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Report:
    """The Report of the predictions that a confusion matrix (K, K) counts."""
    counts = np.asarray(confusion)
    true, predicted = np.indices(counts.shape)
    return report(
        np.repeat(true.ravel(), counts.ravel()),
        np.repeat(predicted.ravel(), counts.ravel()),
        classes,
    )


def wilson(successes: int, trials: int) -> Interval:
    """Wilson's score interval for a proportion (Wilson 1927); (0, 1) where there are no trials.

    >>> low, high = wilson(7, 23)
    >>> round(low, 3), round(high, 3)
    (0.156, 0.509)
    """
    if trials == 0:
        return 0.0, 1.0
    interval = binomtest(successes, trials).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap(confusion: np.ndarray) -> dict[str, Any]:
    """Percentile intervals of a stratified bootstrap (Efron and Tibshirani 1993).

    Drawing a class's images again, with replacement, draws its row of the confusion matrix
    (K, K) from a multinomial. An undefined precision counts as 0. Where the images of each
    class are all right or all wrong, every draw is the same and the interval has no width.
    """
    rng = np.random.default_rng(0)
    support = confusion.sum(1)
    shares = confusion / np.maximum(support, 1)[:, None]
    shares[support == 0, 0] = 1  # zero draws from any distribution
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
    bounds = {name: np.percentile(draws, tails, axis=0).T for name, draws in scores.items()}
    return {name: bound.tolist() for name, bound in bounds.items()}
