"""Every figure: its source, its n, nothing clipped, and the values that it shows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import EMPTY, random_part
from PIL import Image
from sklearn.metrics import confusion_matrix

from common.attacks.robustness import AttackCurve, AttackResult
from common.dataset.label_fixes import Suspect
from common.dataset.split import Split
from common.inspection import data_statistics
from common.metrics.comparison import compare
from common.metrics.report import report as make_report
from common.reporting import (
    attack_figures,
    attack_pictures,
    contact_sheets,
    data_figures,
    figures,
    learning_rate_figures,
    training_figures,
)
from common.training.learning_rates import RangeTest
from common.training.recipe import Recipe

CLASSES = ("car", "truck", "cat")
PART = random_part((30, 12, 6))
SOURCE = "a source with a name"
SPLIT = Split(PART, EMPTY, PART, CLASSES, SOURCE, "a-b", 0)


def drawn(path):
    """Return a function that draws each figure, by name."""
    stats = data_statistics.image_statistics(PART.images)
    titles = [str(i) for i in range(48)]
    report = make_report(PART.labels, PART.labels.flip(0), CLASSES)
    counts = {"train": [30, 12, 6]}
    run = {"diverged": None, "report": report.as_dict()}
    compared = compare({"original": [run], "a-rather-long-name": [run]})
    picture, about = PART.images[0] / 255, f"{SOURCE}; n = 48"
    result = AttackResult(report, 4, 40, {"L1": 1.0, "L2": 1.0, "Linf": 0.1})
    curve = AttackCurve(
        "FGSM", "", "1/255", False, dict.fromkeys(("0", "8", "32"), result), 1.0
    )
    fooled = {"fooled": 4, "images": 4, "interval": (0.5, 1.0), "medians": {"L1": 8.0}}
    missed = fooled | {"fooled": 0, "interval": (0.0, 0.5), "medians": {"L1": None}}
    return {
        "class_counts": lambda: data_figures.class_counts(path, counts, CLASSES, SOURCE),
        "class_shares": lambda: data_figures.class_shares(path, counts, CLASSES, SOURCE),
        "samples": lambda: data_figures.samples(path, *PART, CLASSES, SOURCE),
        "class_order": lambda: data_figures.class_order(
            path, PART.labels, CLASSES, data_statistics.runs_test(PART.labels), SOURCE
        ),
        "image_statistics": lambda: data_figures.image_statistics(
            path, *stats.values(), PART.labels, CLASSES, [3, 4], SOURCE
        ),
        "outlier_images": lambda: data_figures.outlier_images(
            path, PART.images, titles, {"brightness": np.array([5, 1])}, SOURCE
        ),
        "confusion": lambda: training_figures.confusion(path, report, "A title", SOURCE),
        "recipes": lambda: training_figures.recipes_compared(
            path, compared, "G-mean", 1, SPLIT
        ),
        "attack_curves": lambda: attack_figures.accuracy_curves(
            path, {"FGSM": curve, "PGD": curve}, [0, 8, 32], "A title", about
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
        "label_joint": lambda: data_figures.label_joint(
            path, np.array([[40, 2, 0], [1, 3, 0], [0, 1, 1]]) / 48, CLASSES, 48, SOURCE
        ),
        "suspects": lambda: contact_sheets.suspects_figure(
            path, [Suspect(i, "", "truck", "cat", 0.5) for i in range(9)], PART.images, SOURCE
        ),
        "range_test": lambda: learning_rate_figures.range_test_figure(
            path,
            RangeTest([0.1, 0.2, 0.4], [2.0, 1.0, 3.0], [2.0, 1.5, 2.0], 0.2, 0.4),
            "A title",
            Recipe(loss="focal"),
            about,
        ),
        "loss": lambda: training_figures.loss(
            path, [2.0, 1.0], [2.5], "focal loss", "A title", about
        ),
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
    matrix = confusion_matrix(PART.labels, PART.labels.flip(0))
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
    r = make_report(PART.labels, PART.labels.flip(0), CLASSES)
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


def test_the_loss_figure_names_the_loss(figure_of):
    (axes,) = figure_of("loss").axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["training: focal loss", "validation: cross-entropy"]
    (axes,) = figure_of("range_test").axes
    assert axes.get_ylabel() == "training: focal loss (nats)"


def test_a_row_with_nothing_to_show_is_named(monkeypatch):
    captions = {}
    for name, row in (("fgsm", "car"), ("noise", "car to cat"), ("universal", "balanced")):
        monkeypatch.setattr(attack_pictures, f"{name}_rows", lambda *a, row=row, **k: {row: []})
    monkeypatch.setattr(attack_pictures, "accuracy_curves", lambda path, *a: path)
    monkeypatch.setattr(
        attack_pictures,
        "picture_grid",
        lambda path, rows, title, caption: captions.update({path.stem: caption}),
    )
    subject = attack_pictures.Subject("net", None, random_part((2, 2, 2)), CLASSES, "source")
    attack_pictures.save_figures(
        "a", subject, {"net": {}}, {"zeros start": {"images": 6}}, {},
        pairs=[(0, 2), (1, 0)], c=0.1, norm="l1", steps=1, epsilon=8, epsilons=[],
    )  # fmt: skip
    assert captions["a_fgsm"].endswith("; none to show of: truck, cat")
    assert captions["a_noise"].endswith("; none to show of: truck to car")
