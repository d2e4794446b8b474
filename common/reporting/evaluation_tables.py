"""The report on a checkpoint's predictions as text, for an 80-column screen."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

import numpy as np
from sklearn.metrics import classification_report

from common.dataset.split import Split
from common.metrics.comparison import MOST_CLASSES
from common.metrics.groups import FEW, MANY, group_recalls, largest_confusions, shot_groups
from common.metrics.intervals import PER_CLASS
from common.metrics.report import Report, labels_and_predictions
from common.networks.checkpoint import Checkpoint
from common.reporting.tables import (
    WIDTH,
    short_names,
    shorten,
    side_by_side,
    text_table,
    with_interval,
)

HIGH = 0.7  # a precision or recall from here on is called high; report A gives no figure
NOT_HELD_OUT = (
    "*** TRAINED ON THE TEST IMAGES: the scores below are not held out and say\n"
    "*** nothing about images that the network has not seen."
)
LOWEST_RECALL = (
    "The lowest of many recalls is low partly by chance; its interval is that of\n"
    "the class by itself."
)
SUMMARIES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "g_mean": "G-mean",
}


def reading(r: Report, k: int) -> str:
    """Return one sentence on class k, as report A reads its precision and recall."""
    name = r.classes[k]
    if r.support[k] == 0:
        return f"{name}: the test images hold none, so nothing can be said of it."
    if f"precision of {name}" in r.undefined:
        return f"{name} is not handled: it is never predicted."
    sentence = {
        (True, True): "is handled: most are found, and most predictions of it are right",
        (True, False): "is rarely found, but predictions of it can be trusted",
        (False, True): "is found, but over-predicted: many predictions of it are wrong",
        (False, False): "is not handled: few are found, and most predictions of it are wrong",
    }[r.precision[k] >= HIGH, r.recall[k] >= HIGH]
    bounds = {metric: r.intervals[metric][k] for metric in ("precision", "recall")}
    unsure = [metric for metric, (low, high) in bounds.items() if low < HIGH <= high]
    caution = f" (uncertain with {r.support[k]} images: {', '.join(unsure)})"
    return f"{name} {sentence}{caution if unsure else ''}."


def report_text(r: Report, source: str, train_counts: Sequence[int]) -> str:
    """Return the whole report: the lines of the student reports, tables, plain sentences.

    train_counts: of the images that the network was trained on, for reports on many classes.
    """
    undefined = [
        "Undefined, shown as 0.000; averages take it as 0, their intervals as unknown:",
        *(f"- {name}" for name in r.undefined),
    ]
    blocks = [
        _accuracies(r, source),
        _classification_report(r),
        "\n".join(undefined) if r.undefined else "",
        _with_intervals(r),
        *(
            [_confusion(r)]
            if len(r.classes) <= MOST_CLASSES
            else _many_classes(r, train_counts)
        ),
        "\n".join([f"In words (high: {HIGH} or more):", *_readings(r)]),
    ]
    return "\n\n".join(block for block in blocks if block)


def _accuracies(r: Report, source: str) -> str:
    lines = [
        f"Accuracy of the network on the {sum(r.support)} test images: {100 * r.accuracy:.2f} %"
    ]
    for k, name in enumerate(r.classes):
        low, high = (100 * bound for bound in r.intervals["recall"][k])
        found = f"{r.confusion[k][k]} of {r.support[k]}; 95% interval {low:.1f} to {high:.1f}"
        percent = f"{100 * r.recall[k]:.1f}".removesuffix(".0")
        lines.append(f"Accuracy of {shorten(name)} : {percent} %  ({found})")
    return "\n".join([*lines, f"(images: {source})"])


def _classification_report(r: Report) -> str:
    """Return scikit-learn's table, which the student reports print."""
    return classification_report(
        *labels_and_predictions(r.confusion),
        labels=range(len(r.classes)),
        target_names=short_names(r.classes),
        digits=3,
        zero_division=0,
    ).rstrip()


def _with_intervals(r: Report) -> str:
    averages = {"macro": r.macro, "weighted": r.weighted}
    columns = {}
    for metric, title in zip(PER_CLASS, ("precision", "recall", "f1-score"), strict=True):
        values, intervals = getattr(r, metric), r.intervals[metric]
        columns[title] = [
            "0.000 undefined"
            if f"{metric} of {name}" in r.undefined
            else with_interval(values[k], intervals[k])
            for k, name in enumerate(r.classes)
        ] + [
            with_interval(average[metric], r.intervals[f"{kind}_{metric}"])
            for kind, average in averages.items()
        ]
    names = [*map(shorten, r.classes), *(f"{kind} avg" for kind in averages)]
    summaries = [
        [label, with_interval(getattr(r, name), r.intervals[name])]
        for name, label in SUMMARIES.items()
    ]
    return "\n".join(
        [
            "With 95% intervals, all from one posterior of the confusion matrix:",
            side_by_side(names, columns),
            "",
            text_table([], summaries, "ll"),
        ]
    )


def _confusion(r: Report) -> str:
    columns = {
        name: [f"{row[k]:,}" for row in r.confusion]
        for k, name in enumerate(short_names(r.classes))
    }
    return "\n".join(
        [
            "Confusion matrix (row: true class, column: prediction):",
            side_by_side(list(columns), columns, "r"),
        ]
    )


def _many_classes(r: Report, train_counts: Sequence[int]) -> list[str]:
    """Return what stands in place of a large confusion matrix."""
    confusion = np.array(r.confusion)
    groups = shot_groups(train_counts)
    rows = [
        [f"{name} ({len(groups[name])} classes)", with_interval(value, ends)]
        for name, (value, ends) in group_recalls(confusion, groups).items()
    ]
    worst = int(np.argmin(r.recall))
    ends = r.intervals["recall"][worst]
    rows.append([f"lowest ({shorten(r.classes[worst])})", with_interval(r.recall[worst], ends)])
    confusions = [
        [shorten(r.classes[i]), shorten(r.classes[j]), str(n), f"{n / r.support[i]:.1%}"]
        for n, i, j in largest_confusions(confusion)
    ]
    headers = ["true class", "prediction", "images", "share"]
    return [
        f"Mean recall by train images (many: over {MANY}, few: under {FEW}):\n"
        + f"{text_table([], rows, 'll')}\n{LOWEST_RECALL}",
        "The largest confusions:\n" + text_table(headers, confusions, "llrr"),
    ]


def _readings(r: Report) -> list[str]:
    sentences = (f"- {reading(r, k)}" for k in range(len(r.classes)))
    return [line for s in sentences for line in wrap(s, WIDTH, subsequent_indent="  ")]


def reports_compared(reports: dict[str, Report]) -> str:
    """Return accuracy, balanced accuracy, G-mean and recalls, one row for each report.

    Of more than ten classes only the lowest recall is shown.
    """
    rows = list(reports.values())
    columns = {
        label: [with_interval(getattr(r, m), r.intervals[m]) for r in reports.values()]
        for m, label in SUMMARIES.items()
    }
    table = side_by_side(list(reports), columns | recall_columns(rows))
    return f"{table}\n{LOWEST_RECALL}" if len(rows[0].classes) > MOST_CLASSES else table


def recall_columns(reports: Sequence[Report]) -> dict[str, list[str]]:
    """Return the columns of the recalls; of more than ten classes that of the lowest."""
    classes = reports[0].classes
    if len(classes) > MOST_CLASSES:
        worst = [min(zip(r.recall, r.intervals["recall"], strict=True)) for r in reports]
        return {"lowest recall": [with_interval(*each) for each in worst]}
    return {
        f"recall of {name}": [
            with_interval(r.recall[k], r.intervals["recall"][k]) for r in reports
        ]
        for k, name in enumerate(short_names(classes))
    }


def caution(checkpoint: Checkpoint, split: Split) -> str:
    """Return what a reader must know of the checkpoint's training images; "" if nothing."""
    if checkpoint.trained_on_test:
        return NOT_HELD_OUT
    if checkpoint.data is None:
        return "(What this network was trained on is not recorded in its checkpoint.)"
    trained_on = checkpoint.data["fingerprint"].partition("-")[0]
    if trained_on != split.train_fingerprint:
        if "test_share" in split.changes and checkpoint.data["source"] == split.source:
            return (
                "(Trained on another split of this folder, so some of these test images may be"
                " among\n its train images, and its scores too high. Evaluate it on the split"
                " that it was\n trained on, or train again.)"
            )
        return (
            "(Trained on other images or labels than those that belong to these test images:\n"
            f" {checkpoint.data['source']}, fingerprint {trained_on}.)"
        )
    return ""


def is_held_out(checkpoint: Checkpoint, split: Split) -> bool:
    """Return whether the validation images were held out when the network was trained."""
    data, record = checkpoint.data or {}, split.record()
    same = all(data.get(name) == record[name] for name in ("validation_counts", "split_seed"))
    trained_on = str(data.get("fingerprint")).partition("-")[0]
    return same and trained_on == split.train_fingerprint and not checkpoint.trained_on_test
