"""Recipes compared over seeds: means, deviations, intervals and significant differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from common.metrics.intervals import t_interval

SIGNIFICANT = 0.05  # p below which a difference is significant
ROUNDING = 1e-12  # differences of metrics that are closer than this are equal


@dataclass(frozen=True)
class Summary:
    """One metric of one recipe.

    mean, deviation: over seeds. interval: the 95% interval of the mean over seeds (Student's
    t); with one seed, the interval that the test images give. difference: the mean difference
    from the reference recipe, paired over seeds. p: of the paired t-test that the difference is
    0, with Holm's correction. With one seed, deviation and p are None; p is also None where the
    differences have no spread, and for the reference recipe.
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float]
    difference: float
    p: float | None

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


def metrics_of(result: dict[str, Any]) -> dict[str, tuple[float, Sequence[float]]]:
    """Return each metric of a run's result, and the interval that its test images give."""
    report = result["report"]
    intervals = report["intervals"]
    metrics = {
        "accuracy": (report["accuracy"], intervals["accuracy"]),
        "balanced accuracy": (report["balanced_accuracy"], intervals["balanced_accuracy"]),
        "G-mean": (report["g_mean"], intervals["g_mean"]),
        "macro F1": (report["macro"]["f1"], intervals["macro_f1"]),
    }
    for k, name in enumerate(report["classes"]):
        metrics[f"recall of {name}"] = (report["recall"][k], intervals["recall"][k])
    return metrics


def compare(results: dict[str, Sequence[dict[str, Any]]]) -> dict[str, dict[str, Summary]]:
    """Return a Summary for each recipe and metric, compared with the first recipe.

    results: for each recipe, the result of each seed; all recipes have the same seeds in the
    same order. A recipe with a diverged run is left out; if that is the first recipe, the next
    one is the reference.
    """
    runs_by_recipe = {
        name: [metrics_of(result) for result in runs]
        for name, runs in results.items()
        if not any(result["diverged"] for result in runs)
    }
    if not runs_by_recipe:
        return {}
    first = next(iter(runs_by_recipe.values()))
    compared: dict[str, dict[str, Summary]] = {name: {} for name in runs_by_recipe}
    for metric in first[0]:
        reference, *others = (
            np.array([run[metric][0] for run in runs]) for runs in runs_by_recipe.values()
        )
        adjusted = holm([paired_p(values, reference) for values in others])
        rows = zip(runs_by_recipe, (reference, *others), (None, *adjusted), strict=True)
        for name, values, p in rows:
            several = len(values) > 1
            # Every metric lies between 0 and 1; Student's interval may go beyond.
            seed_interval = np.clip(t_interval(values), 0, 1).tolist() if several else None
            image_interval = runs_by_recipe[name][0][metric][1]
            compared[name][metric] = Summary(
                mean=float(values.mean()),
                deviation=float(values.std(ddof=1)) if several else None,
                interval=tuple(seed_interval or image_interval),
                difference=float((values - reference).mean()),
                p=p,
            )
    return compared


def paired_p(a: np.ndarray, b: np.ndarray) -> float | None:
    """Return p of the paired t-test that a and b, (N,), have the same mean.

    With the differences d = a - b, t = mean(d) * sqrt(N) / s, and s their standard deviation.
    Without spread of the differences, as with one pair, there is no test: the result is None.

    >>> round(paired_p(np.array([0.5, 0.75]), np.array([0.25, 0.25])), 3)  # t = 3
    0.205
    >>> paired_p(np.array([0.5, 0.75]), np.array([0.25, 0.5])) is None
    True
    """
    # Rounding alone can make equal differences spread, and their p tiny.
    if np.ptp(a - b) < ROUNDING:
        return None
    return float(stats.ttest_rel(a, b).pvalue)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return the p-values (m,) adjusted for their number (Holm 1979).

    The i-th smallest p-value becomes the largest of (m + 1 - j) p_j over j <= i, at most 1.
    None, where there was no test, stays None and counts in m like a p of 1.

    >>> holm([0.01, 0.04, 0.03, None])
    [0.04, 0.09, 0.09, None]
    """
    adjusted: list[float | None] = [None] * len(p)
    tested = sorted((value, i) for i, value in enumerate(p) if value is not None)
    largest = 0.0
    for rank, (value, i) in enumerate(tested):
        largest = max(largest, (len(p) - rank) * value)
        adjusted[i] = min(1.0, largest)
    return adjusted
