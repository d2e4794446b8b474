"""The smallest noise that fools a network, and the ensemble of attacks, as text and numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from textwrap import fill
from typing import Any

import torch

from common.attacks.ensemble import Budget
from common.attacks.strength import Strength
from common.metrics.intervals import median_with_interval
from common.metrics.report import Report
from common.reporting.evaluation_tables import SUMMARIES, recall_columns
from common.reporting.tables import side_by_side, text_table, with_interval

METRICS = list(SUMMARIES)[:2]
# The name of a norm, the unit of its noise, and how many units the range of a pixel has.
UNITS = {"linf": ("L-infinity", "1/255", 255), "l2": ("L2", "pixel values", 1)}
MASKED = "Gradients may be masked: Square, which needs none, fools what the others can't."


def smallest_noise(
    strength: Strength, labels: torch.Tensor, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return for each class the median norm of the smallest noise that fools, and its interval.

    In the unit of the norm. A class without images has no row.
    """
    radii = UNITS[strength.norm][2] * strength.radii.cpu()
    rows = {}
    for k, name in enumerate(classes):
        of_class = radii[labels.cpu() == k].tolist()
        if of_class:
            median, interval = median_with_interval(of_class)
            rows[name] = {"median": median, "interval": interval, "images": len(of_class)}
    return rows


def smallest_noise_text(
    strengths: Sequence[Strength], labels: torch.Tensor, classes: Sequence[str]
) -> str:
    """Return the table of `smallest_noise` in each norm."""
    columns: dict[str, list[str]] = {}
    for strength in strengths:
        norm, unit, _ = UNITS[strength.norm]
        rows = smallest_noise(strength, labels, classes)
        columns["images"] = [str(row["images"]) for row in rows.values()]
        columns[f"{norm} ({unit})"] = [
            with_interval(row["median"], row["interval"]) for row in rows.values()
        ]
    seconds = ", ".join(f"{UNITS[s.norm][0]} {s.seconds:.1f} s" for s in strengths)
    return "\n".join(
        [
            "Smallest noise that fools, median over the images of a class:",
            side_by_side(list(rows), columns),
            f"(0 for an image that is wrong without noise; in {seconds})",
        ]
    )


def ensemble_text(strength: Strength, name: str, budget: Budget) -> str:
    """Return what each attack of the ensemble adds at the epsilon of that name."""
    norm, unit, _ = UNITS[strength.norm]
    result = strength.results[name]
    about = (
        f"Ensemble at epsilon {name} ({norm}, {unit}) on the {strength.attacked} images that"
        " are right, each attack on those that withstood the ones above it (APGD:"
        f" {budget.steps} steps, Square: {budget.queries} queries):"
    )
    headers = ["", "fools", *(SUMMARIES[metric] for metric in METRICS), "s"]
    rows = [
        [attack, str(stage.added), *_scores(stage.report), f"{stage.seconds:.1f}"]
        for attack, stage in result.stages.items()
    ]
    whole, rounded = result.report(), result.rounded_report
    fooled = sum(stage.added for stage in result.stages.values())
    seconds = sum(stage.seconds for stage in result.stages.values())
    rows.append(["ensemble", str(fooled), *_scores(whole), f"{seconds:.1f}"])
    rows.append(["in 8 bits", str(result.rounded_fools), *_scores(rounded), ""])
    lines = [
        fill(about, 80),
        text_table(headers, rows),
        "(in 8 bits: the images rounded, as an image file holds them)",
        "",
        side_by_side(["ensemble", "in 8 bits"], recall_columns([whole, rounded])),
    ]
    return "\n".join(lines)


def strength_record(
    strength: Strength, labels: torch.Tensor, classes: Sequence[str]
) -> dict[str, Any]:
    """Return every number of the tables, for a result file."""
    return {
        "attacked": strength.attacked,
        "masked": strength.masked(),
        "smallest_noise": {
            name: {
                "median": _finite(row["median"]),
                "interval": [_finite(end) for end in row["interval"]],
                "images": row["images"],
            }
            for name, row in smallest_noise(strength, labels, classes).items()
        },
        "radii": [_finite(radius) for radius in strength.radii.tolist()],
        "seconds": strength.seconds,
        "ensemble": {
            name: {
                "stages": {
                    attack: {
                        "fools": stage.added,
                        "report": stage.report.as_dict(),
                        "seconds": stage.seconds,
                    }
                    for attack, stage in result.stages.items()
                },
                "fools": sum(stage.added for stage in result.stages.values()),
                "seconds": sum(stage.seconds for stage in result.stages.values()),
                "in_8_bits": {
                    "fools": result.rounded_fools,
                    "report": result.rounded_report.as_dict(),
                },
            }
            for name, result in strength.results.items()
        },
    }


def _scores(r: Report) -> list[str]:
    return [with_interval(getattr(r, m), r.intervals[m]) for m in METRICS]


def _finite(value: float) -> float | None:
    """Return a value for JSON, which has no infinity: None for no noise that fools."""
    return value if math.isfinite(value) else None
