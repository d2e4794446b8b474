import warnings
from functools import partial

import numpy as np
import pytest
from imblearn.metrics import geometric_mean_score
from sklearn import metrics as sk

from common.metrics.intervals import PER_CLASS
from common.metrics.report import from_confusion, report

CLASSES = ("car", "truck", "cat")


def random_predictions(seed: int, absent_label=None, absent_prediction=None):
    """Return 200 random labels and predictions, without these classes."""
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    y[y == absent_label], p[p == absent_prediction] = 0, 0
    return y, p


@pytest.mark.filterwarnings("ignore")  # of the scores that the report is compared with
@pytest.mark.parametrize("absent", [(None, None), (None, 2), (1, None), (1, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_scikit_learn_and_imbalanced_learn(absent, seed):
    y, p = random_predictions(seed, *absent)
    with warnings.catch_warnings(action="error"):
        r = report(y, p, CLASSES)
        assert from_confusion(r.confusion, CLASSES) == r
    present = np.unique(y)
    recalls = [(p[y == k] == k).mean() for k in present]
    assert r.confusion == sk.confusion_matrix(y, p, labels=[0, 1, 2]).tolist()
    assert r.accuracy == pytest.approx(sk.accuracy_score(y, p))
    assert r.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(y, p))
    assert r.g_mean == pytest.approx(geometric_mean_score(y, p, labels=present))
    assert r.g_mean == pytest.approx(np.prod(recalls) ** (1 / len(present)))
    for name in PER_CLASS:
        score = partial(getattr(sk, f"{name}_score"), y, p, labels=[0, 1, 2], zero_division=0)
        assert getattr(r, name) == pytest.approx(score(average=None))
        for kind in ("macro", "weighted"):
            assert getattr(r, kind)[name] == pytest.approx(score(average=kind))
    assert r.support == np.bincount(y, minlength=3).tolist()


def test_metrics_without_a_denominator_are_zero_and_listed():
    r = report(*random_predictions(0, 1, 1), CLASSES)
    assert r.undefined == ["precision of truck", "recall of truck", "f1 of truck"]
    assert r.precision[1] == r.recall[1] == r.f1[1] == 0


def test_intervals_contain_their_metric():
    r = report(*random_predictions(5), CLASSES)
    for name in ("accuracy", "balanced_accuracy", "g_mean", "recall", "precision", "f1"):
        low, high = np.array(r.intervals[name]).T
        value = np.array(getattr(r, name))
        assert ((low < value) & (value < high)).all(), name
