"""Texts for an 80-column screen, and the Markdown table of recipes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import EMPTY, random_part

from common.dataset.split import Split
from common.metrics.comparison import Summary
from common.metrics.report import report
from common.reporting.data_tables import split_text
from common.reporting.evaluation_tables import reading, report_text, reports_compared
from common.reporting.training_tables import compared_as_markdown, compared_as_text, legend

CLASSES = ("car", "truck", "cat")
METRICS = ("accuracy", "balanced accuracy", "G-mean", "macro F1", "recall of cat")
NOISE = {"label_noise": {"planted": {"car": 6, "truck": 0, "cat": 5}, "seed": 3}}
FIXES = {"label_fixes": {"file": "fixes.csv", "relabelled": 2, "dropped": 1}}
NOISE_LINE = "Wrong labels planted: 6 of car, 5 of cat (seed 3)"
FIXES_LINE = "Label fixes: 2 relabelled, 1 dropped (fixes.csv)"


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        (NOISE, [NOISE_LINE]),
        (FIXES, [FIXES_LINE]),
        (NOISE | FIXES, [NOISE_LINE, FIXES_LINE, "Wrong labels left: 3"]),
        ({"leaks_dropped": 2}, ["Train images left out as duplicates of test images: 2"]),
    ],
)
def test_changes_of_the_train_labels_are_printed(changes, lines):
    true = torch.tensor([1, 1, 1, 1, 1, 2, 2])  # three labels differ
    split = Split(random_part((3, 2, 2)), EMPTY, EMPTY, CLASSES, "a source", "a-b", 0)
    text = split_text(replace(split, changes=changes, true_labels=true))
    assert text.splitlines() == ["Images: a source", "Fingerprint: a-b", *lines]


def random_report(absent_label=None, absent_prediction=None):
    """Return the Report of 200 random predictions, without these classes."""
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    y[y == absent_label], p[p == absent_prediction] = 0, 0
    return report(y, p, CLASSES)


@pytest.mark.parametrize(("label", "prediction"), [(None, None), (None, 2), (1, None), (1, 1)])
def test_the_report_fits_80_columns_and_marks_undefined_values(label, prediction):
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
    for line in (
        "Accuracy of the network on the 625 test images: 88.16 %",
        "Accuracy of car : 100 %",
        "Accuracy of cat : 0 %",
        "(images: somewhere)",
    ):
        assert line in text


@pytest.mark.parametrize(
    ("images", "found", "false_alarms", "words"),
    [
        (200, 190, 0, "is handled"),
        (200, 40, 0, "rarely found, but"),
        (200, 190, 400, "over-predicted"),
        (200, 40, 400, "not handled"),
        (23, 18, 0, "(uncertain with 23 images: recall)."),
    ],
)
def test_precision_and_recall_are_read_in_words(images, found, false_alarms, words):
    y = np.repeat([0, 1], [1000, images])
    p = np.repeat([1, 0, 1, 0], [false_alarms, 1000 - false_alarms, found, images - found])
    assert words in reading(report(y, p, ("car", "truck")), 1)


def summaries(mean, p):
    summary = Summary(mean, 0.012, (mean - 0.1, mean + 0.1), 0.1, p)
    return dict.fromkeys(METRICS, summary)


COMPARED = {"plain": summaries(0.5, None), "resnet9-logit-adjusted": summaries(0.75, 0.01)}


def test_the_comparison_shows_all_recipes_and_metrics_in_80_columns():
    lines = compared_as_text(COMPARED).splitlines()
    assert max(map(len, lines)) <= 80
    for name, words in (
        ("plain", "0.500 ±.012 [0.400, 0.600]"),
        ("resnet9-logit-adjusted", "0.750 ±.012 [0.650, 0.850]*"),
    ):
        rows = "\n".join(line for line in lines if line.startswith(f"{name} "))
        assert rows.count(words) == len(METRICS), name
    assert "0.600]*" not in "\n".join(lines)
    assert all(any(metric in line for line in lines) for metric in METRICS)


def test_the_legend_names_the_reference_and_the_seeds():
    assert "of 5 seeds" in legend(COMPARED, 5)
    assert "plain" in legend(COMPARED, 5)
    assert legend(COMPARED, 1).startswith("One seed")


def test_the_markdown_has_the_best_g_mean_first():
    lines = compared_as_markdown(COMPARED).splitlines()
    header, rule, best, other = ([cell.strip() for cell in x.split("|")[1:-1]] for x in lines)
    assert header == ["recipe", *METRICS]
    assert all(set(cell) == {"-"} for cell in rule)
    assert best == ["`resnet9-logit-adjusted`"] + ["0.750 ±.012 [0.650, 0.850]*"] * 5
    assert other == ["`plain`"] + ["0.500 ±.012 [0.400, 0.600]"] * 5
