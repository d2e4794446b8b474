"""What training printed: the recipes, one run, and recipes compared over seeds."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from textwrap import fill
from typing import Any

from common.dataset.split import Split
from common.metrics.comparison import MOST_CLASSES, SIGNIFICANT, Comparison, Summary
from common.metrics.report import Report
from common.reporting.evaluation_tables import (
    NOT_HELD_OUT,
    report_text,
    reports_compared,
)
from common.reporting.tables import (
    TITLE_WIDTH,
    markdown_table,
    short_names,
    shorten,
    side_by_side,
    with_interval,
)
from common.training.recipe_record import command_line
from common.training.recipes import RECIPES
from common.training.runs import Run

TRAINED_ON_TEST = "(trained on these test images)"
MARK_LEGEND = "!: trained on the test images too, so its scores are not held out."
RANKED_BY = "G-mean"


def recipe_list() -> str:
    """Return all named recipes, each with its options."""
    return "\n".join(
        fill(
            f"{name:24}{command_line(recipe)}",
            80,
            subsequent_indent=" " * 24,
            break_on_hyphens=False,
        )
        for name, recipe in RECIPES.items()
    )


def run_text(
    run: Run, result: dict[str, Any], report: Report | None, split: Split, whole_report: bool
) -> str:
    """Return what was trained and how it ended.

    report: on the test images, None if the run diverged. whole_report: print all of it.
    """
    how = f"{_epochs(run, result)}, batch {run.recipe.batch_size}, {result['seconds']:.0f} s"
    if result.get("trained_with"):
        how += f" after the training of {result['trained_with']}, which it shares"
    lines = [f"== {run.name}, seed {run.seed} ==", fill(how, 80)]
    if "command" in result:
        lines.append(f"(trained before, by: {result['command']})")
    lines.append(f"Total: {sum(result['examples'])} examples")
    for title, counts in (
        ("examples", result["examples"]),
        ("the first epoch draws", result["drawn"]),
    ):
        lines.append(fill(f"{title}: {_per_class(counts, split.classes)}", 80))
    if report is None:
        return "\n".join([*lines, fill(f"DIVERGED: {result['diverged']}", 80)])
    history = result["history"]
    lines.append(f"loss: first epoch {history['loss'][0]:.4f}, last {history['loss'][-1]:.4f}")
    if "validation" in result:  # of the network that is saved, not of the last epoch
        lines.append(fill(_validation(result["validation"]), 80, subsequent_indent="  "))
    if whole_report:
        lines += [f"{NOT_HELD_OUT}\n"] if result["trained_on_test"] else []
        counts = split.train.counts(len(split.classes))
        lines += ["", report_text(report, split.source, counts)]
    else:
        lines.append(reports_compared({run.name: report}))
        lines += [TRAINED_ON_TEST] if result["trained_on_test"] else []
    return "\n".join(lines)


def _epochs(run: Run, result: dict[str, Any]) -> str:
    history, epochs = result["history"], run.recipe.epochs
    if not history["best_epoch"]:
        return f"epochs {epochs}"
    trained, kept = len(history["loss"]), history["best_epoch"]
    return f"epochs {trained} of at most {epochs}, of which {kept} is kept"


def _validation(scores: dict[str, Any]) -> str:
    shown = (
        f"{title} {with_interval(scores[name], scores['intervals'][name])}"
        for name, title in (("balanced_accuracy", "balanced accuracy"), ("g_mean", "G-mean"))
    )
    return f"{sum(scores['support'])} validation images: {', '.join(shown)}"


def _per_class(counts: Sequence[int], classes: Sequence[str]) -> str:
    """Return the counts of all classes, or of many the largest and the smallest."""
    if len(classes) <= MOST_CLASSES:
        named = zip(map(shorten, classes), counts, strict=True)
        return ", ".join(f"{name} {n:,}" for name, n in named)
    largest, smallest = (counts.index(pick(counts)) for pick in (max, min))
    return (
        f"{len(classes)} classes, from {shorten(classes[largest])} {max(counts):,} to"
        f" {shorten(classes[smallest])} {min(counts):,}"
    )


def marked(name: str, trained_on_test: bool) -> str:
    """Return the name in a comparison; a mark says that its test images were trained on."""
    return f"{name} !" if trained_on_test else name


def marked_names(names: Sequence[str], on_test: Container[str], width: int) -> list[str]:
    """Return names of at most `width` letters, all different, with the mark of `marked`.

    on_test: the names of the networks that were trained on the test images.
    """
    short = short_names(names, width - len(marked("", True)))
    return [marked(each, name in on_test) for each, name in zip(short, names, strict=True)]


def cell(s: Summary) -> str:
    """Return mean, deviation and interval, and marks for significant differences."""
    deviation = "" if s.deviation is None else f" ±{s.deviation:.3f}".replace("0.", ".")
    low, high = s.interval
    marks = "*" * s.beyond_training + "†" * s.beyond_images
    return f"{s.mean:.3f}{deviation} [{low:.3f}, {high:.3f}]{marks}"


def probability(p: float | None) -> str:
    """Return P(best), "-" for a recipe that does not compete."""
    return "-" if p is None else f"{p:.2f}"


def comparison_columns(
    summaries: dict[str, dict[str, Summary]], names: Sequence[str], ranked_by: str = RANKED_BY
) -> dict[str, list[str]]:
    """Return the columns of the comparison by title, with one cell for each of the recipes.

    ranked_by: the metric that P(best) is of.
    """
    columns = {}
    metrics = list(summaries[names[0]])
    for metric, title in zip(metrics, short_names(metrics, TITLE_WIDTH), strict=True):
        columns[title] = [cell(summaries[name][metric]) for name in names]
        best = [summaries[name][metric].best for name in names]
        if metric == ranked_by and len(best) - best.count(None) > 1:
            columns["P(best)"] = list(map(probability, best))
    return columns


def compared_as_text(comparison: Comparison, ranked_by: str = RANKED_BY) -> str:
    """Return the comparison for an 80-column screen."""
    names = list(comparison.summaries)
    return side_by_side(names, comparison_columns(comparison.summaries, names, ranked_by))


def legend(comparison: Comparison, ranked_by: str = RANKED_BY) -> list[str]:
    """Return what the cells of `compared_as_text` mean, in sentences."""
    seeds, reference = comparison.seeds, comparison.reference
    sentences = [
        f"Mean, ±standard deviation and [95% interval of the mean] of {seeds} seeds; the"
        " interval covers the training's randomness and the draw of the test images."
        if seeds > 1
        else "One seed: the intervals cover the draw of the test images, not the training's"
        " randomness; --seeds 5 trains with five seeds.",
    ]
    if not comparison.tests:  # no recipe competes with another
        return sentences + mark_legend(comparison)
    sentences.append(
        f"P(best): the probability that no other row, but those with -, has a higher"
        f" {ranked_by}, from draws {'that cover both' if seeds > 1 else 'of the test images'}."
    )
    if seeds > 1:
        sentences.append(
            f"*: differs from {reference} by more than the training's randomness, on these test"
            " images (paired t-test over seeds); says nothing of other images."
        )
    return sentences + images_legend(comparison)


def images_legend(comparison: Comparison) -> list[str]:
    """Return what the marks † and ! mean, and how many tests the p of † is corrected for."""
    if not comparison.tests:
        return mark_legend(comparison)
    return [
        f"†: differs from {comparison.reference} by more than the chance in the draw of the"
        " test images (paired over images, seeds pooled); says nothing of other trainings.",
        f"{'Both: ' if comparison.seeds > 1 else ''}p < {SIGNIFICANT} after Holm's correction"
        f" over all {comparison.tests} tests of the table.",
        *mark_legend(comparison),
    ]


def mark_legend(comparison: Comparison) -> list[str]:
    """Return what the mark ! of a name means, if a name has it."""
    if not any(name.endswith(" !") for name in comparison.summaries):
        return []
    return [MARK_LEGEND]


def legend_text(comparison: Comparison, ranked_by: str = RANKED_BY) -> str:
    """Return the legend for an 80-column screen."""
    sentences = legend(comparison, ranked_by)
    return "\n".join(fill(s, 80, subsequent_indent="  ") for s in sentences)


def ranked(comparison: Comparison, ranked_by: str = RANKED_BY) -> Comparison:
    """Return the comparison with its recipes in the order of a metric, the best first."""
    of = comparison.summaries
    names = sorted(of, key=lambda name: -of[name][ranked_by].mean)
    return replace(comparison, summaries={name: of[name] for name in names})


def compared_as_markdown(comparison: Comparison, ranked_by: str = RANKED_BY) -> str:
    """Return the comparison as one Markdown table, the best first, and its legend."""
    summaries = ranked(comparison, ranked_by).summaries
    columns = comparison_columns(summaries, list(summaries), ranked_by)
    rows = [
        [f"`{name}`", *(cells[i] for cells in columns.values())]
        for i, name in enumerate(summaries)
    ]
    sentences = legend(comparison, ranked_by)
    notes = "\n".join(f"- {sentence}".replace("*", r"\*") for sentence in sentences)
    return f"{markdown_table(['recipe', *columns], rows)}\n\n{notes}\n"
