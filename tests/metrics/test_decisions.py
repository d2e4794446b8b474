"""Decisions for other class shares and for costs, against slow, obvious loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from common.errors import InputError
from common.metrics.decisions import (
    decide,
    decision_report,
    least_cost,
    read_costs,
    shift_prior,
)
from common.metrics.report import report

CLASSES = ("car", "truck", "cat")
CONFUSION = np.array([[50, 6, 4], [3, 15, 2], [1, 2, 7]])
COSTS = np.array([[0, 1, 1], [2, 0, 1], [20.0, 10, 0]])


def test_shifted_probabilities_are_bayes_rule_for_the_new_shares():
    """A network that knows the densities of its classes is right again after the shift."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=200)
    densities = np.stack([np.exp(-((x - mean) ** 2) / 2) for mean in (-1, 0, 2)], 1)

    def posterior(shares):
        joint = densities * shares
        return joint / joint.sum(1, keepdims=True)

    trained, deployed = np.array([0.88, 0.08, 0.04]), np.array([0.2, 0.3, 0.5])
    found = shift_prior(posterior(trained), trained, deployed)
    assert found == pytest.approx(posterior(deployed))
    # The same by adding log ratios to the logits.
    logits = np.log(posterior(trained)) + np.log(deployed / trained)
    assert np.log(found) - np.log(found[:, :1]) == pytest.approx(logits - logits[:, :1])


@settings(max_examples=30)
@given(st.integers(0, 10**6))
def test_the_least_cost_is_that_of_a_loop(seed):
    rng = np.random.default_rng(seed)
    probabilities, costs = rng.dirichlet([1, 1, 1], 10), rng.integers(0, 9, (3, 3))
    for row, chosen in zip(probabilities, least_cost(probabilities, costs), strict=True):
        expected = [sum(row[k] * costs[k][j] for k in range(3)) for j in range(3)]
        assert expected[chosen] == pytest.approx(min(expected))


def test_equal_costs_of_errors_choose_the_most_probable_class():
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 50)
    assert (least_cost(probabilities, 1 - np.eye(3)) == probabilities.argmax(1)).all()


def test_metrics_at_other_shares_are_those_of_a_test_set_with_these_shares():
    # Shares of 1/10, 3/10 and 6/10: each row repeated until the classes have them.
    counts = CONFUSION.sum(1)
    target = np.array([60, 180, 360])
    scaled = CONFUSION * (target / counts)[:, None]
    r = decision_report(CONFUSION, target / target.sum(), COSTS)
    recall = np.diagonal(scaled) / scaled.sum(1)
    precision = np.diagonal(scaled) / scaled.sum(0)
    assert r["values"]["accuracy"] == pytest.approx(np.trace(scaled) / scaled.sum())
    assert r["values"]["recall"] == pytest.approx(recall)
    assert r["values"]["precision"] == pytest.approx(precision)
    assert r["values"]["g_mean"] == pytest.approx(recall.prod() ** (1 / 3))
    assert r["values"]["cost"] == pytest.approx((scaled * COSTS).sum() / scaled.sum())
    for name, value in r["values"].items():
        low, high = np.array(r["intervals"][name]).T
        assert (np.minimum(low, value) == low).all(), name
        assert (np.maximum(high, value) == high).all(), name
        assert (low < high).all(), name


def test_the_interval_of_a_cost_is_that_of_the_errors_it_counts():
    """If each error costs 1 the mean cost is 1 - accuracy."""
    shares = CONFUSION.sum(1) / CONFUSION.sum()
    r = decision_report(CONFUSION, shares, 1 - np.eye(3))
    low, high = r["intervals"]["accuracy"]
    assert r["intervals"]["cost"] == pytest.approx([1 - high, 1 - low])


def test_decisions_at_the_images_own_shares_have_the_reports_numbers():
    labels, predictions = (
        np.repeat(index.ravel(), CONFUSION.ravel()) for index in np.indices((3, 3))
    )
    probabilities = np.eye(3)[predictions] * 0.8 + 0.1
    prior = np.array([0.1, 0.1, 0.8])
    decisions, chosen = decide(labels, probabilities, None, None, COSTS)
    whole = report(labels, predictions, CLASSES)
    as_predicted = decisions["as predicted"]
    for name in ("accuracy", "balanced_accuracy", "g_mean", "recall", "precision"):
        assert as_predicted["values"][name] == pytest.approx(getattr(whole, name))
        found = np.array(as_predicted["intervals"][name])
        assert found == pytest.approx(np.array(whole.intervals[name]))
    assert list(decisions) == ["as predicted", "least cost"]
    assert (chosen == least_cost(probabilities, COSTS)).all()

    shifted = shift_prior(probabilities, [0.9, 0.05, 0.05], prior)
    costs = 2 - np.eye(3)
    decisions, chosen = decide(labels, probabilities, shifted, prior, costs)
    assert list(decisions) == ["as predicted", "for these shares", "least cost"]
    assert (chosen == least_cost(shifted, costs)).all()
    assert (chosen != least_cost(probabilities, costs)).any()
    confusion = confusion_matrix(labels, shifted.argmax(1))
    assert decisions["for these shares"] == decision_report(confusion, prior, costs)


def test_costs_are_read_by_their_names(tmp_path):
    path = tmp_path / "costs.csv"
    path.write_text("true, cat, car, truck\n\ncat,0,20,10.5\ntruck,1,2,0\ncar,-1,0,1e3\n")
    costs = read_costs(path, CLASSES)
    assert costs.tolist() == [[0, 1000, -1], [2, 0, 1], [20, 10.5, 0]]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "its first line must be"),
        ("true,car,truck\ncar,0,1\ntruck,1,0\n", "car, truck, cat"),
        ("true,car,truck,cat\ncar,0,1,1\ntruck,2,0,1\n", "one line for each true class"),
        ("true,car,truck,cat\ncar,0,1,1\ncar,0,1,1\ntruck,2,0,1\ncat,1,1,0\n", "one line"),
        ("true,car,truck,cat\ncar,0,1,1\ntruck,2,0,nan\ncat,1,1,0\n", "'nan' of true class"),
        ("true,car,truck,cat\ncar,0,1,1\ntruck,2,0\ncat,1,1,0\n", "'' of true class truck"),
        ("true,car,truck,cat\ncar,0,1,1\ntruck,2,0,1e99\ncat,1,1,0\n", "at most 1e+09"),
        ("true,car,truck,cat\ncar,0,much,1\ntruck,2,0,1\ncat,1,1,0\n", "'much'"),
        ('true,car,truck,cat\ncar,"0,1,1\n', "not a CSV file"),
        ("x" * 2**21, "larger than any such table (1 MB)"),
    ],
)
def test_other_files_of_costs_are_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "costs.csv"
    path.write_text(content)
    with pytest.raises(InputError) as error:
        read_costs(path, CLASSES)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_of_costs_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "costs.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not a CSV file"):
        read_costs(path, CLASSES)
    with pytest.raises(InputError, match="can't be read"):
        read_costs(tmp_path / "none.csv", CLASSES)
