"""The figures of inspect_data.py: counts, samples, order, statistics, outliers, label joint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.dataset.split import Split
from common.inspection.data_statistics import RunsTest
from common.inspection.overview import Overview
from common.reporting.figures import colour, matrix, new_figure, row_label, save, show


def save_figures(prefix: Path, split: Split, overview: Overview) -> list[Path]:
    """Save the figures of an overview as PREFIX_*.png, and return their paths."""
    images, labels = split.train
    brightness, contrast = overview.brightness, overview.contrast
    ringed = sorted({int(i) for found in overview.outliers.values() for i in found})
    titles = [
        f"{i}: {split.classes[label]}\nb {brightness[i]:.2f}, c {contrast[i]:.2f}"
        for i, label in enumerate(labels.tolist())
    ]
    about = (split.classes, split.source)
    drawings = {
        "counts": (class_counts, overview.counts, *about),
        "shares": (class_shares, overview.counts, *about),
        "samples": (samples, images, labels, *about),
        "order": (class_order, labels, split.classes, overview.order, split.source),
        "statistics": (
            image_statistics, brightness, contrast, labels, split.classes, ringed, split.source
        ),
        "outliers": (outlier_images, images, titles, overview.outliers, split.source),
    }  # fmt: skip
    bar = tqdm(drawings.items(), "Drawing figures", leave=False, disable=None)
    return [draw(Path(f"{prefix}_{name}.png"), *what) for name, (draw, *what) in bar]


def class_counts(
    path: Path, parts: dict[str, Sequence[int]], classes: Sequence[str], source: str
) -> Path:
    """Draw bars of the images per class, for each part (train, test, ...)."""
    total = ", ".join(f"{sum(counts):,} {part}" for part, counts in parts.items())
    figure = new_figure(7, 4, "Images per class", f"{source}; n = {total}")
    axes = figure.subplots()
    width = 0.8 / len(parts)
    for i, (part, counts) in enumerate(parts.items()):
        positions = np.arange(len(classes)) + (i - (len(parts) - 1) / 2) * width
        bars = axes.bar(positions, counts, width * 0.95, label=part, color=colour(i))
        shares = [f"{n:,}\n{n / sum(counts):.1%}" for n in counts]
        axes.bar_label(bars, shares, fontsize=8, padding=2)
    axes.set_xticks(range(len(classes)), classes)
    axes.set_ylabel("images")
    axes.margins(y=0.18)
    axes.legend()
    return save(figure, path)


def class_shares(
    path: Path, parts: dict[str, Sequence[int]], classes: Sequence[str], source: str
) -> Path:
    """Draw a pie of the class shares of each part, with counts and shares in its legend."""
    total = ", ".join(f"{sum(counts):,} {part}" for part, counts in parts.items())
    figure = new_figure(4 * len(parts), 4.6, "Class shares", f"{source}; n = {total}")
    for axes, (part, counts) in zip(
        np.ravel(figure.subplots(1, len(parts))), parts.items(), strict=True
    ):
        wedges, *_ = axes.pie(
            counts,
            colors=[colour(k) for k in range(len(classes))],
            startangle=90,
            counterclock=False,
            wedgeprops={"edgecolor": "white"},
        )
        # In a legend: on the slices, the shares of small classes would overlap.
        shares = [
            f"{name}: {n:,} ({n / sum(counts):.1%})"
            for name, n in zip(classes, counts, strict=True)
        ]
        axes.legend(wedges, shares, loc="upper center", bbox_to_anchor=(0.5, 0.02), fontsize=9)
        axes.set_title(part, fontsize=10)
    return save(figure, path)


def samples(
    path: Path,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    source: str,
    columns: int = 10,
) -> Path:
    """Draw the first images of each class, with their positions in the train images."""
    figure = new_figure(
        columns + 0.6,
        1.25 * len(classes) + 0.7,
        "Sample images, with their position in the train images",
        f"{source}; the first {columns} of each class, of n = {len(labels):,}",
    )
    grid = figure.subplots(len(classes), columns, squeeze=False)
    for k, name in enumerate(classes):
        positions = (labels == k).nonzero().flatten().tolist()[:columns]
        for axes in grid[k]:
            axes.set_axis_off()
        for axes, i in zip(grid[k], positions, strict=False):
            show(axes, images[i], str(i))
        row_label(grid[k, 0], name)
    return save(figure, path)


def class_order(
    path: Path, labels: torch.Tensor, classes: Sequence[str], test: RunsTest, source: str
) -> Path:
    """Draw a mark for each image at its position in the data set, one row for each class."""
    figure = new_figure(
        9,
        1 + 0.8 * len(classes),
        "Where each class lies in the order of the train images",
        f"{source}; n = {len(labels):,}; {test.runs:,} runs of equal labels, a random order"
        f" has {test.expected:,.0f} (z = {test.z:.2f}, p = {test.p:.2g})",
    )
    axes = figure.subplots()
    positions = [(labels == k).nonzero().flatten().numpy() for k in range(len(classes))]
    axes.eventplot(
        positions,
        colors=[colour(k) for k in range(len(classes))],
        linelengths=0.8,
        linewidths=0.4,
    )
    axes.set_yticks(
        range(len(classes)),
        [
            f"{name} ({len(of_class):,})"
            for name, of_class in zip(classes, positions, strict=True)
        ],
    )
    axes.invert_yaxis()
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xlabel("position in the data set")
    return save(figure, path)


def image_statistics(
    path: Path,
    brightness: np.ndarray,
    contrast: np.ndarray,
    labels: torch.Tensor,
    classes: Sequence[str],
    outliers: Sequence[int],
    source: str,
) -> Path:
    """Draw the contrast of each image by its brightness, with rings around the outliers."""
    figure = new_figure(
        7, 5, "Brightness and contrast of each train image", f"{source}; n = {len(labels):,}"
    )
    axes = figure.subplots()
    for k, name in enumerate(classes):
        of_class = (labels == k).numpy()
        axes.scatter(
            brightness[of_class],
            contrast[of_class],
            s=6,
            alpha=0.5,
            linewidths=0,
            color=colour(k),
            label=f"{name} ({of_class.sum():,})",
        )
    ringed = list(outliers)
    axes.scatter(
        brightness[ringed],
        contrast[ringed],
        s=40,
        facecolors="none",
        edgecolors="black",
        linewidths=0.8,
        label=f"outlier ({len(ringed):,})",
    )
    axes.set_xlabel("brightness: mean of the image's pixels (0 black, 1 white)")
    axes.set_ylabel("contrast: standard deviation of the image's pixels")
    for handle in axes.legend(markerscale=2).legend_handles:
        handle.set_alpha(1)
    return save(figure, path)


def outlier_images(
    path: Path,
    images: torch.Tensor,
    titles: Sequence[str],
    found: dict[str, np.ndarray],
    source: str,
    columns: int = 8,
) -> Path:
    """Draw two rows of pictures for each kind of outlier, the most extreme first.

    found: kind -> positions in images (N, 3, S, S), most extreme first; titles: one for
    each image.
    """
    figure = new_figure(
        1.3 * columns + 0.4,
        3.3 * len(found) + 0.8,
        "Train images of unusual brightness or contrast, the most extreme first",
        f"{source}; n = {len(images):,}, outliers: "
        + ", ".join(f"{len(at):,} in {kind}" for kind, at in found.items())
        + "; b: brightness, c: contrast (0 to 1)",
    )
    grid = figure.subplots(2 * len(found), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for rows, (kind, positions) in zip(np.split(grid, len(found)), found.items(), strict=True):
        for axes, i in zip(rows.flat, positions, strict=False):
            show(axes, images[i], titles[i])
        for axes in rows[:, 0]:
            row_label(axes, kind)
    return save(figure, path)


def label_joint(
    path: Path, joint: np.ndarray, classes: Sequence[str], n: int, source: str
) -> Path:
    """Draw the estimated joint of given and true labels (K, K), as numbers of n images."""
    k = len(classes)
    off = 1 - np.trace(joint)
    figure = new_figure(
        2.6 + 1.2 * k,
        1.9 + 1.0 * k,
        "Given and true labels, estimated",
        f"{source}; n = {n:,} train images\n"
        f"confident learning: about {off * n:,.0f} ({off:.1%}) have a wrong label",
    )
    shares = joint / joint.sum(1, keepdims=True)
    cells = [[f"{value:,.0f}" for value in row] for row in joint * n]
    axes = matrix(figure, shares, cells, classes, "share of the given label")
    axes.set_xlabel("true label (estimated)")
    axes.set_ylabel("given label")
    return save(figure, path)
