"""Calibration and ranking against scikit-learn and against slow, obvious loops."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from sklearn import metrics as sk

from common.metrics import probabilities as p
from common.metrics.intervals import row_prior

CLASSES = ("car", "truck", "cat")


def random_probabilities(counts=(60, 12, 6), seed=0, sharpness=2.0):
    """Return labels and probabilities that are right more often than not."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(range(len(counts)), counts)
    logits = rng.normal(size=(len(labels), len(counts)))
    logits[np.arange(len(labels)), labels] += 1
    return labels, p.softmax(sharpness * logits)


def ece_by_loop(probabilities, is_true, weights=None):
    """Return the expected calibration error by its definition; a bin has its upper end."""
    weights = [1.0] * len(probabilities) if weights is None else weights
    total, error = sum(weights), 0.0
    for b in range(p.BINS):
        members = [
            i
            for i, value in enumerate(probabilities)
            if b / p.BINS < value <= (b + 1) / p.BINS or (b == 0 and value == 0)
        ]
        gap = sum(weights[i] * (probabilities[i] - is_true[i]) for i in members)
        error += abs(gap) / total
    return error


@settings(max_examples=25)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_numbers_equal_scikit_learns_and_loops(seed, classes):
    rng = np.random.default_rng(seed)
    labels, probabilities = random_probabilities(rng.integers(1, 30, classes), seed)
    r = p.judge(labels, probabilities, [f"class{k}" for k in range(classes)])
    truth = np.eye(classes)[labels]
    for k in range(classes):
        y, of_class = truth[:, k], probabilities[:, k]
        assert r.class_brier[k] == pytest.approx(np.mean((of_class - y) ** 2))
        assert r.class_brier[k] == pytest.approx(sk.brier_score_loss(y, of_class))
        expected = sk.average_precision_score(y, of_class)
        assert r.average_precision[k] == pytest.approx(expected)
        assert r.class_ece[k] == pytest.approx(ece_by_loop(of_class, y))
        assert r.shares[k] == pytest.approx(y.mean())
    assert r.brier == pytest.approx(((probabilities - truth) ** 2).sum(1).mean())
    assert r.mean_average_precision == pytest.approx(np.mean(r.average_precision))
    of_label = probabilities[np.arange(len(labels)), labels]
    assert r.log_loss == pytest.approx(-np.log(of_label).mean())
    right = probabilities.argmax(1) == labels
    assert r.ece == pytest.approx(ece_by_loop(probabilities.max(1), right))


def test_the_bins_of_the_diagram_hold_all_images():
    labels, probabilities = random_probabilities()
    r = p.judge(labels, probabilities, CLASSES)
    for bins, values, truth in (
        (r.reliability, probabilities.max(1), probabilities.argmax(1) == labels),
        *(
            (r.class_reliability[k], probabilities[:, k], labels == k)
            for k in range(len(CLASSES))
        ),
    ):
        assert sum(bins.images) == len(labels)
        assert np.dot(bins.probability, bins.images) == pytest.approx(values.sum())
        assert np.dot(bins.share, bins.images) == pytest.approx(truth.sum())


def test_every_number_has_an_interval_with_width_that_contains_it():
    perfect = np.array([0, 0, 0, 1, 1, 2])
    for labels, probabilities in (
        random_probabilities(),
        random_probabilities((551, 51, 23)),
        (perfect, np.eye(3)[perfect]),
        (perfect, np.full((6, 3), 1 / 3)),
    ):
        r = p.judge(labels, probabilities, CLASSES)
        for name, ends in r.intervals.items():
            low, high = np.array(ends).T
            value = np.array(getattr(r, name))
            assert (low <= value).all(), name
            assert (value <= high).all(), name
            assert (low < high).all(), name
            assert (low >= 0).all(), name
            if name not in ("log_loss", "brier"):
                assert (high <= 1 + 1e-12).all(), name


def draw_by_loop(labels, probabilities, rng, with_imagined):
    """Return one draw of the scores, as the docstring of `judge` says, with scikit-learn."""
    classes = probabilities.shape[1]
    y, guesses, weights = list(labels), list(probabilities), [0.0] * len(labels)
    for k in range(classes):
        members = np.flatnonzero(labels == k)
        drawn = rng.standard_exponential(len(members))
        imagined = rng.standard_gamma(row_prior(classes)[k])
        mass = imagined.sum() if with_imagined else 0.0
        scale = len(members) / len(labels) / (drawn.sum() + mass)
        for i, weight in zip(members, drawn, strict=True):
            weights[i] = weight * scale
        y.append(k)
        guesses.append(imagined / imagined.sum())
        weights.append(mass * scale)
    y, guesses, weights = np.array(y), np.array(guesses), np.array(weights)
    top, right = guesses.max(1), guesses.argmax(1) == y
    truth = np.eye(classes)[y]
    return {
        "ece": ece_by_loop(top, right, weights),
        "brier": np.average(((guesses - truth) ** 2).sum(1), weights=weights),
        "log_loss": np.average(-np.log(guesses[np.arange(len(y)), y]), weights=weights),
        "class_ece": [ece_by_loop(guesses[:, k], truth[:, k], weights) for k in range(classes)],
        "class_brier": np.average((guesses - truth) ** 2, axis=0, weights=weights),
        "average_precision": [
            sk.average_precision_score(truth[:, k], guesses[:, k], sample_weight=weights)
            for k in range(classes)
        ],
    }


@pytest.mark.parametrize("half", [0, 1])
def test_draws_have_the_distribution_of_a_loops(half):
    labels, probabilities = random_probabilities((20, 6, 3))
    rng = np.random.default_rng(5)
    looped = [draw_by_loop(labels, probabilities, rng, half == 0) for _ in range(600)]
    drawn = p.draw_scores(labels, probabilities)
    assert drawn.keys() == {*looped[0], "mean_average_precision"}
    for name in looped[0]:
        expected = np.array([each[name] for each in looped])
        found = drawn[name][half]
        deviation = expected.std(0)
        # The standard error of a mean of 600 draws is 0.04 of their deviation.
        assert (np.abs(found.mean(0) - expected.mean(0)) < 0.2 * deviation).all(), name
        assert found.std(0) == pytest.approx(deviation, rel=0.2), name


def test_average_precision_of_a_draw_equals_scikit_learns():
    rng = np.random.default_rng(0)
    probabilities = rng.integers(0, 8, 30) / 8  # many are equal
    is_true = rng.random(30) < 0.3
    weights, masses = rng.exponential(size=(2, 5, 30)), rng.exponential(size=(2, 5, 3))
    guesses = rng.random((5, 3))
    guesses[0], guesses[1] = [2.0, 1.5, 1.2], [-1.0, -2.0, -1.5]  # above and below all images
    for k in range(3):
        found = p._average_precision(probabilities, is_true, weights, guesses, masses, k)
        for half, draw in np.ndindex(2, 5):
            expected = sk.average_precision_score(
                np.append(is_true, np.arange(3) == k),
                np.append(probabilities, guesses[draw]),
                sample_weight=np.append(weights[half, draw], masses[half, draw]),
            )
            assert found[half, draw] == pytest.approx(expected)


def test_a_class_without_images_raises():
    labels, probabilities = random_probabilities((5, 5, 5))
    with pytest.raises(ValueError, match="each class"):
        p.judge(labels[:10], probabilities[:10], CLASSES)


def test_draws_repeat_and_leave_the_global_generator_alone():
    labels, probabilities = random_probabilities()
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    first, again = (p.judge(labels, probabilities, CLASSES) for _ in range(2))
    assert first == again
    assert np.random.random() == expected


def test_an_error_without_doubt_costs_what_its_probability_says():
    probabilities = np.array([[1 - 1e-30, 1e-30], [0.5, 0.5], [0.5, 0.5]])
    judged = p.judge(np.array([1, 0, 1]), probabilities, CLASSES[:2])
    expected = (30 * np.log(10) + 2 * np.log(2)) / 3
    assert judged.log_loss == pytest.approx(expected)
    low, high = judged.intervals["log_loss"]
    assert low < expected < high


def test_the_temperature_has_the_least_log_loss():
    labels, _ = random_probabilities((200, 50, 20))
    rng = np.random.default_rng(1)
    # Labels that are drawn from the probabilities of logits / 2.5 have that temperature.
    logits = 3 * rng.normal(size=(20_000, 3))
    cumulated = p.softmax(logits / 2.5).cumsum(1)
    labels = (rng.random((20_000, 1)) > cumulated).sum(1)
    temperature = p.fit_temperature(logits, labels)
    assert temperature == pytest.approx(2.5, rel=0.05)

    def loss(t):
        return sk.log_loss(labels, p.softmax(logits / t), labels=[0, 1, 2])

    found = optimize.minimize_scalar(loss, bounds=(0.5, 10), method="bounded").x
    assert temperature == pytest.approx(found, rel=1e-3)


def test_a_bin_has_its_upper_end_as_in_scikit_learn():
    values = np.array([0.0, 1 / 15, 1 / 15 + 1e-9, 0.5, 1.0])
    assert p.bin_of(values).tolist() == [0, 0, 1, 7, 14]
    assert math.isclose(
        p.reliability(values > 0.4, values).error, ece_by_loop(values, values > 0.4)
    )
