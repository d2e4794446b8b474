"""The tables of the results page, from the records of result files.

Each function takes a record, as `files.save_result` wrote it, and returns tables whose numbers
are formatted as those that the script printed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from common.attacks.transfer import Transfer
from common.metrics.comparison import Comparison, Summary
from common.metrics.intervals import PER_CLASS
from common.reporting import race_tables
from common.reporting.attack_tables import transfer_share
from common.reporting.evaluation_tables import SUMMARIES
from common.reporting.learning_rate_tables import sweep_rows
from common.reporting.strength_tables import MASKED, METRICS, UNITS
from common.reporting.tables import with_interval
from common.reporting.training_tables import (
    MARK_LEGEND,
    RANKED_BY,
    comparison_columns,
    legend,
    marked,
    ranked,
)
from common.training.recipe import option_name

Record = dict[str, Any]
Report = dict[str, Any]  # of a record, with the fields of `metrics.report.Report`
NOT_HELD_OUT = (
    "Trained on these test images: the scores say nothing about images that the network has not"
    " seen."
)


class Table(NamedTuple):
    """A table of text.

    rows: cells, of which the first names its row. notes: sentences below the table. recipes:
    whether the rows are recipes, which a reader may filter.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    recipes: bool = False

    def numeric(self) -> list[bool]:
        """Return for each column whether its cells are empty or begin with a digit or "-".

        Raises ValueError if a row has more or fewer cells than there are headers.
        """
        return [
            all(cell[:1] in "0123456789-" for cell in column)
            for _, *column in zip(self.headers, *self.rows, strict=True)
        ]


def data_tables(record: Record) -> list[Table]:
    """Return the number of images of each class, of a record of inspect_data.py."""
    data = record["data"]
    parts = {part: data[f"{part}_counts"] for part in ("train", "validation", "test")}
    parts = {part: counts for part, counts in parts.items() if sum(counts)}
    rows = [
        [name, *(f"{counts[k]:,}" for counts in parts.values())]
        for k, name in enumerate(data["classes"])
    ]
    rows.append(["total", *(f"{sum(counts):,}" for counts in parts.values())])
    pairs = record["duplicates"]
    leaks = {pair["second_index"] for pair in pairs if pair["second_part"] == "test"}
    notes = [
        f"A network that gives every test image the largest class has an accuracy of"
        f" {record['always_largest_class']:.3f}.",
        f"Test images that train images show as well: {len(leaks)}.",
    ]
    return [Table("Images of each class", ["class", *parts], rows, notes)]


def evaluation_tables(record: Record) -> list[Table]:
    """Return metrics, recall and calibration, of a record of evaluate.py."""
    if "comparison" in record:
        (table,) = _compared(_comparison(record["comparison"]), "All networks", RANKED_BY)
        headers = ["network", *table.headers[1:]]
        # The first note is on the seeds of a training.
        return [table._replace(headers=headers, notes=table.notes[1:], recipes=False)]
    report, judged = record["report"], record["probabilities"]
    checkpoints = record["checkpoint"]  # a list of those that an ensemble averages
    if isinstance(checkpoints, dict):
        checkpoints = [checkpoints]
    notes = [NOT_HELD_OUT] if any(each["trained_on_test"] for each in checkpoints) else []
    summaries = [[title, _value(report, name)] for name, title in SUMMARIES.items()]
    rows = [
        [name, f"{report['support'][k]:,}", *(_of_class(report, m, k) for m in PER_CLASS)]
        for k, name in enumerate(report["classes"])
    ]
    for average in ("macro", "weighted"):
        intervals = (report["intervals"][f"{average}_{metric}"] for metric in PER_CLASS)
        values = (report[average][metric] for metric in PER_CLASS)
        cells = map(with_interval, values, intervals)
        rows.append([f"{average} average", f"{sum(report['support']):,}", *cells])
    names = ("average_precision", "class_brier", "class_ece")
    probabilities = [
        [name, *(with_interval(judged[n][k], judged["intervals"][n][k]) for n in names)]
        for k, name in enumerate(judged["classes"])
    ]
    whole = ("mean_average_precision", "brier", "ece")
    probabilities.append(["all", *(_value(judged, name) for name in whole)])
    return [
        Table("Metrics with 95% intervals", ["metric", "value"], summaries, notes),
        Table("Precision, recall and F1 of each class, with 95% intervals",
              ["class", "test images", "precision", "recall", "F1"], rows),
        Table("Probabilities of each class against the rest, with 95% intervals",
              ["class", "average precision", "Brier score", "calibration error (ECE)"],
              probabilities),
    ]  # fmt: skip


def recipe_tables(record: Record) -> list[Table]:
    """Return the comparison of recipes, of a record of train.py, and what the race chose."""
    title, by = "Recipes compared, the best first", RANKED_BY
    if "remedies" in record:
        title, by = "Remedies compared, the best first", race_tables.RANKED_BY
    tables = []
    if record["comparison"] is not None:
        comparison = _comparison(record["comparison"])
        tables += _compared(ranked(comparison, by), f"{title} by {by}", by)
        if record.get("published"):
            rows = race_tables.published_rows(comparison)
            title = "Published figures beside ours"
            tables.append(Table(title, race_tables.PUBLISHED_HEADERS, rows))
    if "remedies" in record:
        tables.append(_choices(record))
    return tables


def learning_rate_tables(record: Record) -> list[Table]:
    """Return how the rates of a sweep compare, or what a range test found."""
    if "rates" not in record:
        edge, best = record["edge"], record["sweep_best_rate"]
        rows = [
            ["suggested: steepest descent of the loss", f"{record['suggestion']:.2g}"],
            ["edge of divergence", f"{edge:.2g}" if edge else "none met"],
        ]
        if best is not None:
            rows.append(["best rate of the sweep", f"{best:g}"])
        return [Table("What the range test found", ["", "learning rate"], rows)]
    results = {result["rate"]: result for result in record["rates"]}
    verdicts = {rate: result["verdict"] for rate, result in results.items()}
    headers = ["learning rate", "loss of the first epoch", "of the last", "validation loss",
               "G-mean", "verdict"]  # fmt: skip
    images = sum(record["data"]["validation_counts"])
    notes = [f"Validation loss and G-mean are on {images:,} validation images."]
    if record["best_rate"] is not None:
        notes.append(f"The best rate by validation G-mean: {record['best_rate']:g}.")
    return [Table("Learning rates compared", headers, sweep_rows(results, verdicts), notes)]


def attack_tables(record: Record) -> list[Table]:
    """Return what the attacks did to each network, of a record of adversarial.py."""
    tables, checkpoints = [], record["checkpoints"]
    shown = {
        network: marked(network, checkpoints[network]["trained_on_test"])
        for network in record["curves"]
    }
    for network, curves in record["curves"].items():
        of_network = _curve_tables(network, curves)
        for norm, strength in record["strength"][network].items():
            of_network += _ensemble_tables(network, norm, strength)
        if checkpoints[network]["trained_on_test"]:
            of_network = [t._replace(notes=[NOT_HELD_OUT, *t.notes]) for t in of_network]
        tables += of_network
    on_test = any(checkpoint["trained_on_test"] for checkpoint in checkpoints.values())
    mark_legend = [MARK_LEGEND] if on_test else []
    by_network = {shown[network]: each for network, each in record["strength"].items()}
    tables.append(_smallest_noise(by_network, mark_legend))
    if transferred := record["transfer"]:
        rows = [
            [shown[made_on]]
            + [transfer_share(Transfer(t["fooled"], t["images"])) for t in row.values()]
            for made_on, row in transferred.items()
        ]
        caption = (
            "Transfer: share of MI-FGSM's images, made on one network at epsilon"
            f" {max(record['settings']['ensemble_epsilons']):g}/255, that fool another; of the"
            " images that both have right, with 95% intervals"
        )
        headers = ["made on, tried on", *(shown[each] for each in transferred)]
        tables.append(Table(caption, headers, rows, mark_legend))
    first, *_ = record["curves"]
    rows = [
        [name, f"{row['images']}",
         with_interval(row["fooled"] / row["images"], row["interval"]),
         *("-" if norm is None else f"{norm:.3f}" for norm in row["medians"].values())]
        for name, row in record["noise"].items()
    ]  # fmt: skip
    caption = f"{first}: noise optimised for each image, with 95% intervals"
    headers = ["start", "images", "share fooled", "median L1", "median L2", "median Linf"]
    tables.append(Table(caption, headers, rows))
    rows = [
        [name, *(_value(row["test"]["report"], metric) for metric in METRICS),
         f"{row['test']['fooling_rate']:.1%}"]
        for name, row in record["universal"].items()
    ]  # fmt: skip
    epsilon = f"{record['settings']['epsilon']:g}/255"
    caption = f"{first}: one noise for all test images, epsilon {epsilon}, with 95% intervals"
    headers = ["noise", *(SUMMARIES[metric] for metric in METRICS), "predictions changed"]
    tables.append(Table(caption, headers, rows))
    return tables


def _value(report: Report, metric: str) -> str:
    return with_interval(report[metric], report["intervals"][metric])


def _of_class(report: Report, metric: str, k: int) -> str:
    if f"{metric} of {report['classes'][k]}" in report.get("undefined", ()):
        return "0.000 undefined"
    return with_interval(report[metric][k], report["intervals"][metric][k])


def _comparison(saved: dict[str, Any]) -> Comparison:
    summaries = {
        name: {metric: Summary(**summary) for metric, summary in of_recipe.items()}
        for name, of_recipe in saved["summaries"].items()
    }
    return Comparison(**saved | {"summaries": summaries})


def _compared(comparison: Comparison, caption: str, by: str) -> list[Table]:
    summaries = comparison.summaries
    columns = comparison_columns(summaries, list(summaries), by)
    rows = list(zip(summaries, *columns.values(), strict=True))
    return [Table(caption, ["recipe", *columns], rows, legend(comparison, by), recipes=True)]


def _choices(record: Record) -> Table:
    rows = []
    for name, remedy in record["remedies"].items():
        chosen, parameter = ["-"] * 3, option_name(remedy["parameter"])
        if remedy["chosen"] is not None:
            point = remedy["grid"][remedy["chosen"]]
            chosen = [f"{point['learning_rate']:g}", f"{point['value']:g}"]
            chosen.append(f"{point['balanced_accuracy']:.3f}")
        rows.append([name, chosen[0], parameter, *chosen[1:]])
    images = sum(record["selection_data"]["validation_counts"])
    headers = ["remedy", "learning rate", "own parameter", "value",
               "validation balanced accuracy"]  # fmt: skip
    notes = [f"Chosen on {images:,} validation images, one seed.", *record["not_compared"]]
    return Table("Settings that were chosen", headers, rows, notes, recipes=True)


def _curve_tables(network: str, curves: dict[str, Any]) -> list[Table]:
    """Return the metrics of a network by attack and epsilon, and its recalls under PGD."""
    tables = []
    for unit, title in (("1/255", "epsilon in 1/255"), ("epsilon", "epsilon in L2")):
        of_unit = {name: curve for name, curve in curves.items() if curve["unit"] == unit}
        if not of_unit:
            continue
        first, *_ = of_unit.values()
        headers = ["attack", *first["results"]]
        one, *_ = first["results"].values()
        notes = [f"On {sum(one['report']['support']):,} test images."]
        for metric in METRICS:
            rows = [
                [name, *(_value(r["report"], metric) for r in curve["results"].values())]
                for name, curve in of_unit.items()
            ]
            caption = f"{network}: {SUMMARIES[metric]} by {title}, with 95% intervals"
            tables.append(Table(caption, headers, rows, notes))
    reports = {epsilon: r["report"] for epsilon, r in curves["PGD"]["results"].items()}
    first, *_ = reports.values()
    rows = [
        [name, *(_of_class(r, "recall", k) for r in reports.values())]
        for k, name in enumerate(first["classes"])
    ]
    caption = f"{network}: recall of each class under PGD by epsilon in 1/255"
    return [*tables, Table(caption, ["class", *reports], rows)]


def _ensemble_tables(network: str, norm: str, strength: dict[str, Any]) -> list[Table]:
    title, unit, _ = UNITS[norm]
    tables = []
    for epsilon, result in strength["ensemble"].items():
        stages = {**result["stages"], "in 8 bits": result["in_8_bits"]}
        rows = [
            [name, f"{stage['fools']}", *(_value(stage["report"], m) for m in METRICS)]
            for name, stage in stages.items()
        ]
        caption = f"{network}: ensemble of attacks at epsilon {epsilon} ({title}, {unit})"
        notes = [
            f"On the {strength['attacked']} images that are right; each attack on those that"
            " withstood the ones above it. In 8 bits: all images rounded, as a file holds them."
        ]
        notes += [MASKED] if strength["masked"] else []
        headers = ["attack", "fools", *(SUMMARIES[metric] for metric in METRICS)]
        tables.append(Table(caption, headers, rows, notes))
    return tables


def _smallest_noise(strengths: dict[str, Any], more_notes: Sequence[str]) -> Table:
    columns, rows = {}, {}
    for network, by_norm in strengths.items():
        for norm, strength in by_norm.items():
            title, unit, _ = UNITS[norm]
            rows = strength["smallest_noise"]
            columns[f"{network}, {title} ({unit})"] = [
                with_interval(_infinite(row["median"]), tuple(map(_infinite, row["interval"])))
                for row in rows.values()
            ]
    images = [f"{row['images']}" for row in rows.values()]
    cells = list(zip(rows, images, *columns.values(), strict=True))
    caption = "Smallest noise that fools: median of each class, with 95% intervals"
    notes = ["0 for an image that is wrong without noise; inf where no noise was found."]
    notes += more_notes
    return Table(caption, ["class", "images", *columns], cells, notes)


def _infinite(value: float | None) -> float:
    """Return a value of a result file, which has None for infinity."""
    return math.inf if value is None else value
