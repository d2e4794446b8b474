"""How the figures of adversarial.py are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.attacks.robustness import AttackCurve
from common.attacks.transfer import Transfer
from common.metrics.intervals import median_with_interval
from common.reporting.figures import (
    colour,
    log_labels,
    matrix,
    matrix_figure,
    new_figure,
    row_label,
    save,
    show,
    spread,
)
from common.reporting.tables import shorten

MOST_LINES = 7  # classes in a panel: the colours that readers can distinguish


def accuracy_curves(
    path: Path,
    curves: dict[str, AttackCurve],
    epsilons: Sequence[float],
    title: str,
    caption: str,
) -> Path:
    """Draw accuracy and balanced accuracy by epsilon (in 1/255), one line for each curve."""
    figure = new_figure(9, 4.2, title, caption)
    positions = np.arange(len(epsilons))  # evenly spaced: epsilons usually double
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, ("accuracy", "balanced_accuracy"), strict=True):
        for i, (name, curve) in enumerate(curves.items()):
            reports = [result.report for result in curve.results.values()]
            values = np.array([getattr(r, metric) for r in reports])
            bounds = np.array([r.intervals[metric] for r in reports])
            # Shifted a little, so that the bars of equal values do not cover each other.
            axes.errorbar(
                positions + 0.06 * (i - (len(curves) - 1) / 2),
                values,
                np.abs(bounds.T - values),
                marker="osD^v"[i % 5],
                markersize=4,
                linewidth=1.2,
                elinewidth=0.8,
                color=colour(i),
                label=name,
            )
        axes.set_xticks(positions, [f"{epsilon:g}" for epsilon in epsilons])
        axes.set_xlabel("epsilon (1/255): the most that a value moves")
        axes.set_ylabel(metric.replace("_", " "))
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_tick_params(labelleft=True)
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=8, title="bars: 95% intervals", title_fontsize=8)
    return save(figure, path)


def recall_curves(
    path: Path,
    radii: dict[str, torch.Tensor],
    labels: torch.Tensor,
    classes: Sequence[str],
    title: str,
    caption: str,
) -> Path:
    """Draw the recall of each class by epsilon, one panel for each network.

    radii: by network, the norm (N,) of the smallest noise that fools, in 1/255; an image is
    right as long as epsilon is smaller. Around one half are the median radii of the classes,
    with 95% intervals. Of more than MOST_LINES classes, so many from the first to the last.
    """
    figure = new_figure(1 + 3.4 * len(radii), 3.9, title, caption)
    panels = figure.subplots(1, len(radii), sharex=True, sharey=True, squeeze=False)[0]
    finite = torch.cat([values[values.isfinite()] for values in radii.values()])
    most = float(finite.quantile(0.98)) if len(finite) else 1.0
    for axes, (network, values) in zip(panels, radii.items(), strict=True):
        for drawn, k in enumerate(spread(len(classes), MOST_LINES)):
            of_class = values[labels == k].sort().values.numpy()
            if len(of_class):
                standing = 1 - np.arange(1, len(of_class) + 1) / len(of_class)
                axes.step(
                    np.concatenate([[0], of_class]), np.concatenate([[1], standing]),
                    where="post", color=colour(k), linewidth=1.6,
                    label=f"{shorten(classes[k])} ({len(of_class)})",
                )  # fmt: skip
                median, (low, high) = median_with_interval(of_class)
                height = 0.5 + 0.06 * (1 - drawn)  # so that the bars don't cover each other
                axes.plot([low, min(high, 2 * most)], 2 * [height], color=colour(k), alpha=0.7)
                axes.plot(median, height, "o", color=colour(k), markersize=5)
        axes.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_title(shorten(network, 28), fontsize=10)
        axes.set_xlim(0, max(most, 1e-3))
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("epsilon (1/255)")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("recall that is left")
    panels[-1].legend(
        fontsize=8, title="class (images); bars:\nmedians, 95% intervals", title_fontsize=8
    )
    return save(figure, path)


def transfer_matrix(
    path: Path, table: dict[str, dict[str, Transfer]], title: str, caption: str
) -> Path:
    """Draw the share of images that fool a network, by the network that they are made on."""
    names = list(table)
    counts = [list(row.values()) for row in table.values()]
    shares = np.array([[t.share() or 0.0 for t in row] for row in counts])
    cells = [[f"{t.fooled} of {t.images}" for t in row] for row in counts]
    figure = matrix_figure(len(names), title, caption)
    axes = figure.subplots()
    matrix(axes, shares, cells, names, "share of images that fool")
    axes.set_xlabel("tried on")
    axes.set_ylabel("made on")
    return save(figure, path)


def picture_grid(
    path: Path,
    rows: dict[str, Sequence[tuple[torch.Tensor, str]]],
    title: str,
    caption: str,
) -> Path:
    """Draw labelled rows of pictures, each with a title.

    A picture is float32 (3, S, S) in [0, 1]; `noise_picture` makes one of noise.
    """
    columns = max(map(len, rows.values()))
    figure = new_figure(1.35 * columns + 0.6, 1.6 * len(rows) + 0.9, title, caption)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, (picture, text) in zip(line, pictures, strict=False):
            show(axes, picture.cpu(), text)
        row_label(line[0], name, 18)
    return save(figure, path)


def noise_picture(noise: torch.Tensor, factor: float, grey: bool = False) -> torch.Tensor:
    """Return noise (3, S, S) times `factor` around mid-grey; grey: the mean of its colours."""
    if grey:
        noise = noise.mean(0, keepdim=True).expand_as(noise)
    return (0.5 + factor * noise).clamp(0, 1)


def noise_tradeoff(
    path: Path,
    tradeoff: dict[float, dict[str, Any]],
    least: float | None,
    norm: str,
    title: str,
    caption: str,
) -> Path:
    """Draw the share of images fooled and the noise's median norm by C.

    tradeoff: C -> a row of `measure_optimised_noise`. least: the median norm with each image's
    C found by bisection, None if no image was fooled. norm: L1 or L2.
    """
    figure = new_figure(7, 4.8, title, caption)
    left = figure.subplots()
    right = left.twinx()
    rows = tradeoff.values()
    shares = np.array([row["fooled"] / row["images"] for row in rows])
    bounds = np.array([row["interval"] for row in rows])
    drawn = [
        left.errorbar(
            list(tradeoff), shares, np.abs(bounds.T - shares), marker="o", color=colour(0),
            label="share fooled, 95% interval (left)",
        )
    ]  # fmt: skip
    sizes = [np.nan if (m := row["medians"][norm]) is None else m for row in rows]
    drawn += right.plot(
        list(tradeoff), sizes, marker="s", color=colour(5), label=f"median {norm} norm (right)"
    )
    if least is not None:
        label = f"median {norm} norm, C of each image by bisection (right)"
        drawn.append(right.axhline(least, color=colour(2), linestyle="--", label=label))
    left.set_xscale("log")
    log_labels(left.xaxis)
    left.set_xlabel("C, the weight of the noise's norm in the loss")
    left.set_ylabel("share of images predicted as their target")
    left.set_ylim(-0.03, 1.03)
    right.set_ylabel(f"median {norm} norm (pixel values, 0 to 1)")
    right.set_ylim(bottom=0)
    # Above the axes: inside, the legend could cover a point.
    left.legend(handles=drawn, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.01))
    return save(figure, path)
