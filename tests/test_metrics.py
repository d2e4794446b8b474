from __future__ import annotations

import warnings

import numpy as np
import pytest
from imblearn.metrics import geometric_mean_score
from sklearn import metrics as sk

from common import metrics, text

CLASSES = ("car", "truck", "cat")


def vectors(case: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y, p = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    if case == "never predicted":
        p[p == 2] = 0
    if case == "no images":
        y[y == 1] = 0
    if case == "neither":
        y[y == 1], p[p == 1] = 0, 2
    return y, p


@pytest.mark.parametrize("case", ["usual", "never predicted", "no images", "neither"])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_scikit_learn_and_imbalanced_learn(case, seed):
    y, p = vectors(case, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        r = metrics.report(y, p, CLASSES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        present = np.unique(y)
        assert r.confusion == sk.confusion_matrix(y, p, labels=[0, 1, 2]).tolist()
        assert r.accuracy == pytest.approx(sk.accuracy_score(y, p))
        assert r.balanced_accuracy == pytest.approx(sk.balanced_accuracy_score(y, p))
        assert r.g_mean == pytest.approx(geometric_mean_score(y, p, labels=present))
        assert r.g_mean == pytest.approx(
            np.prod([(p[y == k] == k).mean() for k in present]) ** (1 / len(present))
        )
        for name in ("precision", "recall", "f1"):
            score = getattr(sk, f"{name}_score")
            options = {"labels": [0, 1, 2], "zero_division": 0}
            assert getattr(r, name) == pytest.approx(score(y, p, average=None, **options))
            for kind in ("macro", "weighted"):
                expected = score(y, p, average=kind, **options)
                assert getattr(r, kind)[name] == pytest.approx(expected)
    assert r.support == np.bincount(y, minlength=3).tolist()


def test_undefined_is_said():
    y, p = vectors("neither", 0)
    r = metrics.report(y, p, CLASSES)
    assert r.undefined == ["precision of truck", "recall of truck", "f1 of truck"]
    assert r.precision[1] == r.recall[1] == r.f1[1] == 0
    assert "truck  0.000 undefined       0.000 undefined       0.000 undefined" in text.as_text(
        r, "somewhere"
    )


def test_wilson_by_hand():
    # 7 of 23 with z = 1.959964: centre (7 + z^2/2) / (23 + z^2), half-width
    # z / (23 + z^2) * sqrt(7 * 16 / 23 + z^2 / 4).
    z = 1.959964
    centre = (7 + z**2 / 2) / (23 + z**2)
    half = z / (23 + z**2) * np.sqrt(7 * 16 / 23 + z**2 / 4)
    assert metrics.wilson(7, 23) == pytest.approx((centre - half, centre + half), abs=1e-6)
    assert metrics.wilson(0, 0) == (0, 1)


def test_bootstrap_equals_resampling_images():
    rng = np.random.default_rng(1)
    y = np.repeat([0, 1, 2], [150, 40, 20])
    p = np.where(rng.random(len(y)) < 0.7, y, rng.integers(0, 3, len(y)))
    slow = {"balanced_accuracy": [], "g_mean": [], "f1": [], "precision": []}
    for _ in range(800):
        drawn = np.concatenate(
            [rng.choice(np.flatnonzero(y == k), (y == k).sum()) for k in range(3)]
        )
        yb, pb = y[drawn], p[drawn]
        slow["balanced_accuracy"].append(sk.balanced_accuracy_score(yb, pb))
        slow["g_mean"].append(geometric_mean_score(yb, pb))
        slow["f1"].append(sk.f1_score(yb, pb, average=None))
        slow["precision"].append(sk.precision_score(yb, pb, average=None))
    fast = metrics.report(y, p, CLASSES).intervals
    for name, draws in slow.items():
        expected = np.percentile(draws, [2.5, 97.5], axis=0).T
        assert np.array(fast[name]) == pytest.approx(expected, abs=0.02), name


def test_intervals_hold_their_number():
    y, p = vectors("usual", 5)
    r = metrics.report(y, p, CLASSES)
    for name in ("accuracy", "balanced_accuracy", "g_mean"):
        low, high = r.intervals[name]
        assert low < getattr(r, name) < high
    for name in ("recall", "precision", "f1"):
        for value, (low, high) in zip(getattr(r, name), r.intervals[name], strict=True):
            assert low < value < high


@pytest.mark.parametrize("case", ["usual", "never predicted", "no images"])
def test_text_fits_a_screen_of_80_columns(case):
    y, p = vectors(case, 0)
    r = metrics.report(y, p, CLASSES)
    assert max(map(len, text.as_text(r, "here").splitlines())) <= 80


@pytest.mark.parametrize("name", ["another-one", "resnet9-logit-adjusted", "n" * 50])
def test_a_comparison_fits_80_columns_whatever_the_names(name):
    y, p = vectors("usual", 0)
    r = metrics.report(y, p, CLASSES)
    printed = text.comparison({"one": r, name: r})
    assert max(map(len, printed.splitlines())) <= 80
    for title in ("accuracy", "balanced accuracy", "G-mean", *CLASSES):
        assert printed.count(f" {title}") >= 1, title
    shown = [f"{v:.3f} [" for v in (r.accuracy, r.balanced_accuracy, r.g_mean, *r.recall)]
    assert all(printed.count(value) >= 2 for value in shown)


def test_the_reports_lines():
    y = np.repeat([0, 1, 2], [551, 51, 23])
    printed = text.as_text(metrics.report(y, np.zeros_like(y), CLASSES), "somewhere")
    assert "Accuracy of the network on the 625 test images: 88.16 %" in printed
    assert "Accuracy of car : 100 %" in printed
    assert "Accuracy of cat : 0 %" in printed
    assert "(images: somewhere)" in printed
    assert "precision of truck" in printed


@pytest.mark.parametrize(
    ("recall", "false_alarms", "words"),
    [
        (0.95, 0, "is handled"),
        (0.2, 0, "rarely found, but"),
        (0.95, 400, "over-predicted"),
        (0.2, 400, "not handled"),
    ],
)
def test_reading_in_words(recall, false_alarms, words):
    y = np.repeat([0, 1], [1000, 200])
    p = np.concatenate([np.zeros(1000), np.arange(200) < 200 * recall]).astype(int)
    p[:false_alarms] = 1
    assert words in text.reading(metrics.report(y, p, ("car", "truck")), 1)


def test_a_small_class_is_called_uncertain():
    y = np.repeat([0, 1], [1000, 23])
    p = np.concatenate([np.zeros(1000), np.arange(23) < 18]).astype(int)  # recall 0.78
    reading = text.reading(metrics.report(y, p, ("car", "cat")), 1)
    assert reading.endswith("(uncertain with 23 images: recall).")
