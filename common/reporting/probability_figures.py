"""The figures of evaluate.py on probabilities: calibration, and precision against recall."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter
from sklearn.metrics import precision_recall_curve

from common.metrics.intervals import proportion_interval
from common.metrics.probabilities import BINS, ProbabilityReport, Reliability
from common.reporting.figures import colour, new_figure, save
from common.reporting.tables import shorten

MOST_DRAWN = 5  # classes in one figure
MARKERS = "osD^vPX"  # as many as there are colours


def calibration(
    path: Path,
    r: ProbabilityReport,
    train_counts: Sequence[int],
    title: str,
    source: str,
    n: int,
) -> Path:
    """Draw the reliability diagram: of the predicted class, and of the `rarest` classes.

    The conventions are those of scikit-learn's CalibrationDisplay.
    """
    figure = new_figure(
        10.5,
        6.4,
        title,
        f"{source}; n = {n:,} test images; {BINS} bins of equal width; bars: 95% intervals of"
        f" the share; below: images in each bin{_choice(r)}",
    )
    panels = figure.subplots(2, 2, sharex=True, height_ratios=[3, 1])
    ends = r.intervals["ece"]
    label = f"predicted class: ECE {r.ece:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"
    _draw_reliability(panels[:, 0], r.reliability, label, 0, 0)
    panels[0, 0].set_ylabel("share that is right")
    panels[1, 0].set_xlabel("mean probability of the predicted class")
    drawn = rarest(train_counts)
    for i, k in enumerate(drawn):
        low, high = r.intervals["class_ece"][k]
        label = f"{shorten(r.classes[k])}: ECE {r.class_ece[k]:.3f} [{low:.3f}, {high:.3f}]"
        shift = 0.012 * (i - (len(drawn) - 1) / 2)
        style = _style(r, i, k)
        _draw_reliability(panels[:, 1], r.class_reliability[k], label, style, shift)
    panels[0, 1].set_ylabel("share that is of the class")
    panels[1, 1].set_xlabel("mean probability of the class")
    for axes in panels[0]:
        axes.plot([0, 1], [0, 1], "k:", label="perfectly calibrated")
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
        # Above the axes: inside, the legend would cover points.
        axes.legend(fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.01))
    for axes in panels[1]:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7, top=1.5 * n)
        axes.set_ylabel("images")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    return save(figure, path)


def _draw_reliability(
    axes: np.ndarray, bins: Reliability, label: str, style: int, shift: float
) -> None:
    """Draw the shares of the bins in axes[0], and their images in axes[1]."""
    shares = np.array(bins.share)
    pairs = zip(bins.share, bins.images, strict=True)
    ends = np.array([proportion_interval(round(share * n), n) for share, n in pairs])
    x = np.array(bins.probability)
    axes[0].errorbar(
        x + shift, shares, np.abs(ends.T - shares), marker=MARKERS[style], markersize=4,
        linewidth=1.2, elinewidth=0.8, color=colour(style), label=label,
    )  # fmt: skip
    axes[1].plot(
        x + shift, bins.images, "_", markersize=12, color=colour(style), markeredgewidth=2
    )


def precision_recall(
    path: Path,
    r: ProbabilityReport,
    train_counts: Sequence[int],
    labels: np.ndarray,
    probabilities: np.ndarray,
    title: str,
    source: str,
) -> Path:
    """Draw precision against recall of the `rarest` classes, each one against the rest.

    labels: (N,). probabilities: (N, K). The marks are the network's own predictions, and the
    dotted lines the precision of random answers.
    """
    figure = new_figure(
        7.5,
        6.4,
        title,
        f"{source}; n = {len(labels):,} test images; AP: average precision{_choice(r)}",
    )
    axes = figure.subplots()
    predictions = probabilities.argmax(1)
    for i, k in enumerate(rarest(train_counts)):
        style = _style(r, i, k)
        truth = labels == k
        precision, recall, _ = precision_recall_curve(truth, probabilities[:, k])
        low, high = r.intervals["average_precision"][k]
        axes.step(
            recall, precision, where="post", color=colour(style), linewidth=1.5,
            label=f"{shorten(r.classes[k])}, n = {int(truth.sum()):,}: AP"
            f" {r.average_precision[k]:.3f} [{low:.3f}, {high:.3f}]",
        )  # fmt: skip
        axes.axhline(r.shares[k], color=colour(style), linestyle=":", linewidth=1)
        chosen = predictions == k
        if chosen.any():
            hits = (chosen & truth).sum()
            axes.plot(
                hits / truth.sum(), hits / chosen.sum(), MARKERS[style], color=colour(style),
                markeredgecolor="black", markersize=8, clip_on=False,
            )  # fmt: skip
    _limits(axes)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.legend(
        fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.01),
        title="mark: as predicted; dotted: random answers", title_fontsize=8,
    )  # fmt: skip
    return save(figure, path)


def rarest(train_counts: Sequence[int]) -> list[int]:
    """Return the labels of the MOST_DRAWN classes with the fewest train images, in order."""
    return sorted(np.argsort(train_counts, kind="stable")[:MOST_DRAWN].tolist())


def _choice(r: ProbabilityReport) -> str:
    """Return what the caption says of classes that are not drawn."""
    if len(r.classes) <= MOST_DRAWN:
        return ""
    return f"\nof {len(r.classes)} classes the {MOST_DRAWN} with the fewest train images"


def _style(r: ProbabilityReport, i: int, k: int) -> int:
    """Return the number of the colour and marker of class k, the i-th that is drawn."""
    return k if len(r.classes) <= len(MARKERS) else i


def _limits(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.04)
    axes.grid(alpha=0.3)
