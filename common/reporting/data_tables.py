"""What is in the images, and what is wrong with them, as text for an 80-column screen."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

from common.dataset.label_fixes import Suspect
from common.dataset.split import Split
from common.inspection.data_statistics import OUTLIER_DISTANCE
from common.inspection.label_audit import CAUTION, Audit
from common.inspection.overview import Overview
from common.reporting.tables import text_table

SIGNIFICANT = 0.01  # a p below it is called a difference


def split_facts(split: Split) -> list[tuple[str, str]]:
    """Return (name, value) of the source, and of each change of the train labels."""
    facts = [("Images", split.source), ("Fingerprint", split.fingerprint)]
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
    """Return the first lines of every report: `split_facts`, one a line."""
    return "\n".join(f"{name}: {value}" for name, value in split_facts(split))


def overview_text(overview: Overview, classes: Sequence[str]) -> str:
    """Return class counts, pixel statistics, order, similarity and outliers."""
    counts = [
        [name, *(f"{n:,} ({n / sum(of_part):.1%})" for n in of_part), f"{sum(of_part):,}"]
        for name, of_part in overview.counts.items()
    ]
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
            "they differ" if test.p < SIGNIFICANT else "no difference found",
        ]
        for name, test in overview.similarity.items()
    ]
    order = overview.order
    verdict = "is not random" if order.p < SIGNIFICANT else "may well be random"
    sentence = (
        f"Order of the train images: {order.runs:,} runs of equal labels; a random order has"
        f" {order.expected:,.1f} on average (z = {order.z:.2f}, p = {order.p:.2g}), so this one"
        f" {verdict}."
    )
    unusual = ", ".join(f"{len(found)} in {kind}" for kind, found in overview.outliers.items())
    return "\n".join(
        [
            text_table(["class", *classes, "total"], counts),
            f"Calling every test image a {classes[overview.largest_class]} would be right for"
            f" {overview.constant_accuracy:.2%}.",
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


def duplicates_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return how many pairs of duplicates there are, within and between the parts."""
    cells = []
    for name, parts in (
        ("within train", ("train", "train")),
        ("train and test", ("train", "test")),
    ):
        pairs = [r for r in rows if (r["first_part"], r["second_part"]) == parts]
        exact = sum(r["kind"] == "exact" for r in pairs)
        conflicts = sum(r["conflict"] == "yes" for r in pairs)
        cells.append([name, str(exact), str(len(pairs) - exact), str(conflicts)])
    leaks = [r for r in rows if r["second_part"] == "test"]
    test, train = (len({r[f"{side}_index"] for r in leaks}) for side in ("second", "first"))
    return (
        text_table(["duplicate pairs", "exact", "near", "conflicting labels"], cells)
        + f"\nTest images that train images show as well: {test} (shown by {train})"
    )


def audit_text(
    audit: Audit, suspects: Sequence[Suspect], classes: Sequence[str], n: int, most: int = 10
) -> str:
    """Return the estimated joint of given and true labels, as images, and the first suspects.

    n: number of train images. At most `most` suspects are listed.
    """
    joint = [
        [name, *(f"{value:,.0f}" for value in row)]
        for name, row in zip(classes, audit.joint * n, strict=True)
    ]
    by_given = [sum(s.given == name for s in suspects) for name in classes]
    counts = ", ".join(
        f"{k} given as {name}" for k, name in zip(by_given, classes, strict=True)
    )
    lines = [
        "Estimated images by given label (row) and true label (column):",
        text_table(["given", *classes], joint),
        "",
        f"Suspects: {len(suspects)} of {n:,} images ({counts})",
        *wrap(CAUTION, 80),
    ]
    if suspects:
        listed = [
            [str(s.index), s.given, s.suggested, f"{s.confidence:.2f}", s.file]
            for s in suspects[:most]
        ]
        headers = ["index", "given", "suggested", "confidence", "file"]
        lines += ["", text_table(headers, listed, "rllrl")]
    return "\n".join(lines)


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
            name,
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
