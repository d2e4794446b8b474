"""Recipes compared over seeds: formulas, intervals, Holm's correction, what is significant."""

import math
import statistics
from itertools import chain, combinations
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_cases import confusions, metrics_by_loop, predictions_of
from scipy import stats

from common.metrics import paired
from common.metrics.comparison import (
    Summary,
    by_title,
    compare,
    holm,
    mean_draws,
    mean_with_interval,
    metrics_of,
    paired_p,
)
from common.metrics.intervals import interval
from common.metrics.paired import paired_scores, swap_test
from common.metrics.report import report

CLASSES = ("car", "truck", "cat")
LABELS = np.repeat([0, 1, 2], [60, 30, 10])
METRICS = {  # title -> name in a report, and the class
    "accuracy": ("accuracy", None),
    "balanced accuracy": ("balanced_accuracy", None),
    "G-mean": ("g_mean", None),
    "macro F1": ("macro_f1", None),
    "recall of car": ("recall", 0),
    "recall of truck": ("recall", 1),
    "recall of cat": ("recall", 2),
}


def run_of(predictions, labels=LABELS, classes=CLASSES):
    """Return the result of a run with these predictions (N,)."""
    return {
        "diverged": None,
        "trained_on_test": False,
        "report": report(labels, predictions, classes).as_dict(),
        "test_predictions": " ".join(map(str, predictions)),
    }


def run_with_errors(errors, seed):
    """Return the result of a run with this number of wrong predictions.

    Of two runs with the same seed, one has all errors of the other.
    """
    predictions = LABELS.copy()
    wrong = np.random.default_rng(seed).permutation(len(LABELS))[:errors]
    predictions[wrong] = (predictions[wrong] + 1) % 3
    return run_of(predictions)


def named(values, title):
    """Return the metric with this title from values by the names of a report."""
    name, k = METRICS[title]
    return values[name] if k is None else values[name][k]


def half_width(ends):
    return (ends[1] - ends[0]) / 2


def students_half_width(values):
    """Return half the width of Student's 95% interval of the mean of values."""
    n = len(values)
    return stats.t.ppf(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)


# Results of 5 seeds for each recipe, with about this number of errors.
RESULTS = {
    name: [run_with_errors(n + seed % 3, 100 * n + seed) for seed in range(5)]
    for name, n in (("plain", 40), ("same", 41), ("better", 10))
}
COMPARISON = compare(RESULTS, LABELS)


# Values and tests


def test_summaries_are_over_seeds_and_differences_from_the_first_recipe():
    assert (COMPARISON.reference, COMPARISON.seeds) == ("plain", 5)
    assert list(COMPARISON.summaries) == ["plain", "same", "better"]
    plain, better = (
        np.array([run["report"]["g_mean"] for run in RESULTS[name]])
        for name in ("plain", "better")
    )
    s = COMPARISON.summaries["better"]["G-mean"]
    expected = better.mean(), better.std(ddof=1), (better - plain).mean()
    assert (s.mean, s.deviation, s.difference) == pytest.approx(expected)
    assert s.beyond_training
    assert s.beyond_images
    same, reference = (COMPARISON.summaries[name]["G-mean"] for name in ("same", "plain"))
    assert not same.beyond_training
    assert not same.beyond_images
    assert reference.p_training is reference.p_images is None
    assert reference.difference == 0
    assert reference.difference_interval is None
    assert not reference.beyond_training
    assert not reference.beyond_images


PREDICTIONS = st.lists(st.integers(0, 2), min_size=9, max_size=9)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4))  # recipes and seeds


@settings(max_examples=20)
@given(
    SHAPES.flatmap(
        lambda shape: st.lists(
            st.lists(PREDICTIONS, min_size=shape[1], max_size=shape[1]),
            min_size=shape[0],
            max_size=shape[0],
        )
    )
)
def test_summaries_equal_the_formulas(recipes):
    """Of the predictions of 1 to 3 recipes with 1 to 4 seeds for 9 images."""
    labels, seeds = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2]), len(recipes[0])
    with patch.object(paired, "SWAPS", 250):
        results = {str(i): [run_of(p, labels) for p in ps] for i, ps in enumerate(recipes)}
        comparison = compare(results, labels)
        first, *others = map(np.array, recipes)
        p_images = [swap_test(labels, other, first, 3) for other in others]
    by_run = [[metrics_by_loop(labels.tolist(), run, 3) for run in runs] for runs in recipes]
    assert list(comparison.summaries) == list(results)
    p_values = {}
    for i, runs in enumerate(by_run):
        assert list(comparison.summaries[str(i)]) == list(METRICS)
        for title, s in comparison.summaries[str(i)].items():
            values, reference = ([named(m, title) for m in r] for r in (runs, by_run[0]))
            differences = [a - b for a, b in zip(values, reference, strict=True)]
            assert s.mean == pytest.approx(statistics.fmean(values))
            deviation = statistics.stdev(values) if seeds > 1 else None
            assert s.deviation == pytest.approx(deviation)
            assert s.difference == pytest.approx(statistics.fmean(differences))
            if i == 0:
                assert s.p_training is s.p_images is None
                continue
            p_values[i, title, "p_images"] = named(p_images[i - 1], title)
            if seeds > 1:
                p_values[i, title, "p_training"] = None
                spread = statistics.stdev(differences) / math.sqrt(seeds)
                if spread > 1e-9:
                    t = abs(s.difference) / spread
                    p_values[i, title, "p_training"] = 2 * stats.t.sf(t, seeds - 1)
            else:
                assert s.p_training is None
    # One correction for all p-values of the table.
    assert comparison.tests == len(p_values) == (len(recipes) - 1) * 7 * min(seeds, 2)
    for (i, title, kind), p in zip(p_values, holm(list(p_values.values())), strict=True):
        s = comparison.summaries[str(i)][title]
        assert getattr(s, kind) == pytest.approx(p), (title, kind)
        beyond = s.beyond_training if kind == "p_training" else s.beyond_images
        assert beyond == (p is not None and p < 0.05)


def test_a_recipe_with_a_diverged_run_is_left_out():
    broken = {"broken": [{"diverged": "at step 3"}, *RESULTS["same"][1:]]}
    comparison = compare(broken | RESULTS, LABELS)
    assert comparison == COMPARISON  # with another reference
    assert compare(broken, LABELS) is None


def test_no_p_without_spread():
    a = np.array([0.5, 0.6, 0.7])
    for b in (a, a + 0.25):
        assert paired_p(b, a) is None
    assert paired_p(a[:1] + 0.25, a[:1]) is None
    # Two seeds with equal differences: with the standard deviation 0 any difference has p = 0.
    plain, better = ([run_with_errors(n, seed) for seed in range(2)] for n in (20, 18))
    comparison = compare({"plain": plain, "better": better}, LABELS)
    accuracy = comparison.summaries["better"]["accuracy"]
    assert accuracy.difference == pytest.approx(0.02)
    assert accuracy.p_training is None
    assert not any(s.beyond_training for s in comparison.summaries["better"].values())
    assert not any(s.beyond_images for s in comparison.summaries["better"].values())


def holm_by_closed_testing(p):
    """Return p-values adjusted by the closed test of all intersections with Bonferroni's.

    A hypothesis is rejected if every set of hypotheses that it is in is rejected.
    """
    filled = [1 if value is None else value for value in p]
    sets = list(chain(*(combinations(range(len(p)), n) for n in range(1, len(p) + 1))))
    return [
        None
        if value is None
        else max(min(1, len(s) * min(filled[j] for j in s)) for s in sets if i in s)
        for i, value in enumerate(p)
    ]


P_VALUES = st.one_of(st.none(), st.floats(0, 1), st.sampled_from([0.0, 0.01, 0.02, 0.5]))


@given(st.lists(P_VALUES, max_size=6))
def test_holm_equals_closed_testing(p):
    assert holm(p) == pytest.approx(holm_by_closed_testing(p))


@pytest.mark.parametrize(("p", "beyond"), [(0.049, True), (0.05, False), (None, False)])
def test_significance_is_p_below_5_percent(p, beyond):
    values = {"mean": 0.5, "deviation": 0.1, "interval": (0.4, 0.6), "best": 0.5}
    values |= {"difference": 0.1, "difference_interval": (0, 0.2)}
    s = Summary(**values, p_training=p, p_images=None)
    assert (s.beyond_training, s.beyond_images) == (beyond, False)
    s = Summary(**values, p_training=None, p_images=p)
    assert (s.beyond_training, s.beyond_images) == (False, beyond)


# Intervals


@settings(max_examples=30)
@given(confusions())
def test_one_seed_has_the_intervals_of_its_report(confusion):
    labels, predictions = predictions_of(confusion)
    classes = (*CLASSES, "dog")[: len(confusion)]
    run = run_of(predictions, labels, classes)
    with patch.object(paired, "SWAPS", 250):
        comparison = compare({"one": [run], "again": [run]}, np.array(labels))
    assert comparison.seeds == 1
    values, intervals = metrics_of(run["report"]), by_title(run["report"]["intervals"], classes)
    for title, s in comparison.summaries["one"].items():
        assert (s.mean, list(s.interval)) == (values[title], intervals[title]), title
        assert s.deviation is None
        # Equal confusion matrices have equal intervals.
        assert comparison.summaries["again"][title].interval == s.interval


def test_equal_runs_without_a_recall_have_the_interval_of_the_images():
    """Student's interval would have the width 0."""
    run = run_of(np.where(LABELS == 2, 0, LABELS))
    summaries = compare({"plain": [run] * 5}, LABELS).summaries["plain"]
    intervals = run["report"]["intervals"]
    for title, s in summaries.items():
        assert s.interval == pytest.approx(named(intervals, title)), title
        assert s.deviation == pytest.approx(0)
    assert summaries["G-mean"].mean == 0
    assert 0 == summaries["G-mean"].interval[0] < 0.3 < summaries["G-mean"].interval[1]


def test_draws_of_a_mean_are_means_of_draws_in_their_order():
    """The percentiles of the mean are then the means of the percentiles."""
    reports = [run["report"] for run in RESULTS["better"]]
    for title, draws in mean_draws(reports).items():
        ends = interval(draws, 0.9)
        alone = [interval(mean_draws([r])[title], 0.9) for r in reports]
        assert ends == pytest.approx(np.mean(alone, axis=0), abs=0.002), title
        means = draws.mean(1)
        expected = [mean_draws([r])[title].mean(1) for r in reports]
        assert means == pytest.approx(np.mean(expected, axis=0))


@pytest.mark.parametrize("name", RESULTS)
def test_an_interval_covers_the_images_and_the_training(name):
    runs = RESULTS[name]
    draws = mean_draws([run["report"] for run in runs])
    for title, s in COMPARISON.summaries[name].items():
        images = half_width(interval(draws[title], s.mean))
        training = students_half_width([metrics_of(run["report"])[title] for run in runs])
        both = half_width(s.interval)
        assert s.interval[0] < s.mean < s.interval[1]
        assert both > 0.98 * max(images, training), title  # but for the chance in the draws
        assert both == pytest.approx(math.hypot(images, training), rel=0.15), title


def test_with_very_many_images_an_interval_is_students():
    """The percentiles of draws of Student's distribution have an error of some percent."""
    labels, accuracies = np.repeat([0, 1], 3000), (0.72, 0.78, 0.81, 0.83, 0.88)
    runs = []
    for accuracy in accuracies:
        right = np.random.default_rng(0).permutation(len(labels)) < accuracy * len(labels)
        runs.append(run_of(np.where(right, labels, 1 - labels), labels, ("car", "truck")))
    s = compare({"plain": runs}, labels).summaries["plain"]["accuracy"]
    assert half_width(s.interval) == pytest.approx(students_half_width(accuracies), rel=0.01)


def test_an_interval_stays_between_0_and_1():
    runs = [run_with_errors(n, seed) for seed, n in enumerate((0, 0, 0, 0, 60))]
    low, high = compare({"plain": runs}, LABELS).summaries["plain"]["accuracy"].interval
    assert 0 < low < 1
    assert high == 1.0
    runs = [run_with_errors(n, seed) for seed, n in enumerate((100, 100, 100, 100, 40))]
    low, high = compare({"plain": runs}, LABELS).summaries["plain"]["accuracy"].interval
    assert low == 0.0
    assert 0 < high < 1


def test_the_interval_of_a_recipe_does_not_depend_on_the_others():
    """Nor on its place: equal confusion matrices have equal intervals."""
    alone = compare({"better": RESULTS["better"]}, LABELS).summaries["better"]
    twice = compare({"a": RESULTS["better"], "b": RESULTS["better"]}, LABELS).summaries
    for title, s in COMPARISON.summaries["better"].items():
        assert s.interval == alone[title].interval == twice["a"][title].interval, title
        assert s.interval == twice["b"][title].interval, title


# Differences


def test_the_mean_by_itself_is_that_of_the_table():
    runs = [run_with_errors(errors, seed) for seed, errors in enumerate((12, 20, 9))]
    summaries = compare({"one": runs}, LABELS).summaries["one"]
    for title in METRICS:
        mean, ends = mean_with_interval([run["report"] for run in runs], title)
        assert mean == summaries[title].mean
        assert ends == list(summaries[title].interval)


def paired_differences(seeds):
    """Return draws (2, DRAWS) of the differences from "plain", by recipe and metric."""
    runs = [
        np.array([run["test_predictions"].split() for run in of_recipe[:seeds]], dtype=int)
        for of_recipe in RESULTS.values()
    ]
    draws = paired_scores(LABELS, runs, 3)
    of_differences = {name: values - values[:, :, :1] for name, values in draws.items()}
    return {
        name: {
            title: of_differences[metric][:, :, n, ... if k is None else k]
            for title, (metric, k) in METRICS.items()
        }
        for n, name in enumerate(RESULTS)
    }


def test_the_interval_of_a_difference_is_paired_over_images():
    one_seed = compare({name: runs[:1] for name, runs in RESULTS.items()}, LABELS)
    draws = paired_differences(seeds=1)
    for name in ("same", "better"):
        for title, s in one_seed.summaries[name].items():
            expected = interval(draws[name][title], s.difference)
            assert s.difference_interval == pytest.approx(expected), title


@pytest.mark.parametrize("name", ["same", "better"])
def test_the_interval_of_a_difference_covers_the_images_and_the_training(name):
    draws = paired_differences(seeds=5)[name]
    for title, s in COMPARISON.summaries[name].items():
        values = [
            metrics_of(run["report"])[title] - metrics_of(reference["report"])[title]
            for run, reference in zip(RESULTS[name], RESULTS["plain"], strict=True)
        ]
        images = half_width(interval(draws[title], s.difference))
        both = math.hypot(images, students_half_width(values))
        assert s.difference_interval[0] <= s.difference <= s.difference_interval[1]
        assert half_width(s.difference_interval) == pytest.approx(both, rel=0.15), title


def test_the_interval_of_a_difference_of_equal_recipes_holds_0():
    twins = compare({"plain": RESULTS["plain"], "twin": RESULTS["plain"]}, LABELS).summaries
    for s in twins["twin"].values():
        low, high = s.difference_interval
        assert -0.2 < low < 0 < high < 0.2


def test_a_difference_lies_between_minus_1_and_1():
    """Student's distribution with one degree of freedom goes far beyond."""
    plain, other = (
        [run_with_errors(n, seed) for seed, n in enumerate(errors)]
        for errors in ((0, 90), (90, 0))
    )
    summaries = compare({"plain": plain, "other": other}, LABELS).summaries
    assert summaries["other"]["accuracy"].difference_interval == (-1, 1)


# The best


def test_the_probabilities_of_being_the_best_sum_to_1():
    for title in METRICS:
        best = {name: row[title].best for name, row in COMPARISON.summaries.items()}
        assert sum(best.values()) == pytest.approx(1)
        assert best["better"] > 0.9, title


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_recipe_that_is_trained_on_the_test_images_does_not_compete(position):
    leaked = [run | {"trained_on_test": True} for run in RESULTS["better"]]
    pairs = list({name: RESULTS[name] for name in ("plain", "better")}.items())
    pairs.insert(position, ("leaked", leaked))
    comparison = compare(dict(pairs), LABELS)
    without = compare({name: runs for name, runs in pairs if name != "leaked"}, LABELS)
    assert comparison.reference == "plain"
    assert comparison.tests == without.tests
    assert list(comparison.summaries) == [name for name, _ in pairs]
    for title, summary in comparison.summaries["leaked"].items():
        assert summary.best is summary.p_training is summary.p_images is None
        assert summary.mean == comparison.summaries["better"][title].mean
        assert summary.difference == comparison.summaries["better"][title].difference
    for title, summary in comparison.summaries["better"].items():
        assert summary.p_training == without.summaries["better"][title].p_training
        assert summary.best == pytest.approx(without.summaries["better"][title].best, abs=0.02)


def test_recipes_that_are_all_trained_on_the_test_images_are_compared():
    leaked = {
        name: [run | {"trained_on_test": True} for run in RESULTS[name]]
        for name in ("plain", "better")
    }
    honest = {name: RESULTS[name] for name in leaked}
    assert compare(leaked, LABELS) == compare(honest, LABELS)


@pytest.mark.parametrize("seeds", [1, 5])
def test_equal_recipes_are_equally_probably_the_best(seeds):
    runs = RESULTS["plain"][:seeds]
    summaries = compare({"plain": runs, "twin": runs}, LABELS).summaries
    for name in summaries:
        for title, s in summaries[name].items():
            assert s.best == pytest.approx(0.5, abs=0.04), title
    assert all(s.best == 1 for s in compare({"a": runs}, LABELS).summaries["a"].values())


def test_the_spread_over_seeds_makes_the_best_uncertain():
    """One recipe has 5 errors fewer of the same images, with each of two unlike seeds."""
    plain, better = (
        [run_with_errors(n, seed) for seed, n in enumerate(errors)]
        for errors in ((10, 50), (5, 45))
    )
    best = [
        compare({"plain": plain[n], "better": better[n]}, LABELS).summaries["better"][
            "accuracy"
        ]
        for n in (slice(1), slice(2))
    ]
    assert best[0].best > 0.95
    assert 0.5 < best[1].best < 0.7
