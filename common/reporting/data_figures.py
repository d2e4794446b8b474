"""The figures of inspect_data.py: counts, samples, order, statistics, outliers, label joint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.ticker import LogLocator
from tqdm import tqdm

from common.dataset.split import Split
from common.inspection.data_statistics import RunsTest
from common.inspection.overview import Overview
from common.reporting.figures import (
    COLOURS,
    LONGEST_BESIDE,
    LONGEST_UPRIGHT,
    colour,
    matrix,
    matrix_figure,
    new_figure,
    part_colour,
    row_label,
    save,
    show,
    slant_labels,
    spread,
)
from common.reporting.tables import shorten

MOST_UPRIGHT = 7  # classes with bars beside each other, and with a colour each
MOST_TALL = 8  # rows of samples at full size
MOST_ROWS = 20  # classes with samples
FEWER_COLUMNS = 6  # samples of a class if there are many: to lay out 200 pictures takes long
MOST_NAMED = 6  # classes with a colour, of more than there are colours


def save_figures(prefix: Path, split: Split, overview: Overview) -> list[Path]:
    """Save the figures of an overview as PREFIX_*.png, and return their paths."""
    images, labels = split.train
    brightness, contrast = overview.brightness, overview.contrast
    ringed = sorted({int(i) for found in overview.outliers.values() for i in found})
    titles = [
        f"{i}: {shorten(split.classes[label], 14)}\nb {brightness[i]:.2f}, c {contrast[i]:.2f}"
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
    title, caption = "Images per class", f"{source}; n = {total}"
    if len(classes) > MOST_UPRIGHT:
        return _bars_across(path, parts, classes, title, caption)
    figure = new_figure(7, 4, title, caption)
    axes = figure.subplots()
    width = 0.8 / len(parts)
    for i, (part, counts) in enumerate(parts.items()):
        positions = np.arange(len(classes)) + (i - (len(parts) - 1) / 2) * width
        bars = axes.bar(positions, counts, width * 0.95, label=part, color=part_colour(i))
        shares = [f"{n:,}\n{n / sum(counts):.1%}" for n in counts]
        axes.bar_label(bars, shares, fontsize=8, padding=2)
    axes.set_xticks(range(len(classes)), list(map(shorten, classes)))
    if len(classes) * max(map(len, classes)) > 5 * LONGEST_UPRIGHT:
        slant_labels(axes.xaxis)
    axes.set_ylabel("images")
    axes.margins(y=0.18)
    axes.legend()
    return save(figure, path)


def _bars_across(
    path: Path,
    parts: dict[str, Sequence[int]],
    classes: Sequence[str],
    title: str,
    caption: str,
) -> Path:
    """Draw a panel of horizontal bars for each part, with count and share of each class."""
    figure = new_figure(1.8 + 3.4 * len(parts), 1.2 + 0.21 * len(classes), title, caption)
    panels = np.ravel(figure.subplots(1, len(parts), sharey=True))
    for i, (axes, (part, counts)) in enumerate(zip(panels, parts.items(), strict=True)):
        bars = axes.barh(range(len(classes)), counts, 0.8, color=part_colour(i))
        shares = [f"{n:,} ({n / sum(counts):.1%})" for n in counts]
        axes.bar_label(bars, shares, fontsize=7, padding=2)
        axes.set_title(part, fontsize=10)
        axes.set_xlabel("images")
        axes.margins(x=0.32)
        axes.set_ylim(len(classes) - 0.4, -0.6)
    panels[0].set_yticks(range(len(classes)), list(map(shorten, classes)), fontsize=8)
    return save(figure, path)


def class_shares(
    path: Path, parts: dict[str, Sequence[int]], classes: Sequence[str], source: str
) -> Path:
    """Draw a pie of the class shares of each part, with counts and shares in its legend.

    Of more classes than there are colours: a curve of the shares, the largest class first.
    """
    total = ", ".join(f"{sum(counts):,} {part}" for part, counts in parts.items())
    title, caption = "Class shares", f"{source}; n = {total}"
    if len(classes) > MOST_UPRIGHT:
        return _ranked_shares(path, parts, title, caption)
    figure = new_figure(4 * len(parts), 4.2 + 0.14 * len(classes), title, caption)
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
            f"{shorten(name)}: {n:,} ({n / sum(counts):.1%})"
            for name, n in zip(classes, counts, strict=True)
        ]
        axes.legend(wedges, shares, loc="upper center", bbox_to_anchor=(0.5, 0.02), fontsize=9)
        axes.set_title(part, fontsize=10)
    return save(figure, path)


def _ranked_shares(
    path: Path, parts: dict[str, Sequence[int]], title: str, caption: str
) -> Path:
    """Draw the share of each class by its rank, on a logarithmic axis, for each part."""
    figure = new_figure(8, 4.2, title, caption)
    axes = figure.subplots()
    for i, (part, counts) in enumerate(parts.items()):
        present = sorted((n / sum(counts) for n in counts if n), reverse=True)
        ranks = range(1, len(present) + 1)
        axes.plot(
            ranks, present, marker="os^"[i % 3], markersize=4, color=part_colour(i), label=part
        )
    axes.axhline(1 / len(counts), color="0.5", linestyle=":", label="all classes equal")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:.3g}")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter("{x:.3g}")
    axes.set_xlabel("rank of the class, the largest first")
    axes.set_ylabel("share of the part's images, logarithmic")
    axes.grid(alpha=0.3)
    axes.legend()
    return save(figure, path)


def samples(
    path: Path,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    source: str,
    columns: int = 10,
) -> Path:
    """Draw the first images of each class, with their positions in the train images.

    Of more than MOST_ROWS classes, so many from the first to the last.
    """
    shown = spread(len(classes), MOST_ROWS)
    upright = LONGEST_BESIDE if len(shown) <= MOST_TALL else 0
    columns = columns if upright else min(columns, FEWER_COLUMNS)
    chosen = f"{len(shown)} of {len(classes)} classes, " if len(shown) < len(classes) else ""
    figure = new_figure(
        columns + 0.6 if upright else 0.9 * columns + 2.0,
        (1.25 if upright else 0.95) * len(shown) + 0.7,
        "Sample images, with their position in the train images",
        f"{source}; {chosen}the first {columns} of each class, of n = {len(labels):,}",
    )
    grid = figure.subplots(len(shown), columns, squeeze=False)
    for line, k in zip(grid, shown, strict=True):
        positions = (labels == k).nonzero().flatten().tolist()[:columns]
        for axes in line:
            axes.set_axis_off()
        for axes, i in zip(line, positions, strict=False):
            show(axes, images[i], str(i))
        row_label(line[0], shorten(classes[k]), upright)
    return save(figure, path)


def class_order(
    path: Path, labels: torch.Tensor, classes: Sequence[str], test: RunsTest, source: str
) -> Path:
    """Draw a mark for each image at its position in the data set, one row for each class."""
    figure = new_figure(
        9,
        1 + len(classes) * min(0.8, max(0.2, 8 / len(classes))),
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
            f"{shorten(name)} ({len(of_class):,})"
            for name, of_class in zip(classes, positions, strict=True)
        ],
        fontsize=10 if len(classes) <= MOST_ROWS else 8,
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
    """Draw the contrast of each image by its brightness, with rings around the outliers.

    The fewer images a class has, the larger are its points, and the later they are drawn. Of
    more classes than there are colours, those have one that are farthest from the others.
    """
    title, caption = "Brightness and contrast of each train image", f"n = {len(labels):,}"
    coloured = list(range(len(classes)))
    if len(classes) > len(COLOURS):
        coloured = _farthest(np.stack([brightness, contrast], 1), labels.numpy())
        caption += (
            f"; coloured: the {MOST_NAMED} of {len(classes)} classes whose medians are farthest"
            " from that of all"
        )
    figure = new_figure(
        7 if len(coloured) == len(classes) else 9, 5, title, f"{source}; {caption}"
    )
    axes = figure.subplots()
    others = ~np.isin(labels.numpy(), coloured)
    if others.any():
        axes.scatter(
            brightness[others], contrast[others], s=6, alpha=0.5, linewidths=0, color="0.75",
            label=f"other classes ({others.sum():,})",
        )  # fmt: skip
    counts = torch.bincount(labels, minlength=len(classes)).numpy()
    for i, k in enumerate(coloured):
        of_class = (labels == k).numpy()
        share = counts[k] / counts[coloured].max()
        axes.scatter(
            brightness[of_class],
            contrast[of_class],
            s=6 + 14 * (1 - share),
            alpha=0.9 - 0.4 * share,
            zorder=2 - share,
            linewidths=0,
            color=colour(i),
            label=f"{shorten(classes[k])} ({of_class.sum():,})",
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
    beside = {"loc": "upper left", "bbox_to_anchor": (1, 1)} if others.any() else {}
    for handle in axes.legend(markerscale=2, **beside).legend_handles:
        handle.set_alpha(1)
    return save(figure, path)


def _farthest(values: np.ndarray, labels: np.ndarray) -> list[int]:
    """Return the MOST_NAMED labels whose values (N, D) have the farthest medians from all's."""
    scale = np.maximum(values.std(0), 1e-9)
    centre = np.median(values, axis=0)
    distances = {
        int(k): float(np.abs((np.median(values[labels == k], axis=0) - centre) / scale).max())
        for k in np.unique(labels)
    }
    return sorted(sorted(distances, key=lambda k: -distances[k])[:MOST_NAMED])


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
            show(axes, images[int(i)], titles[i])
        for axes in rows[:, 0]:
            row_label(axes, kind)
    return save(figure, path)


def label_joint(
    path: Path, joint: np.ndarray, classes: Sequence[str], n: int, source: str
) -> Path:
    """Draw the estimated joint of given and true labels (K, K), as numbers of n images."""
    off = 1 - np.trace(joint)
    figure = matrix_figure(
        len(classes),
        "Given and true labels, estimated",
        f"{source}; n = {n:,} train images\n"
        f"confident learning: about {off * n:,.0f} ({off:.1%}) have a wrong label",
    )
    shares = joint / joint.sum(1, keepdims=True)
    cells = [[f"{value:,.0f}" for value in row] for row in joint * n]
    axes = figure.subplots()
    matrix(axes, shares, cells, classes, "share of the given label")
    axes.set_xlabel("true label (estimated)")
    axes.set_ylabel("given label")
    return save(figure, path)
