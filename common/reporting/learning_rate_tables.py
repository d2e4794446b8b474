"""The table of a learning-rate sweep, and the text of a range test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from common.reporting.tables import shell_lines, text_table
from common.training.learning_rates import RangeTest

CLEAR_FALL = 0.1  # the fall of a range test's loss from which its suggestion means something


LEGEND = """\
first, last: training loss of the first and last epoch. val. loss, balanced
(accuracy), G-mean: on {n} validation images. verdict: by the rules of verdict()
in common/training/learning_rates.py."""


def sweep_text(
    result_by_rate: dict[float, dict[str, Any]], verdicts: dict[float, str],
    best: float | None, n: int,
) -> str:  # fmt: skip
    """Return one row for each learning rate, a legend, and the best rate.

    n: number of validation images.
    """
    headers = ["rate", "first", "last", "val. loss", "balanced", "G-mean", "verdict"]
    rows = sweep_rows(result_by_rate, verdicts)
    text = f"{text_table(headers, rows, 'rrrrrrl')}\n\n{LEGEND.format(n=n)}"
    if best is None:
        return text
    score = result_by_rate[best]["validation"]["g_mean"]
    return f"{text}\nBest validation G-mean: {score:.3f}, at {best:g}."


def sweep_rows(
    result_by_rate: dict[float, dict[str, Any]], verdicts: dict[float, str]
) -> list[list[str]]:
    """Return for each rate its losses, its scores on the validation images and its verdict."""
    rows = []
    for rate, result in result_by_rate.items():
        losses, validation = result["history"]["loss"], ["-"] * 3
        if not result["diverged"]:
            validation = [
                _short(result["history"]["validation_loss"][-1]),
                f"{result['validation']['balanced_accuracy']:.3f}",
                f"{result['validation']['g_mean']:.3f}",
            ]
        ends = [_short(losses[0]), _short(losses[-1])] if losses else ["-", "-"]
        rows.append([f"{rate:g}", *ends, *validation, verdicts[rate]])
    return rows


def _short(loss: float) -> str:
    return f"{loss:.4f}" if loss < 100 else f"{loss:.1e}"


def range_test_text(
    test: RangeTest, lowest: float, highest: float, sweep_best: float | None,
    sweep: Sequence[str],
) -> str:  # fmt: skip
    """Return what a range test found, beside the best rate of a sweep if there is one.

    sweep: the words of the command of that sweep.
    """
    lines = [
        f"Range test from {lowest:g} to {highest:g}, {len(test.losses):,} steps:",
        f"steepest descent (the suggested rate): {test.suggestion:.2g}",
    ]
    fall = 1 - min(test.smoothed) / test.smoothed[0]
    if fall < CLEAR_FALL:
        lines.append(f"but the loss fell by no more than {fall:.0%}: that says little")
    lines.append(f"edge of divergence: {f'{test.edge:.2g}' if test.edge else 'none met'}")
    if sweep_best is None:
        lines.append(f"To compare with a sweep, first run:\n{shell_lines(sweep)}")
    else:
        ratio = f"{test.suggestion / sweep_best:.2g}"
        lines += [
            f"The sweep's best rate, by validation G-mean: {sweep_best:g}",
            f"(the suggested rate is {ratio} times as large)",
        ]
    return "\n".join(lines)
