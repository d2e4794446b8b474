"""What the attacks did to a network, as text for an 80-column screen."""

from __future__ import annotations

from collections.abc import Collection
from textwrap import fill
from typing import Any

from common.attacks.robustness import AttackCurve
from common.attacks.transfer import Transfer
from common.metrics.intervals import proportion_interval
from common.reporting.evaluation_tables import SUMMARIES, recall_columns, reports_compared
from common.reporting.tables import NAME_WIDTH, side_by_side, text_table, with_interval
from common.reporting.training_tables import MARK_LEGEND, marked_names


def sample_text(drawn: int, images: int, most: int | str) -> str:
    """Return how many of the test images the attacks are tried on, `most` of each class."""
    if drawn == images:
        return f"Attacks: on all {images:,} test images"
    return (
        f"Attacks: on {drawn:,} of {images:,} test images, at most {most} of each class\n"
        "  (--per-class all takes all); all scores are of these images"
    )


def curve_text(curve: AttackCurve) -> str:
    """Return what an attack did: for each epsilon scores and noise, and the recalls."""
    attacked = next(iter(curve.results.values())).attacked
    about = f"{curve.name} ({curve.description}) on the {attacked} images that are right:"
    flipped = "on target" if curve.targeted else "flipped"
    headers = [curve.unit, "accuracy", "balanced acc.", flipped, "L1", "L2", "Linf"]
    reports = [result.report for result in curve.results.values()]
    rows = []
    for epsilon, result in curve.results.items():
        r, norms = result.report, result.norms
        scores = [with_interval(getattr(r, m), r.intervals[m]) for m in list(SUMMARIES)[:2]]
        noise = [f"{norms['L1']:.1f}", f"{norms['L2']:.2f}", f"{norms['Linf']:.3f}"]
        rows.append([epsilon, *scores, f"{result.flipped / result.attacked:.1%}", *noise])
    return "\n".join(
        [
            fill(about, 80),
            text_table(headers, rows),
            "",
            side_by_side(list(curve.results), recall_columns(reports)),
            f"({curve.seconds:.1f} s; L1, L2, Linf: mean norms of the noise)",
        ]
    )


def curves_compared(curves: dict[str, AttackCurve], on_test: Collection[str]) -> str:
    """Return accuracy and balanced accuracy of several networks under the same attack.

    on_test: the names of the networks that were trained on the test images.
    """
    names = marked_names(list(curves), on_test, NAME_WIDTH)
    tables = []
    for metric in list(SUMMARIES)[:2]:
        columns = {
            epsilon: [
                with_interval(getattr(report, metric), report.intervals[metric])
                for report in (curve.results[epsilon].report for curve in curves.values())
            ]
            for epsilon in next(iter(curves.values())).results
        }
        title = f"{SUMMARIES[metric]}, by epsilon (1/255)"
        tables.append(f"{title}\n{side_by_side(names, columns)}")
    return "\n\n".join([*tables, *([MARK_LEGEND] if on_test else [])])


def optimised_noise_text(rows: dict[str, dict[str, Any]]) -> str:
    """Return one row for each measurement of `measure_optimised_noise`."""
    headers = ["", "fooled", "share", "L1", "L2", "Linf", "steps", "s"]
    cells = []
    for name, row in rows.items():
        share = with_interval(row["fooled"] / row["images"], row["interval"])
        medians = ["-" if v is None else f"{v:.3f}" for v in row["medians"].values()]
        numbers = [str(row["evaluations"]), f"{row['seconds']:.1f}"]
        cells.append([name, str(row["fooled"]), share, *medians, *numbers])
    legend = "(fooled: predicted as the target; L1, L2, Linf: medians of their noise)"
    return f"{text_table(headers, cells)}\n{legend}"


def universal_noise_text(rows: dict[str, dict[str, Any]]) -> str:
    """Return the reports on each part with each noise, and the predictions that it changes."""
    lines = []
    for part in ("train", "test"):
        reports = {name: row[part]["report"] for name, row in rows.items()}
        n = sum(next(iter(reports.values())).support)
        rates = ", ".join(
            f"{name} {row[part]['fooling_rate']:.1%}" for name, row in list(rows.items())[1:]
        )
        lines += [f"On {n} {part} images:", reports_compared(reports)]
        lines += [f"predictions changed: {rates}", ""]
    return "\n".join(lines[:-1])


def transfer_text(
    table: dict[str, dict[str, Transfer]], epsilon: float, on_test: Collection[str]
) -> str:
    """Return the share of images that fool each network, by the network they are made on.

    on_test: the names of the networks that were trained on the test images.
    """
    names = marked_names(list(table), on_test, NAME_WIDTH)
    columns = {
        name: [transfer_share(row[tried_on]) for row in table.values()]
        for name, tried_on in zip(names, table, strict=True)
    }
    about = (
        f"Transfer: images of MI-FGSM at epsilon {epsilon:g}/255, made on the network of the"
        " row and tried on that of the column; the share that fools, of the images that both"
        " have right, with its 95% interval:"
    )
    legend = f"\n{MARK_LEGEND}" if on_test else ""
    return f"{fill(about, 80)}\n{side_by_side(names, columns)}{legend}"


def transfer_share(found: Transfer) -> str:
    """Return the share of images that fool with its interval, "-" without images."""
    share = found.share()
    if share is None:
        return "-"
    return with_interval(share, proportion_interval(found.fooled, found.images))
