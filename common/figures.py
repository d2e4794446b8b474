"""One function per figure: each draws, saves a PNG at `path` and returns that path.

Every figure says what it shows, where the images come from and how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.comparison import Summary
from common.metrics import Report
from common.results import replacing
from common.statistics import RunsTest

# Okabe and Ito's colours (2008), which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")


def colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


def new_figure(width: float, height: float, title: str, caption: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12)
    figure.supxlabel(caption, fontsize=8, color="0.35")
    return figure


def save(figure: Figure, path: Path) -> Path:
    with replacing(path) as unfinished:
        figure.savefig(unfinished)
    return path


def show(axes: Axes, image: torch.Tensor, title: str = "") -> None:
    """A uint8 image (3, 32, 32), without axes."""
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()


def row_label(axes: Axes, text: str) -> None:
    axes.text(
        -0.15,
        0.5,
        text,
        transform=axes.transAxes,
        rotation=90,
        ha="right",
        va="center",
        fontsize=10,
    )


def class_counts(
    path: Path, parts: dict[str, Sequence[int]], classes: Sequence[str], source: str
) -> Path:
    """Bars of images per class, one group of bars for each part (train, test, ...)."""
    total = ", ".join(f"{sum(counts):,} {part}" for part, counts in parts.items())
    figure = new_figure(7, 4, "Images per class", f"{source}; n = {total}")
    axes = figure.subplots()
    width = 0.8 / len(parts)
    for i, (part, counts) in enumerate(parts.items()):
        places = np.arange(len(classes)) + (i - (len(parts) - 1) / 2) * width
        bars = axes.bar(places, counts, width * 0.95, label=part, color=colour(i))
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
    """One pie of class shares for each part; counts and shares are in the legends."""
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
        # Beside the pie: written on its slices, the small ones' shares would overlap.
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
    """The first images of each class, one row a class; titles are places in the data set."""
    figure = new_figure(
        columns + 0.6,
        1.25 * len(classes) + 0.7,
        "Sample images, with their place in the train images",
        f"{source}; the first {columns} of each class, of n = {len(labels):,}",
    )
    grid = figure.subplots(len(classes), columns, squeeze=False)
    for k, name in enumerate(classes):
        places = (labels == k).nonzero().flatten().tolist()[:columns]
        for axes in grid[k]:
            axes.set_axis_off()
        for axes, place in zip(grid[k], places, strict=False):
            show(axes, images[place], str(place))
        row_label(grid[k, 0], name)
    return save(figure, path)


def class_order(
    path: Path, labels: torch.Tensor, classes: Sequence[str], test: RunsTest, source: str
) -> Path:
    """Where each class lies along the order of the data set: a mark for each image."""
    figure = new_figure(
        9,
        1 + 0.8 * len(classes),
        "Where each class lies in the order of the train images",
        f"{source}; n = {len(labels):,}; {test.runs:,} runs of equal labels, a random order"
        f" has {test.expected:,.0f} (z = {test.z:.2f}, p = {test.p:.2g})",
    )
    axes = figure.subplots()
    places = [(labels == k).nonzero().flatten().numpy() for k in range(len(classes))]
    axes.eventplot(
        places,
        colors=[colour(k) for k in range(len(classes))],
        linelengths=0.8,
        linewidths=0.4,
    )
    axes.set_yticks(
        range(len(classes)),
        [f"{name} ({len(at):,})" for name, at in zip(classes, places, strict=True)],
    )
    axes.invert_yaxis()
    axes.set_xlim(-0.5, len(labels) - 0.5)
    axes.set_xlabel("place in the data set")
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
    """Each image's brightness against its contrast, by class, with the outliers ringed."""
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
    """For each kind of outlier two rows of pictures, the most extreme first.

    found: kind -> positions in images (N, 3, 32, 32), most extreme first; titles: one for
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


def confusion(path: Path, report: Report, title: str, source: str) -> Path:
    """The confusion matrix: counts, coloured by the share of the true class."""
    n = len(report.classes)
    figure = new_figure(
        2.4 + 1.2 * n,
        1.9 + 1.0 * n,
        title,
        f"{source}; n = {sum(report.support):,} test images\n"
        f"accuracy {report.accuracy:.1%}, balanced accuracy"
        f" {report.balanced_accuracy:.1%}, G-mean {report.g_mean:.3f}",
    )
    counts = np.array(report.confusion)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cells = [[f"{count:,}" for count in row] for row in counts]
    axes = _matrix(figure, shares, cells, report.classes, "share of the true class")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    return save(figure, path)


def _matrix(
    figure: Figure,
    shares: np.ndarray,
    cells: Sequence[Sequence[str]],
    classes: Sequence[str],
    scale: str,
) -> Axes:
    """A matrix (K, K) coloured by the share of its row; each cell's text is above its share."""
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape):
        axes.text(
            column,
            row,
            f"{cells[row][column]}\n{shares[row, column]:.1%}",
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.5 else "black",
        )
    axes.set_xticks(range(len(classes)), classes)
    axes.set_yticks(range(len(classes)), classes)
    figure.colorbar(picture, ax=axes, label=scale, shrink=0.9)
    return axes


def label_joint(
    path: Path, joint: np.ndarray, classes: Sequence[str], n: int, source: str
) -> Path:
    """The estimated joint of given and true labels (K, K), as numbers of n images."""
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
    axes = _matrix(figure, shares, cells, classes, "share of the given label")
    axes.set_xlabel("true label (estimated)")
    axes.set_ylabel("given label")
    return save(figure, path)


def loss(
    path: Path,
    training: Sequence[float],
    validation: Sequence[float],
    title: str,
    caption: str,
) -> Path:
    """Mean loss per epoch on the training images, and on the validation part if any."""
    figure = new_figure(7, 4, title, caption)
    axes = figure.subplots()
    for label, values in (("training", training), ("validation", validation)):
        if len(values):
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean cross-entropy (nats)")
    axes.set_ylim(bottom=0)
    axes.legend()
    return save(figure, path)


def recipes(
    path: Path, compared: dict[str, dict[str, Summary]], metric: str, seeds: int, caption: str
) -> Path:
    """One dot and 95% interval per recipe, the best at the top."""
    ranked = sorted(compared, key=lambda name: compared[name][metric].mean)
    of_what = f"the mean of {seeds} seeds" if seeds > 1 else "the test images, one seed"
    figure = new_figure(
        8,
        1.6 + 0.3 * len(ranked),
        f"{metric} of each recipe, 95% interval of {of_what}",
        caption,
    )
    axes = figure.subplots()
    for place, name in enumerate(ranked):
        s = compared[name][metric]
        low, high = s.interval
        axes.plot([low, high], [place, place], color=colour(0), linewidth=2, alpha=0.5)
        axes.plot(s.mean, place, "o", color=colour(0))
        axes.annotate(
            f"{s.mean:.3f}", (s.mean, place), (0, 5), textcoords="offset points",
            ha="center", fontsize=7,
        )  # fmt: skip
    axes.set_yticks(range(len(ranked)), ranked)
    axes.set_xlim(-0.05, 1.02)
    axes.set_ylim(-0.6, len(ranked) - 0.3)
    axes.set_xlabel(metric)
    axes.grid(axis="x", alpha=0.3)
    return save(figure, path)
