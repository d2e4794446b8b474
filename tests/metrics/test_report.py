import json
import warnings
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from imblearn.metrics import geometric_mean_score
from metric_cases import confusions, metrics_by_loop, predictions_of
from sklearn import metrics as sk

from common.metrics.intervals import PER_CLASS
from common.metrics.report import Report, from_confusion, report

CLASSES = ("car", "truck", "cat")


def random_predictions(seed: int, absent_label=None, absent_prediction=None):
    """Return 200 random labels and predictions, without these classes."""
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    y[y == absent_label], p[p == absent_prediction] = 0, 0
    return y, p


def names_of(k: int) -> list[str]:
    return [f"class{i}" for i in range(k)]


@settings(max_examples=40)
@given(confusions())
def test_metrics_equal_those_of_a_loop(confusion):
    y, p = predictions_of(confusion)
    classes = names_of(len(confusion))
    with warnings.catch_warnings(action="error"):
        r = report(y, p, classes)
        assert from_confusion(confusion, classes) == r
    expected = metrics_by_loop(y, p, len(confusion))
    assert r.classes == tuple(classes)
    assert r.confusion == confusion.tolist()
    assert r.support == [y.count(k) for k in range(len(classes))]
    for name in ("accuracy", "balanced_accuracy", "g_mean", *PER_CLASS):
        assert getattr(r, name) == pytest.approx(expected[name]), name
    for kind in ("macro", "weighted"):
        for name in PER_CLASS:
            assert getattr(r, kind)[name] == pytest.approx(expected[f"{kind}_{name}"])
    undefined = []
    for name, values in (("precision", [p]), ("recall", [y]), ("f1", [y, p])):
        undefined += [
            f"{name} of {each}"
            for k, each in enumerate(classes)
            if not any(k in v for v in values)
        ]
    assert r.undefined == undefined


@settings(max_examples=20)
@given(confusions(), st.randoms(use_true_random=False))
def test_the_order_of_images_and_of_classes_changes_no_metric(confusion, random):
    y, p = predictions_of(confusion)
    k = len(confusion)
    images, new_name = list(range(len(y))), list(range(k))
    random.shuffle(images)
    random.shuffle(new_name)
    r = report(y, p, names_of(k))
    shuffled = report(
        [new_name[y[i]] for i in images], [new_name[p[i]] for i in images], names_of(k)
    )
    for name in ("accuracy", "balanced_accuracy", "g_mean", "macro", "weighted"):
        assert getattr(shuffled, name) == pytest.approx(getattr(r, name))
    for name in (*PER_CLASS, "support"):
        values = getattr(shuffled, name)
        assert [values[new] for new in new_name] == pytest.approx(getattr(r, name))


@pytest.mark.filterwarnings("ignore")  # of the scores that the report is compared with
@pytest.mark.parametrize("absent", [(None, None), (None, 2), (1, None), (1, 1)])
def test_metrics_equal_scikit_learn_and_imbalanced_learn(absent):
    y, p = random_predictions(0, *absent)
    r = report(y, p, CLASSES)
    assert r.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(y, p))
    assert r.g_mean == pytest.approx(geometric_mean_score(y, p, labels=np.unique(y)))
    for name in PER_CLASS:
        score = getattr(sk, f"{name}_score")
        options = {"labels": [0, 1, 2], "zero_division": 0}
        assert getattr(r, name) == pytest.approx(score(y, p, average=None, **options))
        for kind in ("macro", "weighted"):
            assert getattr(r, kind)[name] == pytest.approx(score(y, p, average=kind, **options))


def test_metrics_without_images_raise():
    with pytest.raises(ValueError, match="empty"):
        report([], [], CLASSES)


def test_every_number_has_an_interval_that_contains_it():
    r = report(*random_predictions(5), CLASSES)
    values = {n: getattr(r, n) for n in ("accuracy", "balanced_accuracy", "g_mean", *PER_CLASS)}
    for kind in ("macro", "weighted"):
        values |= {f"{kind}_{name}": getattr(r, kind)[name] for name in PER_CLASS}
    assert r.intervals.keys() == values.keys()
    for name, value in values.items():
        low, high = np.moveaxis(r.intervals[name], -1, 0)
        assert ((low < value) & (value < high)).all(), name


def test_a_result_file_holds_all_numbers():
    r = report(*random_predictions(0), CLASSES)
    saved = r.as_dict()
    assert [*saved] == [f.name for f in fields(Report)]
    read = json.loads(json.dumps(saved))
    assert read["intervals"]["f1"] == r.intervals["f1"]
    assert (read["g_mean"], read["macro"]) == (r.g_mean, r.macro)
