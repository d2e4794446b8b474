"""Figures of many pictures: duplicates, and suspect labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.dataset.label_fixes import Suspect
from common.dataset.split import Split
from common.reporting.figures import new_figure, save, show

COLUMNS = 4
GAP = 2  # white pixels between the two pictures of a pair
RED = "#B00000"  # of conflicting labels


def duplicates_figure(
    path: Path, rows: Sequence[dict[str, Any]], split: Split, most: int = 32
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
        3.3 * COLUMNS,
        1.5 * lines + 0.8,
        "Duplicates, with their positions in their part: conflicting labels first,"
        " then train and test, then the most similar",
        f"{split.source}; n = {n}; {len(shown):,} of {len(rows):,} pairs shown, {conflicts:,}"
        " of all with conflicting labels; a number is a distance (0: identical pixels)",
    )
    for axes, row in zip(_picture_axes(figure, lines, COLUMNS), shown, strict=False):
        first, second = (
            images[row[f"{side}_part"]][row[f"{side}_index"]] for side in ("first", "second")
        )
        gap = torch.full_like(first[:, :, :GAP], 255)
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
    columns = 8
    shown = suspects[:most]
    lines = -(-len(shown) // columns)
    figure = new_figure(
        1.35 * columns + 0.4,
        1.75 * lines + 0.9,
        "Labels that may be wrong, the most suspect first",
        f"{source}; n = {len(images):,} train images; {len(shown):,} of {len(suspects):,}"
        " suspects shown; given -> suggested label, and its probability",
    )
    for axes, s in zip(_picture_axes(figure, lines, columns), shown, strict=False):
        title = f"{s.index}\n{s.given} -> {s.suggested} {s.confidence:.0%}"
        show(axes, images[s.index], title)
    return save(figure, path)


def _picture_axes(figure: Figure, lines: int, columns: int) -> list[Axes]:
    """Return axes for pictures, line by line; their frames are hidden."""
    grid = figure.subplots(lines, columns, squeeze=False).flatten().tolist()
    for axes in grid:
        axes.set_axis_off()
    return grid


def _title(row: dict[str, Any]) -> str:
    names = " | ".join(
        f"{row[f'{side}_part']} {row[f'{side}_index']} {row[f'{side}_label']}"
        for side in ("first", "second")
    )
    kind = f"{row['kind']} {row['distance']:.4f}" if row["kind"] == "near" else "exact"
    notes = ["CONFLICT"] * bool(row["conflict"]) + [kind]
    return f"{names}\n{', '.join(notes + ['mirrored'] * bool(row['mirrored']))}"
