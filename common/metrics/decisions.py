"""From probabilities to decisions: other class shares, and the costs of confusions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from common.errors import InputError
from common.files import read_table
from common.metrics.intervals import interval, row_draws, scores_and_intervals

MOST_COST = 1e9
MOST_BYTES = 2**20  # of a file of costs


def shift_prior(
    probabilities: np.ndarray, assumed: Sequence[float], prior: Sequence[float]
) -> np.ndarray:
    """Return the probabilities (N, K) for classes with the shares `prior`, (K,).

    assumed: the shares (K,) that the given probabilities assume. p_k * prior_k / assumed_k,
    divided by their sum over k, which adds log ratios to the logits (Saerens et al. 2002,
    equation 4).

    >>> shift_prior(np.array([[0.5, 0.5]]), [0.5, 0.5], [0.9, 0.1])
    array([[0.9, 0.1]])
    """
    shifted = probabilities * (np.asarray(prior) / np.asarray(assumed))
    return shifted / shifted.sum(1, keepdims=True)


def least_cost(probabilities: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Return for each image the class of the least expected cost, (N,) (Elkan 2001).

    probabilities: (N, K). costs: (K, K), rows true classes, columns decisions.

    >>> least_cost(np.array([[0.9, 0.1]]), np.array([[0, 1], [20, 0]])).tolist()
    [1]
    """
    return (probabilities @ costs).argmin(1)


def decide(
    labels: np.ndarray,
    probabilities: np.ndarray,
    shifted: np.ndarray | None,
    prior: np.ndarray | None,
    costs: np.ndarray | None,
) -> tuple[dict[str, dict[str, Any]], np.ndarray]:
    """Return a `decision_report` of each way to decide, by name, and the decisions of the last.

    labels: (N,). probabilities, and those that were `shifted` to the shares `prior` (K,), or
    None: (N, K). costs: (K, K) or None. Without a prior the shares are those of the labels.
    """
    classes = range(probabilities.shape[1])
    shares = prior
    if shares is None:
        shares = np.bincount(labels, minlength=len(classes)) / len(labels)
    ways = {"as predicted": probabilities.argmax(1)}
    if shifted is not None:
        ways["for these shares"] = shifted.argmax(1)
    if costs is not None:
        ways["least cost"] = least_cost(probabilities if shifted is None else shifted, costs)
    reports = {
        name: decision_report(confusion_matrix(labels, way, labels=classes), shares, costs)
        for name, way in ways.items()
    }
    return reports, list(ways.values())[-1]


def decision_report(
    confusion: np.ndarray, shares: np.ndarray, costs: np.ndarray | None = None
) -> dict[str, Any]:
    """Return the metrics of decisions where the classes have the shares (K,).

    confusion: counts (K, K) of the decisions on the test images. Returns "values" and
    "intervals", both by the names of `intervals.scores`; with costs (K, K) also of "cost", the
    mean cost of an image.
    """
    values, intervals = scores_and_intervals(confusion, shares)
    if costs is not None:
        rows = confusion / np.maximum(confusion.sum(1), 1)[:, None]
        values["cost"] = float(shares @ (rows * costs).sum(1))
        draws = sum(
            share * rows @ cost
            for share, rows, cost in zip(shares, row_draws(confusion), costs, strict=True)
        )
        intervals["cost"] = interval(draws, values["cost"])
    plain = {name: np.asarray(value).tolist() for name, value in values.items()}
    return {"values": plain, "intervals": intervals}


def read_costs(path: Path, classes: Sequence[str]) -> np.ndarray:
    """Return the costs (K, K) in a CSV file: rows true classes, columns decisions.

    The first line names the decided classes after one cell of any content, each other line
    begins with its true class. Raises InputError for another content.
    """
    cells = [[cell.strip() for cell in line] for _, line in read_table(path, MOST_BYTES)]
    header = cells[0][1:] if cells else []
    if sorted(header) != sorted(classes):
        raise InputError(
            f"{path}: its first line must be a name and then the classes {', '.join(classes)}"
        )
    by_class = {line[0]: line[1:] for line in cells[1:]}
    if sorted(line[0] for line in cells[1:]) != sorted(classes):
        raise InputError(f"{path}: needs one line for each true class: {', '.join(classes)}")
    return np.array(
        [
            [_cost(path, name, by_class[name], header.index(decided)) for decided in classes]
            for name in classes
        ]
    )


def _cost(path: Path, name: str, values: Sequence[str], column: int) -> float:
    text = values[column] if column < len(values) else ""
    try:
        cost = float(text)
    except ValueError:
        cost = math.nan
    if not abs(cost) <= MOST_COST:
        raise InputError(
            f"{path}: the cost {text!r} of true class {name} is not a number of at most"
            f" {MOST_COST:g}"
        )
    return cost
