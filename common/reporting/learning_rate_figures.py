"""The figures of lr_sweep.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from common.reporting.figures import colour, log_labels, new_figure, save
from common.training import losses
from common.training.learning_rates import RangeTest, validation_loss
from common.training.recipe import Recipe

ARROW_SHIFT = 0.45  # epochs
TOP = 3.0  # the upper end of the loss axis, in units of the loss before training


def sweep_figures(
    prefix: Path,
    name: str,
    recipe: Recipe,
    result_by_rate: dict[float, dict[str, Any]],
    verdicts: dict[float, str],
    start: float,
    caption: str,
) -> list[Path]:
    """Save the figures of a sweep as PREFIX_*.png, and return their paths.

    start: the loss before training.
    """
    title = f"Learning rates of {name}, {recipe.epochs} epochs"
    about = (f"mean {losses.loss_title(recipe)} (nats)", title, caption)
    paths = {kind: Path(f"{prefix}_{kind}.png") for kind in ("loss", "each", "validation")}
    return [
        all_losses(paths["loss"], result_by_rate, start, *about),
        each_loss(paths["each"], result_by_rate, verdicts, start, *about),
        validation(paths["validation"], result_by_rate, title, caption),
    ]


def all_losses(
    path: Path, result_by_rate: dict[float, dict[str, Any]], start: float, ylabel: str,
    title: str, caption: str,
) -> Path:  # fmt: skip
    """Draw the training loss per epoch at each learning rate, from the loss before training."""
    figure = new_figure(8, 5, title, caption)
    axes = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(result_by_rate)))
    arrows = 0
    for (rate, result), shade in zip(result_by_rate.items(), shades, strict=True):
        curve = [start, *result["history"]["loss"]]
        label = f"{rate:g}, diverged (x)" if result["diverged"] else f"{rate:g}"
        diverged = bool(result["diverged"])
        shift = ARROW_SHIFT * arrows  # so that the arrows of several rates are apart
        arrows += _curve(axes, 0, curve, diverged, start, shade, label, shift)
    axes.set_yscale("log")
    axes.set_ylim(top=TOP * start)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_xlabel("epoch (0: before training)")
    axes.set_ylabel(f"training: {ylabel}, logarithmic")
    title = "learning rate\n(arrow: off the scale)" if arrows else "learning rate"
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, path)


def _curve(
    axes: Axes, first: int, curve: list[float], diverged: bool, start: float, shade: Any,
    label: str | None, shift: float = 0,
) -> bool:  # fmt: skip
    """Draw losses from epoch `first` on, with an arrow where they leave the axes.

    A diverged curve ends with an x. shift: of the arrows, in epochs. Returns whether there is
    an arrow.
    """
    top = TOP * start
    epochs, values = np.arange(first, first + len(curve)), np.array(curve)
    axes.plot(epochs, values.clip(max=top), color=shade, marker="o", markersize=3, label=label)
    high = values >= top
    arrows = values[high].clip(max=top * 0.88)
    axes.plot(epochs[high] + shift, arrows, "^", color=shade, markersize=8)
    if diverged and curve:
        axes.plot(epochs[-1], min(values[-1], top * 0.9), "x", color=shade, markersize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return bool(high.any())


def each_loss(
    path: Path,
    result_by_rate: dict[float, dict[str, Any]],
    verdicts: dict[float, str],
    start: float,
    ylabel: str,
    title: str,
    caption: str,
) -> Path:
    """Draw one panel for each learning rate, each with a linear axis of its own from 0."""
    columns = min(4, len(result_by_rate))
    longest = max(1, *(len(result["history"]["loss"]) for result in result_by_rate.values()))
    rows = -(-len(result_by_rate) // columns)
    figure = new_figure(2.6 * columns, 0.8 + 2.1 * rows, title, caption)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    has_arrow = False
    for axes, (rate, result) in zip(grid, result_by_rate.items(), strict=False):
        curve = result["history"]["loss"]
        has_arrow |= _curve(axes, 1, curve, bool(result["diverged"]), start, colour(0), None)
        axes.axhline(start, color="0.6", linestyle=":", linewidth=1)
        axes.set_xlim(0, longest + 1)  # so that a marker in the first epoch is not clipped
        axes.set_ylim(0, min(TOP * start, 1.1 * max([start, *curve])))
        axes.set_title(f"{rate:g}: {verdicts[rate]}", fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in grid[len(result_by_rate) :]:
        axes.set_axis_off()
    marks = "dotted: before training" + (", arrow: off the scale" if has_arrow else "")
    figure.supylabel(f"training: {ylabel} by epoch;\n{marks}", fontsize=8)
    return save(figure, path)


def validation(
    path: Path, result_by_rate: dict[float, dict[str, Any]], title: str, caption: str
) -> Path:
    """Draw final validation loss and G-mean by learning rate; diverged rates are marked.

    Bars: the 95% intervals of the G-mean.
    """
    figure = new_figure(8, 4, title, caption)
    finished = {rate: r for rate, r in result_by_rate.items() if not r["diverged"]}
    left, right = figure.subplots(1, 2)
    rates, scores = list(finished), [r["validation"] for r in finished.values()]
    of_loss = [validation_loss(result) for result in finished.values()]
    left.plot(rates, of_loss, color=colour(0), marker="o")
    g_means = np.array([each["g_mean"] for each in scores])
    ends = np.array([each["intervals"]["g_mean"] for each in scores]).reshape(-1, 2)
    bars = abs(ends - g_means[:, None]).T
    style = {"color": colour(0), "marker": "o", "capsize": 3, "elinewidth": 1}
    right.errorbar(rates, g_means, bars, **style)
    names = "last validation cross-entropy (nats)", "validation G-mean, 95% interval"
    for axes, name in zip((left, right), names, strict=True):
        for k, rate in enumerate(rate for rate in result_by_rate if rate not in finished):
            axes.axvline(rate, color=colour(5), linestyle="--", label=None if k else "diverged")
        if len(finished) < len(result_by_rate):
            axes.legend()
        axes.set_xscale("log")
        log_labels(axes.xaxis)
        axes.set_xlabel("learning rate, logarithmic")
        axes.set_ylabel(name)
        axes.grid(alpha=0.3)
    left.set_ylim(bottom=0)
    right.set_ylim(-0.03, 1)  # so that a marker at 0 is not clipped
    return save(figure, path)


def range_test_figure(
    path: Path, test: RangeTest, title: str, recipe: Recipe, caption: str
) -> Path:
    """Draw the loss by the growing learning rate, with the suggested rate and the edge."""
    figure = new_figure(8, 4.5, title, caption)
    axes = figure.subplots()
    axes.plot(test.rates, test.losses, ".", color="0.75", markersize=3, label="loss of a step")
    axes.plot(test.rates, test.smoothed, color=colour(0), linewidth=2, label="smoothed")
    marks = [(test.suggestion, colour(2), f"steepest descent: {test.suggestion:.2g}")]
    if test.edge:
        marks.append((test.edge, colour(5), f"edge of divergence: {test.edge:.2g}"))
    for rate, shade, label in marks:
        axes.axvline(rate, color=shade, linestyle="--", label=label)
    axes.set_xscale("log")
    log_labels(axes.xaxis)
    axes.set_ylim(0, 1.5 * max(test.smoothed))
    axes.set_xlabel("learning rate, logarithmic, growing from step to step")
    axes.set_ylabel(f"training: {losses.loss_title(recipe)} (nats)")
    axes.legend()
    return save(figure, path)
