"""Figures of many pictures: duplicates, suspect labels, and errors of a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.dataset.label_fixes import Suspect
from common.dataset.split import LabelledImages, Split
from common.reporting.figures import new_figure, row_label, save, show
from common.reporting.probability_tables import image_name
from common.reporting.tables import shorten

COLUMNS = 3  # of pairs
PICTURES = 6  # in a line
MOST_ROWS = 10
LONGEST_PAIR = 16  # letters of two class names in one line above a picture
GAP = 1 / 16  # of a picture's width: white, between the two pictures of a pair
RED = "#B00000"  # of conflicting labels


def duplicates_figure(
    path: Path, rows: Sequence[dict[str, Any]], split: Split, most: int = 30
) -> Path:
    """Draw pairs of duplicates: conflicting labels first, then train and test, then the rest.

    Within each group the most similar pairs come first. rows: of `find_duplicates`, at least
    one. At most `most` pairs are shown.
    """
    images = {"train": split.train.images, "test": split.test.images}
    n = f"{len(split.train.labels):,} train, {len(split.test.labels):,} test images"
    ranked = sorted(
        rows,
        key=lambda row: (not row["conflict"], row["second_part"] != "test", row["distance"]),
    )
    shown = ranked[:most]
    lines = -(-len(shown) // COLUMNS)
    conflicts = sum(bool(row["conflict"]) for row in rows)
    figure = new_figure(
        2.9 * COLUMNS,
        1.5 * lines + 1.1,
        "Duplicates, with their positions in their part",
        f"{split.source}; n = {n}; {len(shown):,} of {len(rows):,} pairs shown: conflicting"
        " labels first, then train and test, then the most similar;"
        f" {conflicts:,} of all with conflicting labels; a number is a distance (0: identical"
        " pixels)",
    )
    for axes, row in zip(_picture_axes(figure, lines, COLUMNS), shown, strict=False):
        first, second = (
            images[row[f"{side}_part"]][row[f"{side}_index"]] for side in ("first", "second")
        )
        gap = torch.full_like(first[:, :, : round(GAP * first.shape[2])], 255)
        show(axes, torch.cat([first, gap, second], 2), _title(row))
        if row["conflict"]:
            axes.title.set(color=RED, fontweight="bold")
    return save(figure, path)


def suspects_figure(
    path: Path, suspects: Sequence[Suspect], images: torch.Tensor, source: str, most: int = 48
) -> Path:
    """Draw the first suspects of a label audit, with given and suggested label.

    suspects: at least one; images: uint8 (N, 3, S, S), the train images.
    """
    shown = suspects[:most]
    lines = -(-len(shown) // PICTURES)
    figure = new_figure(
        1.35 * PICTURES + 0.4,
        1.75 * lines + 0.9,
        "Labels that may be wrong, the most suspect first",
        f"{source}; n = {len(images):,} train images; {len(shown):,} of {len(suspects):,}"
        " suspects shown; given -> suggested label, and its probability",
    )
    for axes, s in zip(_picture_axes(figure, lines, PICTURES), shown, strict=False):
        given, suggested = (shorten(name, 14) for name in (s.given, s.suggested))
        between = " " if len(given + suggested) <= LONGEST_PAIR else "\n"
        title = f"{s.index}\n{given}{between}-> {suggested} {s.confidence:.0%}"
        show(axes, images[s.index], title)
    return save(figure, path)


def errors_figure(
    path: Path,
    part: LabelledImages,
    files: Sequence[str],
    probabilities: np.ndarray,
    classes: Sequence[str],
    title: str,
    source: str,
) -> Path | None:
    """Draw the most confident errors, one row for each true class; None if there are none.

    Then there is no file at `path` afterwards, not that of an earlier network either. files: of
    the images, or empty. probabilities: (N, K). Of more than ten classes those with the most
    errors are drawn.
    """
    labels, predictions = part.labels.numpy(), probabilities.argmax(1)
    wrong = labels != predictions
    errors = np.bincount(labels[wrong], minlength=len(classes))
    drawn = np.argsort(-errors, kind="stable")[:MOST_ROWS]
    drawn = sorted(k for k in drawn.tolist() if errors[k])
    if not drawn:
        path.unlink(missing_ok=True)
        return None
    figure = new_figure(
        1.45 * PICTURES + 0.6,
        1.85 * len(drawn) + 0.9,
        title,
        f"{source}; n = {len(labels):,} test images, {wrong.sum():,} of them wrong; above"
        " each: predicted class, its probability, file; the most confident first",
    )
    grid = figure.subplots(len(drawn), PICTURES, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    confidence = probabilities.max(1)
    for line, k in zip(grid, drawn, strict=True):
        positions = np.flatnonzero(wrong & (labels == k))
        ranked = positions[np.argsort(-confidence[positions], kind="stable")]
        for axes, i in zip(line, ranked, strict=False):
            name = image_name(files, i).rpartition("/")[2]
            predicted = f"{shorten(classes[predictions[i]])} {confidence[i]:.1%}"
            show(axes, part.images[int(i)], f"{predicted}\n{shorten(name)}")
        count = f"{errors[k]:,} of {(labels == k).sum():,} wrong"
        row_label(line[0], f"{shorten(classes[k])}\n{count}", 24)
    return save(figure, path)


def _picture_axes(figure: Figure, lines: int, columns: int) -> list[Axes]:
    """Return axes for pictures, line by line; their frames are hidden."""
    grid = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axes in grid:
        axes.set_axis_off()
    return grid


def _title(row: dict[str, Any]) -> str:
    names = " | ".join(
        f"{row[f'{side}_part']} {row[f'{side}_index']} {shorten(row[f'{side}_label'], 14)}"
        for side in ("first", "second")
    )
    kind = f"{row['kind']} {row['distance']:.4f}" if row["kind"] == "near" else "exact"
    notes = ["CONFLICT"] * bool(row["conflict"]) + [kind]
    return f"{names}\n{', '.join(notes + ['mirrored'] * bool(row['mirrored']))}"
