"""Every figure: its source, its n, nothing clipped, and the values that it shows."""

import itertools
import warnings

import numpy as np
import pytest
import torch
from conftest import EMPTY, random_part
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import (
    confusion_matrix,
    precision_recall_curve,
    precision_score,
    recall_score,
)

from common.attacks.robustness import AttackCurve, AttackResult
from common.attacks.strength import Strength
from common.attacks.transfer import Transfer
from common.dataset.duplicates import Pair, rows
from common.dataset.label_fixes import Suspect
from common.dataset.split import LabelledImages, Split
from common.inspection import data_statistics
from common.metrics.comparison import compare
from common.metrics.probabilities import judge
from common.metrics.report import report
from common.reporting import (
    attack_figures,
    attack_pictures,
    contact_sheets,
    data_figures,
    figures,
    learning_rate_figures,
    probability_figures,
    training_figures,
)
from common.reporting.network_attacks import NetworkAttacks
from common.training.learning_rates import RangeTest
from common.training.recipe import Recipe
from common.training.runs import Run

CLASSES = ("car", "truck", "cat")
PART = random_part((30, 12, 6))
SOURCE = "a source with a name"
ABOUT = f"{SOURCE}; n = 48"
SPLIT = Split(PART, EMPTY, PART, CLASSES, SOURCE, "a-b", 0)
REPORT = report(PART.labels, PART.labels.flip(0), CLASSES)
COUNTS = {"train": [30, 12, 6]}
PICTURE = PART.images[0] / 255
RUN = {
    "diverged": None,
    "trained_on_test": False,
    "report": REPORT.as_dict(),
    "test_predictions": " ".join(map(str, PART.labels.flip(0).tolist())),
}
CURVE = AttackCurve(
    "FGSM", "", "1/255", False,
    dict.fromkeys("038", AttackResult(REPORT, 4, 40, {"L1": 1.0, "L2": 1.0, "Linf": 0.1})), 1.0,
)  # fmt: skip
FOOLED = {"fooled": 4, "images": 4, "interval": (0.5, 1.0), "medians": {"L1": 8.0}}
MISSED = FOOLED | {"fooled": 0, "interval": (0.0, 0.5), "medians": {"L1": None}}
LABELS = PART.labels.numpy()
PROBABILITIES = np.random.default_rng(0).dirichlet([1, 1, 1], len(LABELS))
JUDGED = judge(LABELS, PROBABILITIES, CLASSES)
FILES = [f"test/some-class/a-file-with-a-long-name-{i}.png" for i in range(len(LABELS))]
FIGURES = {
    "class_counts": (data_figures.class_counts, COUNTS, CLASSES, SOURCE),
    "class_shares": (data_figures.class_shares, COUNTS, CLASSES, SOURCE),
    "samples": (data_figures.samples, *PART, CLASSES, SOURCE),
    "class_order": (
        data_figures.class_order, PART.labels, CLASSES,
        data_statistics.runs_test(PART.labels), SOURCE,
    ),
    "image_statistics": (
        data_figures.image_statistics,
        *data_statistics.image_statistics(data_statistics.moments(PART.images)).values(),
        PART.labels, CLASSES, [3, 4], SOURCE,
    ),
    "outlier_images": (
        data_figures.outlier_images, PART.images, [str(i) for i in range(48)],
        {"brightness": np.array([5, 1])}, SOURCE,
    ),
    "confusion": (training_figures.confusion, REPORT, "A title", SOURCE),
    "confusions": (
        training_figures.confusions, {"one": REPORT, 40 * "long": REPORT}, SOURCE,
    ),
    "calibration": (
        probability_figures.calibration, JUDGED, [300, 20, 10], "A title", SOURCE, 48,
    ),
    "precision_recall": (
        probability_figures.precision_recall, JUDGED, [300, 20, 10], LABELS, PROBABILITIES,
        "A title", SOURCE,
    ),
    "errors": (
        contact_sheets.errors_figure, PART, FILES, PROBABILITIES, CLASSES, "A title", SOURCE,
    ),
    "recipes": (
        training_figures.recipes_compared,
        compare({"original": [RUN], "a-rather-long-name": [RUN]}, PART.labels.numpy()),
        "G-mean", SPLIT,
    ),
    "attack_curves": (
        attack_figures.accuracy_curves, {"FGSM": CURVE, "PGD": CURVE}, [0, 8, 32],
        "A title", ABOUT,
    ),
    "picture_grid": (
        attack_figures.picture_grid,
        {
            "car to truck": [(PICTURE, "original\ncar 100%")] * 3,
            "shorter": [(attack_figures.noise_picture(PICTURE - 0.5, 2, grey=True), "noise")],
        },
        "A title", ABOUT,
    ),
    "recall_curves": (
        attack_figures.recall_curves,
        {"one": torch.tensor([0.0, 2.0, torch.inf, 3.0]), "two": torch.ones(4)},
        torch.tensor([0, 0, 1, 2]), CLASSES, "A title", ABOUT,
    ),
    "transfer_matrix": (
        attack_figures.transfer_matrix,
        {name: {"one": Transfer(1, 4), "two": Transfer(0, 0)} for name in ("one", "two")},
        "A title", ABOUT,
    ),
    "noise_tradeoff": (
        attack_figures.noise_tradeoff, {0.01: FOOLED, 0.1: MISSED}, 3.0, "L1", "A title", ABOUT,
    ),
    "label_joint": (
        data_figures.label_joint, np.array([[40, 2, 0], [1, 3, 0], [0, 1, 1]]) / 48, CLASSES,
        48, SOURCE,
    ),
    "suspects": (
        contact_sheets.suspects_figure,
        [Suspect(i, "", "truck", "cat", 0.5) for i in range(9)], PART.images, SOURCE,
    ),
    "range_test": (
        learning_rate_figures.range_test_figure,
        RangeTest([0.1, 0.2, 0.4], [2.0, 1.0, 3.0], [2.0, 1.5, 2.0], 0.2, 0.4),
        "A title", Recipe(loss="focal"), ABOUT,
    ),
    "loss": (training_figures.loss, [2.0, 1.0], [2.5], "focal loss", "A title", ABOUT),
}  # fmt: skip


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a figure, check that its file is a PNG, and return the matplotlib Figure."""

    def draw(function, *arguments, **options):
        saved, savefig = [], Figure.savefig

        def recorded(figure, path):
            saved.append(figure)
            savefig(figure, path)

        monkeypatch.setattr(Figure, "savefig", recorded)
        path = tmp_path / "figures" / "figure.png"
        assert function(path, *arguments, **options) == path
        with Image.open(path) as image:
            assert image.format == "PNG"
        return saved[0]

    return draw


def boxes_of_texts(figure):
    """Return the boxes of all texts; check that no text is clipped by the figure's edge."""
    width, height = figure.canvas.get_width_height()
    texts = [figure._suptitle, figure._supxlabel]
    for axes in figure.axes:
        texts += [axes.title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
    shown = [text for text in texts if text.get_text() and text.get_visible()]
    boxes = [text.get_window_extent() for text in shown]
    for text, box in zip(shown, boxes, strict=True):
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) >= 0, text
    return boxes


def text_of(texts):
    return [text.get_text() for text in texts]


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_names_its_source_and_n_and_no_text_is_clipped(draw, name):
    figure = draw(*FIGURES[name])
    assert figure.get_suptitle()
    assert SOURCE in figure.get_supxlabel()
    assert "n = 48" in figure.get_supxlabel()
    boxes_of_texts(figure)


def test_counts_are_the_bars(draw):
    (axes,) = draw(*FIGURES["class_counts"]).axes
    assert [bar.get_height() for bar in axes.patches] == [30, 12, 6]
    assert text_of(axes.get_xticklabels()) == list(CLASSES)
    assert text_of(axes.get_legend().get_texts()) == ["train"]


def test_small_classes_are_drawn_last_and_larger(draw):
    *classes, _ring = draw(*FIGURES["image_statistics"]).axes[0].collections
    counts = [len(each.get_offsets()) for each in classes]
    assert counts == [30, 12, 6]
    sizes = [each.get_sizes()[0] for each in classes]
    orders = [each.get_zorder() for each in classes]
    assert sizes == sorted(set(sizes))
    assert orders == sorted(set(orders))


def test_text_of_wide_figures_is_larger_and_long_captions_have_lines(tmp_path):
    narrow, wide = (figures.new_figure(w, 3, "A title", 30 * "words ") for w in (4, 16))
    assert wide._suptitle.get_size() == 2 * narrow._suptitle.get_size()
    for figure, width in ((narrow, 4), (wide, 16)):
        figure.draw_without_rendering()
        lines = figure._supxlabel.get_text().splitlines()
        assert " ".join(lines).split() == 30 * ["words"]
        assert len(lines) > 1
        assert figure._supxlabel.get_window_extent().width <= width * figure.dpi


def test_confusion_shows_counts_in_their_cells(draw):
    axes = draw(*FIGURES["confusion"]).axes[0]
    matrix = confusion_matrix(PART.labels, PART.labels.flip(0))
    shown = {text.get_position(): text.get_text() for text in axes.texts}
    for row, column in np.ndindex(3, 3):
        assert shown[column, row].startswith(f"{matrix[row, column]}\n")


def test_confusions_of_networks_lie_side_by_side(draw):
    other = report(PART.labels, PART.labels, CLASSES)
    left, right, bar = draw(training_figures.confusions, {"a": REPORT, "b": other}, SOURCE).axes
    for axes, name, r in ((left, "a", REPORT), (right, "b", other)):
        title, numbers = axes.get_title().splitlines()
        assert title == name
        assert f"{r.balanced_accuracy:.1%}" in numbers
        counts = {text.get_position(): text.get_text().split()[0] for text in axes.texts}
        for row, column in np.ndindex(3, 3):
            assert counts[column, row] == str(r.confusion[row][column])
    assert bar.get_ylabel() == "share of the true class"


def test_large_confusions_have_no_numbers(draw):
    labels = torch.arange(21).repeat(2)
    r = report(labels, labels.roll(1), [f"class {k}" for k in range(21)])
    axes = draw(training_figures.confusion, r, "A title", SOURCE).axes[0]
    assert not axes.texts
    shares = axes.images[0].get_array()
    np.testing.assert_array_equal(shares, np.array(r.confusion) / 2)


def test_calibration_shows_the_bins_and_their_images(draw):
    axes = draw(*FIGURES["calibration"]).axes
    top, classes, top_images, class_images = axes
    shown = [top.lines[0], *[line for line in classes.lines if line.get_label()[0] == "_"]]
    assert top.lines[0].get_xdata() == pytest.approx(JUDGED.reliability.probability)
    assert top.lines[0].get_ydata() == pytest.approx(JUDGED.reliability.share)
    assert top_images.lines[0].get_ydata().tolist() == JUDGED.reliability.images
    for k, line in enumerate(class_images.lines):
        assert line.get_ydata().tolist() == JUDGED.class_reliability[k].images
    legend = text_of(classes.get_legend().get_texts())
    assert [text.partition(":")[0] for text in legend] == ["perfectly calibrated", *CLASSES]
    assert f"ECE {JUDGED.class_ece[2]:.3f} [" in legend[3]
    assert len(shown) > 1
    for panel in (top_images, class_images):
        ticks = text_of(panel.get_yticklabels()) + text_of(panel.get_yticklabels(minor=True))
        assert all(text == "" or float(text) >= 0 for text in ticks), ticks


def test_precision_and_recall_are_scikit_learns(draw):
    (axes,) = draw(*FIGURES["precision_recall"]).axes
    curves = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    assert len(curves) == len(CLASSES)
    for k, line in enumerate(curves):
        truth = np.equal(LABELS, k)
        precision, recall, _ = precision_recall_curve(truth, PROBABILITIES[:, k])
        assert line.get_xdata() == pytest.approx(recall)
        assert line.get_ydata() == pytest.approx(precision)
    marks = [line for line in axes.lines if line.get_marker() in probability_figures.MARKERS]
    predictions = PROBABILITIES.argmax(1)
    found = [(float(line.get_xdata()[0]), float(line.get_ydata()[0])) for line in marks]
    expected = [
        (
            recall_score(np.equal(LABELS, k), predictions == k),
            precision_score(np.equal(LABELS, k), predictions == k),
        )
        for k in range(3)
    ]
    assert np.array(found) == pytest.approx(np.array(expected))


def test_of_many_classes_the_rarest_are_drawn(draw):
    labels = np.repeat(range(9), 4)
    probabilities = np.random.default_rng(1).dirichlet([1] * 9, 36)
    names = [f"class {k}" for k in range(9)]
    judged = judge(labels, probabilities, names)
    counts = [90, 10, 80, 20, 70, 30, 60, 40, 50]
    figure = draw(
        probability_figures.precision_recall, judged, counts, labels, probabilities,
        "A title", SOURCE,
    )  # fmt: skip
    texts = text_of(figure.axes[0].get_legend().get_texts())
    assert [text.partition(",")[0] for text in texts] == [f"class {k}" for k in (1, 3, 5, 7, 8)]
    assert "of 9 classes the 5 with the fewest train images" in figure.get_supxlabel()


def test_errors_are_the_most_confident_of_their_class(draw):
    figure = draw(*FIGURES["errors"])
    predictions, confidence = PROBABILITIES.argmax(1), PROBABILITIES.max(1)
    shown = [axes for axes in figure.axes if axes.images]
    rows = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
    for k, name in enumerate(CLASSES):
        wrong = [i for i in range(48) if LABELS[i] == k != predictions[i]]
        ranked = sorted(wrong, key=lambda i: -confidence[i])[:6]
        assert rows[k] == f"{name}\n{len(wrong)} of {(np.equal(LABELS, k)).sum()} wrong"
        for i in ranked:
            axes = shown.pop(0)
            picture = PART.images[i].permute(1, 2, 0)
            np.testing.assert_array_equal(axes.images[0].get_array(), picture)
            title = f"{CLASSES[predictions[i]]} {confidence[i]:.1%}\na-file-with-a-lon…"
            assert axes.get_title() == title
    assert not shown


def test_without_errors_there_is_no_figure_of_them(tmp_path):
    arguments = (PART, [], np.eye(3)[LABELS], CLASSES, "A title", SOURCE)
    assert contact_sheets.errors_figure(tmp_path / "a.png", *arguments) is None
    assert not (tmp_path / "a.png").exists()


def test_samples_are_of_their_class(draw):
    shown = [axes for axes in draw(*FIGURES["samples"]).axes if axes.images]
    positions = [*range(10), *range(30, 40), *range(42, 48)]  # ten cars, ten trucks, six cats
    assert [int(axes.get_title()) for axes in shown] == positions
    for axes, position in zip(shown, positions, strict=True):
        expected = PART.images[position].permute(1, 2, 0)
        np.testing.assert_array_equal(axes.images[0].get_array(), expected)


def test_recipes_have_their_value_and_interval(draw):
    figure = draw(*FIGURES["recipes"])
    (axes,) = figure.axes
    shown = [tuple(line.get_xdata()) for line in axes.lines]
    assert shown == [tuple(REPORT.intervals["g_mean"]), (REPORT.g_mean,)] * 2
    assert figure.get_suptitle().endswith("95% interval of the test images, one seed")


def test_the_intervals_of_recipes_with_several_seeds_are_those_of_the_mean(draw):
    comparison = compare({"original": [RUN, RUN]}, PART.labels.numpy())
    figure = draw(training_figures.recipes_compared, comparison, "G-mean", SPLIT)
    assert figure.get_suptitle().endswith("95% interval of the mean of 2 seeds")
    low, high = comparison.summaries["original"]["G-mean"].interval
    margin = 0.04 * (high - low)
    assert figure.axes[0].get_xlim() == pytest.approx((low - margin, high + margin))


def test_noise_is_shown_around_grey():
    noise = torch.zeros(3, 2, 2)
    noise[0, 0, 0], noise[1, 0, 1], noise[:, 1, 1] = 0.1, -0.9, 0.2
    shown = attack_figures.noise_picture(noise, 2)
    assert torch.allclose(shown[0], torch.tensor([[0.7, 0.5], [0.5, 0.9]]))
    assert torch.allclose(shown[1], torch.tensor([[0.5, 0.0], [0.5, 0.9]]))
    grey = attack_figures.noise_picture(noise, 3, grey=True)
    assert torch.allclose(grey, torch.tensor([[0.6, 0.0], [0.5, 1.0]]).expand(3, 2, 2))


def test_figures_of_losses_name_the_loss(draw):
    (axes,) = draw(*FIGURES["loss"]).axes
    labels = text_of(axes.get_legend().get_texts())
    assert labels == ["training: focal loss", "validation: cross-entropy"]
    (axes,) = draw(*FIGURES["range_test"]).axes
    assert axes.get_ylabel() == "training: focal loss (nats)"


def test_a_diverged_curve_ends_in_a_cross_and_an_arrow_marks_values_off_the_scale():
    axes = Figure().subplots()
    draw_curve, top = learning_rate_figures._curve, learning_rate_figures.TOP
    assert draw_curve(axes, 0, [1.0, 0.5, 99.0, 0.7], True, 1.0, "C0", "0.5")
    curve, arrows, cross = axes.lines
    assert curve.get_xydata().tolist() == [[0, 1.0], [1, 0.5], [2, top], [3, 0.7]]
    assert (arrows.get_marker(), arrows.get_xdata().tolist()) == ("^", [2])
    assert (cross.get_marker(), cross.get_xydata().tolist()) == ("x", [[3, 0.7]])
    axes = Figure().subplots()
    assert not draw_curve(axes, 1, [1.0, 0.5], False, 1.0, "C0", "0.005")
    assert [line.get_marker() for line in axes.lines if len(line.get_xdata())] == ["o"]


def test_the_figures_of_runs_and_sweeps_name_the_loss_of_the_recipe(monkeypatch, tmp_path):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, path: figures.append(self) or save(self, path)
    )
    recipe = Recipe(loss="focal")
    history = {"loss": [2.0, 1.0], "validation_loss": [1.5, 1.2], "best_epoch": None}
    result = RUN | {
        "examples": [30, 12, 6], "drawn": [16, 16, 16], "history": history,
        "trained_on_test": False, "validation": REPORT.as_dict(),
    }  # fmt: skip
    run = Run("focal", recipe, 0)
    training_figures.run_figures(tmp_path, run, result, REPORT, SPLIT)
    legend = figures[0].axes[0].get_legend().get_texts()
    assert next(iter(legend)).get_text() == "training: focal loss"
    by_rate, verdicts = {0.1: result}, {0.1: "converges"}
    learning_rate_figures.sweep_figures(
        tmp_path / "sweep", "focal", recipe, by_rate, verdicts, 2.5, ABOUT
    )
    all_rates, each_rate, validation = figures[3:]
    assert all_rates.axes[0].get_ylabel() == "training: mean focal loss (nats), logarithmic"
    assert each_rate.get_supylabel().startswith("training: mean focal loss (nats)")
    assert validation.axes[0].get_ylabel() == "last validation cross-entropy (nats)"
    assert all(figure.get_supxlabel() == ABOUT for figure in figures[3:])


def test_a_row_with_nothing_to_show_is_named(monkeypatch):
    captions = {}
    for name, row in (("fgsm", "car"), ("noise", "car to cat"), ("universal", "balanced")):
        monkeypatch.setattr(attack_pictures, f"{name}_rows", lambda *a, row=row, **k: {row: []})
    for name in ("accuracy_curves", "recall_curves"):
        monkeypatch.setattr(attack_pictures, name, lambda path, *a: path)
    measured = NetworkAttacks({}, {"linf": Strength("linf", 6, torch.ones(6), {}, 0.0)})
    monkeypatch.setattr(
        attack_pictures,
        "picture_grid",
        lambda path, rows, title, caption: captions.update({path.stem: caption}),
    )
    subject = attack_pictures.Subject("net", None, random_part((2, 2, 2)), CLASSES, "source")
    attack_pictures.save_figures(
        "a", subject, {"net": measured}, {}, {"zeros start": {"images": 6}}, {},
        pairs=[(0, 2), (1, 0)], c=0.1, norm="l1", steps=1, epsilon=8, epsilons=[],
        transfer_epsilon=4, on_test=[],
    )  # fmt: skip
    assert captions["a_fgsm"].endswith("; none to show of: truck, cat")
    assert captions["a_noise"].endswith("; none to show of: truck to car")


# Many classes with long names


def many_classes(k, size=48):
    """Return names, and images of decreasing numbers of k classes."""
    names = [f"a rather long name of class {i}" if i % 2 else f"class {i}" for i in range(k)]
    part = random_part(tuple(max(2, 40 - i) for i in range(k)))
    return names, LabelledImages(
        part.images[..., :1, :1].expand(-1, -1, size, size), part.labels
    )


def figures_of_many_classes(k):
    names, (images, labels) = many_classes(k)
    n, counts = len(labels), torch.bincount(labels).tolist()
    parts = {"train": counts, "test": counts}
    predictions = torch.where(torch.arange(n) % 3 == 0, labels.roll(7), labels)
    r = report(labels, predictions, names)
    suspects = [Suspect(i, "", names[1], names[3], 0.5) for i in range(9)]
    joint = np.eye(k) / k
    return {
        "class_counts": (data_figures.class_counts, parts, names, SOURCE),
        "class_shares": (data_figures.class_shares, parts, names, SOURCE),
        "samples": (data_figures.samples, images, labels, names, SOURCE),
        "class_order": (
            data_figures.class_order, labels, names, data_statistics.runs_test(labels), SOURCE,
        ),
        "image_statistics": (
            data_figures.image_statistics, np.linspace(0, 1, n), np.linspace(0, 1, n), labels,
            names, [3], SOURCE,
        ),
        "confusion": (training_figures.confusion, r, "A title", SOURCE),
        "label_joint": (data_figures.label_joint, joint, names, n, SOURCE),
        "suspects": (contact_sheets.suspects_figure, suspects, images, SOURCE),
        "errors": (
            contact_sheets.errors_figure, LabelledImages(images, labels), FILES * 50,
            np.eye(k)[predictions], names, "A title", SOURCE,
        ),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "k"),
    [  # laying out many pictures takes seconds
        *itertools.product(
            ("class_counts", "class_shares", "class_order", "image_statistics", "confusion"),
            (5, 12, 50),
        ),
        ("samples", 9), ("label_joint", 50), ("suspects", 5), ("errors", 5),
    ],
)  # fmt: skip
def test_figures_of_many_classes_are_neither_clipped_nor_huge(draw, name, k):
    figure = draw(*figures_of_many_classes(k)[name])
    assert SOURCE in figure.get_supxlabel()
    boxes_of_texts(figure)
    assert max(figure.canvas.get_width_height()) <= 2400
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label for label in axis.get_ticklabels() if label.get_text()]
            if not axis.get_tick_params().get("rotation"):
                boxes = [label.get_window_extent() for label in labels]
                assert not any(a.overlaps(b) for a, b in itertools.pairwise(boxes)), name
        if (legend := axes.get_legend()) is not None:
            assert len(legend.get_texts()) <= 8


def test_counts_of_many_classes_are_horizontal_bars(draw):
    names, (_, labels) = many_classes(12)
    counts = torch.bincount(labels).tolist()
    train, test = draw(*figures_of_many_classes(12)["class_counts"]).axes
    for axes in (train, test):
        assert [bar.get_width() for bar in axes.patches] == counts
        # The first class is at the top.
        assert axes.patches[0].get_window_extent().y0 > axes.patches[11].get_window_extent().y0
    assert text_of(train.get_yticklabels())[0] == names[0]
    assert text_of(train.texts)[0] == f"{counts[0]:,} ({counts[0] / sum(counts):.1%})"


def test_shares_of_many_classes_are_ranked(draw):
    given = (data_figures.class_shares, {"train": [1, 5, 2, 0, 3, 4, 1, 4]}, "abcdefgh", SOURCE)
    (axes,) = draw(*given).axes
    assert list(axes.lines[0].get_ydata()) == [n / 20 for n in (5, 4, 4, 3, 2, 1, 1)]


def test_samples_of_many_classes_are_of_some_from_the_first_to_the_last(draw):
    _, (images, labels) = many_classes(50)
    names = [f"class {k}" for k in range(50)]
    figure = draw(data_figures.samples, images, labels, names, SOURCE, columns=1)
    rows = [axes.texts[0].get_text() for axes in figure.axes if axes.texts]
    assert len(rows) == 20
    assert (rows[0], rows[-1]) == ("class 0", "class 49")
    assert "20 of 50 classes" in figure.get_supxlabel()
    shown = [int(axes.get_title()) for axes in figure.axes if axes.images]
    assert {int(labels[i]) for i in shown} == set(np.linspace(0, 49, 20).astype(int).tolist())


def test_of_many_classes_the_unusual_have_a_colour(draw):
    labels = torch.arange(9).repeat_interleave(4)
    brightness = np.repeat([0.5, 0.5, 0.9, 0.1, 0.5, 0.8, 0.2, 0.7, 0.3], 4)
    figure = draw(
        data_figures.image_statistics, brightness, np.full(36, 0.2), labels,
        [f"class {k}" for k in range(9)], [], SOURCE,
    )  # fmt: skip
    texts = text_of(figure.axes[0].get_legend().get_texts())
    coloured = [f"class {k} (4)" for k in (2, 3, 5, 6, 7, 8)]
    assert texts == ["other classes (12)", *coloured, "outlier (0)"]
    assert "the 6 of 9 classes" in figure.get_supxlabel()


def test_pictures_of_attacks_show_some_of_many_classes():
    names, (_, labels) = many_classes(12)

    class Right(torch.nn.Module):
        """Answers as often as it likes: each picture's class is its first pixel."""

        def forward(self, x):
            return 50 * torch.eye(12)[(x[:, 0, 0, 0] * 11).round().long()] + x.sum() * 0

    pixels = (labels / 11)[:, None, None, None].expand(-1, 3, 8, 8).clone()
    subject = attack_pictures.Subject(
        "net", Right(), LabelledImages(pixels, labels), names, SOURCE
    )
    rows = attack_pictures.universal_rows(subject, {"no noise": None}, 8)
    expected = np.linspace(0, 11, 8).astype(int)
    titles = [title for _, title in rows["no noise"][1:]]
    assert len(titles) == 8
    for k, title in zip(expected, titles, strict=True):
        assert title.endswith(" 100%")
        assert title.startswith(names[k][:9])


# Duplicates

TRAIN = random_part((1, 1, 1))
TEST = LabelledImages(random_part((3,), seed=1).images, torch.tensor([1, 0, 0]))
PAIRS_SPLIT = Split(TRAIN, EMPTY, TEST, CLASSES, SOURCE, "a-b", 0)
PAIRS = [Pair(1, 0, 0.0, False), Pair(0, 2, 0.012345, True), Pair(2, 1, 0.05, False)]
ROWS = rows(PAIRS, ("train", "test"), (TRAIN.labels, TEST.labels), ((), ()), CLASSES)


def test_both_images_of_a_pair_are_shown_and_conflicts_come_first_and_are_red(draw):
    shown = draw(contact_sheets.duplicates_figure, ROWS[::-1], PAIRS_SPLIT).axes[:3]
    assert [axes.get_title() for axes in shown] == [
        "train 2 cat | test 1 car\nCONFLICT, near 0.0500",
        "train 1 truck | test 0 truck\nexact",
        "train 0 car | test 2 car\nnear 0.0123, mirrored",
    ]
    styles = [(axes.title.get_color(), axes.title.get_fontweight()) for axes in shown]
    assert styles[0] == (contact_sheets.RED, "bold")
    assert contact_sheets.RED not in {colour for colour, _ in styles[1:]}
    pair = np.moveaxis(np.asarray(shown[0].images[0].get_array()), -1, 0)
    np.testing.assert_array_equal(pair[:, :, :32], TRAIN.images[2])
    np.testing.assert_array_equal(pair[:, :, -32:], TEST.images[1])


def test_the_caption_of_duplicates_states_source_and_numbers(draw):
    figure = draw(contact_sheets.duplicates_figure, ROWS, PAIRS_SPLIT, most=2)
    assert len([axes for axes in figure.axes if axes.images]) == 2
    for words in (SOURCE, "n = 3 train, 3 test", "2 of 3 pairs", "1 of all"):
        assert words in figure.get_supxlabel()


def test_long_titles_neither_overlap_nor_leave_the_figure(draw):
    changes = {"first_index": 2, "first_label": "an automobile", "conflict": "yes"}
    long_rows = [row | changes for row in ROWS * 3]
    boxes = boxes_of_texts(draw(contact_sheets.duplicates_figure, long_rows, PAIRS_SPLIT))
    for k, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:k])


def test_letters_that_the_font_lacks_bring_no_warning(tmp_path):
    counts = {"train": [3, 4], "test": [1, 2]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data_figures.class_counts(tmp_path / "a.png", counts, ["\u732b", "dog"], "photos")
