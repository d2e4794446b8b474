"""README.md and figures/results.md, written from their templates and the files of results.

    python benchmarks/publish.py

The templates lie in benchmarks/templates/. Each number in them names the file of
figures/results/ that it comes from, and its place there: those files are made by
`reproduce.py`, which writes the pages too. What has not been measured yet says so.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from common import options
from common.files import ROOT, write_text
from common.metrics.comparison import mean_with_interval
from common.metrics.intervals import proportion_interval
from common.reporting.learning_rate_tables import sweep_text
from common.reporting.tables import markdown_table, with_interval

TEMPLATES = Path(__file__).resolve().parent / "templates"
PAGES = {"README.md": "README.md", "results.md": "figures/results.md"}  # template -> page
MISSING = "(not measured yet)"


class NotMeasuredError(Exception):
    """There is no such file of results yet."""


def write_pages(root):
    """Write the pages below `root` from its figures/results/, and return their paths."""
    return [write_text(root / page, text) for page, text in pages(root).items()]


def pages(root):
    """Return the text of each page, by its path below `root`."""
    return {page: render(template, root) for template, page in PAGES.items()}


def render(template, root):
    """Return what a template makes of the results in figures/results/ below `root`."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    folder = root / "figures" / "results"
    for function in FUNCTIONS:
        environment.globals[function.__name__] = partial(or_missing, function, folder)
    return environment.get_template(template).render()


def or_missing(function: Callable[..., str], folder: Path, *arguments: object) -> str:
    """Return function(folder, *arguments), or MISSING if there is no such file yet."""
    try:
        return function(folder, *arguments)
    except NotMeasuredError:
        return MISSING


def _read(folder, name):
    path = folder / f"{name}.json"
    if not path.exists():
        raise NotMeasuredError(name)
    return json.loads(path.read_text(encoding="utf-8"))


def _at(record, path):
    """Return what is at a place, such as "report/accuracy", of a record."""
    for key in path.split("/"):
        record = record[key]
    return record


# Templates call the following functions without their first argument, the results' folder.


def value(folder, name, path):
    """Return a number of a file, "-" where it could not be measured."""
    number = _at(_read(folder, name), path)
    return "-" if number is None else f"{number:.3f}"


def percent(folder, name, path):
    """Return a share of a file in percent."""
    return f"{_at(_read(folder, name), path):.1%}"


def score(folder, name, metric, path="report"):
    """Return a metric of a report, with its interval."""
    report = _at(_read(folder, name), path)
    return with_interval(report[metric], report["intervals"][metric])


def mean(folder, name, recipe, metric):
    """Return the mean of a recipe's metric in a comparison, with its interval."""
    summary = _read(folder, name)["comparison"]["summaries"][recipe][metric]
    return with_interval(summary["mean"], summary["interval"])


def best_of(folder, name, metric):
    """Return the recipe of a comparison with the highest mean of a metric, and that mean."""
    rows = _read(folder, name)["comparison"]["summaries"]
    recipe = max(rows, key=lambda each: rows[each][metric]["mean"])
    return f"`{recipe}` {mean(folder, name, recipe, metric)}"


def count(folder, name, path):
    """Return a whole number of a file."""
    return f"{_at(_read(folder, name), path):,}"


def images(folder, name, part):
    """Return how many images a part, such as "test", of a file's data has."""
    return f"{sum(_read(folder, name)['data'][f'{part}_counts']):,}"


def of_each_class(folder, name, part):
    """Return how many images of each class a part of a file's data has."""
    counts = _read(folder, name)["data"][f"{part}_counts"]
    least, most = min(counts), max(counts)
    return f"{most:,}" if least == most else f"{least:,} to {most:,}"


def source(folder, name):
    """Return the name of the source of a file's images."""
    return _read(folder, name)["data"]["source"]


def minutes(folder, name):
    """Return how many minutes a command took."""
    return f"{_read(folder, name)['seconds'] / 60:.0f}"


def processor(folder, name):
    """Return the processor that a command ran on."""
    return _read(folder, name)["processor"]


def leaks(folder, name):
    """Return how many test images some train image shows too."""
    pairs = _read(folder, name)["duplicates"]
    of_both = [p for p in pairs if (p["first_part"], p["second_part"]) == ("train", "test")]
    return str(len({pair["second_index"] for pair in of_both}))


def audit(folder, names, row, column):
    """Return the mean of a number of several audits of planted errors; names: with spaces."""
    audits = [_read(folder, name)["audit"]["planted"] for name in names.split()]
    return f"{np.mean([planted[row][column] for planted in audits]):.3f}"


def ensemble(folder, name, network, epsilon):
    """Return the balanced accuracy that the ensemble leaves a network, in L-infinity."""
    report = _left(_read(folder, name), network, "ensemble", epsilon)
    return with_interval(report["balanced_accuracy"], report["intervals"]["balanced_accuracy"])


def attacked_mean(folder, name, attack, epsilon, metric):
    """Return the mean of a metric under attack over all networks of a file: seeds of a recipe.

    attack: "ensemble", or one of the table's.
    """
    record = _read(folder, name)
    reports = [_left(record, network, attack, epsilon) for network in record["curves"]]
    return with_interval(*mean_with_interval(reports, metric))


def _left(record, network, attack, epsilon):
    """Return the report on what an attack leaves of a network, in L-infinity."""
    if attack != "ensemble":
        return record["curves"][network][attack]["results"][f"{epsilon}"]["report"]
    stages = record["strength"][network]["linf"]["ensemble"][f"{epsilon}"]["stages"]
    *_, last = stages.values()
    return last["report"]


def radius(folder, name, network, class_name):
    """Return the median of the smallest noise that fools, in 1/255, of a class's images."""
    row = _at(_read(folder, name), f"strength/{network}/linf/smallest_noise/{class_name}")
    return f"{row['median']:.1f} [{row['interval'][0]:.1f}, {row['interval'][1]:.1f}]"


def peers(folder, name, network):
    """Return what attacks of several libraries leave of a network, as a table."""
    record = _read(folder, name)
    tables = record["networks"][network]
    shown = "pgd", "ensemble", "auto-attack"
    rows = [row for comparison in shown for row in tables.get(comparison, ())]
    libraries = list(dict.fromkeys(library for row in rows for library in row["left"]))

    def cell(row, library):
        left = row["left"].get(library)
        return "" if left is None else f"{left:.3f}, {row['seconds'][library]:.1f} s"

    cells = [
        [row["attack"], row["epsilon"], *(cell(row, library) for library in libraries)]
        for row in rows
    ]
    first = f"`{network}`, {record['images']} images"
    return markdown_table([first, "epsilon", *libraries], cells)


def comparison(folder, name, *metrics):
    """Return a comparison as a table, the highest mean of the first metric first."""
    rows = _read(folder, name)["comparison"]["summaries"]
    best_first = sorted(rows, key=lambda recipe: -rows[recipe][metrics[0]]["mean"])
    cells = [
        [f"`{recipe}`", *(mean(folder, name, recipe, metric) for metric in metrics)]
        for recipe in best_first
    ]
    return markdown_table(["recipe", *metrics], cells)


def interval(folder, right, n):
    """Return the 95% interval of a share, `right` of n (Jeffreys' prior)."""
    low, high = proportion_interval(right, n)
    return f"[{low:.3f}, {high:.3f}]"


def rates(folder, name):
    """Return the table of a sweep of learning rates, as lr_sweep.py prints it."""
    record = _read(folder, name)
    by_rate = {each["rate"]: each for each in record["rates"]}
    verdicts = {rate: each["verdict"] for rate, each in by_rate.items()}
    n = sum(record["data"]["validation_counts"])
    return f"```\n{sweep_text(by_rate, verdicts, record['best_rate'], n)}\n```"


def page(folder, name):
    """Return the text of a Markdown file."""
    path = folder / name
    if not path.exists():
        raise NotMeasuredError(name)
    return path.read_text(encoding="utf-8").strip()


def figure(folder, name, text, path="results"):
    """Return a figure of the results. path: to their folder, from that of the page."""
    if not (folder / name).exists():
        raise NotMeasuredError(name)
    return f"![{text}]({path}/{name})"


def made(folder, name):
    """Return in a sentence where the numbers of a file come from."""
    record = _read(folder, name)
    data, versions = record["data"], record["versions"]
    judged = f"{_judged(record)} images of {data['source']}"
    seeds = record.get("comparison", {}).get("seeds", 1)
    networks = len(record.get("curves") or record.get("networks", ()))
    kind, runs = ("network", networks) if networks else ("seed", seeds)
    command = record["command"].removesuffix(" --output-dir .")  # where reproduce.py wants it
    return (
        f"*`{command}`: {judged}, {runs} {kind}{'s' if runs > 1 else ''}, PyTorch"
        f" {versions['torch']}, {record['processor']}, {record['date']}.*"
    )


def _judged(record):
    """Return the number and the part of the images that a file's numbers are about."""
    parts = ["test"]
    if "audit" in record:
        parts = ["train"]
    elif "rates" in record:  # of a sweep of learning rates
        parts = ["validation"]
    elif "duplicates" in record:
        parts = ["train", "test"]
    elif "images" in record:  # of the test images attacks may be tried on a sample
        return f"{record['images']:,} test"
    counts = (sum(record["data"][f"{part}_counts"]) for part in parts)
    return " and ".join(f"{n:,} {part}" for n, part in zip(counts, parts, strict=True))


FUNCTIONS = (
    value, percent, score, mean, best_of, count, images, of_each_class, source, minutes,
    processor, leaks, audit, ensemble, attacked_mean, radius, peers, comparison, interval,
    rates, page, figure, made,
)  # fmt: skip


if __name__ == "__main__":
    parser = options.Parser(__doc__)
    options.run(lambda args: options.print_saved(*write_pages(ROOT)), parser)
