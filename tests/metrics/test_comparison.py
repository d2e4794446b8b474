import numpy as np
import pytest
from scipy import stats

from common.metrics.comparison import Summary, compare, metrics_of, paired_p
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


def test_one_seed_has_the_metrics_of_its_report_and_the_intervals_of_the_images():
    run = run_result(20, 0)
    metrics, r = metrics_of(run), run["report"]
    assert metrics["G-mean"] == (r["g_mean"], r["intervals"]["g_mean"])
    assert metrics["macro F1"] == (r["macro"]["f1"], r["intervals"]["macro_f1"])
    assert metrics["recall of cat"] == (r["recall"][2], r["intervals"]["recall"][2])
    assert len(metrics) == 7
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
