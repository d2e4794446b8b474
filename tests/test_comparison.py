from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from common import comparison, metrics

CLASSES = ("car", "truck", "cat")
Y = np.repeat([0, 1, 2], [60, 30, 10])


def result(errors, seed):
    """A run's result with about `errors` wrong predictions."""
    rng = np.random.default_rng(seed)
    p = Y.copy()
    wrong = rng.choice(len(Y), errors, replace=False)
    p[wrong] = (p[wrong] + 1) % 3
    return {"diverged": None, "report": metrics.report(Y, p, CLASSES).as_dict()}


def results(**errors):
    return {
        name: [result(n + seed % 3, 100 * n + seed) for seed in range(5)]
        for name, n in errors.items()
    }


def test_mean_deviation_and_interval_over_seeds():
    runs = results(plain=40, better=10)
    summary = comparison.compare(runs)["better"]["accuracy"]
    values = [run["report"]["accuracy"] for run in runs["better"]]
    assert summary.mean == pytest.approx(np.mean(values))
    assert summary.deviation == pytest.approx(np.std(values, ddof=1))
    expected = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert summary.interval == pytest.approx(expected)


def test_an_interval_stays_within_what_a_metric_can_be():
    runs = {"plain": [result(n, seed) for seed, n in enumerate((0, 0, 0, 0, 60))]}
    low, high = comparison.compare(runs)["plain"]["accuracy"].interval
    assert 0 < low < 1
    assert high == 1.0


def test_differences_are_paired_with_the_first_recipe():
    runs = results(plain=40, same=40, better=10)
    compared = comparison.compare(runs)
    plain, better = (
        np.array([run["report"]["g_mean"] for run in runs[name]])
        for name in ("plain", "better")
    )
    assert compared["better"]["G-mean"].difference == pytest.approx((better - plain).mean())
    p = stats.ttest_rel(better, plain).pvalue
    assert compared["better"]["G-mean"].p == pytest.approx(2 * p)  # the smaller of two
    assert compared["better"]["G-mean"].significant
    assert not compared["same"]["G-mean"].significant
    assert compared["plain"]["G-mean"].p is None


def test_every_metric_is_that_of_the_report():
    run = result(20, 0)
    found = comparison.metrics_of(run)
    report = run["report"]
    assert found["G-mean"] == (report["g_mean"], report["intervals"]["g_mean"])
    assert found["macro F1"] == (report["macro"]["f1"], report["intervals"]["macro_f1"])
    assert found["recall of cat"] == (report["recall"][2], report["intervals"]["recall"][2])
    assert len(found) == 7


def test_one_seed_shows_the_interval_of_the_images():
    run = result(20, 0)
    summary = comparison.compare({"one": [run]})["one"]["recall of cat"]
    assert summary.interval == tuple(run["report"]["intervals"]["recall"][2])
    assert (summary.deviation, summary.p) == (None, None)


def test_a_diverged_recipe_is_left_out():
    runs = results(plain=40, better=10)
    runs["broken"] = [{"diverged": "at step 3"}]
    assert list(comparison.compare(runs)) == ["plain", "better"]
    assert comparison.compare({"broken": runs["broken"]}) == {}


def test_equal_values_are_no_difference():
    a = np.array([0.5, 0.6, 0.7])
    assert comparison.paired_p(a, a) == 1
    assert comparison.paired_p(a + 0.25, a) < 1e-9


def test_tables_hold_all_recipes_and_fit_the_screen():
    compared = comparison.compare(results(**{"plain": 40, "resnet9-logit-adjusted": 10}))
    printed = comparison.as_text(compared)
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("resnet9-logit-adjusted") == 4  # two metrics side by side
    assert "plain" in comparison.legend(compared, 5)
    markdown = comparison.as_markdown(compared).splitlines()
    assert markdown[2].startswith("| `resnet9-logit-adjusted` |")  # the best first
    assert all(line.count("|") == 9 for line in markdown)
    starred = [line for line in markdown if "*" in line]
    assert starred == [markdown[2]]
