"""Networks compared on the same images: joint draws of their metrics, and the test of swaps."""

import itertools
import warnings
from statistics import fmean

import numpy as np
import pytest
from metric_cases import metrics_by_loop
from scipy import stats
from sklearn.metrics import confusion_matrix

from common.metrics import paired
from common.metrics.intervals import DRAWS, draw_rows, interval, scores
from common.metrics.paired import best_probabilities, paired_scores, swap_test

LABELS = np.repeat([0, 1, 2], [60, 30, 12])
METRICS = ("accuracy", "balanced_accuracy", "g_mean", "macro_f1", "recall", "precision", "f1")


def predictions_with_errors(share: float, seed: int, labels: np.ndarray = LABELS) -> np.ndarray:
    """Return predictions (N,), of which about this share is wrong."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(len(labels)) < share
    return np.where(wrong, (labels + rng.integers(1, 3, len(labels))) % 3, labels)


A = predictions_with_errors(0.2, 1)
B = predictions_with_errors(0.4, 2)


def assert_same_distribution(a: np.ndarray, b: np.ndarray) -> None:
    """Check that draws (2, DRAWS, ...) are of one distribution: Kolmogorov's p > 0.001."""
    columns = [np.moveaxis(draws.round(9), 1, -1).reshape(-1, DRAWS) for draws in (a, b)]
    for of_a, of_b in zip(*columns, strict=True):
        assert stats.ks_2samp(of_a, of_b).pvalue > 0.001


# Draws


@pytest.mark.parametrize("predictions", [A, np.zeros_like(A), LABELS], ids=["A", "cars", "all"])
def test_one_network_has_the_draws_of_its_confusion_matrix(predictions):
    draws = paired_scores(LABELS, [predictions[None]], 3)
    confusion = confusion_matrix(LABELS, predictions)
    support = confusion.sum(1)
    expected = scores(*draw_rows(confusion, support), support)
    assert draws.keys() == expected.keys()
    for name, values in expected.items():
        assert_same_distribution(draws[name][:, :, 0], values)


def test_equal_runs_of_a_network_count_as_one():
    one = paired_scores(LABELS, [A[None]], 3)
    three = paired_scores(LABELS, [np.stack([A, A, A])], 3)
    for name in METRICS:
        assert three[name].shape == one[name].shape
        assert_same_distribution(one[name], three[name])


def test_the_metric_of_several_runs_is_their_mean():
    draws = paired_scores(LABELS, [A[None], np.stack([A, B, B]), B[None]], 3)
    for name in METRICS:
        for half in draws[name]:
            a, of_three, b = np.moveaxis(half, 1, 0)
            mean = (a + 2 * b) / 3
            assert of_three.mean(0) == pytest.approx(mean.mean(0), abs=0.006), name
            # An image counts the same for all; only the answers to imagined ones differ.
            assert ((of_three - mean).std(0) < 0.7 * of_three.std(0)).all(), name
    # The posterior's mean has half an image more that is right, and half a wrong one.
    found = [np.diagonal(confusion_matrix(LABELS, p)) for p in (A, B, B)]
    recalls = (np.array(found) + 0.5) / [61, 31, 13]
    assert draws["recall"][0, :, 1].mean(0) == pytest.approx(np.mean(recalls, 0), abs=0.006)


def test_the_difference_of_equal_networks_is_0_but_not_surely():
    draws = paired_scores(LABELS, [A[None], A[None]], 3)
    apart = paired_scores(LABELS, [A[None], np.roll(A, 1)[None]], 3)
    for name in METRICS:
        low, high = np.moveaxis(interval(draws[name][:, :, 0] - draws[name][:, :, 1], 0), -1, 0)
        assert ((low < 0) & (high > 0)).all(), name
        assert (high - low > 0.001).all(), name
        # Only the answers to the imagined images differ.
        of_one = np.ptp(np.percentile(draws[name][0, :, 0], [2.5, 97.5], axis=0), axis=0)
        assert (high - low < 0.6 * of_one).all(), name
    spread = [np.std(d["accuracy"][0, :, 0] - d["accuracy"][0, :, 1]) for d in (draws, apart)]
    assert spread[0] < spread[1] / 3


CELLS = [  # the shares of the images that both networks, A only, B only and neither find
    (0.85, 0.05, 0.05, 0.05),
    (0.9, 0.08, 0.01, 0.01),
    (0.5, 0.3, 0.1, 0.1),
]


@pytest.mark.simulation
def test_95_percent_of_the_intervals_of_a_difference_hold_the_true_one():
    """A class of 23 images for each row of CELLS; the last of four differences is the mean."""
    labels, simulations = np.repeat([0, 1, 2], 23), 300
    true = np.array([only_a - only_b for _, only_a, only_b, _ in CELLS])
    true = np.append(true, true.mean())
    rng = np.random.default_rng(0)
    held = np.zeros(4)
    for _ in range(simulations):
        cells = np.concatenate([rng.choice(4, 23, p=shares) for shares in CELLS])
        found = np.isin(cells, [0, 1]), np.isin(cells, [0, 2])
        networks = [np.where(f, labels, (labels + 1) % 3)[None] for f in found]
        draws = paired_scores(labels, networks, 3)
        recall, balanced = (
            draws[name][:, :, 0] - draws[name][:, :, 1]
            for name in ("recall", "balanced_accuracy")
        )
        value = np.mean((found[0] * 1 - found[1]).reshape(3, 23), axis=1)
        value = np.append(value, value.mean())
        ends = interval(np.concatenate([recall, balanced[..., None]], -1), value)
        low, high = np.moveaxis(ends, -1, 0)
        held += (low <= true) & (true <= high)
    assert (held / simulations).min() >= 0.92, held / simulations


def test_draws_of_two_networks_do_not_depend_on_others():
    two = paired_scores(LABELS, [A[None], B[None]], 3)
    more = paired_scores(LABELS, [A[None], B[None], *[LABELS[None]] * 40], 3)
    for name in METRICS:
        np.testing.assert_array_equal(more[name][:, :, :2], two[name], name)


def test_the_order_of_the_images_does_not_matter():
    order = np.random.default_rng(0).permutation(len(LABELS))
    draws = paired_scores(LABELS, [A[None], B[None]], 3)
    shuffled = paired_scores(LABELS[order], [A[order][None], B[order][None]], 3)
    for name in METRICS:
        assert_same_distribution(draws[name], shuffled[name])
        differences = [d[name][:, :, 0] - d[name][:, :, 1] for d in (draws, shuffled)]
        assert_same_distribution(*differences)
    p = swap_test(LABELS, A[None], B[None], 3)
    shuffled = swap_test(LABELS[order], A[order][None], B[order][None], 3)
    for name in METRICS:
        assert p[name] == pytest.approx(shuffled[name], abs=0.015), name


def test_a_class_without_images_is_left_out():
    present = LABELS != 1
    labels, a, b = LABELS[present], A[present], B[present]
    with warnings.catch_warnings(action="error"):
        draws = paired_scores(labels, [a[None], b[None]], 3)
        p = swap_test(labels, a[None], b[None], 3)
    for name, values in draws.items():
        assert np.isfinite(values).all(), name
        assert 0 < np.min(p[name]) <= np.max(p[name]) <= 1, name
    others = draws["recall"][..., [0, 2]]
    np.testing.assert_allclose(draws["balanced_accuracy"], others.mean(-1))
    assert p["recall"][1] == 1


def test_draws_are_repeatable_and_leave_the_global_random_state():
    results = []
    for seed in (1, 2):
        np.random.seed(seed)
        before = np.random.get_state()[1].copy()
        draws = paired_scores(LABELS, [A[None], B[None]], 3)
        results.append((draws["g_mean"].tolist(), swap_test(LABELS, A[None], B[None], 3)))
        np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert results[0] == results[1]


def test_the_best_network_is_the_one_with_the_highest_draw():
    draws = np.array([[0.5, 0.4, 0.1], [0.2, 0.3, 0.1], [0.9, 0.8, 0.1], [0.6, 0.7, 0.1]])
    assert best_probabilities(draws) == [0.5, 0.5, 0]
    assert best_probabilities(draws[:3, :2]) == pytest.approx([2 / 3, 1 / 3])
    assert best_probabilities(draws[:, :1]) == [1]


# The test


@pytest.mark.parametrize("shares", [(0.1, 0.15), (0.2, 0.2), (0.1, 0.5)])
def test_p_of_an_accuracy_is_that_of_mcnemars_exact_test(shares):
    a, b = (predictions_with_errors(share, seed) for seed, share in enumerate(shares))
    p = swap_test(LABELS, a[None], b[None], 3)
    for found, of_classes in (
        (p["accuracy"], [0, 1, 2]),
        *zip(p["recall"], range(3), strict=True),
    ):
        images = np.isin(LABELS, of_classes)
        right_a, right_b = ((each == LABELS)[images] for each in (a, b))
        only_a, only_b = np.sum(right_a & ~right_b), np.sum(right_b & ~right_a)
        discordant = only_a + only_b
        expected = stats.binomtest(only_a, discordant).pvalue if discordant else 1.0
        error = np.sqrt(expected * (1 - expected) / paired.SWAPS)
        assert found == pytest.approx(expected, abs=4 * error + 1 / paired.SWAPS), of_classes


def test_p_equals_that_of_all_swaps():
    labels = [0, 0, 0, 0, 1, 1, 1, 2, 2]
    a = [[0, 0, 0, 1, 1, 1, 0, 2, 2], [0, 0, 0, 0, 1, 1, 1, 2, 0]]  # two seeds
    b = [[0, 0, 1, 1, 1, 0, 0, 2, 0], [0, 1, 2, 0, 1, 1, 0, 0, 2]]
    names = ("accuracy", "balanced_accuracy", "g_mean", "macro_f1")

    def differences(swaps):
        """Return the differences of the means over seeds if these images are swapped."""
        means = []
        for first, second in ((a, b), (b, a)):
            runs = [
                [q if swap else p for p, q, swap in zip(*of_seed, swaps, strict=True)]
                for of_seed in zip(first, second, strict=True)
            ]
            means.append([metrics_by_loop(labels, run, 3) for run in runs])
        return {
            name: abs(fmean(m[name] for m in means[0]) - fmean(m[name] for m in means[1]))
            for name in names
        }

    every = [differences(swaps) for swaps in itertools.product([False, True], repeat=9)]
    p = swap_test(np.array(labels), np.array(a), np.array(b), 3)
    for name in names:
        at_least = [d[name] >= every[0][name] - 1e-9 for d in every]
        assert 0.02 < p[name] < 0.98
        assert p[name] == pytest.approx(np.mean(at_least), abs=0.015), name


def test_equal_predictions_have_p_1():
    runs = np.stack([A, B])
    for value in swap_test(LABELS, runs, runs, 3).values():
        assert np.all(np.array(value) == 1)


def test_p_counts_the_difference_found_as_a_swap():
    """No swap reaches the difference between all right and all wrong."""
    p = swap_test(LABELS, LABELS[None], ((LABELS + 1) % 3)[None], 3)
    assert p["accuracy"] == p["balanced_accuracy"] == 1 / (paired.SWAPS + 1)


def test_few_differences_of_equal_networks_are_significant(monkeypatch):
    monkeypatch.setattr(paired, "SWAPS", 500)
    labels, p_values = np.repeat([0, 1, 2], [60, 20, 10]), []
    for seed in range(600):
        a, b = (predictions_with_errors(0.3, 2 * seed + i, labels)[None] for i in range(2))
        p = swap_test(labels, a, b, 3)
        p_values.append([p["accuracy"], p["g_mean"], p["macro_f1"], *p["recall"]])
    shares = np.mean(np.array(p_values) < 0.05, axis=0)
    assert shares.max() <= 0.06, shares
    assert shares[:3].min() >= 0.02, shares  # nor is the test blind
