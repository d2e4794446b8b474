"""Reports: the metrics for imbalanced classes, each with its 95% interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
    recall_score,
)

from common.metrics.intervals import PER_CLASS, scores_and_intervals


@dataclass(frozen=True)
class Report:
    """All metrics of one set of predictions; `report` gives their formulas.

    confusion: counts (K, K), rows true classes, columns predicted classes. recall, precision,
    f1, support: lists (K,). macro, weighted: averages of precision, recall and f1 over all K
    classes, with equal weights and weighted by support. intervals: the 95% interval of each
    number, by name, all from one posterior (see `intervals`). undefined: the metrics that are 0
    because their denominator is 0, such as "precision of cat".
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

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, for a result file."""
        return asdict(self)


def report(labels: Sequence[int], predictions: Sequence[int], classes: Sequence[str]) -> Report:
    """Return the Report of predictions (N,) for labels (N,), both ints below K = len(classes).

    With C the confusion matrix (K, K), n_k = sum_j C_kj and m_k = sum_i C_ik:

        accuracy = sum_k C_kk / N                   recall_k = C_kk / n_k
        balanced accuracy = mean_k recall_k         precision_k = C_kk / m_k
        G-mean = (prod_k recall_k) ** (1 / K)       F1_k = 2 C_kk / (n_k + m_k)

    Zero division: a metric of a class whose denominator is 0 is 0 and listed as undefined.
    Balanced accuracy and G-mean leave out a class without images, as scikit-learn's
    balanced_accuracy_score does. Raises ValueError if N is 0.

    >>> r = report([0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 2, 0], ["car", "truck", "cat"])
    >>> [round(recall, 3) for recall in r.recall], round(r.balanced_accuracy, 3)
    ([0.667, 1.0, 0.5], 0.722)
    >>> round(r.g_mean, 3)  # the cube root of 2/3 * 1 * 1/2
    0.693
    >>> r.undefined
    []
    """
    y, p = np.asarray(labels), np.asarray(predictions)
    all_classes = np.arange(len(classes))
    confusion = confusion_matrix(y, p, labels=all_classes)
    support, predicted = confusion.sum(1), confusion.sum(0)
    present = all_classes[support > 0]
    options = {"labels": all_classes, "zero_division": 0}
    precision, recall, f1, _ = precision_recall_fscore_support(y, p, **options)
    averages = {}
    for kind in ("macro", "weighted"):
        values = precision_recall_fscore_support(y, p, average=kind, **options)[:3]
        averages[kind] = dict(zip(PER_CLASS, map(float, values), strict=True))
    undefined = [f"precision of {classes[k]}" for k in all_classes if predicted[k] == 0]
    undefined += [f"recall of {classes[k]}" for k in all_classes if support[k] == 0]
    undefined += [f"f1 of {classes[k]}" for k in all_classes if predicted[k] + support[k] == 0]
    return Report(
        classes=tuple(classes),
        confusion=confusion.tolist(),
        accuracy=float(accuracy_score(y, p)),
        balanced_accuracy=float(recall_score(y, p, labels=present, average="macro")),
        g_mean=g_mean(y, p),
        recall=recall.tolist(),
        precision=precision.tolist(),
        f1=f1.tolist(),
        support=support.tolist(),
        intervals=scores_and_intervals(confusion)[1],
        undefined=undefined,
        **averages,
    )


def g_mean(labels: Sequence[int], predictions: Sequence[int]) -> float:
    """Return the geometric mean of the recalls of the classes in labels, (N,).

    (imbalanced-learn's geometric_mean_score has the same value, and takes a second to import.)

    >>> round(g_mean([0, 0, 0, 1, 2, 2], [0, 0, 1, 1, 2, 0]), 3)
    0.693
    """
    recalls = recall_score(labels, predictions, labels=np.unique(labels), average=None)
    return float(np.prod(recalls) ** (1 / len(recalls)))


def from_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Report:
    """Return the Report of the predictions that a confusion matrix (K, K) counts.

    >>> from_confusion([[3, 1], [0, 1]], ["car", "cat"]).recall
    [0.75, 1.0]
    """
    return report(*labels_and_predictions(confusion), classes)


def labels_and_predictions(
    confusion: Sequence[Sequence[int]],
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and predictions, both (N,), that a confusion matrix (K, K) counts.

    >>> [each.tolist() for each in labels_and_predictions([[2, 1], [0, 1]])]
    [[0, 0, 0, 1], [0, 0, 1, 1]]
    """
    counts = np.asarray(confusion).ravel()
    true, predicted = np.indices(np.shape(confusion))
    return np.repeat(true.ravel(), counts), np.repeat(predicted.ravel(), counts)
