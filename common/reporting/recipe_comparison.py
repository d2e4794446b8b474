"""The comparison of several recipes or seeds as text, numbers, Markdown and a figure."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from common import files
from common.dataset.split import Split
from common.metrics.comparison import compare
from common.reporting import training_tables as tables
from common.reporting.training_figures import recipes_compared
from common.training.runs import Run


def report_comparison(
    path: Path, result_by_run: dict[Run, dict[str, Any]], split: Split, **record: Any
) -> tuple[str, list[Path]]:
    """Save the comparison as `path`.png, .md and .json; return what to print and the paths.

    result_by_run: of each recipe the same seeds, in the same order. record: further arguments
    of `files.save_result`. If each recipe has a run that diverged nothing is saved, and an
    earlier comparison removed.
    """
    by_recipe: dict[str, list[dict[str, Any]]] = {}
    for run, result in result_by_run.items():
        name = tables.marked(run.name, run.recipe.train_on_test)
        by_recipe.setdefault(name, []).append(result)
    comparison = compare(by_recipe, split.test.labels.numpy())
    seeds = len(result_by_run) // len(by_recipe)
    lines = [f"== {len(split.test.labels)} test images, {seeds} seed(s) ==", ""]
    diverged = {run.file: r["diverged"] for run, r in result_by_run.items() if r["diverged"]}
    lines += [fill(f"{file}: diverged, {message}", 80) for file, message in diverged.items()]
    if comparison is None:
        for suffix in (".png", ".md", ".json"):
            path.with_suffix(suffix).unlink(missing_ok=True)
        return "\n".join(lines), []
    lines += [f"{tables.compared_as_text(comparison)}\n\n{tables.legend_text(comparison)}"]
    saved = [
        recipes_compared(path.with_suffix(".png"), comparison, tables.RANKED_BY, split),
        files.write_text(path.with_suffix(".md"), tables.compared_as_markdown(comparison)),
        files.save_result(
            path.with_suffix(".json"),
            data=split.record(),
            seconds=sum(result["seconds"] for result in result_by_run.values()),
            recipes={run.name: asdict(run.recipe) for run in result_by_run},
            comparison=asdict(comparison),
            diverged=diverged,
            **record,
        ),
    ]
    return "\n".join(lines), saved
