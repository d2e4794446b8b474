"""Recipes compared: means over seeds, their intervals, and significant differences."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from common.metrics.intervals import DRAWS, draw_rows, interval, random_levels, scores
from common.metrics.paired import best_probabilities, paired_scores, swap_test

SIGNIFICANT = 0.05  # p below which a difference is significant
MOST_CLASSES = 10  # whose recalls are compared, each by itself
ROUNDING = 1e-12  # differences of metrics that are closer than this are equal
TITLES = {  # of the compared metrics, beside the recalls
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "g_mean": "G-mean",
    "macro_f1": "macro F1",
}


@dataclass(frozen=True)
class Summary:
    """One metric of one recipe.

    mean, deviation: over seeds. interval: the 95% interval of the mean; it covers the draw of
    the test images (`mean_draws`) and, with several seeds, the training's randomness (Student's
    t). best: the probability that the metric of no other held-out recipe is higher
    (`paired_scores`, and the same randomness of training). difference: the mean difference from
    the reference recipe; difference_interval: its 95% interval, from draws for both on the same
    test images. p_training: of the paired t-test over seeds, that the training's randomness
    alone makes the difference on these test images. p_images: of `swap_test`, that the chance
    in the test images alone makes it for these trained networks. Both have Holm's correction
    over all p-values of the table. None: the reference recipe, a recipe that is not held out
    (best, p_training, p_images), a single seed (deviation, p_training), or differences without
    spread (p_training).
    """

    mean: float
    deviation: float | None
    interval: tuple[float, float]
    best: float | None
    difference: float
    difference_interval: tuple[float, float] | None
    p_training: float | None
    p_images: float | None

    @property
    def beyond_training(self) -> bool:
        """Whether the difference is larger than the training's randomness."""
        return self.p_training is not None and self.p_training < SIGNIFICANT

    @property
    def beyond_images(self) -> bool:
        """Whether the difference is larger than the chance in the draw of the test images."""
        return self.p_images is not None and self.p_images < SIGNIFICANT


@dataclass(frozen=True)
class Comparison:
    """A table of recipes.

    summaries: by recipe and metric. reference: the recipe that the others are compared with.
    seeds: runs of each recipe. tests: the number of p-values that Holm's correction is over.
    """

    summaries: dict[str, dict[str, Summary]]
    reference: str
    seeds: int
    tests: int


def by_title(values: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """Return the compared metrics by their titles, from values by the names of `scores`.

    values["recall"]: a list of one entry for each class, or an array (..., K). Of more than
    MOST_CLASSES classes the averages alone: a correction for a test of each recall would leave
    no difference significant.
    """
    metrics = {title: values[name] for name, title in TITLES.items()}
    if len(classes) > MOST_CLASSES:
        return metrics
    recall = values["recall"]
    of_class = np.moveaxis(recall, -1, 0) if isinstance(recall, np.ndarray) else recall
    return metrics | {f"recall of {name}": of_class[k] for k, name in enumerate(classes)}


def metrics_of(report: dict[str, Any]) -> dict[str, float]:
    """Return each compared metric of a run's report."""
    return by_title(report | {"macro_f1": report["macro"]["f1"]}, report["classes"])


def mean_draws(reports: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    """Return draws (2, DRAWS) of each metric's mean over the runs with these reports.

    They are the draws that the reports' own intervals come from, averaged in the order of their
    values: the images are the same for all runs, so that chance moves all runs together.
    """
    by_run = []
    for report in reports:
        confusion = np.array(report["confusion"])
        support = confusion.sum(1)
        draws = scores(*draw_rows(confusion, support), support)
        by_run.append(by_title(draws, report["classes"]))
    return {
        title: np.mean([np.sort(run[title], axis=1) for run in by_run], axis=0)
        for title in by_run[0]
    }


def mean_with_interval(
    reports: Sequence[dict[str, Any]], title: str
) -> tuple[float, list[float]]:
    """Return the mean of a metric over runs with these reports, and its 95% interval.

    title: a key of `metrics_of`. The interval is that of a Summary.
    """
    values = np.array([[metrics_of(report)[title] for report in reports]])
    mean = float(values.mean())
    draws = mean_draws(reports)[title] + _training_noise(values)[:, 0]
    return mean, np.clip(interval(draws, mean), 0, 1).tolist()


def compare(
    results: dict[str, Sequence[dict[str, Any]]], labels: np.ndarray
) -> Comparison | None:
    """Return the Comparison of recipes from the results of their runs.

    results: for each recipe, the result of each seed; all recipes have the same seeds in the
    same order, and the same test images with the labels (N,). A recipe with a diverged run is
    left out; the first of the others is the reference, see `compare_predictions`. None: all
    are left out.
    """
    results = {n: runs for n, runs in results.items() if not any(r["diverged"] for r in runs)}
    if not results:
        return None
    reports = {name: [run["report"] for run in runs] for name, runs in results.items()}
    predictions = {
        name: np.array([run["test_predictions"].split() for run in runs], dtype=int)
        for name, runs in results.items()
    }
    on_test = {name for name, runs in results.items() if runs[0]["trained_on_test"]}
    return compare_predictions(reports, predictions, labels, on_test)


def compare_predictions(
    reports: dict[str, Sequence[dict[str, Any]]],
    predictions_by_name: dict[str, np.ndarray],
    labels: np.ndarray,
    on_test: Container[str] = (),
) -> Comparison:
    """Return the Comparison of recipes, or of single networks, with the first one.

    reports: for each recipe, the report of each seed, as a result file has it.
    predictions_by_name: those that the reports are on, (S, N). labels: (N,). on_test: recipes
    that are trained on the test images, whose scores are not held out: beside others they are
    neither the reference nor the best, and no test is made of them.
    """
    names = list(reports)
    held_out = [n for n, name in enumerate(names) if name not in on_test]
    competing = held_out or list(range(len(names)))
    first = competing[0]
    reference, seeds = names[first], len(reports[names[first]])
    metrics = [[metrics_of(report) for report in runs] for runs in reports.values()]
    classes = reports[reference][0]["classes"]
    predictions = [predictions_by_name[name] for name in names]
    paired = by_title(paired_scores(labels, predictions, len(classes)), classes)
    p_images = {
        n: by_title(
            swap_test(labels, predictions[n], predictions[first], len(classes)), classes
        )
        for n in competing[1:]
    }
    of_means = [mean_draws(runs) for runs in reports.values()]
    summaries: dict[str, dict[str, Summary]] = {name: {} for name in names}
    for title, of_networks in paired.items():
        values = np.array([[run[title] for run in runs] for runs in metrics])  # (recipes, S)
        noisy = of_networks[0] + _training_noise(values)
        best = dict(zip(competing, best_probabilities(noisy[:, competing]), strict=True))
        for n, name in enumerate(names):
            mean = float(values[n].mean())
            # Every metric lies between 0 and 1; Student's distribution goes beyond.
            of_mean = of_means[n][title] + _training_noise(values[[n]])[:, 0]
            ends = np.clip(interval(of_mean, mean), 0, 1).tolist()
            of_runs = [by_title(r["intervals"], classes)[title] for r in reports[name]]
            if all(each == of_runs[0] for each in of_runs):  # what the reports themselves show
                ends = of_runs[0]
            differences = values[n] - values[first]
            of_difference = of_networks[..., n] - of_networks[..., first]
            if n != first:
                of_difference = of_difference + _training_noise(differences[None])[:, 0]
            difference = float(differences.mean())
            ends_of_difference = np.clip(interval(of_difference, difference), -1, 1).tolist()
            summaries[name][title] = Summary(
                mean=mean,
                deviation=float(values[n].std(ddof=1)) if seeds > 1 else None,
                interval=tuple(ends),
                best=best.get(n),
                difference=difference,
                difference_interval=tuple(ends_of_difference) if n != first else None,
                p_training=paired_p(values[n], values[first]) if n in p_images else None,
                p_images=p_images[n][title] if n in p_images else None,
            )
    # With a single seed the training is not tested at all.
    kinds = ("p_training", "p_images") if seeds > 1 else ("p_images",)
    tests = _correct(summaries, [names[n] for n in p_images], kinds)
    return Comparison(summaries, reference, seeds, tests)


def _training_noise(values: np.ndarray) -> np.ndarray:
    """Return draws (DRAWS, recipes) of the error of the means of values, (recipes, S).

    The error is s / sqrt(S) times a variable of Student's distribution with S - 1 degrees of
    freedom, where s is the standard deviation over seeds; 0 for a single seed.
    """
    recipes, seeds = values.shape
    if seeds == 1:
        return np.zeros((DRAWS, recipes))
    rng = np.random.default_rng(0)
    levels = np.stack([random_levels(rng) for _ in range(recipes)], axis=1)
    return stats.t.ppf(levels, seeds - 1) * values.std(1, ddof=1) / np.sqrt(seeds)


def _correct(
    summaries: dict[str, dict[str, Summary]], tested: Sequence[str], kinds: Sequence[str]
) -> int:
    """Apply Holm's correction to all p-values of these kinds together; return their number.

    tested: the recipes that have p-values.
    """
    places = [
        (name, metric, kind) for name in tested for metric in summaries[name] for kind in kinds
    ]
    adjusted = holm([getattr(summaries[name][metric], kind) for name, metric, kind in places])
    for (name, metric, kind), p in zip(places, adjusted, strict=True):
        summaries[name][metric] = replace(summaries[name][metric], **{kind: p})
    return len(places)


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
