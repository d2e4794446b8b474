from __future__ import annotations

from common.metrics.comparison import Summary
from common.reporting.training_tables import compared_as_markdown, compared_as_text, legend

METRICS = ("accuracy", "balanced accuracy", "G-mean", "macro F1", "recall of cat")


def summaries(mean: float, p: float | None) -> dict[str, Summary]:
    return {
        metric: Summary(mean, 0.012, (mean - 0.1, mean + 0.1), 0.1, p) for metric in METRICS
    }


COMPARED = {"plain": summaries(0.5, None), "resnet9-logit-adjusted": summaries(0.75, 0.01)}


def test_the_text_shows_all_recipes_and_metrics_in_80_columns():
    lines = compared_as_text(COMPARED).splitlines()
    assert max(map(len, lines)) <= 80
    for name, words in (
        ("plain", "0.500 ±.012 [0.400, 0.600]"),
        ("resnet9-logit-adjusted", "0.750 ±.012 [0.650, 0.850]*"),
    ):
        rows = "\n".join(line for line in lines if line.startswith(f"{name} "))
        assert rows.count(words) == len(METRICS), name
    assert "0.600]*" not in "\n".join(lines)
    for metric in METRICS:
        assert sum(metric in line for line in lines) >= 1


def test_the_legend_names_the_reference_and_the_seeds():
    assert "of 5 seeds" in legend(COMPARED, 5)
    assert "plain" in legend(COMPARED, 5)
    assert legend(COMPARED, 1).startswith("One seed")


def test_the_markdown_has_the_best_g_mean_first():
    header, rule, best, other = compared_as_markdown(COMPARED).splitlines()
    assert [cell.strip() for cell in header.split("|")] == ["", "recipe", *METRICS, ""]
    assert set(rule) <= set("|-: ")
    assert best.startswith("| `resnet9-logit-adjusted` |")
    assert other.startswith("| `plain`")
    assert best.count("|") == other.count("|") == len(METRICS) + 2
    assert best.count("]*") == len(METRICS)
    assert "*" not in other
