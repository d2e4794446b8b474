"""Networks compared on the same test images: joint draws of their metrics, and a test.

The draws are a Bayesian bootstrap (Rubin 1981): within each class every image counts as much as
an exponential variable says, for all networks alike. For each network and class there is one
imagined image more, which the network answers at random as the prior of `intervals.row_prior`
says. So the metrics of one network have the posterior that `intervals` gives its confusion
matrix, while two networks differ only where they answer differently. In a second half of the
draws, as there, the imagined answers are among those that the network gives to real images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from common.metrics.intervals import DRAWS, row_prior, scores, seen_prior

# Of the test, whose least p is one of them: with Holm's correction over more than 1,000 tests
# no p is below 0.05.
SWAPS = 20_000
MOST_NUMBERS = 2**22  # of an array, 32 MB: the draws and swaps go in blocks
ROUNDING = 1e-9  # differences of metrics that are closer than this are equal
Scores = dict[str, np.ndarray]


def paired_scores(
    labels: np.ndarray, predictions: Sequence[np.ndarray], classes: int
) -> Scores:
    """Return draws of each metric of each network, by the names of `intervals.scores`.

    labels: (N,). predictions: for each network (S, N), the predictions of S trainings with
    different seeds, whose mean the metric is. Returns arrays (2, DRAWS, networks), or
    (2, DRAWS, networks, K) for a metric of each class; the halves are those of
    `intervals.row_draws`.
    """
    support, seeds = np.bincount(labels, minlength=classes), [len(runs) for runs in predictions]
    answers = _answers(np.concatenate(predictions), classes)
    members = labels == np.arange(classes)[:, None]
    pooled = [
        np.array([_answers(runs[:, m], classes).sum((0, 1)) for m in members])
        for runs in predictions
    ]
    # (2, networks, K, K)
    priors = np.stack(
        [[row_prior(classes)] * len(pooled), [seen_prior(counts) for counts in pooled]]
    )
    # A generator for each class, and for each network and class: the draws of two networks do
    # not depend on how many others there are.
    of_images = [np.random.default_rng([0, k]) for k in range(classes)]
    of_network = [
        [np.random.default_rng([1, k, n]) for n in range(len(pooled))] for k in range(classes)
    ]
    blocks = []
    for size in _block_sizes(DRAWS, max(2 * len(answers) * classes**2, len(labels))):
        rows = np.empty((2, size, len(answers), classes, classes))
        for k in range(classes):
            weights = of_images[k].standard_exponential((size, support[k]))
            seen = np.tensordot(weights, answers[:, members[k]], (1, 1))  # (size, runs, K)
            imagined = [
                rng.standard_gamma(priors[:, n, k], (size, 2, classes))
                for n, rng in enumerate(of_network[k])
            ]
            # All seeds of a network answer an imagined image alike.
            answered = np.repeat(np.stack(imagined, 2).swapaxes(0, 1), seeds, axis=2)
            rows[..., k, :] = seen + answered  # (2, size, runs, K)
        rows /= rows.sum(-1, keepdims=True)
        blocks.append(_means_over_seeds(_row_scores(rows, support), seeds))
    return {name: np.concatenate([block[name] for block in blocks], 1) for name in blocks[0]}


def swap_test(
    labels: np.ndarray, a: np.ndarray, b: np.ndarray, classes: int
) -> dict[str, float | list[float]]:
    """Return p, by metric, that two networks differ by the chance in the test images alone.

    The approximate randomisation test (Noreen 1989; Yeh 2000): if the networks were equal, both
    predictions for an image could as well be swapped. p is the share of SWAPS random swaps, all
    seeds of an image together, whose difference of the means over seeds is at least as large as
    the one found; that is counted as a swap too. For accuracies of one seed this is McNemar's
    exact test. labels: (N,). a, b: predictions of the same S seeds, (S, N).
    """
    rng = np.random.default_rng(0)
    support, seeds = np.bincount(labels, minlength=classes), len(a)
    answers = np.stack([_answers(a, classes), _answers(b, classes)])  # (2, S, N, K)
    members = labels == np.arange(classes)[:, None]
    counts = np.stack([answers[:, :, m].sum(2) for m in members], 2)[:, None]  # (2, 1, S, K, K)

    def differences(swapped: np.ndarray) -> Scores:
        """Return the differences between the networks for swapped counts, (2, ..., S, K, K)."""
        shares = swapped / np.maximum(support, 1)[:, None]
        means = _means_over_seeds(_row_scores(shares, support), [seeds])
        return {name: np.abs(values[0] - values[1])[:, 0] for name, values in means.items()}

    found = differences(counts)
    at_least = {name: np.ones(values.shape[1:]) for name, values in found.items()}
    for size in _block_sizes(SWAPS, max(2 * seeds * classes**2, len(labels))):
        moved = np.empty((size, seeds, classes, classes))
        for k in range(classes):
            is_swapped = rng.integers(0, 2, (size, support[k])).astype(float)
            changes = answers[1][:, members[k]] - answers[0][:, members[k]]
            moved[:, :, k] = np.tensordot(is_swapped, changes, (1, 1))
        for name, values in differences(counts + np.stack([moved, -moved])).items():
            at_least[name] += (values >= found[name] - ROUNDING).sum(0)
    return {name: (n / (SWAPS + 1)).tolist() for name, n in at_least.items()}


def best_probabilities(draws: np.ndarray) -> list[float]:
    """Return how probably each network has the highest metric, from draws (DRAWS, networks)."""
    best = draws.argmax(1)
    return [float((best == n).mean()) for n in range(draws.shape[1])]


def _block_sizes(total: int, numbers: int) -> list[int]:
    """Return how many draws each block has, if one draw has so many numbers in an array."""
    size = min(max(MOST_NUMBERS // numbers, 1), total)
    return [min(size, total - start) for start in range(0, total, size)]


def _answers(predictions: np.ndarray, classes: int) -> np.ndarray:
    """Return 1 where a prediction (S, N) is a class and 0 elsewhere, (S, N, K)."""
    return (predictions[..., None] == np.arange(classes)).astype(float)


def _row_scores(rows: np.ndarray, support: np.ndarray) -> Scores:
    """Return the metrics of rows of shares, (..., K, K)."""
    return scores(np.diagonal(rows, axis1=-2, axis2=-1), support @ rows, support)


def _means_over_seeds(by_run: Scores, seeds: Sequence[int]) -> Scores:
    """Return the mean of each network's runs, whose axis, the third, becomes the networks'."""
    ends = np.cumsum(seeds)
    return {
        name: np.stack(
            [values[:, :, end - n : end].mean(2) for n, end in zip(seeds, ends, strict=True)], 2
        )
        for name, values in by_run.items()
    }
