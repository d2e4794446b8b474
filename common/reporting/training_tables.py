"""What training printed: the recipes, one run, and recipes compared over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

from common.dataset.split import Split
from common.metrics.comparison import SIGNIFICANT, Summary
from common.metrics.report import Report
from common.reporting.evaluation_tables import (
    NOT_HELD_OUT,
    report_text,
    reports_compared,
    side_by_side,
)
from common.reporting.tables import markdown_table
from common.training.recipe import command_line
from common.training.recipes import RECIPES
from common.training.runs import Run

TRAINED_ON_TEST = "(trained on these test images)"


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
    lines = [
        f"== {run.name}, seed {run.seed} ==",
        f"epochs {run.recipe.epochs}, batch {run.recipe.batch_size}, {result['seconds']:.0f} s",
    ]
    if "command" in result:
        lines.append(f"(trained before, by: {result['command']})")
    lines.append(f"Total: {sum(result['examples'])} examples")
    for title, counts in (
        ("examples", result["examples"]),
        ("one epoch draws", result["drawn"]),
    ):
        per_class = [f"{name} {n:,}" for name, n in zip(split.classes, counts, strict=True)]
        lines.append(f"{title}: {', '.join(per_class)}")
    if report is None:
        return "\n".join([*lines, fill(f"DIVERGED: {result['diverged']}", 80)])
    history = result["history"]
    lines.append(f"loss: first epoch {history['loss'][0]:.4f}, last {history['loss'][-1]:.4f}")
    if history["validation_g_mean"]:
        lines.append(
            f"validation: loss {history['validation_loss'][-1]:.4f}, G-mean"
            f" {history['validation_g_mean'][-1]:.3f} ({len(split.validation.labels)} images)"
        )
    if whole_report:
        lines += [f"{NOT_HELD_OUT}\n"] if result["trained_on_test"] else []
        lines += ["", report_text(report, split.source)]
    else:
        lines.append(reports_compared({run.name: report}))
        lines += [TRAINED_ON_TEST] if result["trained_on_test"] else []
    return "\n".join(lines)


def cell(s: Summary) -> str:
    """Return mean, deviation and interval, and a star for a significant difference."""
    deviation = "" if s.deviation is None else f" ±{s.deviation:.3f}".replace("0.", ".")
    low, high = s.interval
    star = "*" if s.significant else ""
    return f"{s.mean:.3f}{deviation} [{low:.3f}, {high:.3f}]{star}"


def compared_as_text(compared: dict[str, dict[str, Summary]]) -> str:
    """Return the comparison for an 80-column screen."""
    metrics = next(iter(compared.values()))
    columns = {metric: [cell(row[metric]) for row in compared.values()] for metric in metrics}
    return side_by_side(list(compared), columns)


def legend(compared: dict[str, dict[str, Summary]], seeds: int) -> str:
    """Return what the cells of `compared_as_text` mean."""
    if seeds == 1:
        return "One seed: the intervals are of the test images alone, not of the training."
    return (
        f"Mean, ±standard deviation and [95% interval of the mean] of {seeds} seeds.\n"
        f"*: differs from {next(iter(compared))} by more than chance\n"
        f"(paired t-test over seeds, Holm's correction, p < {SIGNIFICANT})."
    )


def compared_as_markdown(compared: dict[str, dict[str, Summary]]) -> str:
    """Return the comparison as one Markdown table, the best G-mean first."""
    ranked = sorted(compared, key=lambda name: -compared[name]["G-mean"].mean)
    metrics: Sequence[str] = list(compared[ranked[0]])
    rows = [[f"`{name}`", *(cell(compared[name][m]) for m in metrics)] for name in ranked]
    return markdown_table(["recipe", *metrics], rows) + "\n"
