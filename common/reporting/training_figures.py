"""The figures of evaluate.py and train.py: confusion matrix, loss, recipes compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from common.dataset.split import Split
from common.metrics.comparison import Comparison
from common.metrics.report import Report
from common.reporting.data_figures import class_counts
from common.reporting.figures import colour, matrix, matrix_figure, new_figure, save
from common.reporting.tables import shorten
from common.reporting.training_tables import TRAINED_ON_TEST, mark_legend
from common.training import losses
from common.training.runs import Run


def confusion(path: Path, report: Report, title: str, source: str) -> Path:
    """Draw the confusion matrix: counts, coloured by the share of the true class."""
    caption = f"{_images(report, source)}\n{_summary(report)}"
    figure = matrix_figure(len(report.classes), title, caption)
    _confusion(figure.subplots(), report, "share of the true class")
    return save(figure, path)


def confusions(path: Path, reports: dict[str, Report], source: str) -> Path:
    """Draw the confusion matrices of several networks on the same images, side by side."""
    first = next(iter(reports.values()))
    figure = matrix_figure(
        len(first.classes), "Confusion matrices", _images(first, source), len(reports)
    )
    *others, last = figure.subplots(1, len(reports))
    for axes, (name, report) in zip([*others, last], reports.items(), strict=True):
        on_last = axes is last
        _confusion(axes, report, "share of the true class" if on_last else "", others)
        axes.set_title(f"{shorten(name, 28)}\n{_summary(report)}", fontsize=9)
    return save(figure, path)


def _confusion(axes: Axes, report: Report, scale: str, beside: Sequence[Axes] = ()) -> None:
    counts = np.array(report.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = [[f"{count:,}" for count in row] for row in counts]
    matrix(axes, shares, cells, report.classes, scale, beside)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")


def _images(report: Report, source: str) -> str:
    return f"{source}; n = {sum(report.support):,} test images"


def _summary(report: Report) -> str:
    balanced = f"balanced accuracy {report.balanced_accuracy:.1%}"
    return f"accuracy {report.accuracy:.1%}, {balanced}, G-mean {report.g_mean:.3f}"


def loss(
    path: Path,
    training: Sequence[float],
    validation: Sequence[float],
    loss_title: str,
    title: str,
    caption: str,
) -> Path:
    """Draw the mean loss per epoch on the examples, and on validation images if there are any.

    loss_title: the name of the training loss; the validation loss is plain cross-entropy.
    """
    figure = new_figure(7, 4, title, caption)
    axes = figure.subplots()
    for label, values in (
        (f"training: {loss_title}", training),
        ("validation: cross-entropy", validation),
    ):
        if len(values):
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean loss per example (nats)")
    axes.set_ylim(bottom=0)
    axes.legend()
    return save(figure, path)


def run_figures(
    folder: Path, run: Run, result: dict[str, Any], report: Report | None, split: Split
) -> list[Path]:
    """Save the loss, the drawn classes and the confusion matrix of a run; return the paths.

    report: on the test images, None if the run diverged: those of an earlier run are removed.
    """
    paths = [
        folder / f"train_{run.file}_{kind}.png" for kind in ("loss", "counts", "confusion")
    ]
    if report is None:
        for path in paths:
            path.unlink(missing_ok=True)
        return []
    of_loss, of_counts, of_confusion = paths
    n = f"n = {sum(result['examples']):,} examples"
    drawn = {"examples": result["examples"], "drawn in the first epoch": result["drawn"]}
    title = f"Confusion matrix of {run.name}"
    if result["trained_on_test"]:
        title += f" {TRAINED_ON_TEST}"
    return [
        loss(
            of_loss,
            result["history"]["loss"],
            result["history"]["validation_loss"],
            losses.loss_title(run.recipe),
            f"Loss of {run.name}",
            f"{split.source}; {n}; seed {run.seed}",
        ),
        class_counts(of_counts, drawn, split.classes, split.source),
        confusion(of_confusion, report, title, split.source),
    ]


def recipes_compared(path: Path, comparison: Comparison, metric: str, split: Split) -> Path:
    """Draw one dot and 95% interval for each recipe, the best at the top.

    The axis of the metric has the range of the intervals, and a margin.
    """
    summaries, seeds = comparison.summaries, comparison.seeds
    ranked = sorted(summaries, key=lambda name: summaries[name][metric].mean)
    subject = f"the mean of {seeds} seeds" if seeds > 1 else "the test images, one seed"
    train, test = (len(part.labels) for part in (split.train, split.test))
    caption = "; ".join(
        [f"{split.source}; n = {train:,} train, {test:,} test images", *mark_legend(comparison)]
    )
    title = f"{metric[0].upper()}{metric[1:]} of each recipe, 95% interval of {subject}"
    figure = new_figure(8, 1.6 + 0.3 * len(ranked), title, caption)
    axes = figure.subplots()
    for row, name in enumerate(ranked):
        s = summaries[name][metric]
        low, high = s.interval
        axes.plot([low, high], [row, row], color=colour(0), linewidth=2, alpha=0.5)
        axes.plot(s.mean, row, "o", color=colour(0))
        axes.annotate(
            f"{s.mean:.3f}", (s.mean, row), (0, 5), textcoords="offset points",
            ha="center", fontsize=7,
        )  # fmt: skip
    axes.set_yticks(range(len(ranked)), ranked)
    intervals = [summaries[name][metric].interval for name in ranked]
    low, high = min(low for low, _ in intervals), max(high for _, high in intervals)
    margin = 0.04 * (high - low)
    axes.set_xlim(low - margin, high + margin)
    axes.set_ylim(-0.6, len(ranked) - 0.3)
    axes.set_xlabel(metric)
    axes.grid(axis="x", alpha=0.3)
    return save(figure, path)
