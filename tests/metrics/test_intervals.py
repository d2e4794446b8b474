"""Intervals: their coverage, the posterior that they come from, and what always holds."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import confusions, metrics_by_loop, metrics_of_rows, predictions_of
from scipy import stats

from common.metrics.intervals import (
    PER_CLASS,
    draw_rows,
    interval,
    median_with_interval,
    proportion_interval,
    row_prior,
    scores_and_intervals,
)
from common.metrics.report import from_confusion

CONFUSION = np.array([[120, 20, 10], [8, 30, 2], [3, 4, 13]])
SUPPORT = np.array([551, 51, 23])  # the test images of the reports
# Networks by the probabilities of their predictions, rows true classes, and how often their
# predictions for the test images are simulated. "original" is simulated most: it finds so few
# trucks that their F1 has the least coverage of all, 0.921 in 8,000 simulations.
NETWORKS = {
    "best": ([[0.985, 0.012, 0.003], [0.06, 0.9, 0.04], [0.01, 0.03, 0.96]], 400),
    "original": ([[0.99, 0.002, 0.008], [0.85, 0.055, 0.095], [0.248, 0.004, 0.748]], 1000),
    "middling": ([[0.95, 0.03, 0.02], [0.3, 0.6, 0.1], [0.4, 0.2, 0.4]], 400),
    "attacked": ([[0.0127, 0.75, 0.2373], [0.9, 0.001, 0.099], [0.55, 0.449, 0.001]], 400),
}
COVERAGE = 0.92  # at least, of the level 0.95: the correct predictions of few images are few
ANY_CONFUSION = st.one_of(confusions(), confusions(sure=True))


def follow(draws: np.ndarray, right: float, wrong: float) -> bool:
    """Return whether draws (N,) are of Beta(right, wrong): p of Kolmogorov's test > 0.001."""
    return stats.kstest(draws, stats.beta(right, wrong).cdf).pvalue > 0.001


@pytest.mark.simulation
@pytest.mark.parametrize("name", NETWORKS)
def test_95_percent_of_the_intervals_hold_the_true_metric(name):
    rows, simulations = NETWORKS[name]
    true = metrics_of_rows(rows, SUPPORT.tolist())
    rng = np.random.default_rng(0)
    held = {metric: np.zeros(np.shape(value)) for metric, value in true.items()}
    for _ in range(simulations):
        confusion = np.array(
            [rng.multinomial(n, p) for n, p in zip(SUPPORT, rows, strict=True)]
        )
        for metric, ends in scores_and_intervals(confusion)[1].items():
            low, high = np.moveaxis(ends, -1, 0)
            held[metric] += (low <= true[metric]) & (true[metric] <= high)
    error = np.sqrt(COVERAGE * (1 - COVERAGE) / simulations)  # the standard error of a share
    shares = {metric: (n / simulations).tolist() for metric, n in held.items()}
    assert min(map(np.min, shares.values())) >= COVERAGE - 2 * error, shares


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("k", range(3))
def test_the_exact_coverage_of_a_recall(name, k):
    """Each number of correct predictions is tried, and weighted by its probability."""
    true, n = NETWORKS[name][0][k][k], SUPPORT[k]
    coverage = 0.0
    for right, probability in enumerate(stats.binom.pmf(np.arange(n + 1), n, true)):
        if probability > 1e-5:
            confusion = np.diag(SUPPORT)
            confusion[k, [k, k - 1]] = right, n - right
            low, high = scores_and_intervals(confusion)[1]["recall"][k]
            coverage += probability * (low <= true <= high)
    assert coverage >= COVERAGE


def test_the_prior_is_half_an_image_right_and_half_an_image_wrong():
    assert row_prior(2).tolist() == [[0.5, 0.5], [0.5, 0.5]]
    expected = [[0.5 if i == j else 0.5 / 3 for j in range(4)] for i in range(4)]
    assert row_prior(4) == pytest.approx(np.array(expected))


SPARSE = np.array([[120, 30, 0], [8, 30, 2], [0, 0, 20]])
PRIORS = [  # of both halves of the draws: everywhere, and only where SPARSE has images
    [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]],
    [[0.5, 0.5, 0], [0.25, 0.5, 0.25], [0, 0, 0.5]],
]


@pytest.mark.parametrize("k", range(3))
def test_draws_of_a_row_follow_its_dirichlet_distribution(k):
    """A cell of a Dirichlet distribution has a beta distribution."""
    one_image = np.eye(3)[k]  # with one image of class k alone, row k is what is predicted
    recall, rows = draw_rows(SPARSE, one_image)
    np.testing.assert_array_equal(rows[..., k], recall[..., k])
    np.testing.assert_allclose(rows.sum(-1), 1)
    for half, prior in zip(rows, PRIORS, strict=True):
        pseudo = SPARSE[k] + prior[k]
        assert half.mean(0) == pytest.approx(pseudo / pseudo.sum(), abs=0.005)
        for cell in range(3):
            if 0 < pseudo[cell] < pseudo.sum():
                assert follow(half[:, cell], pseudo[cell], pseudo.sum() - pseudo[cell]), cell
            else:
                assert np.ptp(half[:, cell]) == 0


def test_draws_of_different_classes_are_independent():
    recall, predicted = draw_rows(CONFUSION, CONFUSION.sum(1))
    for half in range(2):
        correlations = np.corrcoef(recall[half].T)
        assert np.abs(correlations - np.eye(3)).max() < 0.06
    np.testing.assert_allclose(predicted.sum(-1), CONFUSION.sum())
    assert predicted[1].mean(0) == pytest.approx(CONFUSION.sum(0), rel=0.02)


def test_a_recall_has_jeffreys_posterior():
    recall, _ = draw_rows(np.array([[0, 0, 0], [0, 9, 0], [9, 0, 0]]), np.ones(3))
    for half in recall:
        assert follow(half[:, 0], 0.5, 0.5)
    assert follow(recall[0, :, 1], 9.5, 0.5)
    assert follow(recall[0, :, 2], 0.5, 9.5)
    assert recall[1, :, 1:].tolist() == [[1, 0]] * len(recall[1])


def test_equal_recalls_have_equal_draws():
    """Wherever the wrong predictions are, and whatever the other classes are."""
    rows = [[8, 30, 2], [2, 30, 8], [10, 30, 0], [0, 30, 10]]
    first, *others = (
        draw_rows(np.array([[n, 5, 0], row, [0, n, 9]]), np.ones(3))[0]
        for n, row in enumerate(rows)
    )
    for recall in others:
        np.testing.assert_allclose(recall[..., 1], first[..., 1])
    results = [scores_and_intervals(np.array([[60, 0, 0], row, [4, 4, 4]]))[1] for row in rows]
    for intervals in results[1:]:
        for name in ("accuracy", "balanced_accuracy", "g_mean", "recall"):
            expected = np.array(results[0][name])
            assert np.array(intervals[name]) == pytest.approx(expected), name


def test_an_interval_reaches_to_the_farther_percentile_and_to_the_number():
    draws = np.stack([np.linspace(0.2, 0.6, 1001), np.linspace(0.3, 0.9, 1001)])
    assert interval(draws, 0.5) == pytest.approx([0.21, 0.885])
    assert interval(draws[::-1], 0.5) == pytest.approx([0.21, 0.885])
    assert interval(draws, 0.1) == pytest.approx([0.1, 0.885])
    assert interval(draws, 0.95) == pytest.approx([0.21, 0.95])
    of_two = interval(np.stack([draws, draws / 2], -1), np.array([0.5, 0.5]))
    assert np.array(of_two) == pytest.approx(np.array([[0.21, 0.885], [0.105, 0.5]]))


@settings(max_examples=50)
@given(ANY_CONFUSION)
def test_the_metrics_equal_those_of_a_loop_and_of_the_report(confusion):
    values, intervals = scores_and_intervals(confusion)
    expected = metrics_by_loop(*predictions_of(confusion), len(confusion))
    assert values.keys() == intervals.keys() == expected.keys()
    for name, value in expected.items():
        assert values[name] == pytest.approx(np.array(value)), name
    r = from_confusion(confusion, [f"class{k}" for k in range(len(confusion))])
    for name in ("accuracy", "balanced_accuracy", "g_mean", *PER_CLASS):
        assert values[name] == pytest.approx(np.array(getattr(r, name))), name
    for name in PER_CLASS:
        assert values[f"macro_{name}"] == pytest.approx(r.macro[name])
        assert values[f"weighted_{name}"] == pytest.approx(r.weighted[name])
    assert r.intervals == intervals


@settings(max_examples=100)
@given(ANY_CONFUSION)
def test_every_interval_has_a_width_and_holds_its_number(confusion):
    with warnings.catch_warnings(action="error"):
        values, intervals = scores_and_intervals(confusion)
    for name, ends in intervals.items():
        low, high = np.moveaxis(ends, -1, 0)
        value = np.asarray(values[name])
        assert ((low >= 0) & (low <= value) & (value <= high) & (high <= 1)).all(), name
        assert (high - low > 0.01).all(), name


@given(ANY_CONFUSION)
def test_equal_numbers_have_equal_intervals(confusion):
    intervals = scores_and_intervals(confusion)[1]
    assert intervals["accuracy"] == pytest.approx(intervals["weighted_recall"], abs=1e-12)
    # The average over all classes counts the recall of a class without images as 0.
    share = np.mean(confusion.sum(1) > 0)
    expected = [share * end for end in intervals["balanced_accuracy"]]
    assert intervals["macro_recall"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("confusion", [[[9, 1, 0], [0, 0, 0], [1, 0, 9]], [[0, 0], [3, 7]]])
def test_a_number_that_no_image_could_change_has_the_interval_0_to_1(confusion):
    """The precision and the F1 of a class without images are 0 whatever is predicted."""
    counts = np.array(confusion)
    intervals = scores_and_intervals(counts)[1]
    (absent,) = np.flatnonzero(counts.sum(1) == 0)
    assert intervals["precision"][absent] == intervals["f1"][absent] == [0, 1]
    if len(counts) == 2:  # all images are of one class, and so all predictions of it right
        assert intervals["precision"][1] == [0, 1]


def test_intervals_are_repeatable_and_leave_the_global_random_state():
    results = []
    for seed in (1, 2):
        np.random.seed(seed)
        before = np.random.get_state()[1].copy()
        results.append(scores_and_intervals(CONFUSION)[1])
        np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert results[0] == results[1]


TRIALS = st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(TRIALS)
def test_the_interval_of_a_proportion_is_that_of_its_beta_distribution(case):
    successes, n = case
    low, high = proportion_interval(successes, n)
    expected = stats.beta.ppf([0.025, 0.975], successes + 0.5, n - successes + 0.5)
    if successes == 0:
        expected[0] = 0
    if successes == n:
        expected[1] = 1
    assert (low, high) == pytest.approx(expected, abs=1e-9)
    assert 0 <= low <= successes / n <= high <= 1
    assert low < high
    # The interval of the share of failures is the mirror image.
    assert proportion_interval(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_a_proportion_without_trials_is_unknown():
    low, high = proportion_interval(0, 0)
    assert 0 <= low < 0.01
    assert 0.99 < high <= 1


@given(ANY_CONFUSION)
def test_a_recall_has_the_interval_of_its_proportion(confusion):
    recalls = scores_and_intervals(confusion)[1]["recall"]
    for k, ends in enumerate(recalls):
        assert ends == proportion_interval(confusion[k, k], confusion[k].sum())


def test_the_interval_of_a_proportion_is_that_of_its_draws():
    recall, _ = draw_rows(CONFUSION, CONFUSION.sum(1))
    low, high = np.array(interval(recall, np.diagonal(CONFUSION) / CONFUSION.sum(1))).T
    for k, (right, n) in enumerate(((120, 150), (30, 40), (13, 20))):
        assert (low[k], high[k]) == pytest.approx(proportion_interval(right, n), abs=0.015)


SHARES = np.array([0.2, 0.5, 0.3])


def test_metrics_hold_where_the_classes_have_other_shares():
    values, intervals = scores_and_intervals(CONFUSION, SHARES)
    rows = [[n / sum(row) for n in row] for row in CONFUSION.tolist()]
    for name, value in metrics_of_rows(rows, SHARES.tolist()).items():
        assert values[name] == pytest.approx(np.array(value)), name
    shares, recall = SHARES, [120 / 150, 30 / 40, 13 / 20]
    assert values["accuracy"] == pytest.approx(shares @ recall)
    predicted_cat = 0.2 * 10 / 150 + 0.5 * 2 / 40 + 0.3 * 13 / 20
    assert values["precision"][2] == pytest.approx(0.3 * 13 / 20 / predicted_cat)
    # Only what depends on the shares of the classes has other intervals.
    of_counts = scores_and_intervals(CONFUSION)[1]
    for name in ("recall", "balanced_accuracy", "g_mean"):
        assert intervals[name] == of_counts[name]
    for name in ("accuracy", "precision", "f1"):
        assert intervals[name] != of_counts[name]


def test_only_the_ratio_of_the_shares_matters():
    for a, b in zip(
        scores_and_intervals(CONFUSION, SHARES),
        scores_and_intervals(CONFUSION, 70 * SHARES),
        strict=True,
    ):
        for name in a:
            assert np.array(a[name]) == pytest.approx(np.array(b[name])), name
    by_default = scores_and_intervals(CONFUSION)[1]
    assert scores_and_intervals(CONFUSION, CONFUSION.sum(1))[1] == by_default


@pytest.mark.parametrize(
    ("values", "median", "ends"),
    [
        ([], np.nan, [0, np.inf]),
        ([2], 2, [0, np.inf]),
        ([2, np.inf], np.inf, [0, np.inf]),
        ([3, 1, 2], 2, [0, np.inf]),
        ([4, 1, 3, 2], 2.5, [1, 4]),
        ([0, 0, 0, 0, 7], 0, [0, 7]),
        (range(1, 24), 12, [7, 17]),  # of 23, the ranks 7 and 17
        ([*range(1, 7), *[np.inf] * 17], np.inf, [np.inf, np.inf]),
        ([*range(1, 8), *[np.inf] * 16], np.inf, [7, np.inf]),
        ([0] * 13 + [0.5] * 10, 0, [0, 0.5]),
        ([0] * 23, 0, [0, 0]),  # a class whose images are all misclassified
        (np.arange(51, 0, -1, dtype=np.float32), 26, [19, 33]),
    ],
)
def test_a_median_and_its_interval_by_hand(values, median, ends):
    found = median_with_interval(values)
    assert found == (pytest.approx(median, nan_ok=True), ends)
    assert all(type(number) is float for number in (found[0], *found[1]))


RADII = st.lists(st.one_of(st.integers(0, 12), st.just(np.inf)), max_size=40)


@settings(max_examples=100)
@given(RADII)
def test_the_interval_of_a_median_agrees_with_those_of_shares(values):
    median, (low, high) = median_with_interval(values)
    assert low <= high
    if values:
        assert low <= median <= high
    for t in np.arange(0.25, 12, 0.25):
        below, up_to = (sum(map(compare, values)) for compare in (t.__gt__, t.__ge__))
        above_half = proportion_interval(below, len(values))[0] > 0.5
        below_half = proportion_interval(up_to, len(values))[1] < 0.5
        assert (low <= t <= high) == (not above_half and not below_half), t


@pytest.mark.simulation
@pytest.mark.parametrize("n", [5, 23, 51])
def test_95_percent_of_the_intervals_hold_the_true_median(n):
    rng = np.random.default_rng(0)
    held = 0
    for sample in rng.exponential(size=(2000, n)):
        low, high = median_with_interval(sample)[1]
        held += low <= np.log(2) <= high
    assert 0.92 < held / 2000 < 0.98
