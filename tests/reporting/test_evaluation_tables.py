from __future__ import annotations

import numpy as np
import pytest

from common.metrics.report import Report, report
from common.reporting.evaluation_tables import reading, report_text, reports_compared

CLASSES = ("car", "truck", "cat")


def random_report(
    absent_label: int | None = None, absent_prediction: int | None = None
) -> Report:
    """Return the Report of 200 random predictions, without these classes."""
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    y[y == absent_label], p[p == absent_prediction] = 0, 0
    return report(y, p, CLASSES)


@pytest.mark.parametrize(("label", "prediction"), [(None, None), (None, 2), (1, None), (1, 1)])
def test_the_report_fits_80_columns_and_shows_what_is_undefined(label, prediction):
    r = random_report(label, prediction)
    text = report_text(r, "somewhere")
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("0.000 undefined") == len(r.undefined)
    assert all(f"- {name}\n" in text for name in r.undefined)


@pytest.mark.parametrize("name", ["another-one", "resnet9-logit-adjusted", "n" * 50])
def test_reports_are_compared_in_80_columns(name):
    r = random_report()
    text = reports_compared({"one": r, name: r})
    assert max(map(len, text.splitlines())) <= 80
    for title in ("accuracy", "balanced accuracy", "G-mean", *CLASSES):
        assert f" {title}" in text, title
    for value in (r.accuracy, r.balanced_accuracy, r.g_mean, *r.recall):
        assert text.count(f"{value:.3f} [") >= 2


def test_the_report_has_the_lines_of_the_student_reports():
    y = np.repeat([0, 1, 2], [551, 51, 23])
    text = report_text(report(y, np.zeros_like(y), CLASSES), "somewhere")
    assert "Accuracy of the network on the 625 test images: 88.16 %" in text
    assert "Accuracy of car : 100 %" in text
    assert "Accuracy of cat : 0 %" in text
    assert "(images: somewhere)" in text


@pytest.mark.parametrize(
    ("recall", "false_alarms", "words"),
    [
        (0.95, 0, "is handled"),
        (0.2, 0, "rarely found, but"),
        (0.95, 400, "over-predicted"),
        (0.2, 400, "not handled"),
    ],
)
def test_precision_and_recall_are_read_in_words(recall, false_alarms, words):
    y = np.repeat([0, 1], [1000, 200])
    p = np.concatenate([np.zeros(1000), np.arange(200) < 200 * recall]).astype(int)
    p[:false_alarms] = 1
    assert words in reading(report(y, p, ("car", "truck")), 1)


def test_a_small_class_is_called_uncertain():
    y = np.repeat([0, 1], [1000, 23])
    p = np.concatenate([np.zeros(1000), np.arange(23) < 18]).astype(int)  # recall 0.78
    sentence = reading(report(y, p, ("car", "cat")), 1)
    assert sentence.endswith("(uncertain with 23 images: recall).")
