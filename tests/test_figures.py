from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import random_part
from PIL import Image

from common import (
    attack_figures,
    comparison,
    contact_sheets,
    figures,
    metrics,
    pictures,
    statistics,
    sweep_figures,
)
from common.relabel import Suspect
from common.sweep import RangeTest

CLASSES = ("car", "truck", "cat")
PART = random_part((30, 12, 6))
SOURCE = "a source that is named"


def drawn(path):
    """Every figure, once, by name."""
    stats = statistics.image_statistics(PART.images)
    titles = [str(i) for i in range(48)]
    report = metrics.report(PART.labels, PART.labels.flip(0), CLASSES)
    counts = {"train": [30, 12, 6]}
    run = {"diverged": None, "report": report.as_dict()}
    compared = comparison.compare({"original": [run], "a-rather-long-name": [run]})
    picture, about = PART.images[0] / 255, f"{SOURCE}; n = 48"
    fooled = {"fooled": 4, "images": 4, "interval": (0.5, 1.0), "medians": {"L1": 8.0}}
    missed = fooled | {"fooled": 0, "interval": (0.0, 0.5), "medians": {"L1": None}}
    return {
        "class_counts": lambda: figures.class_counts(path, counts, CLASSES, SOURCE),
        "class_shares": lambda: figures.class_shares(path, counts, CLASSES, SOURCE),
        "samples": lambda: figures.samples(path, *PART, CLASSES, SOURCE),
        "class_order": lambda: figures.class_order(
            path, PART.labels, CLASSES, statistics.runs_test(PART.labels), SOURCE
        ),
        "image_statistics": lambda: figures.image_statistics(
            path, *stats.values(), PART.labels, CLASSES, [3, 4], SOURCE
        ),
        "outlier_images": lambda: figures.outlier_images(
            path, PART.images, titles, {"brightness": np.array([5, 1])}, SOURCE
        ),
        "confusion": lambda: figures.confusion(path, report, "A title", SOURCE),
        "recipes": lambda: figures.recipes(path, compared, "G-mean", 1, f"{SOURCE}; n = 48"),
        "attack_curves": lambda: attack_figures.accuracy_curves(
            path, {"FGSM": [report] * 3, "PGD": [report] * 3}, [0, 8, 32], "A title", about
        ),
        "picture_grid": lambda: attack_figures.picture_grid(
            path,
            {
                "car to truck": [(picture, "original\ncar 100%")] * 3,
                "shorter": [
                    (attack_figures.noise_picture(picture - 0.5, 2, grey=True), "noise")
                ],
            },
            "A title",
            about,
        ),
        "noise_tradeoff": lambda: attack_figures.noise_tradeoff(
            path, {0.01: fooled, 0.1: missed}, 3.0, "L1", "A title", about
        ),
        "label_joint": lambda: figures.label_joint(
            path, np.array([[40, 2, 0], [1, 3, 0], [0, 1, 1]]) / 48, CLASSES, 48, SOURCE
        ),
        "suspects": lambda: contact_sheets.suspects(
            path, [Suspect(i, "", "truck", "cat", 0.5) for i in range(9)], PART.images, SOURCE
        ),
        "range_test": lambda: sweep_figures.range_test(
            path,
            RangeTest([0.1, 0.2, 0.4], [2.0, 1.0, 3.0], [2.0, 1.5, 2.0], 0.2, 0.4),
            "A title",
            about,
        ),
        "loss": lambda: figures.loss(path, [2.0, 1.0], [2.5], "A title", f"{SOURCE}; n = 48"),
    }


@pytest.fixture
def figure_of(tmp_path, monkeypatch):
    """The matplotlib Figure that is saved under a name."""

    def draw(name):
        seen = []
        save = figures.Figure.savefig
        monkeypatch.setattr(
            figures.Figure, "savefig", lambda self, path: seen.append(self) or save(self, path)
        )
        path = tmp_path / "figures" / f"{name}.png"
        assert drawn(path)[name]() == path
        with Image.open(path) as image:
            assert image.format == "PNG"
        return seen[0]

    return draw


@pytest.mark.parametrize("name", drawn(None))
def test_every_figure_names_its_source_and_n(figure_of, name):
    figure = figure_of(name)
    assert figure.get_suptitle()
    assert SOURCE in figure.get_supxlabel()
    assert "n = 48" in figure.get_supxlabel()


@pytest.mark.parametrize("name", drawn(None))
def test_no_text_is_clipped(figure_of, name):
    figure = figure_of(name)
    width, height = figure.canvas.get_width_height()
    texts = [figure._suptitle, figure._supxlabel]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    for text in texts:
        box = text.get_window_extent()
        if text.get_text() and text.get_visible():
            assert box.x0 >= 0, text
            assert box.y0 >= 0, text
            assert box.x1 <= width, text
            assert box.y1 <= height, text


def test_counts_are_the_bars(figure_of):
    (axes,) = figure_of("class_counts").axes
    assert [bar.get_height() for bar in axes.patches] == [30, 12, 6]
    assert [label.get_text() for label in axes.get_xticklabels()] == list(CLASSES)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["train"]


def test_confusion_shows_counts_in_their_cells(figure_of):
    axes = figure_of("confusion").axes[0]
    matrix = metrics.confusion_matrix(PART.labels, PART.labels.flip(0))
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    for row, column in np.ndindex(3, 3):
        assert shown[column, row].startswith(f"{matrix[row, column]}\n")


def test_samples_are_of_their_class(figure_of):
    axes = [a for a in figure_of("samples").axes if a.images]
    assert len(axes) == 26  # ten cars, ten trucks, six cats
    for a in axes:
        expected = PART.images[int(a.get_title())].permute(1, 2, 0)
        assert torch.equal(torch.from_numpy(np.asarray(a.images[0].get_array())), expected)


def test_recipes_have_their_value_and_interval(figure_of):
    (axes,) = figure_of("recipes").axes
    r = metrics.report(PART.labels, PART.labels.flip(0), CLASSES)
    bars = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 2]
    dots = [line.get_xdata() for line in axes.lines if len(line.get_xdata()) == 1]
    assert [tuple(bar) for bar in bars] == [tuple(r.intervals["g_mean"])] * 2
    assert dots == [[r.g_mean]] * 2


def test_noise_is_shown_around_grey():
    noise = torch.zeros(3, 2, 2)
    noise[0, 0, 0], noise[1, 0, 1], noise[:, 1, 1] = 0.1, -0.9, 0.2
    shown = attack_figures.noise_picture(noise, 2)
    assert torch.allclose(shown[0], torch.tensor([[0.7, 0.5], [0.5, 0.9]]))
    assert torch.allclose(shown[1], torch.tensor([[0.5, 0.0], [0.5, 0.9]]))
    grey = attack_figures.noise_picture(noise, 3, grey=True)
    assert torch.allclose(grey[0], torch.tensor([[0.6, 0.0], [0.5, 1.0]]))
    assert torch.equal(grey[0], grey[1])


def test_a_row_that_has_nothing_to_show_is_named(monkeypatch):
    captions = {}
    cell = {"car": [], "car to cat": []}
    for name, rows in (("fgsm", "car"), ("noise", "car to cat")):
        monkeypatch.setattr(
            pictures, f"{name}_rows", lambda *a, row=rows, **k: {row: cell[row]}
        )
    monkeypatch.setattr(pictures, "universal_rows", lambda *a, **k: {})
    monkeypatch.setattr(attack_figures, "accuracy_curves", lambda path, *a: path)
    monkeypatch.setattr(
        attack_figures,
        "picture_grid",
        lambda path, rows, title, caption: captions.update({path.stem: caption}),
    )
    sweep = SimpleNamespace(outcomes={})
    pictures.adversarial(
        "a", None, random_part((2, 2, 2)), ("car", "truck", "cat"), "source", "net",
        {"net": dict.fromkeys(("FGSM", "PGD", "MI-FGSM"), sweep)},
        {"zeros start": {"images": 6}}, {},
        pairs=[(0, 2), (1, 0)], c=0.1, norm="l1", steps=1, epsilon=8, epsilons=[],
    )  # fmt: skip
    assert captions["a_fgsm"].endswith("; none to show of: truck, cat")
    assert captions["a_noise"].endswith("; none to show of: truck to car")
