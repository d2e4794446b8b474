"""The report on a checkpoint's predictions as text, for an 80-column screen."""

from __future__ import annotations

from textwrap import wrap

from common.dataset.split import Split
from common.metrics.intervals import PER_CLASS
from common.metrics.report import Report
from common.networks.checkpoint import Checkpoint
from common.reporting.tables import text_table, with_interval

HIGH = 0.7  # a precision or recall from here on is called high; report A gives no figure
WIDTH = 80
NOT_HELD_OUT = (
    "*** TRAINED ON THE TEST IMAGES: the scores below are not held out and say\n"
    "*** nothing about images that the network has not seen."
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


def report_text(r: Report, source: str) -> str:
    """Return the whole report: the lines of the student reports, tables, plain sentences."""
    undefined = ["Undefined, shown as 0.000:", *(f"- {name}" for name in r.undefined)]
    blocks = [
        _accuracies(r, source),
        r.table.rstrip(),
        "\n".join(undefined) if r.undefined else "",
        _with_intervals(r),
        _confusion(r),
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
        lines.append(f"Accuracy of {name} : {percent} %  ({found})")
    return "\n".join([*lines, f"(images: {source})"])


def _with_intervals(r: Report) -> str:
    rows = []
    for k, name in enumerate(r.classes):
        cells = [
            "0.000 undefined"
            if f"{metric} of {name}" in r.undefined
            else with_interval(getattr(r, metric)[k], r.intervals[metric][k])
            for metric in PER_CLASS
        ]
        rows.append([name, *cells])
    for kind in ("macro", "weighted"):
        average = getattr(r, kind)
        cells = [with_interval(average[m], r.intervals[f"{kind}_{m}"]) for m in PER_CLASS]
        rows.append([f"{kind} avg", *cells])
    summaries = [
        [label, with_interval(getattr(r, name), r.intervals[name])]
        for name, label in SUMMARIES.items()
    ]
    lines = [
        "With 95% intervals (Wilson for accuracy and recall, else stratified bootstrap):",
        text_table(["", "precision", "recall", "f1-score"], rows, "llll"),
        "",
        text_table([], summaries, "ll"),
    ]
    low, high = r.intervals["g_mean"]
    if low == high:
        lines.append(
            "(No width: a class is all wrong, or all are all right. See recalls' intervals.)"
        )
    return "\n".join(lines)


def _confusion(r: Report) -> str:
    rows = [[name, *map(str, row)] for name, row in zip(r.classes, r.confusion, strict=True)]
    return "\n".join(
        [
            "Confusion matrix (row: true class, column: prediction):",
            text_table(["", *r.classes], rows),
        ]
    )


def _readings(r: Report) -> list[str]:
    sentences = (f"- {reading(r, k)}" for k in range(len(r.classes)))
    return [line for s in sentences for line in wrap(s, WIDTH, subsequent_indent="  ")]


def reports_compared(reports: dict[str, Report]) -> str:
    """Return accuracy, balanced accuracy, G-mean and recalls, one row for each report."""
    classes = next(iter(reports.values())).classes
    columns = {
        label: [with_interval(getattr(r, m), r.intervals[m]) for r in reports.values()]
        for m, label in SUMMARIES.items()
    } | {
        f"recall of {name}": [
            with_interval(r.recall[k], r.intervals["recall"][k]) for r in reports.values()
        ]
        for k, name in enumerate(classes)
    }
    return side_by_side(list(reports), columns)


def side_by_side(names: list[str], columns: dict[str, list[str]]) -> str:
    """Return tables of one row for each name, each with as many columns as 80 characters hold.

    columns: title -> one cell for each name.
    """
    tables: list[str] = []
    titles = list(columns)
    while titles:
        for n in range(len(titles), 0, -1):
            chosen = titles[:n]
            rows = [[name, *(columns[t][i] for t in chosen)] for i, name in enumerate(names)]
            table = text_table(["", *chosen], rows, "l" * (n + 1))
            if n == 1 or max(map(len, table.splitlines())) <= WIDTH:
                break
        tables.append(table)
        titles = titles[len(chosen) :]
    return "\n\n".join(tables)


def caution(checkpoint: Checkpoint, split: Split) -> str:
    """Return what a reader must know of the checkpoint's training images; "" if nothing."""
    if checkpoint.trained_on_test:
        return NOT_HELD_OUT
    if checkpoint.data is None:
        return "(What this network was trained on is not recorded in its checkpoint.)"
    trained_on = checkpoint.data["fingerprint"].partition("-")[0]
    if trained_on != split.train_fingerprint:
        return (
            "(Trained on other images or labels than those that belong to these test images:\n"
            f" {checkpoint.data['source']}, fingerprint {trained_on}.)"
        )
    return ""
