"""The figures of stage 4, as `figures.py` draws those of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from common.figures import colour, new_figure, save
from common.sweep import RangeTest

HEIGHT = 3.0  # of a sweep's axes, in losses before training


def all_losses(
    path: Path, by_rate: dict[float, dict[str, Any]], start: float, title: str, caption: str
) -> Path:
    """Training loss per epoch at each learning rate, from the loss before training on."""
    figure = new_figure(8, 5, title, caption)
    axes = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(by_rate)))
    higher = False
    for (rate, result), shade in zip(by_rate.items(), shades, strict=True):
        losses = [start, *result["history"]["loss"]]
        label = f"{rate:g}, diverged (x)" if result["diverged"] else f"{rate:g}"
        higher |= _curve(axes, 0, losses, bool(result["diverged"]), start, shade, label)
    axes.set_yscale("log")
    axes.set_ylim(top=HEIGHT * start)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize=7)
    axes.set_xlabel("epoch (0: before training)")
    axes.set_ylabel("mean training loss (nats), logarithmic")
    title = "learning rate\n(arrow: off the scale)" if higher else "learning rate"
    axes.legend(title=title, loc="upper left", bbox_to_anchor=(1, 1))
    return save(figure, path)


def _curve(
    axes: Axes, first: int, losses: list[float], diverged: bool, start: float, shade: Any,
    label: str | None,
) -> bool:  # fmt: skip
    """A curve of losses from epoch `first`: arrows where it leaves the axes, x at its end.

    Returns whether there is an arrow.
    """
    top = HEIGHT * start
    epochs, values = np.arange(first, first + len(losses)), np.array(losses)
    axes.plot(epochs, values.clip(max=top), color=shade, marker="o", markersize=3, label=label)
    high = values >= top
    axes.plot(epochs[high], values[high].clip(max=top * 0.97), "^", color=shade, markersize=8)
    if diverged and losses:
        axes.plot(epochs[-1], min(values[-1], top * 0.9), "x", color=shade, markersize=12)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return bool(high.any())


def each_loss(
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
    figure = new_figure(2.6 * columns, 0.8 + 2.1 * rows, title, caption)
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    higher = False
    for axes, (rate, result) in zip(grid, by_rate.items(), strict=False):
        losses = result["history"]["loss"]
        higher |= _curve(axes, 1, losses, bool(result["diverged"]), start, colour(0), None)
        axes.axhline(start, color="0.6", linestyle=":", linewidth=1)
        axes.set_xlim(0, longest + 1)  # a mark in the first epoch is whole
        axes.set_ylim(0, min(HEIGHT * start, 1.1 * max([start, *losses])))
        axes.set_title(f"{rate:g}: {verdicts[rate]}", fontsize=8)
        axes.tick_params(labelsize=7)
    for axes in grid[len(by_rate) :]:
        axes.set_axis_off()
    marks = "dotted: before training" + (", arrow: off the scale" if higher else "")
    figure.supylabel(f"mean training loss (nats) by epoch;\n{marks}", fontsize=8)
    return save(figure, path)


def validation(
    path: Path, by_rate: dict[float, dict[str, Any]], title: str, caption: str
) -> Path:
    """Final validation loss and G-mean against the learning rate; a diverged one is marked."""
    figure = new_figure(8, 4, title, caption)
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
    return save(figure, path)


def range_test(path: Path, test: RangeTest, title: str, caption: str) -> Path:
    """Loss against a growing learning rate, with the suggested rate and the edge marked."""
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
    axes.set_ylim(0, 1.5 * max(test.smoothed))
    axes.set_xlabel("learning rate, logarithmic, growing from step to step")
    axes.set_ylabel("training loss (nats)")
    axes.legend()
    return save(figure, path)
