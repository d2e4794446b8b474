"""Reports as text for an 80-column screen."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from common.metrics import PER_CLASS, Interval, Report

if TYPE_CHECKING:
    from common.audit import Audit
    from common.dataset import Split
    from common.models import Checkpoint
    from common.relabel import Suspect
    from common.robustness import Sweep

# From here a precision or recall is called high. Report A gives no figure.
HIGH = 0.7
NOT_HELD_OUT = (
    "*** TRAINED ON THE TEST IMAGES: the scores below are not held out and say\n"
    "*** nothing about images that the network has not seen."
)
# Northcutt, Athalye and Mueller (2021), "Pervasive label errors in test sets".
CAUTION = (
    "The audit proposes, you decide: of 275 suspects that cleanlab's label-errors study found"
    " in CIFAR-10's test set, people confirmed 54 as wrong."
)
SUMMARIES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "g_mean": "G-mean",
}


def reading(r: Report, k: int) -> str:
    """One sentence on class k, as report A reads its precision and recall."""
    name = r.classes[k]
    if r.support[k] == 0:
        return f"{name}: the test images hold none, so nothing can be said of it."
    words = {
        (True, True): "is handled: most are found, and most called so are right",
        (True, False): "is rarely found, but what is called so can be trusted",
        (False, True): "is found, but over-predicted: much of what is called so is not",
        (False, False): "is not handled: few are found, and what is called so is mostly wrong",
    }[r.precision[k] >= HIGH, r.recall[k] >= HIGH]
    if f"precision of {name}" in r.undefined:
        return f"{name} is not handled: it is never predicted."
    bounds = {metric: r.intervals[metric][k] for metric in ("precision", "recall")}
    unsure = [metric for metric, (low, high) in bounds.items() if low < HIGH <= high]
    caution = f" (uncertain with {r.support[k]} images: {', '.join(unsure)})"
    return f"{name} {words}{caution if unsure else ''}."


def with_interval(value: float, interval: Interval) -> str:
    """A number and its interval, 20 characters wide.

    >>> with_interval(0.30434, (0.156, 0.5094))
    '0.304 [0.156, 0.509]'
    """
    return f"{value:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def as_text(r: Report, source: str) -> str:
    """The report as it is printed: the reports' lines, then tables, then plain sentences."""
    lines = [
        f"Accuracy of the network on the {sum(r.support)} test images: {100 * r.accuracy:.2f} %"
    ]
    for k, name in enumerate(r.classes):
        low, high = (100 * bound for bound in r.intervals["recall"][k])
        found = f"{r.confusion[k][k]} of {r.support[k]}; 95% interval {low:.1f} to {high:.1f}"
        percent = f"{100 * r.recall[k]:.1f}".removesuffix(".0")
        lines.append(f"Accuracy of {name} : {percent} %  ({found})")
    lines += [f"(images: {source})", "", r.table.rstrip(), ""]
    if r.undefined:
        lines += ["Undefined, shown as 0.000:", *(f"- {name}" for name in r.undefined), ""]

    lines.append(
        "With 95% intervals (Wilson for accuracy and recall, else stratified bootstrap):"
    )
    width = max(map(len, (*r.classes, "weighted avg")))
    lines.append(f"{'':{width}}  {'precision':20}  {'recall':20}  f1-score")
    for k, name in enumerate(r.classes):
        cells = [
            f"{'0.000 undefined':20}"
            if f"{metric} of {name}" in r.undefined
            else with_interval(getattr(r, metric)[k], r.intervals[metric][k])
            for metric in PER_CLASS
        ]
        lines.append(f"{name:>{width}}  {'  '.join(cells)}".rstrip())
    for kind in ("macro", "weighted"):
        average = getattr(r, kind)
        cells = [with_interval(average[m], r.intervals[f"{kind}_{m}"]) for m in PER_CLASS]
        lines.append(f"{f'{kind} avg':>{width}}  {'  '.join(cells)}")
    lines.append("")
    for name, label in SUMMARIES.items():
        lines.append(f"{label:17}  {with_interval(getattr(r, name), r.intervals[name])}")
    low, high = r.intervals["g_mean"]
    if low == high:
        lines.append(
            "(No width: a class is all wrong, or all are all right. See recalls' intervals.)"
        )
    lines += ["", "Confusion matrix (row: true class, column: prediction):"]
    column = max(map(len, (*r.classes, str(max(r.support))))) + 2
    lines.append(" " * column + "".join(f"{name:>{column}}" for name in r.classes))
    for name, row in zip(r.classes, r.confusion, strict=True):
        lines.append(f"{name:>{column}}" + "".join(f"{n:>{column}}" for n in row))
    lines += ["", f"In words (high: {HIGH} or more):"]
    for k in range(len(r.classes)):
        lines += wrap(f"- {reading(r, k)}", 80, subsequent_indent="  ")
    return "\n".join(lines)


def comparison(reports: dict[str, Report]) -> str:
    """Accuracy, balanced accuracy, G-mean, then recalls: a line for each report, 80 columns."""
    classes = next(iter(reports.values())).classes
    width = max(map(len, reports))
    at_once = max(1, (80 - width) // 22)
    groups = [
        (heading, columns[start : start + at_once])
        for heading, columns in (
            ("", list(SUMMARIES.items())),
            ("recall of ", list(enumerate(classes))),
        )
        for start in range(0, len(columns), at_once)
    ]
    lines = []
    for heading, columns in groups:
        titles = "  ".join(f"{heading + title:20}" for _, title in columns)
        lines += [f"{'':{width}}  {titles}".rstrip()]
        for name, r in reports.items():
            cells = [
                with_interval(r.recall[key], r.intervals["recall"][key])
                if heading
                else with_interval(getattr(r, key), r.intervals[key])
                for key, _ in columns
            ]
            lines.append(f"{name:>{width}}  {'  '.join(cells)}")
        lines.append("")
    return "\n".join(lines).rstrip()


def images(split: Split) -> str:
    """The first lines of a report: the images, and what was done to the train labels."""
    return "\n".join(f"{name}: {value}" for name, value in facts(split))


def facts(split: Split) -> list[tuple[str, str]]:
    """The same as (name, value)."""
    lines = [("Images", split.source), ("Fingerprint", split.fingerprint)]
    noise, fixes, leaks = map(
        split.changes.get, ("label_noise", "label_fixes", "leaks_dropped")
    )
    if noise:
        planted = ", ".join(f"{n} of {name}" for name, n in noise["planted"].items() if n)
        lines.append(("Wrong labels planted", f"{planted} (seed {noise['seed']})"))
    if fixes:
        done = f"{fixes['relabelled']} relabelled, {fixes['dropped']} dropped"
        lines.append(("Label fixes", f"{done} ({fixes['file']})"))
    if noise and fixes:
        left = int((split.true_labels != split.train.labels).sum())
        lines.append(("Wrong labels left", str(left)))
    if leaks is not None:
        lines.append(("Train images left out as duplicates of test images", str(leaks)))
    return lines


def caution(checkpoint: Checkpoint, split: Split) -> str:
    """What a reader of a score must know of the checkpoint's training images; "" if nothing."""
    if checkpoint.trained_on_test:
        return NOT_HELD_OUT
    if checkpoint.data is None:
        return "(What this network was trained on is not recorded in its checkpoint.)"
    trained_on, here = (
        f.partition("-")[0] for f in (checkpoint.data["fingerprint"], split.fingerprint)
    )
    if trained_on != here:
        return (
            "(Trained on other images or labels than these test images go with:\n"
            f" {checkpoint.data['source']}, fingerprint {trained_on}.)"
        )
    return ""


def duplicates(rows: Sequence[dict[str, Any]]) -> str:
    """How many pairs of duplicates there are, within and between the parts."""
    lines = [f"{'duplicate pairs':18}{'exact':>9}{'near':>9}{'conflicting labels':>22}"]
    for parts in (("train", "train"), ("train", "test")):
        some = [r for r in rows if (r["first_part"], r["second_part"]) == parts]
        exact = sum(r["kind"] == "exact" for r in some)
        conflicts = sum(r["conflict"] == "yes" for r in some)
        name = "within train" if parts[0] == parts[1] else "train and test"
        lines.append(f"{name:18}{exact:9}{len(some) - exact:9}{conflicts:22}")
    leaks = [r for r in rows if r["second_part"] == "test"]
    test, train = (len({r[f"{side}_index"] for r in leaks}) for side in ("second", "first"))
    lines.append(f"Test images that train images show as well: {test} (shown by {train})")
    return "\n".join(lines)


def audit(
    found: Audit, suspects: Sequence[Suspect], classes: Sequence[str], n: int, most: int = 10
) -> str:
    """The estimated joint, as images, and the first suspects."""
    width = max(map(len, (*classes, "given")))
    lines = [
        "Estimated images by given label (row) and true label (column):",
        f"{'given':{width}}  " + "".join(f"{name:>10}" for name in classes),
    ]
    for name, row in zip(classes, found.joint * n, strict=True):
        lines.append(f"{name:{width}}  " + "".join(f"{value:10,.0f}" for value in row))
    by_given = [sum(s.given == name for s in suspects) for name in classes]
    counts = ", ".join(
        f"{k} given as {name}" for k, name in zip(by_given, classes, strict=True)
    )
    lines += [
        "",
        f"Suspects: {len(suspects)} of {n:,} images ({counts})",
        *wrap(CAUTION, 80),
    ]
    if suspects:
        lines += [
            "",
            f"{'index':>6}  {'given':{width}}  {'suggested':{max(width, 9)}}  confidence  file",
        ]
    for s in suspects[:most]:
        suggested = f"{s.suggested:{max(width, 9)}}"
        line = f"{s.index:>6}  {s.given:{width}}  {suggested}  {s.confidence:10.2f}  {s.file}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def planted(table: dict[str, dict[str, float]]) -> str:
    """How well planted errors were found."""
    everything = table["all"]
    lines = [
        f"Planted errors: {everything['planted']}, listed: {everything['recall']:.1%} (recall)",
        f"Of the list, {everything.get('precision', 0):.1%} are planted (precision)",
        "Recall of the list, and average precision of three rankings:",
        f"{'true class':10}{'planted':>9}{'recall':>9}{'P(wrong)':>11}"
        f"{'self-confidence':>18}{'normalised margin':>20}",
    ]
    for name, row in table.items():
        lines.append(
            f"{name:10}{row['planted']:9}{row['recall']:9.3f}{row['wrong']:11.3f}"
            f"{row['self_confidence']:18.3f}{row['normalized_margin']:20.3f}"
        )
    return "\n".join(lines)


def sweep(s: Sweep) -> str:
    """Two tables of an attack, a row for each strength."""
    width = max(map(len, (s.unit, *s.outcomes)))
    share = "on aim" if s.targeted else "flipped"
    lines = [
        f"{s.unit:>{width}}  {'accuracy':20} {'balanced accuracy':20}"
        f" {share:>7} {'L1':>6} {'L2':>5} {'Linf':>5}"
    ]
    for strength, o in s.outcomes.items():
        r, norms = o.report, o.norms
        lines.append(
            f"{strength:>{width}}  {with_interval(r.accuracy, r.intervals['accuracy'])}"
            f" {with_interval(r.balanced_accuracy, r.intervals['balanced_accuracy'])}"
            f" {o.flipped / o.attacked:>7.1%} {norms['L1']:>6.1f} {norms['L2']:>5.2f}"
            f" {norms['Linf']:.3f}"
        )
    lines.append("")
    classes = next(iter(s.outcomes.values())).report.classes
    titles = " ".join(f"{f'recall of {name}':20}" for name in classes)
    lines.append(f"{s.unit:>{width}}  {titles}".rstrip())
    for strength, o in s.outcomes.items():
        r = o.report
        cells = map(with_interval, r.recall, r.intervals["recall"])
        lines.append(f"{strength:>{width}}  {' '.join(cells)}")
    return "\n".join(lines)


def sweeps_compared(found: dict[str, Sweep]) -> str:
    """The same attack on several networks: accuracy and balanced accuracy at each strength."""
    width = max(map(len, found))
    lines = []
    for metric in ("accuracy", "balanced_accuracy"):
        strengths = next(iter(found.values())).outcomes
        lines.append(f"{SUMMARIES[metric]}, at an epsilon (1/255) of")
        lines.append(f"{'':{width}} " + "".join(f"{strength:>7}" for strength in strengths))
        for name, s in found.items():
            values = (getattr(o.report, metric) for o in s.outcomes.values())
            lines.append(f"{name:{width}} " + "".join(f"{value:>7.3f}" for value in values))
        lines.append("")
    return "\n".join(lines[:-1])


def noises(rows: dict[str, dict[str, Any]]) -> str:
    """A line for each noise of `robustness.noises`."""
    width = max(map(len, rows))
    lines = [
        f"{'':{width}}  {'called their target':27}"
        f" {'L1':>7} {'L2':>6} {'Linf':>6} {'steps':>6} {'s':>6}"
    ]
    for name, row in rows.items():
        share = with_interval(row["fooled"] / row["images"], row["interval"])
        l1, l2, linf = ("-" if v is None else f"{v:.3f}" for v in row["medians"].values())
        lines.append(
            f"{name:{width}}  {row['fooled']:>4}: {share} {l1:>8} {l2:>6} {linf:>6}"
            f" {row['evaluations']:>6} {row['seconds']:>6.1f}"
        )
    return "\n".join(lines)


def universals(rows: dict[str, dict[str, Any]]) -> str:
    """`comparison` of each part's reports, and how many predictions the noise changes."""
    lines = []
    for part in ("train", "test"):
        reports = {name: row[part]["report"] for name, row in rows.items()}
        n = sum(next(iter(reports.values())).support)
        rates = ", ".join(
            f"{name} {row[part]['fooling_rate']:.1%}" for name, row in list(rows.items())[1:]
        )
        lines += [f"On {n} {part} images:", comparison(reports)]
        lines += [f"predictions changed: {rates}", ""]
    return "\n".join(lines[:-1])
