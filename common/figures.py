"""One function per figure: each draws, saves a PNG at `path` and returns that path.

Every figure says what it shows, where the images come from and how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from common.comparison import Summary
from common.metrics import Report
from common.results import replacing
from common.statistics import RunsTest
from common.sweep import RangeTest

# Okabe and Ito's colours (2008), which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")


def colour(k: int) -> str:
    return COLOURS[k % len(COLOURS)]


def _figure(width: float, height: float, title: str, caption: str) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12)
    figure.supxlabel(caption, fontsize=8, color="0.35")
    return figure


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as unfinished:
        figure.savefig(unfinished)
    return path


def _show(axes: Axes, image: torch.Tensor, title: str = "") -> None:
    """A uint8 image (3, 32, 32), without axes."""
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()


def _row_label(axes: Axes, text: str) -> None:
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
    figure = _figure(7, 4, "Images per class", f"{source}; n = {total}")
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
    return _save(figure, path)


def class_shares(
    path: Path, parts: dict[str, Sequence[int]], classes: Sequence[str], source: str
) -> Path:
    """One pie of class shares for each part; counts and shares are in the legends."""
    total = ", ".join(f"{sum(counts):,} {part}" for part, counts in parts.items())
    figure = _figure(4 * len(parts), 4.6, "Class shares", f"{source}; n = {total}")
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
    return _save(figure, path)


def samples(
    path: Path,
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    source: str,
    columns: int = 10,
) -> Path:
    """The first images of each class, one row a class; titles are places in the data set."""
    figure = _figure(
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
            _show(axes, images[place], str(place))
        _row_label(grid[k, 0], name)
    return _save(figure, path)


def class_order(
    path: Path, labels: torch.Tensor, classes: Sequence[str], test: RunsTest, source: str
) -> Path:
    """Where each class lies along the order of the data set: a mark for each image."""
    figure = _figure(
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
    return _save(figure, path)


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
    figure = _figure(
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
    return _save(figure, path)


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
    figure = _figure(
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
            _show(axes, images[i], titles[i])
        for axes in rows[:, 0]:
            _row_label(axes, kind)
    return _save(figure, path)


def confusion(path: Path, report: Report, title: str, source: str) -> Path:
    """The confusion matrix: counts, coloured by the share of the true class."""
    n = len(report.classes)
    figure = _figure(
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
    return _save(figure, path)


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
    figure = _figure(
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
    return _save(figure, path)


def loss(
    path: Path,
    training: Sequence[float],
    validation: Sequence[float],
    title: str,
    caption: str,
) -> Path:
    """Mean loss per epoch on the training images, and on the validation part if any."""
    figure = _figure(7, 4, title, caption)
    axes = figure.subplots()
    for label, values in (("training", training), ("validation", validation)):
        if len(values):
            axes.plot(range(1, len(values) + 1), values, marker="o", markersize=4, label=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.set_ylabel("mean cross-entropy (nats)")
    axes.set_ylim(bottom=0)
    axes.legend()
    return _save(figure, path)


def recipes(
    path: Path, compared: dict[str, dict[str, Summary]], metric: str, seeds: int, caption: str
) -> Path:
    """One dot and 95% interval per recipe, the best at the top."""
    ranked = sorted(compared, key=lambda name: compared[name][metric].mean)
    of_what = f"the mean of {seeds} seeds" if seeds > 1 else "the test images, one seed"
    figure = _figure(
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
    return _save(figure, path)


HEIGHT = 3.0  # of a sweep's axes, in losses before training


def sweep_losses(
    path: Path, by_rate: dict[float, dict[str, Any]], start: float, title: str, caption: str
) -> Path:
    """Training loss per epoch at each learning rate, from the loss before training on."""
    figure = _figure(8, 5, title, caption)
    axes = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(by_rate)))
    for (rate, result), shade in zip(by_rate.items(), shades, strict=True):
        losses = [start, *result["history"]["loss"]]
        label = f"{rate:g}, diverged (x)" if result["diverged"] else f"{rate:g}"
        _sweep_curve(axes, 0, losses, bool(result["diverged"]), start, shade, label)
    axes.set_yscale("log")
    axes.set_ylim(top=HEIGHT * start)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_xlabel("epoch (0: before training)")
    axes.set_ylabel("mean training loss (nats), logarithmic")
    axes.legend(
        title="learning rate\n(arrow: off the scale)", loc="upper left", bbox_to_anchor=(1, 1)
    )
    return _save(figure, path)


def _sweep_curve(
    axes: Axes, first: int, losses: list[float], diverged: bool, start: float, shade: Any,
    label: str | None,
) -> None:  # fmt: skip
    """A curve of losses from epoch `first`: arrows where it leaves the axes, x at its end."""
    top = HEIGHT * start
    epochs, values = np.arange(first, first + len(losses)), np.array(losses)
    axes.plot(epochs, values.clip(max=top), color=shade, marker="o", markersize=3, label=label)
    high = values >= top
    axes.plot(epochs[high], values[high].clip(max=top * 0.97), "^", color=shade, markersize=8)
    if diverged and losses:
        axes.plot(epochs[-1], min(values[-1], top * 0.9), "x", color=shade, markersize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def sweep_each(
    path: Path,
    by_rate: dict[float, dict[str, Any]],
    verdicts: dict[float, str],
    start: float,
    title: str,
    caption: str,
) -> Path:
    """One picture for each learning rate, each with a linear axis of its own from 0."""
    columns = min(4, len(by_rate))
    longest = max(1, *(len(result["history"]["loss"]) for result in by_rate.values()))
    rows = -(-len(by_rate) // columns)
    figure = _figure(2.6 * columns, 0.8 + 2.1 * rows, title, caption)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, (rate, result) in zip(grid, by_rate.items(), strict=False):
        losses = result["history"]["loss"]
        _sweep_curve(axes, 1, losses, bool(result["diverged"]), start, colour(0), None)
        axes.axhline(start, color="0.6", linestyle=":", linewidth=1)
        axes.set_xlim(0, longest + 1)  # a mark in the first epoch is whole
        axes.set_ylim(0, min(HEIGHT * start, 1.1 * max([start, *losses])))
        axes.set_title(f"{rate:g}: {verdicts[rate]}", fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in grid[len(by_rate) :]:
        axes.set_axis_off()
    figure.supylabel(
        "mean training loss (nats) by epoch;\ndotted: before training, arrow: off the scale",
        fontsize=8,
    )
    return _save(figure, path)


def sweep_validation(
    path: Path, by_rate: dict[float, dict[str, Any]], title: str, caption: str
) -> Path:
    """Final validation loss and G-mean against the learning rate; a diverged one is marked."""
    figure = _figure(8, 4, title, caption)
    ended = {rate: r for rate, r in by_rate.items() if not r["diverged"]}
    for axes, name, values in zip(
        figure.subplots(1, 2),
        ("last validation loss (nats)", "validation G-mean"),
        (
            [r["history"]["validation_loss"][-1] for r in ended.values()],
            [r["validation"]["g_mean"] for r in ended.values()],
        ),
        strict=True,
    ):
        axes.plot(list(ended), values, color=colour(0), marker="o")
        for k, rate in enumerate(rate for rate in by_rate if rate not in ended):
            axes.axvline(rate, color=colour(5), linestyle="--", label=None if k else "diverged")
        if len(ended) < len(by_rate):
            axes.legend()
        axes.set_xscale("log")
        axes.set_ylim(0, 1 if "G-mean" in name else None)
        axes.set_xlabel("learning rate, logarithmic")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    return _save(figure, path)


def range_test(path: Path, test: RangeTest, title: str, caption: str) -> Path:
    """Loss against a growing learning rate, with the suggested rate and the edge marked."""
    figure = _figure(8, 4.5, title, caption)
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, ".", color="0.75", markersize=3, label="loss of a step")
    axes.plot(test.rates, test.smoothed, color=colour(0), linewidth=2, label="smoothed")
    marks = [(test.suggestion, colour(2), f"steepest descent: {test.suggestion:.2g}")]
    if test.edge:
        marks.append((test.edge, colour(5), f"edge of divergence: {test.edge:.2g}"))
    for rate, shade, label in marks:
        axes.axvline(rate, color=shade, linestyle="--", label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.5 * max(test.smoothed))
    axes.set_xlabel("learning rate, logarithmic, growing from step to step")
    axes.set_ylabel("training loss (nats)")
    axes.legend()
    return _save(figure, path)


def attack_curves(
    path: Path,
    curves: dict[str, Sequence[Report]],
    epsilons: Sequence[float],
    title: str,
    caption: str,
) -> Path:
    """Accuracy and balanced accuracy against epsilon (in 1/255), a line for each attack."""
    figure = _figure(9, 4.2, title, caption)
    places = np.arange(len(epsilons))  # evenly, for epsilons that double
    panels = figure.subplots(1, 2, sharey=True)
    for axes, metric in zip(panels, ("accuracy", "balanced_accuracy"), strict=True):
        for i, (name, reports) in enumerate(curves.items()):
            values = np.array([getattr(r, metric) for r in reports])
            bounds = np.array([r.intervals[metric] for r in reports])
            # Beside each other, so that the bars of equal values can be told apart.
            axes.errorbar(
                places + 0.06 * (i - (len(curves) - 1) / 2),
                values,
                np.abs(bounds.T - values),
                marker="osD^v"[i % 5],
                markersize=4,
                linewidth=1.2,
                elinewidth=0.8,
                color=colour(i),
                label=name,
            )
        axes.set_xticks(places, [f"{epsilon:g}" for epsilon in epsilons])
        axes.set_xlabel("epsilon (1/255): the most that a value moves")
        axes.set_ylabel(metric.replace("_", " "))
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_tick_params(labelleft=True)
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=8, title="bars: 95% intervals", title_fontsize=8)
    return _save(figure, path)


def picture_grid(
    path: Path,
    rows: dict[str, Sequence[tuple[torch.Tensor, str]]],
    title: str,
    caption: str,
) -> Path:
    """Pictures with a title each, one labelled row below the other.

    A picture is float32 (3, 32, 32) in [0, 1]; see `noise_picture` for noise.
    """
    columns = max(map(len, rows.values()))
    figure = _figure(1.35 * columns + 0.6, 1.6 * len(rows) + 0.9, title, caption)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (name, pictures) in zip(grid, rows.items(), strict=True):
        for axes, (picture, text) in zip(line, pictures, strict=False):
            _show(axes, picture.cpu(), text)
        _row_label(line[0], name)
    return _save(figure, path)


def noise_picture(noise: torch.Tensor, factor: float, grey: bool = False) -> torch.Tensor:
    """Noise (3, 32, 32), times `factor`, around mid-grey; grey: the mean of its colours."""
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
    """What C does: the share of images fooled and the noise's median norm, against C.

    tradeoff: C -> a row of `robustness.noises`. least: the median norm of the smallest noise
    that fools, with C found by bisection; None where nothing was fooled. norm: L1 or L2.
    """
    figure = _figure(7, 4.8, title, caption)
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
    left.set_xlabel("C, the weight of the noise's norm in the loss")
    left.set_ylabel("share of images called their target")
    left.set_ylim(-0.03, 1.03)
    right.set_ylabel(f"median {norm} norm (pixel values, 0 to 1)")
    right.set_ylim(bottom=0)
    # Above the axes: inside, any corner may hold a point.
    left.legend(handles=drawn, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1.01))
    return _save(figure, path)
