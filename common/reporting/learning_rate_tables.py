"""The table of a learning-rate sweep, and the text of a range test."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import Any

from common.reporting.tables import shell_lines, text_table, with_interval
from common.training.learning_rates import RangeTest, validation_loss

CLEAR_FALL = 0.1  # the fall of a range test's loss from which its suggestion means something


HEADERS = ["rate", "first", "last", "val. loss", "G-mean", "verdict"]
LEGEND = (
    "first, last: training loss of the first and last epoch. val. loss, G-mean: on {n:,}"
    " validation images{attacked}, [95% interval]. verdict: by the rules of verdict() in"
    " common/training/learning_rates.py."
)
ATTACKED = ", the loss under PGD"


def sweep_text(
    result_by_rate: dict[float, dict[str, Any]], verdicts: dict[float, str],
    best: float | None, n: int,
) -> str:  # fmt: skip
    """Return one row for each learning rate, a legend, and the best rate.

    n: number of validation images.
    """
    rows = sweep_rows(result_by_rate, verdicts)
    is_attacked = any(each["recipe"]["adversarial"] for each in result_by_rate.values())
    legend = fill(LEGEND.format(n=n, attacked=ATTACKED if is_attacked else ""), 80)
    text = f"{text_table(HEADERS, rows, 'rrrrrl')}\n\n{legend}"
    if best is None:
        return text
    return f"{text}\nBest validation G-mean: {_g_mean(result_by_rate[best])}, at {best:g}."


def sweep_rows(
    result_by_rate: dict[float, dict[str, Any]], verdicts: dict[float, str]
) -> list[list[str]]:
    """Return for each rate its losses, its scores on the validation images and its verdict."""
    rows = []
    for rate, result in result_by_rate.items():
        losses, validation = result["history"]["loss"], ["-"] * 2
        if not result["diverged"]:
            validation = [_short(validation_loss(result)), _g_mean(result)]
        ends = [_short(losses[0]), _short(losses[-1])] if losses else ["-", "-"]
        rows.append([f"{rate:g}", *ends, *validation, verdicts[rate]])
    return rows


def _g_mean(result: dict[str, Any]) -> str:
    scores = result["validation"]
    return with_interval(scores["g_mean"], scores["intervals"]["g_mean"])


def _short(loss: float) -> str:
    return f"{loss:.3f}" if loss < 100 else f"{loss:.0e}"


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
