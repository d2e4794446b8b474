"""What all figures share: colours, title and caption, pictures, matrices, saving.

Every figure states its title, its units, the source of the images and their number. A function
that draws a figure saves it as a PNG at `path` and returns `path`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import LogFormatter

from common.files import atomic_write
from common.reporting.tables import shorten

LONGEST_UPRIGHT = 9  # letters of a class name below a column of a matrix
# The palette of Okabe and Ito (2008), which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")


def colour(k: int) -> str:
    """Return colour k of the palette, which repeats."""
    return COLOURS[k % len(COLOURS)]


def new_figure(width: float, height: float, title: str, caption: str) -> Figure:
    """Return an empty figure, width x height inches, with a caption below."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=12)
    figure.supxlabel(caption, fontsize=8, color="0.35")
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write the figure to `path` as a PNG, atomically, and return `path`.

    Texts stand as they are: a $ in the name of a class or a file begins no mathematics.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
    return path


def show(axes: Axes, image: torch.Tensor, title: str = "") -> None:
    """Show an image (3, S, S), uint8 or in [0, 1], without axes."""
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()


def log_labels(axis: Axis) -> None:
    """Label a logarithmic axis without mathematics: 0.001, not 10 with an exponent."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter())  # on a short axis only


def row_label(axes: Axes, text: str) -> None:
    """Write a label to the left of the first picture of a row."""
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


def matrix(
    figure: Figure,
    shares: np.ndarray,
    cells: Sequence[Sequence[str]],
    classes: Sequence[str],
    scale: str,
) -> Axes:
    """Draw a matrix (K, K) coloured by the shares of its rows.

    cells: the text above the share in each cell, or nothing for cells without text. scale: the
    label of the colour bar.
    """
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*shares.shape) if cells else ():
        axes.text(
            column,
            row,
            f"{cells[row][column]}\n{shares[row, column]:.1%}",
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.5 else "black",
        )
    names = [shorten(name) for name in classes]
    axes.set_xticks(range(len(classes)), names)
    if not cells or max(map(len, names)) > LONGEST_UPRIGHT:
        axes.xaxis.set_tick_params(rotation=45)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(classes)), names)
    figure.colorbar(picture, ax=axes, label=scale, shrink=0.9)
    return axes
