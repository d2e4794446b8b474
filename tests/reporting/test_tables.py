"""Texts for an 80-column screen, and the Markdown table of recipes."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import EMPTY, random_part

from common.attacks.robustness import AttackCurve, AttackResult
from common.dataset.duplicates import LARGE_GROUP, Pair, rows
from common.dataset.label_fixes import Suspect
from common.dataset.split import Split
from common.inspection.label_audit import Audit
from common.inspection.overview import describe
from common.metrics.comparison import Comparison, Summary, compare_predictions
from common.metrics.probabilities import judge
from common.metrics.report import report
from common.reporting.attack_tables import curve_text
from common.reporting.data_tables import (
    audit_text,
    duplicates_text,
    overview_text,
    planted_text,
    split_text,
)
from common.reporting.evaluation_tables import reading, report_text, reports_compared
from common.reporting.probability_tables import differences_text, probabilities_text
from common.reporting.training_tables import (
    cell,
    compared_as_markdown,
    compared_as_text,
    comparison_columns,
    legend,
    legend_text,
    run_text,
)
from common.training.recipe import Recipe
from common.training.runs import Run

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


def duplicate_rows(pairs, second_part):
    labels = torch.zeros(LARGE_GROUP + 10, dtype=torch.int64)
    return rows(pairs, ("train", second_part), (labels, labels), ((), ()), CLASSES)


@pytest.mark.parametrize("more", [0, 1])
def test_groups_of_duplicates_that_may_lack_pairs_are_printed(more):
    """Two chains in train, and a star of train images around a test image."""
    n = LARGE_GROUP + more
    chains = [Pair(i, i + 1, 0.01, False) for i in (*range(n - 1), n + 1, n + 2)]
    star = [Pair(i, 0, 0.01, False) for i in range(n - 1)]
    found = [*duplicate_rows(star, "test"), *duplicate_rows(chains, "train")]
    lines = duplicates_text(found).splitlines()
    note = f"{n} images in groups of over {LARGE_GROUP}; pairs may be left out"
    assert lines[-1] == f"Test images that train images show as well: 1 (shown by {n - 1})"
    assert [line.split() for line in lines[-3 - 2 * more : -1 - 2 * more]] == [
        ["within", "train", "0", str(n + 1), "0"],
        ["train", "and", "test", "0", str(n - 1), "0"],
    ]
    assert lines[3:-1] == [f"within train: {note}", f"train and test: {note}"][: 2 * more]
    assert max(map(len, lines)) <= 80


def random_report(absent_label=None, absent_prediction=None):
    """Return the Report of 200 random predictions, without these classes."""
    rng = np.random.default_rng(0)
    y, p = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    y[y == absent_label], p[p == absent_prediction] = 0, 0
    return report(y, p, CLASSES)


@pytest.mark.parametrize(("label", "prediction"), [(None, None), (None, 2), (1, None), (1, 1)])
def test_the_report_fits_80_columns_and_marks_undefined_values(label, prediction):
    r = random_report(label, prediction)
    text = report_text(r, "somewhere", [300, 20, 10])
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


def test_reports_on_many_classes_show_their_lowest_recall_alone():
    rng = np.random.default_rng(0)
    names = [f"a class of the number {k}" for k in range(11)]
    labels = np.repeat(range(11), 9)
    predictions = np.where(rng.random(99) < 0.6, labels, rng.integers(0, 11, 99))
    r = report(labels, predictions, names)
    text = reports_compared({"one": r, "n" * 30: r})
    assert max(map(len, text.splitlines())) <= 80
    assert "recall of" not in text
    worst = int(np.argmin(r.recall))
    low, high = r.intervals["recall"][worst]
    assert text.count(f"{r.recall[worst]:.3f} [{low:.3f}, {high:.3f}]") == 2
    assert "partly by chance" in text


def test_tables_of_classes_with_long_names_fit_80_columns_and_lose_none():
    rng = np.random.default_rng(0)
    names = [f"{'x' * 30} number {k}" for k in range(3)]
    labels = np.repeat(range(3), 20)
    networks = {name: rng.integers(0, 3, (1, 60)) for name in ("one", "two")}
    reports = {n: [report(labels, p[0], names).as_dict()] for n, p in networks.items()}
    comparison = compare_predictions(reports, networks, labels)
    r = report(labels, networks["one"][0], names)
    texts = (
        compared_as_text(comparison),
        differences_text(comparison),
        reports_compared({"one": r}),
    )
    for text in texts:
        assert max(map(len, text.splitlines())) <= 80
        assert text.count("recall of x") == 3
    text = report_text(r, "somewhere", [300, 20, 10])
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("x…") >= 3


def test_probabilities_stand_in_their_rows_and_columns():
    labels = np.repeat([0, 1, 2], [20, 7, 4])
    r = judge(labels, np.random.default_rng(0).dirichlet([1, 1, 1], 31), CLASSES)

    def number(value, ends):
        return f"{value:.3f} [{ends[0]:.3f}, {ends[1]:.3f}]"

    lines = probabilities_text(r).splitlines()
    ends = r.intervals
    for k, name in enumerate(CLASSES):
        cells = [
            number(r.average_precision[k], ends["average_precision"][k]),
            f"{r.shares[k]:.3f}",
            number(r.class_brier[k], ends["class_brier"][k]),
            number(r.class_ece[k], ends["class_ece"][k]),
        ]
        (row,) = [line for line in lines if line.startswith(f"{name} ")]
        assert re.split("  +", row) == [name, *cells]
    whole = [
        number(r.mean_average_precision, ends["mean_average_precision"]),
        f"{np.mean(r.shares):.3f}",
        number(r.brier, ends["brier"]),
        number(r.ece, ends["ece"]),
    ]
    (row,) = [line for line in lines if line.startswith("all ")]
    assert re.split("  +", row) == ["all", *whole]
    assert f"log loss {number(r.log_loss, ends['log_loss'])}" in lines


def test_the_table_of_scikit_learn_has_a_row_for_each_class_with_three_digits():
    r = random_report()
    table = (
        report_text(r, "somewhere", [300, 20, 10]).split("support\n")[1].split("With 95%")[0]
    )
    rows = dict(line.split(maxsplit=1) for line in table.splitlines() if line.strip())
    for k, name in enumerate(CLASSES):
        values = [f"{v[k]:.3f}" for v in (r.precision, r.recall, r.f1)]
        assert rows[name].split() == [*values, str(r.support[k])]
    assert rows["accuracy"].split() == [f"{r.accuracy:.3f}", "200"]


def test_the_report_has_the_lines_of_the_student_reports():
    y = np.repeat([0, 1, 2], [551, 51, 23])
    text = report_text(report(y, np.zeros_like(y), CLASSES), "somewhere", [300, 20, 10])
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


def summary(mean, p_training=None, p_images=None, deviation=0.012, best=0.126):
    return Summary(
        mean=mean,
        deviation=deviation,
        interval=(mean - 0.1, mean + 0.1),
        best=best,
        difference=0.1,
        difference_interval=(0.0, 0.2),
        p_training=p_training,
        p_images=p_images,
    )


COMPARISON = Comparison(
    summaries={
        "plain": dict.fromkeys(METRICS, summary(0.5)),
        "resnet9-logit-adjusted": dict.fromkeys(METRICS, summary(0.75, 0.01, 0.01, best=0.874)),
    },
    reference="plain",
    seeds=5,
    tests=14,
)
ONE_RECIPE = replace(COMPARISON, summaries={"plain": COMPARISON.summaries["plain"]}, tests=0)
ONE_SEED = replace(
    COMPARISON,
    summaries={
        name: dict.fromkeys(METRICS, summary(mean, None, p, deviation=None))
        for name, mean, p in (("plain", 0.5, None), ("better", 0.75, 0.01))
    },
    seeds=1,
    tests=7,
)


@pytest.mark.parametrize(
    ("p_training", "p_images", "marks"),
    [(None, None, ""), (0.01, 0.5, "*"), (0.5, 0.01, "†"), (0.01, 0.01, "*†"),
     (0.05, 0.05, ""), (None, 0.01, "†")],
)  # fmt: skip
def test_a_cell_marks_differences_beyond_the_training_and_beyond_the_images(
    p_training, p_images, marks
):
    s = summary(0.75, p_training, p_images)
    assert cell(s) == f"0.750 ±.012 [0.650, 0.850]{marks}"
    assert cell(replace(s, deviation=None)) == f"0.750 [0.650, 0.850]{marks}"


def test_the_comparison_shows_all_recipes_and_metrics_in_80_columns():
    lines = compared_as_text(COMPARISON).splitlines()
    assert max(map(len, lines)) <= 80
    for name, words in (
        ("plain", "0.500 ±.012 [0.400, 0.600]"),
        ("resnet9-logit-adjusted", "0.750 ±.012 [0.650, 0.850]*†"),
    ):
        rows = "\n".join(line for line in lines if line.startswith(f"{name} "))
        assert rows.count(words) == len(METRICS), name
    assert "0.600]*" not in "\n".join(lines)
    assert all(any(metric in line for line in lines) for metric in METRICS)


def test_the_best_are_beside_the_g_mean():
    columns = comparison_columns(COMPARISON.summaries, list(COMPARISON.summaries))
    titles = list(columns)
    assert titles == [*METRICS[:3], "P(best)", *METRICS[3:]]
    assert columns["P(best)"] == ["0.13", "0.87"]
    # No one competes with a single recipe.
    assert "P(best)" not in compared_as_text(ONE_RECIPE)


def test_the_legend_of_several_seeds_explains_every_mark():
    sentences = legend(COMPARISON)
    starts = [sentence.split(":")[0].split(",")[0] for sentence in sentences]
    assert starts == ["Mean", "P(best)", "*", "†", "Both"]
    text = " ".join(sentences)
    assert "of 5 seeds" in text
    assert text.count("differs from plain") == 2
    assert "all 14 tests" in text
    lines = legend_text(COMPARISON).splitlines()
    assert max(map(len, lines)) <= 80
    assert " ".join(map(str.strip, lines)) == text


def test_the_legend_of_one_seed_explains_what_the_images_tell():
    sentences = legend(ONE_SEED)
    starts = [sentence.split(":")[0].split(" <")[0] for sentence in sentences]
    assert starts == ["One seed", "P(best)", "†", "p"]
    assert "*" not in "".join(sentences)
    assert "all 7 tests" in sentences[-1]


@pytest.mark.parametrize(("seeds", "start"), [(1, "One seed:"), (5, "Mean, ")])
def test_the_legend_of_one_recipe_has_nothing_of_others(seeds, start):
    (sentence,) = legend(replace(ONE_RECIPE, seeds=seeds))
    assert sentence.startswith(start)


def test_the_markdown_has_the_best_g_mean_first_and_a_legend():
    table, notes = compared_as_markdown(COMPARISON).split("\n\n")
    lines = ([each.strip() for each in line.split("|")[1:-1]] for line in table.splitlines())
    header, rule, best, other = lines
    assert header == ["recipe", *METRICS[:3], "P(best)", *METRICS[3:]]
    assert all(set(each) == {"-"} for each in rule)
    words = "0.750 ±.012 [0.650, 0.850]*†"
    assert best == ["`resnet9-logit-adjusted`", *[words] * 3, "0.87", *[words] * 2]
    words = "0.500 ±.012 [0.400, 0.600]"
    assert other == ["`plain`", *[words] * 3, "0.13", *[words] * 2]
    # A list of the sentences, whose stars stay stars.
    expected = [f"- {sentence}".replace("*", "\\*") for sentence in legend(COMPARISON)]
    assert notes.splitlines() == expected
    assert "- \\*: differs" in notes


# Many classes with long names


def many_classes(k):
    """Return a split of k classes with 3 images of each, and a report on it."""
    names = tuple(
        f"a rather long name, of class {i}" if i % 2 else f"class {i}" for i in range(k)
    )
    part = random_part((3,) * k)
    split = Split(part, EMPTY, part, names, "a source", "a-b", 0)
    return split, report(part.labels, part.labels.roll(1), names)


@pytest.mark.parametrize("k", [5, 12, 50])
def test_tables_of_many_classes_fit_80_columns(k):
    split, r = many_classes(k)
    found = describe({"train": split.train, "test": split.test}, k, torch.device("cpu"))
    joint = np.full((k, k), 1e-4)
    joint[2, 1] = 0.2
    np.fill_diagonal(joint, 0.1)
    long_file = "train/a rather long name/a photograph with a rather long name.png"
    suspects = [Suspect(7, long_file, split.classes[1], split.classes[3], 0.75)]
    row = {"planted": 3, "recall": 0.5, "precision": 0.5, "wrong": 0.5}
    row |= {"self_confidence": 0.5, "normalized_margin": 0.5}
    result = {
        "examples": [500 - i for i in range(k)], "drawn": [9] * k, "seconds": 3.0,
        "history": {"loss": [1.0], "best_epoch": None}, "trained_on_test": False,
        "validation": r.as_dict(), "trained_with": "post-hoc-adjustment-with-a-long-name-seed1",
    }  # fmt: skip
    curve = AttackCurve(
        "PGD", "ten steps", "1/255", False,
        {"8": AttackResult(r, 4, 40, {"L1": 1.0, "L2": 1.0, "Linf": 0.1})}, 1.0,
    )  # fmt: skip
    texts = {
        "overview": overview_text(found, split.classes),
        "audit": audit_text(Audit(joint, *[None] * 4), suspects, split.classes, 1000),
        "planted": planted_text(dict.fromkeys(("all", *split.classes), row)),
        "run": run_text(Run("best", Recipe(), 0), result, r, split, False),
        "attack": curve_text(curve),
        "report": report_text(r, "somewhere", [3] * k),
    }
    for name, text in texts.items():
        assert max(map(len, text.splitlines())) <= 80, name
    for i in range(k):
        assert f"class {i - i % 2} " in texts["overview"]
    assert "…photograph with a rather long name.png"[-15:] in texts["audit"]
    assert "1 given as a rather long nam" in " ".join(texts["audit"].split())
    if k > 10:
        errors = texts["audit"].split("most frequent errors:\n")[1].splitlines()
        assert errors[1].startswith("class 2 ")
        assert errors[1].endswith(" 200.0")
        assert f"{k} classes, from class 0 500 to " in " ".join(texts["run"].split())
        assert texts["attack"].count("lowest recall") == 1


@pytest.mark.parametrize(("k", "recalls"), [(10, 10), (11, 0)])
def test_of_many_classes_the_averages_alone_are_compared(k, recalls):
    split, r = many_classes(k)
    labels = split.test.labels.numpy()
    networks = {name: split.test.labels.roll(1)[None].numpy() for name in ("one", "two")}
    comparison = compare_predictions({n: [r.as_dict()] for n in networks}, networks, labels)
    metrics = list(comparison.summaries["two"])
    assert metrics[:4] == ["accuracy", "balanced accuracy", "G-mean", "macro F1"]
    assert len(metrics) == 4 + recalls == comparison.tests
    assert max(map(len, compared_as_text(comparison).splitlines())) <= 80
