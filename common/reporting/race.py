"""The race as text, numbers, Markdown and a figure."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from common import files
from common.dataset.split import Split
from common.metrics.comparison import compare
from common.reporting.race_tables import (
    PUBLISHED,
    RANKED_BY,
    Race,
    is_cifar10_lt,
    left_out,
    race_markdown,
    race_text,
)
from common.reporting.training_figures import recipes_compared
from common.training.race import Choice, Decay, Ended, points
from common.training.recipes import RACE, WEIGHT_DECAYS
from common.training.runs import Run


def report_race(
    path: Path,
    grid: Ended,
    choices: dict[str, Choice],
    decay: Decay,
    finals: Ended,
    impossible: dict[str, str],
    split: Split,
    selection: Split,
    *,
    passes: int,
    **record: Any,
) -> tuple[str, list[Path]]:
    """Save the race as `path`.json, .md and .png; return what to print and the saved paths.

    grid, finals: the runs of the phases. The first remedy of `finals` is the one that the
    others are compared with. choices, decay: made from `grid`. impossible: the remedies that
    were left out, with the reasons. passes: the budget, see `race.within_budget`. record:
    further arguments of `files.save_result`.
    """
    results = {name: [result for _, result in ended] for name, ended in finals.items()}
    comparison = compare(results, split.test.labels.numpy()) if results else None
    others = _not_compared(choices, finals, impossible)
    race = Race(comparison, choices, decay, others, split, selection, passes)
    figure, saved = path.with_suffix(".png"), []
    if comparison is None:
        figure.unlink(missing_ok=True)  # of an earlier race
    else:
        saved.append(recipes_compared(figure, comparison, RANKED_BY, split))
    saved.append(files.write_text(path.with_suffix(".md"), race_markdown(race)))
    both = [result for ended in (*grid.values(), *finals.values()) for _, result in ended]
    saved.append(
        files.save_result(
            path.with_suffix(".json"),
            data=split.record(),
            selection_data=selection.record(),
            seconds=sum(result["seconds"] for result in both),
            remedies={
                name: _remedy_record(name, grid[name], choice, finals.get(name, []))
                for name, choice in choices.items()
            },
            passes=passes,
            weight_decay=dict(zip(map(str, WEIGHT_DECAYS), decay.scores, strict=True)),
            not_compared=others,
            comparison=comparison and asdict(comparison),
            published=PUBLISHED if is_cifar10_lt(split) else None,
            **record,
        )
    )
    return race_text(race), saved


def _remedy_record(
    name: str,
    grid: list[tuple[Run, dict[str, Any]]],
    choice: Choice,
    finals: list[tuple[Run, dict[str, Any]]],
) -> dict[str, Any]:
    """Return all numbers of one remedy: of its grid, its choice and its final runs."""
    parameter = RACE[name].parameter
    return {
        "parameter": parameter,
        "grid": [
            {"learning_rate": rate, "value": value, **_run_record(run, result, "validation")}
            for (rate, value), (run, result) in zip(points(name), grid, strict=True)
        ],
        "chosen": choice.point,
        "recipe": asdict(finals[0][0].recipe) if finals else None,
        "runs": [_run_record(run, result, "report") for run, result in finals],
    }


def _run_record(run: Run, result: dict[str, Any], part: str) -> dict[str, Any]:
    """Return the facts of a run. part: the report, on "validation" or on the test images."""
    report = result.get(part)
    return {
        "seed": run.seed,
        "epochs": run.recipe.epochs,
        "diverged": result["diverged"],
        "balanced_accuracy": report and report["balanced_accuracy"],
        "g_mean": report and report["g_mean"],
        "confusion": report and report["confusion"],
        "precision": result["precision"],
        "processor": result["processor"],
        "seconds": round(result["seconds"], 2),
        "trained_with": result.get("trained_with"),  # an earlier version shared no training
    }


def _not_compared(
    choices: dict[str, Choice], finals: Ended, impossible: dict[str, str]
) -> list[str]:
    """Return a sentence on each remedy that is not in the table."""
    sentences = left_out(impossible)
    for name, choice in choices.items():
        if choice.point is None:
            sentences.append(f"{name} is left out: it diverged at every point of its grid.")
    for name, ended in finals.items():
        seeds = [str(run.seed) for run, result in ended if result["diverged"]]
        if seeds:
            sentences.append(f"{name} is left out: it diverged with seed {', '.join(seeds)}.")
    return sentences
