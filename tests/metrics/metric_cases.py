"""Confusion matrices for the tests of the metrics, and the metrics by their definitions."""

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

Metrics = dict[str, float | list[float]]


@st.composite
def confusions(draw, sure: bool = False) -> np.ndarray:
    """Draw counts (K, K) of 2 to 4 classes, not all 0; a class may be without images.

    sure: all images of a class are predicted to be of one class.
    """
    k = draw(st.integers(2, 4))
    count = st.integers(0, 6)
    if sure:
        counts = np.zeros((k, k), dtype=int)
        for row in counts:
            row[draw(st.integers(0, k - 1))] = draw(count)
    else:
        values = draw(st.lists(count, min_size=k * k, max_size=k * k))
        counts = np.array(values).reshape(k, k)
    if counts.sum() == 0:
        counts[-1, 0] = 1
    return counts


def predictions_of(confusion: np.ndarray) -> tuple[list[int], list[int]]:
    """Return the labels and the predictions that a confusion matrix counts."""
    k = range(len(confusion))
    pairs = [(i, j) for i in k for j in k for _ in range(confusion[i][j])]
    return [i for i, _ in pairs], [j for _, j in pairs]


def metrics_by_loop(y: Sequence[int], p: Sequence[int], k: int) -> Metrics:
    """Return the metrics of predictions p (N,) for labels y (N,) of k classes."""
    pairs = list(zip(y, p, strict=True))
    hits = [sum(pair == (c, c) for pair in pairs) for c in range(k)]
    predicted = [sum(guess == c for _, guess in pairs) for c in range(k)]
    actual = [sum(label == c for label, _ in pairs) for c in range(k)]
    return metrics_of_counts(hits, predicted, actual)


def metrics_of_rows(rows: Sequence[Sequence[float]], support: Sequence[float]) -> Metrics:
    """Return the metrics of predictions with the shares `rows` (K, K) of each true class.

    support: images of each class, (K,), or their shares.
    """
    k = range(len(rows))
    hits = [support[c] * rows[c][c] for c in k]
    predicted = [sum(support[true] * rows[true][c] for true in k) for c in k]
    return metrics_of_counts(hits, predicted, support)


def metrics_of_counts(
    hits: Sequence[float], predicted: Sequence[float], actual: Sequence[float]
) -> Metrics:
    """Return the metrics by their definitions; a metric whose denominator is 0 is 0.

    For each class: correct predictions, predictions, images.
    """
    recall = [h / n if n else 0.0 for h, n in zip(hits, actual, strict=True)]
    precision = [h / n if n else 0.0 for h, n in zip(hits, predicted, strict=True)]
    f1 = [2 * q * r / (q + r) if q + r else 0.0 for q, r in zip(precision, recall, strict=True)]
    of_present = [r for r, n in zip(recall, actual, strict=True) if n]
    metrics = {
        "accuracy": sum(hits) / sum(actual),
        "balanced_accuracy": sum(of_present) / len(of_present),
        "g_mean": math.prod(of_present) ** (1 / len(of_present)),
        "recall": recall,
        "precision": precision,
        "f1": f1,
    }
    for name in ("precision", "recall", "f1"):
        values = metrics[name]
        weighted = sum(v * n for v, n in zip(values, actual, strict=True))
        metrics[f"macro_{name}"] = sum(values) / len(values)
        metrics[f"weighted_{name}"] = weighted / sum(actual)
    return metrics
