"""The race's choices, and the published figures that belong to CIFAR-10-LT alone."""

from __future__ import annotations

import pytest
import torch

from common.dataset.split import LabelledImages, make_split
from common.metrics.comparison import Comparison, Summary
from common.reporting import race_tables
from common.training.race import Choice, Decay, selection_split
from common.training.recipes import RACE
from common.training.runs import Run

# CIFAR-10 in its order, as this project calls the classes, and the counts of Cui et al. 2019.
CIFAR10 = ("airplane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
RATIO_100 = (5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50)
CHOICES = {
    "none": Choice((0.5, 0.6123, 0.55, 0.4), 1),
    "focal": Choice((None, 0.7, None, 0.8456), 3),
    "square-root-sampler": Choice((None,) * 4, None),
}
DECAY = Decay(0.0005, (0.6512, 0.6))


def part(counts):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return LabelledImages(torch.zeros(len(labels), 3, 1, 1, dtype=torch.uint8), labels)


def split_of(counts=RATIO_100, classes=CIFAR10, source="image folder photos", **others):
    test = part([2] * len(classes))
    return make_split(part(counts), test, classes, source, 0, **others)


def comparison_of(means):
    """Return a comparison with these balanced accuracies, each with an interval of 0.02."""

    def summary(mean):
        return Summary(mean, None, (mean - 0.01, mean + 0.01), 0.5, 0, None, None, None)

    metrics = ("accuracy", "balanced accuracy", "G-mean")
    summaries = {
        name: {metric: summary(mean if metric == "balanced accuracy" else 0.123)
               for metric in metrics}
        for name, mean in means.items()
    }  # fmt: skip
    return Comparison(summaries, next(iter(means)), 1, 3)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True),
        ({"counts": (5000, *[500] * 9)}, False),
        ({"counts": RATIO_100[::-1]}, False),
        ({"classes": CIFAR10[::-1]}, False),
        ({"counts": (4949, 466, 210), "classes": ("car", "truck", "cat")}, False),
        ({"source": "synthetic (drawings, not photographs)"}, False),
        ({"changes": {"label_noise": {"shares": {"cat": 0.2}}}}, False),
    ],
)
def test_published_figures_are_shown_for_their_data_only(changes, expected):
    split = split_of(**changes)
    selection = selection_split(split)
    comparison = comparison_of({"none": 0.7, "mislas": 0.8})
    for function in (race_tables.race_text, race_tables.race_markdown):
        text = function(race_tables.Race(comparison, CHOICES, DECAY, [], split, selection, 30))
        assert text.startswith("|") or max(map(len, text.splitlines())) <= 80
        words = " ".join(text.split())
        assert "is 0.651 with 0.0005 and 0.600 with 0.002, so" in words
        assert "so all others take 0.0005." in words
        assert ("ProCo" in text) == ("ResNet-32" in text) == ("GLMC" in text) == expected


def test_our_figures_are_beside_those_of_the_same_method():
    rows = race_tables.published_rows(comparison_of({"none": 0.7123, "mislas": 0.8}))
    assert [row[1] for row in rows] == [
        "70.4", "72.8", "77.5", "77.7", "80.6", "82.5", "84.9", "85.9"
    ]  # fmt: skip
    ours = {method: cell for method, _, cell, _ in rows if cell}
    assert ours == {
        "cross-entropy": "71.2 [70.2, 72.2]",
        "MiSLAS": "80.0 [79.0, 81.0]",
    }
    names = {name for _, name, _ in race_tables.PUBLISHED.values() if name}
    assert names <= set(RACE)


@pytest.mark.parametrize(
    ("files", "images"), [((), "lossless"), (("a.png",), "lossless"), (("a.JPG",), "JPEG")]
)
def test_the_difference_to_published_figures_is_named(files, images):
    note = race_tables.published_note(split_of(train_files=files))
    assert f"ResNet9 of width 16, 30 epochs, {images} images, 20 test images" in note
    differences, _, sources = note.partition(" Source: ")
    assert differences.count(".") - differences.count("87.8") == 1  # one sentence
    assert "'quoted': as later work quotes it" in sources


def test_the_choices_show_each_point_and_mark_the_chosen_one():
    lines = race_tables.choices_text(CHOICES, 1234).splitlines()
    assert lines[1].split() == [
        "none", "weight-decay", "0.0005,", "0.002", "0.500", "0.612<", "0.550", "0.400"
    ]  # fmt: skip
    assert lines[2].split()[-4:] == ["-", "0.700", "-", "0.846<"]
    assert lines[3].split()[-4:] == ["-"] * 4
    assert "1,234 validation images" in lines[-2]
    rows = race_tables.choices_markdown(CHOICES, 1234).splitlines()[2:5]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert cells[0] == [
        "`none`", "0.1", "weight-decay", "0.002", "0.0005, 0.002",
        "0.500", "**0.612**", "0.550", "0.400",
    ]  # fmt: skip
    assert cells[1][:4] == ["`focal`", "0.3", "focal-gamma", "2"]
    assert cells[2][1:4] == ["-", "weight-decay", "-"]


def test_the_widest_tables_and_lines_fit_80_columns():
    choices = dict.fromkeys(RACE, Choice((0.5, 0.6, 0.7, 0.8), 3))
    split = split_of()
    selection = selection_split(split)
    comparison = comparison_of(dict.fromkeys(RACE, 0.5))
    others = ["x" * 60 + " y"] * 2
    race = race_tables.Race(comparison, choices, DECAY, others, split, selection, 30)
    text = race_tables.race_text(race)
    assert max(map(len, text.splitlines())) <= 80
    settings = {"jobs": 100, "device": "cpu"}
    text = race_tables.plan_text(92, 5, {"smote": "a reason"}, split, selection, settings)
    assert max(map(len, text.splitlines())) <= 80
    text = " ".join(text.split())
    assert "92 runs on 9,304 train images" in text  # three quarters of 12,406
    assert "then 110 runs on all 12,406" in text  # five of each of 22 remedies
    assert "smote is left out: a reason." in text


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ({"validation": {"balanced_accuracy": 0.5678}, "seconds": 74.4}, ["0.568", "74"]),
        ({"report": {"balanced_accuracy": 0.25}, "seconds": 1.0}, ["0.250", "1"]),
        ({"diverged": "a reason", "seconds": 2.0}, ["diverged", "2"]),
        ({"report": {"balanced_accuracy": 0.25}, "trained_with": "none"}, ["0.250", "shared"]),
        ({"report": {"balanced_accuracy": 0.25}, "command": "train.py race"},
         ["0.250", "before"]),
    ],
)  # fmt: skip
def test_a_line_for_each_run(result, words):
    name = "square-root-sampler+learning-rate=0.1+weight-decay=0.0005"  # the longest
    result = {"seconds": 1.0, "trained_with": None} | result
    line = race_tables.run_line(3, 92, Run(name, RACE["none"].recipe, 0), result)
    assert line.split() == ["3/92", *words, name]
    assert len(line) <= 80
