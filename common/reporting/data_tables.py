"""What is in the images, and what is wrong with them, as text for an 80-column screen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from textwrap import fill, wrap
from typing import Any

import numpy as np

from common.dataset.duplicates import LARGE_GROUP
from common.dataset.label_fixes import Suspect
from common.dataset.split import Split
from common.dataset.stratified import connected_groups
from common.inspection.data_statistics import OUTLIER_DISTANCE
from common.inspection.label_audit import CAUTION, Audit
from common.inspection.overview import Overview
from common.metrics.comparison import MOST_CLASSES
from common.reporting.tables import (
    WIDTH,
    end_of,
    short_names,
    shorten,
    side_by_side,
    text_table,
)

DIFFERENT = 0.01  # a p below it is called a difference
MOST_DAMAGED = 10  # files to name in the text; the result file has all


def split_facts(split: Split) -> list[tuple[str, str]]:
    """Return (name, value) of the source, its split, and each change of the train images."""
    facts = [("Images", split.source), ("Fingerprint", split.fingerprint)]
    share, groups, damaged = map(split.changes.get, ("test_share", "groups", "damaged"))
    if share is not None:
        together = f"near duplicates{' and the groups of ' * bool(groups)}{groups or ''}"
        facts.append(("Split", f"{share:.10g} to test on; {together} stay on one side"))
    if damaged:
        named = ", ".join(damaged[:MOST_DAMAGED])
        more = f" and {len(damaged) - MOST_DAMAGED} more" * (len(damaged) > MOST_DAMAGED)
        facts.append(("Left out, can't be read", f"{len(damaged)}: {named}{more}"))
    noise, fixes, leaks = map(
        split.changes.get, ("label_noise", "label_fixes", "leaks_dropped")
    )
    if noise:
        planted = ", ".join(f"{n} of {name}" for name, n in noise["planted"].items() if n)
        facts.append(("Wrong labels planted", f"{planted} (seed {noise['seed']})"))
    if fixes:
        done = f"{fixes['relabelled']} relabelled, {fixes['dropped']} dropped"
        facts.append(("Label fixes", f"{done} ({fixes['file']})"))
    if noise and fixes:
        left = int((split.true_labels != split.train.labels).sum())
        facts.append(("Wrong labels left", str(left)))
    if leaks is not None:
        facts.append(("Train images left out as duplicates of test images", str(leaks)))
    return facts


def split_text(split: Split) -> str:
    """Return the first lines of every report: `split_facts`, for an 80-column screen."""
    return "\n".join(
        fill(
            f"{name}: {value}",
            80,
            subsequent_indent="  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for name, value in split_facts(split)
    )


def overview_text(overview: Overview, classes: Sequence[str]) -> str:
    """Return class counts, pixel statistics, order, similarity and outliers."""
    channels = [
        [part, statistic, *(f"{value:.3f}" for value in values)]
        for part, by_statistic in overview.channels.items()
        for statistic, values in by_statistic.items()
    ]
    tests = [
        [
            name,
            f"{test.statistic:.3f}",
            f"{test.p:.2g}",
            "they differ" if test.p < DIFFERENT else "no difference found",
        ]
        for name, test in overview.similarity.items()
    ]
    order = overview.order
    always = f"Calling every test image a {shorten(classes[overview.largest_class])}"
    verdict = "is not random" if order.p < DIFFERENT else "may well be random"
    sentence = (
        f"Order of the train images: {order.runs:,} runs of equal labels; a random order has"
        f" {order.expected:,.1f} on average (z = {order.z:.2f}, p = {order.p:.2g}), so this one"
        f" {verdict}."
    )
    unusual = ", ".join(f"{len(found)} in {kind}" for kind, found in overview.outliers.items())
    return "\n".join(
        [
            _counts(overview.counts, classes),
            f"{always} would be right for {overview.constant_accuracy:.2%}.",
            "",
            text_table(["pixels (0 to 1)", "", "red", "green", "blue"], channels, "llrrr"),
            "",
            *wrap(sentence, 80),
            "",
            "Do the test images resemble the train images?",
            text_table(["", "statistic", "p", "verdict"], tests, "lrrl"),
            "",
            f"Unusual train images: {unusual}",
            f"(over {OUTLIER_DISTANCE:g} robust standard deviations from the median)",
        ]
    )


def _counts(by_part: dict[str, Sequence[int]], classes: Sequence[str]) -> str:
    """Return the images per class, the classes beside each other where that fits."""
    cells = {
        part: [*(f"{n:,} ({n / sum(counts):.1%})" for n in counts), f"{sum(counts):,}"]
        for part, counts in by_part.items()
    }
    names = [*short_names(classes), "total"]
    across = text_table(["class", *names], [[part, *row] for part, row in cells.items()])
    if max(map(len, across.splitlines())) <= WIDTH:
        return across
    rows = [[name, *row] for name, *row in zip(names, *cells.values(), strict=True)]
    return text_table(["class", *cells], rows)


def duplicates_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return how many pairs of duplicates there are, within and between the parts.

    Of groups that are so large that pairs may be left out, the number of images is added.
    """
    cells, notes = [], []
    for name, parts in (
        ("within train", ("train", "train")),
        ("train and test", ("train", "test")),
    ):
        pairs = [r for r in rows if (r["first_part"], r["second_part"]) == parts]
        exact = sum(r["kind"] == "exact" for r in pairs)
        conflicts = sum(r["conflict"] == "yes" for r in pairs)
        cells.append([name, str(exact), str(len(pairs) - exact), str(conflicts)])
        if n := _images_in_large_groups(pairs):
            in_groups = f"{n:,} images in groups of over {LARGE_GROUP}"
            notes.append(f"{name}: {in_groups}; pairs may be left out")
    leaks = [r for r in rows if r["second_part"] == "test"]
    test, train = (len({r[f"{side}_index"] for r in leaks}) for side in ("second", "first"))
    return "\n".join(
        [
            text_table(["duplicate pairs", "exact", "near", "conflicting labels"], cells),
            *notes,
            f"Test images that train images show as well: {test} (shown by {train})",
        ]
    )


def _images_in_large_groups(rows: Sequence[dict[str, Any]]) -> int:
    """Return how many images lie in groups of over LARGE_GROUP that pairs connect."""
    position = {}
    pairs = [
        [
            position.setdefault((row[f"{side}_part"], row[f"{side}_index"]), len(position))
            for side in ("first", "second")
        ]
        for row in rows
    ]
    sizes = np.bincount(connected_groups(len(position), pairs))
    return int(sizes[sizes > LARGE_GROUP].sum())


def audit_text(
    audit: Audit, suspects: Sequence[Suspect], classes: Sequence[str], n: int, most: int = 10
) -> str:
    """Return the estimated joint of given and true labels, as images, and the first suspects.

    n: number of train images. At most `most` suspects are listed, and of more than
    MOST_CLASSES classes at most `most` cells of the joint.
    """
    by_given = Counter(s.given for s in suspects)
    counts = ", ".join(
        f"{by_given[name]} given as {shorten(name)}"
        for name in classes
        if by_given[name] or len(classes) <= MOST_CLASSES
    )
    about = f" ({counts})" if counts else ""
    lines = [
        *_joint(audit.joint * n, classes, most),
        "",
        *wrap(f"Suspects: {len(suspects)} of {n:,} images{about}", 80),
        *wrap(CAUTION, 80),
    ]
    if suspects:
        listed = [
            [
                str(s.index),
                shorten(s.given),
                shorten(s.suggested),
                f"{s.confidence:.2f}",
                end_of(s.file, 20),
            ]
            for s in suspects[:most]
        ]
        headers = ["index", "given", "suggested", "confidence", "file"]
        lines += ["", text_table(headers, listed, "rllrl")]
    return "\n".join(lines)


def _joint(images: np.ndarray, classes: Sequence[str], most: int) -> list[str]:
    """Return the joint of given and true labels, (K, K), as lines, or its largest errors."""
    names = short_names(classes)
    if len(classes) <= MOST_CLASSES:
        cells = {
            name: [f"{value:,.0f}" for value in column]
            for name, column in zip(names, images.T, strict=True)
        }
        return [
            "Estimated images by given label (row) and true label (column):",
            side_by_side(names, cells, "r"),
        ]
    wrong = np.where(np.eye(len(classes), dtype=bool), 0, images)
    places = np.argsort(-wrong, axis=None, kind="stable")[:most]
    rows = [
        [names[i], names[j], f"{wrong[i, j]:,.1f}"]
        for i, j in zip(*np.unravel_index(places, wrong.shape), strict=True)
        if wrong[i, j] > 0
    ]
    return [
        f"Estimated images with a wrong label: {wrong.sum():,.0f}; the most frequent errors:",
        text_table(["given label", "true label", "images"], rows, "llr"),
    ]


def planted_text(table: dict[str, dict[str, float]]) -> str:
    """Return how well planted errors were found (`label_audit.against_truth`)."""
    of_all = table["all"]
    rankings = {
        "wrong": "P(wrong)",
        "self_confidence": "self-confidence",
        "normalized_margin": "normalised margin",
    }
    rows = [
        [
            shorten(name, 16),
            str(row["planted"]),
            *(f"{row[score]:.3f}" for score in ("recall", *rankings)),
        ]
        for name, row in table.items()
    ]
    return "\n".join(
        [
            f"Planted errors: {of_all['planted']}, listed: {of_all['recall']:.1%} (recall)",
            f"Of the list, {of_all.get('precision', 0):.1%} are planted (precision)",
            "Recall of the list, and average precision of three rankings:",
            text_table(["true class", "planted", "recall", *rankings.values()], rows),
        ]
    )
