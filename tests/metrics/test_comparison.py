import math
import statistics
from itertools import chain, combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from common.metrics.comparison import Summary, compare, holm, metrics_of, paired_p
from common.metrics.intervals import t_interval
from common.metrics.report import report

LABELS = np.repeat([0, 1, 2], [60, 30, 10])


def run_result(errors, seed):
    """Return the result of a run with this number of wrong predictions."""
    predictions = LABELS.copy()
    wrong = np.random.default_rng(seed).choice(len(LABELS), errors, replace=False)
    predictions[wrong] = (predictions[wrong] + 1) % 3
    r = report(LABELS, predictions, ("car", "truck", "cat"))
    return {"diverged": None, "report": r.as_dict()}


# Results of 5 seeds for each recipe, with about this number of errors.
RESULTS = {
    name: [run_result(n + seed % 3, 100 * n + seed) for seed in range(5)]
    for name, n in (("plain", 40), ("same", 40), ("better", 10))
}


def test_summaries_are_over_seeds_and_differences_from_the_first_recipe():
    compared = compare(RESULTS)
    plain, better = (
        np.array([run["report"]["g_mean"] for run in RESULTS[name]])
        for name in ("plain", "better")
    )
    # Holm's correction doubles the smaller of two p-values.
    p = 2 * stats.ttest_rel(better, plain).pvalue
    expected = better.mean(), better.std(ddof=1), (better - plain).mean(), p
    s = compared["better"]["G-mean"]
    assert (s.mean, s.deviation, s.difference, s.p) == pytest.approx(expected)
    assert s.interval == pytest.approx(t_interval(better))
    assert s.significant
    assert not compared["same"]["G-mean"].significant
    assert compared["plain"]["G-mean"].p is None


def test_an_interval_stays_between_0_and_1():
    runs = [run_result(n, seed) for seed, n in enumerate((0, 0, 0, 0, 60))]
    low, high = compare({"plain": runs})["plain"]["accuracy"].interval
    assert 0 < low < 1
    assert high == 1.0
    runs = [run_result(n, seed) for seed, n in enumerate((100, 100, 100, 100, 40))]
    low, high = compare({"plain": runs})["plain"]["accuracy"].interval
    assert low == 0.0
    assert 0 < high < 1


def test_one_seed_has_the_metrics_of_its_report_and_the_intervals_of_the_images():
    run = run_result(20, 0)
    metrics, r = metrics_of(run), run["report"]
    assert metrics["G-mean"] == (r["g_mean"], r["intervals"]["g_mean"])
    assert metrics["macro F1"] == (r["macro"]["f1"], r["intervals"]["macro_f1"])
    assert metrics["recall of cat"] == (r["recall"][2], r["intervals"]["recall"][2])
    assert metrics["accuracy"] == (0.8, r["intervals"]["accuracy"])
    assert metrics["balanced accuracy"] == (
        r["balanced_accuracy"],
        r["intervals"]["balanced_accuracy"],
    )
    recalls = [f"recall of {name}" for name in ("car", "truck", "cat")]
    assert list(metrics) == ["accuracy", "balanced accuracy", "G-mean", "macro F1", *recalls]
    for name, summary in compare({"one": [run]})["one"].items():
        value, interval = metrics[name]
        assert summary == Summary(value, None, tuple(interval), 0, None)


def test_a_recipe_with_a_diverged_run_is_left_out():
    broken = {"broken": [{"diverged": "at step 3"}]}
    compared = compare(broken | RESULTS)
    assert list(compared) == ["plain", "same", "better"]
    assert compared["plain"]["accuracy"].p is None  # the reference
    assert compare(broken) == {}


def test_no_p_without_spread():
    a = np.array([0.5, 0.6, 0.7])
    for b in (a, a + 0.25):
        assert paired_p(b, a) is None
    assert paired_p(a[:1] + 0.25, a[:1]) is None
    # Two seeds with equal differences: with the standard deviation 0 any difference has p = 0.
    plain, better = ([run_result(n, seed) for seed in range(2)] for n in (20, 10))
    accuracy = compare({"plain": plain, "better": better})["better"]["accuracy"]
    assert accuracy.difference == pytest.approx(0.1)
    assert accuracy.p is None
    assert not accuracy.significant


def result_of(accuracy):
    """Return a result of which only the accuracy matters."""
    numbers = {"accuracy": accuracy, "balanced_accuracy": 0.5, "g_mean": 0.5}
    intervals = dict.fromkeys((*numbers, "macro_f1"), (0.0, 1.0))
    rest = {"macro": {"f1": 0.5}, "recall": [], "classes": [], "intervals": intervals}
    return {"diverged": None, "report": numbers | rest}


SEEDS = st.integers(2, 5)
ACCURACIES = st.integers(0, 8).map(lambda n: n / 8)  # without rounding


@settings(max_examples=50)
@given(SEEDS.flatmap(lambda n: st.lists(st.tuples(*[ACCURACIES] * n), min_size=1, max_size=4)))
def test_a_summary_equals_the_formulas(recipes):
    compared = compare({str(i): [result_of(v) for v in vs] for i, vs in enumerate(recipes)})
    p_values = []
    for i, values in enumerate(recipes):
        s = compared[str(i)]["accuracy"]
        n, deviation = len(values), statistics.stdev(values)
        half = stats.t.ppf(0.975, n - 1) * deviation / math.sqrt(n)
        mean = statistics.fmean(values)
        differences = [a - b for a, b in zip(values, recipes[0], strict=True)]
        assert (s.mean, s.deviation) == pytest.approx((mean, deviation))
        assert s.interval == pytest.approx((max(0, mean - half), min(1, mean + half)))
        assert s.difference == pytest.approx(statistics.fmean(differences))
        spread = statistics.stdev(differences) / math.sqrt(n)
        p = 2 * stats.t.sf(abs(s.difference) / spread, n - 1) if spread else None
        p_values.append(p)
    adjusted = [None, *holm_by_closed_testing(p_values[1:])]
    for i, p in enumerate(adjusted):
        found = compared[str(i)]["accuracy"]
        assert found.p == pytest.approx(p)
        assert found.significant == (p is not None and p < 0.05)


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


@pytest.mark.parametrize(("p", "significant"), [(0.049, True), (0.05, False), (None, False)])
def test_significance_is_p_below_5_percent(p, significant):
    assert Summary(0.5, 0.1, (0.4, 0.6), 0.1, p).significant == significant
