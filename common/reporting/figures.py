"""What all figures share: colours, title and caption, pictures, matrices, saving.

Every figure states its title, its units, the source of the images and their number. A function
that draws a figure saves it as a PNG at `path` and returns `path`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

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
LONGEST_BESIDE = 16  # letters of a rotated name beside a row of pictures
MOST_LARGE_CELLS = 5  # classes of a matrix with room for large numbers
MOST_CELLS = 20  # classes of a matrix with numbers in its cells
PAGE_WIDTH = 8  # inches
LETTERS_PER_INCH = 16  # of a caption, whose size is 8 points
# The palette of Okabe and Ito (2008), which colour-blind readers can distinguish.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")


def colour(k: int) -> str:
    """Return colour k of the palette, which repeats."""
    return COLOURS[k % len(COLOURS)]


def part_colour(i: int) -> str:
    """Return the grey of part i of the images (train, ...): colours are for classes."""
    return ("0.35", "0.62", "0.8")[i % 3]


def new_figure(width: float, height: float, title: str, caption: str) -> Figure:
    """Return an empty figure, width x height inches, with a caption below.

    The text of a figure wider than a page is larger, since a page shows the figure smaller.
    """
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    scale = max(1, width / PAGE_WIDTH)
    letters = int(LETTERS_PER_INCH * min(width, PAGE_WIDTH))
    lines = [wrapped for line in caption.splitlines() for wrapped in wrap(line, letters)]
    figure.suptitle("\n".join(wrap(title, int(letters / 1.5))), fontsize=12 * scale)
    figure.supxlabel("\n".join(lines), fontsize=8 * scale, color="0.35")
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write the figure to `path` as a PNG, atomically, and return `path`.

    Texts stand as they are: a $ in the name of a class or a file begins no mathematics.
    """
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with atomic_write(path) as temporary, warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box; a warning for each helps nobody.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
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


def row_label(axes: Axes, text: str, upright: int = LONGEST_BESIDE) -> None:
    """Write a label to the left of the first picture of a row.

    upright: the letters of a line up to which it is rotated, to run along the picture. Longer
    lines are wrapped.
    """
    lines = [line for each in text.splitlines() for line in wrap(each, LONGEST_BESIDE)]
    rotated = max(map(len, text.splitlines())) <= upright
    axes.text(
        -0.15,
        0.5,
        text if rotated else "\n".join(lines),
        transform=axes.transAxes,
        rotation=90 if rotated else 0,
        ha="right",
        va="center",
        fontsize=10 if rotated else 8,
    )


def spread(n: int, most: int) -> list[int]:
    """Return all numbers below n, or `most` of them from the first to the last.

    >>> spread(3, 5), spread(50, 5)
    ([0, 1, 2], [0, 12, 24, 36, 49])
    """
    return np.linspace(0, n - 1, min(n, most)).astype(int).tolist()


def slant_labels(axis: Axis) -> None:
    """Slant the labels below an axis, which would overlap."""
    axis.set_tick_params(rotation=45)
    for label in axis.get_ticklabels():
        label.set(ha="right", rotation_mode="anchor")


def matrix_figure(classes: int, title: str, caption: str, panels: int = 1) -> Figure:
    """Return an empty figure for `panels` times `matrix`, with smaller cells if many."""
    if classes <= MOST_LARGE_CELLS:
        width, height = 1.2 * classes, 1.0 * classes
    elif classes <= MOST_CELLS:
        width, height = 0.68 * classes, 0.5 * classes
    else:
        width, height = 0.24 * classes, 0.2 * classes
    return new_figure(1.4 + panels * (1.2 + width), 1.9 + height, title, caption)


def matrix(
    axes: Axes,
    shares: np.ndarray,
    cells: Sequence[Sequence[str]],
    classes: Sequence[str],
    scale: str,
    beside: Sequence[Axes] = (),
) -> None:
    """Draw a matrix (K, K) coloured by the shares of its rows.

    cells: the text above the share in each cell; of more than MOST_CELLS classes only the
    colours are drawn. scale: the label of the colour bar; without one there is no bar. beside:
    other axes that the bar is for.
    """
    has_text, is_large = len(classes) <= MOST_CELLS, len(classes) <= MOST_LARGE_CELLS
    names = [shorten(name) for name in classes]
    slanted = not is_large or max(map(len, names)) > LONGEST_UPRIGHT
    # Square cells beside long names would leave no room for the colour bar.
    aspect = "auto" if slanted else "equal"
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect=aspect)
    for row, column in np.ndindex(*shares.shape) if has_text else ():
        axes.text(
            column,
            row,
            f"{cells[row][column]}\n{shares[row, column]:.1%}",
            ha="center",
            va="center",
            color="white" if shares[row, column] > 0.5 else "black",
            fontsize=10 if is_large else 7,
        )
    axes.set_xticks(range(len(classes)), names)
    if slanted:
        slant_labels(axes.xaxis)
    axes.set_yticks(range(len(classes)), names)
    if not has_text:
        axes.tick_params(labelsize=8)
    if scale:
        axes.figure.colorbar(picture, ax=[*beside, axes], label=scale, shrink=0.9)
