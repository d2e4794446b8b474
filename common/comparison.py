"""Recipes compared over seeds: mean, spread, intervals, and which differences are real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from common.metrics import LEVEL

SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Summary:
    """One metric of one recipe. deviation and p are None with one seed.

    interval: 95%, of the mean over seeds (Student's t); with one seed, of the test images.
    difference: mean difference from the reference recipe, paired over seeds; p: Holm's, of
    the paired t-test that it is 0.
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
    """Name -> value and the interval that its test images give, from one run's result."""
    report = result["report"]
    intervals = report["intervals"]
    found = {
        "accuracy": (report["accuracy"], intervals["accuracy"]),
        "balanced accuracy": (report["balanced_accuracy"], intervals["balanced_accuracy"]),
        "G-mean": (report["g_mean"], intervals["g_mean"]),
        "macro F1": (report["macro"]["f1"], intervals["macro_f1"]),
    }
    for k, name in enumerate(report["classes"]):
        found[f"recall of {name}"] = (report["recall"][k], intervals["recall"][k])
    return found


def compare(results: dict[str, Sequence[dict[str, Any]]]) -> dict[str, dict[str, Summary]]:
    """Recipe -> metric -> Summary, against the first recipe, the reference.

    results: recipe -> one result for each seed, the seeds in the same order for all. A recipe
    with a diverged run is left out; where that is the reference, the next takes its place.
    """
    tables = {
        name: [metrics_of(result) for result in runs]
        for name, runs in results.items()
        if not any(result["diverged"] for result in runs)
    }
    if not tables:
        return {}
    first = next(iter(tables.values()))
    compared: dict[str, dict[str, Summary]] = {name: {} for name in tables}
    for metric in first[0]:
        values = {name: np.array([run[metric][0] for run in t]) for name, t in tables.items()}
        reference = next(iter(values.values()))
        raw = [paired_p(v, reference) for v in list(values.values())[1:]]
        adjusted = [None, *holm(raw)]
        for (name, v), p in zip(values.items(), adjusted, strict=True):
            image_interval = tables[name][0][metric][1]
            several = len(v) > 1
            compared[name][metric] = Summary(
                mean=float(v.mean()),
                deviation=float(v.std(ddof=1)) if several else None,
                # Every metric lies between 0 and 1, which Student's t doesn't know.
                interval=tuple(
                    np.clip(t_interval(v), 0, 1).tolist() if several else image_interval
                ),
                difference=float((v - reference).mean()),
                p=p if several else None,
            )
    return compared


def t_interval(values: np.ndarray) -> tuple[float, float]:
    """95% interval of the mean of values (N,), N at least 2, by Student's t.

    >>> low, high = t_interval(np.array([1.0, 2.0, 3.0]))  # 2 -+ 4.303 * 1 / sqrt(3)
    >>> round(low, 3), round(high, 3)
    (-0.484, 4.484)
    """
    n = len(values)
    half = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return float(values.mean() - half), float(values.mean() + half)


def paired_p(a: np.ndarray, b: np.ndarray) -> float:
    """p of the paired t-test that a and b, (N,), have the same mean; 1 with one pair.

    Where all differences are equal there is no spread to judge by: p is 1 if they are 0 and
    0 if they are not.
    """
    difference = a - b
    if len(a) < 2:
        return 1.0
    if np.ptp(difference) == 0:
        return 1.0 if difference[0] == 0 else 0.0
    return float(stats.ttest_rel(a, b).pvalue)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, (len(p) - rank) * p[i])
        adjusted[i] = min(1.0, largest)
    return adjusted.tolist()


def as_text(compared: dict[str, dict[str, Summary]], columns: int = 2) -> str:
    """The comparison for an 80-column screen, two metrics side by side."""
    names = list(compared)
    metrics = list(compared[names[0]])
    width = max(map(len, names))
    lines = []
    for start in range(0, len(metrics), columns):
        shown = metrics[start : start + columns]
        lines.append(f"{'':{width}}  {'  '.join(f'{m:27}' for m in shown)}".rstrip())
        for name in names:
            cells = "  ".join(f"{cell(compared[name][m]):27}" for m in shown)
            lines.append(f"{name:{width}}  {cells}".rstrip())
        lines.append("")
    return "\n".join(lines[:-1])


def cell(s: Summary) -> str:
    """Mean, deviation, interval, and a star where the difference is larger than chance."""
    deviation = "" if s.deviation is None else f" ±{s.deviation:.3f}".replace("0.", ".")
    low, high = s.interval
    star = "*" if s.significant else ""
    return f"{s.mean:.3f}{deviation} [{low:.3f}, {high:.3f}]{star}"


def legend(compared: dict[str, dict[str, Summary]], seeds: int) -> str:
    """What the cells of `as_text` mean."""
    if seeds == 1:
        return "One seed: the intervals are of the test images alone, not of the training."
    return (
        f"Mean, ±standard deviation and [95% interval of the mean] of {seeds} seeds.\n"
        f"*: differs from {next(iter(compared))} by more than chance\n"
        f"(paired t-test over seeds, Holm's correction, p < {SIGNIFICANT})."
    )


def as_markdown(compared: dict[str, dict[str, Summary]]) -> str:
    """The comparison as one Markdown table, the best G-mean first."""
    ranked = sorted(compared, key=lambda name: -compared[name]["G-mean"].mean)
    metrics = list(compared[ranked[0]])
    lines = [f"| recipe | {' | '.join(metrics)} |", f"| --- |{' --- |' * len(metrics)}"]
    for name in ranked:
        cells = " | ".join(cell(compared[name][m]) for m in metrics)
        lines.append(f"| `{name}` | {cells} |")
    return "\n".join(lines) + "\n"
