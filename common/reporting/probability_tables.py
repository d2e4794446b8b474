"""What evaluate.py prints of probabilities and decisions, and its table of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

import numpy as np

from common.metrics.comparison import MOST_CLASSES, Comparison, Summary
from common.metrics.probabilities import BINS, ProbabilityReport
from common.reporting.evaluation_tables import SUMMARIES
from common.reporting.tables import (
    TITLE_WIDTH,
    short_names,
    shorten,
    side_by_side,
    with_interval,
)
from common.reporting.training_tables import images_legend, probability

# By why there is no temperature.
NO_TEMPERATURE = {
    "none": "No temperature is fitted: there are no validation images (--validation SHARE).",
    "seen": (
        "No temperature is fitted: the network was not trained with these validation images"
        " held out."
    ),
}


def probabilities_text(r: ProbabilityReport) -> str:
    """Return average precision, Brier score and calibration error of each class."""
    names = [*map(shorten, r.classes), "all"]
    columns = {
        "average precision": (r.average_precision, "average_precision"),
        "Brier score": (r.class_brier, "class_brier"),
        "ECE": (r.class_ece, "class_ece"),
    }
    whole = {
        "average precision": with_interval(
            r.mean_average_precision, r.intervals["mean_average_precision"]
        ),
        "Brier score": with_interval(r.brier, r.intervals["brier"]),
        "ECE": with_interval(r.ece, r.intervals["ece"]),
    }
    cells = {
        title: [*map(with_interval, values, r.intervals[name]), whole[title]]
        for title, (values, name) in columns.items()
    }
    log_loss = with_interval(r.log_loss, r.intervals["log_loss"])
    chance = [*r.shares, np.mean(r.shares)]
    first, *rest = cells.items()
    cells = dict([first, ("chance", [f"{share:.3f}" for share in chance]), *rest])
    return "\n".join(
        [
            "Probabilities, each class against the rest, with 95% intervals:",
            side_by_side(names, cells),
            f"log loss {log_loss}",
            fill(
                "(Chance: the average precision of random answers. ECE: expected calibration"
                f" error, {BINS} bins. All: the mean average precision, the sum of the Brier"
                " scores, the ECE of the predicted class. 0 is the best Brier score and ECE.)",
                80,
            ),
        ]
    )


def temperature_text(
    temperature: float, before: ProbabilityReport, after: ProbabilityReport, images: int
) -> str:
    """Return the fitted temperature, and the calibration without and with it."""
    reports = {"T = 1": before, f"T = {temperature:.3f}": after}
    columns = {
        title: [with_interval(getattr(r, name), r.intervals[name]) for r in reports.values()]
        for title, name in (("ECE", "ece"), ("Brier score", "brier"), ("log loss", "log_loss"))
    }
    return "\n".join(
        [
            f"Temperature T, fitted on {images:,} validation images (with the train images'",
            "class shares). Scores on the test images, with logits / T:",
            side_by_side(list(reports), columns),
        ]
    )


def decisions_text(
    decisions: dict[str, dict[str, Any]],
    classes: Sequence[str],
    shares: Sequence[float],
    assumed: Sequence[float] | None,
) -> str:
    """Return a table of ways to decide, at the shares of the classes, (K,).

    decisions: a `decision_report` by name. assumed: the shares that the network's probabilities
    assume, if they were changed to `shares`.
    """
    rows = decisions.values()
    columns = {
        title: [with_interval(row["values"][name], row["intervals"][name]) for row in rows]
        for name, title in ({"cost": "mean cost"} | SUMMARIES).items()
        if all(name in row["values"] for row in rows)
    }
    if len(classes) <= MOST_CLASSES:
        for metric in ("recall", "precision"):
            for k, name in enumerate(short_names(classes)):
                columns[f"{metric} of {name}"] = [
                    with_interval(row["values"][metric][k], row["intervals"][metric][k])
                    for row in rows
                ]
    lines = [
        "Decisions where the classes have these shares, with 95% intervals:",
        fill(_shares(classes, shares), 80),
    ]
    if assumed is not None:
        lines += [
            "The network's own probabilities assume these, by its recipe:",
            fill(_shares(classes, assumed), 80),
        ]
    return "\n".join([*lines, side_by_side(list(decisions), columns)])


def _shares(classes: Sequence[str], shares: Sequence[float]) -> str:
    named = zip(classes, shares, strict=True)
    return ", ".join(f"{shorten(name)} {share:.3f}" for name, share in named)


def differences_text(comparison: Comparison) -> str:
    """Return the paired differences of networks from the first, and their ranking."""
    summaries = comparison.summaries
    others = [name for name in summaries if name != comparison.reference]
    metrics = list(summaries[comparison.reference])
    columns = {
        title: [_difference(summaries[name][metric]) for name in others]
        for metric, title in zip(metrics, short_names(metrics, TITLE_WIDTH), strict=True)
    }
    best = {
        f"P(best {metric})": [probability(row[metric].best) for row in summaries.values()]
        for metric in ("accuracy", "balanced accuracy", "G-mean")
    }
    return "\n".join(
        [
            f"Differences from {comparison.reference}, paired over images, 95% intervals:",
            side_by_side(others, columns),
            "",
            *(fill(sentence, 80) for sentence in images_legend(comparison)),
            "",
            "Probability that the network is the best of these, but those with -, from the",
            "same draws:",
            side_by_side(list(summaries), best),
        ]
    )


def _difference(summary: Summary) -> str:
    low, high = summary.difference_interval
    mark = "†" if summary.beyond_images else ""
    return f"{summary.difference:+.3f} [{low:+.3f}, {high:+.3f}]{mark}"


def prediction_rows(
    files: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: Sequence[str],
    decisions: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of the table of predictions, one for each test image.

    files: paths below the source; images that are not separate files have "test N" for their
    position. labels: (N,). probabilities: (N, K). margin: the highest probability less the
    second. decisions: of --prior and --cost, (N,).
    """
    rows = []
    for i, (label, p) in enumerate(zip(labels, probabilities, strict=True)):
        second, first = np.partition(p, -2)[-2:]
        row = {
            "file": image_name(files, i),
            "label": classes[label],
            "prediction": classes[int(p.argmax())],
            **{f"p({name})": f"{p[k]:.6f}" for k, name in enumerate(classes)},
            "margin": f"{first - second:.6f}",
        }
        rows.append(row if decisions is None else row | {"decision": classes[decisions[i]]})
    return rows


def image_name(files: Sequence[str], i: int) -> str:
    """Return the file of test image i, or its position if the images are not files."""
    return files[i] if files else f"test {i}"
