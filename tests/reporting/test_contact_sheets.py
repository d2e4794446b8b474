from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import EMPTY, random_part
from PIL import Image

from common.dataset.duplicates import Pair, rows
from common.dataset.split import LabelledImages, Split
from common.reporting import contact_sheets, figures

CLASSES = ("car", "truck", "cat")
TRAIN = random_part((1, 1, 1))
TEST = LabelledImages(random_part((3,), seed=1).images, torch.tensor([1, 0, 0]))
SPLIT = Split(TRAIN, EMPTY, TEST, CLASSES, "a source with a name", "a-b", 0)
PAIRS = [Pair(1, 0, 0.0, False), Pair(0, 2, 0.012345, True), Pair(2, 1, 0.05, False)]
ROWS = rows(PAIRS, ("train", "test"), (TRAIN.labels, TEST.labels), ((), ()), CLASSES)


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw the figure of duplicates, check that its file is a PNG, and return the figure."""

    def draw(pairs, **options):
        saved = []
        save = figures.Figure.savefig
        monkeypatch.setattr(
            figures.Figure, "savefig", lambda self, path: saved.append(self) or save(self, path)
        )
        path = tmp_path / "figures" / "duplicates.png"
        assert contact_sheets.duplicates_figure(path, pairs, SPLIT, **options) == path
        with Image.open(path) as image:
            assert image.format == "PNG"
        return saved[0]

    return draw


def titles(figure):
    return [axes.get_title() for axes in figure.axes if axes.images]


def test_conflicts_come_first_and_are_red(draw):
    figure = draw(ROWS[::-1])
    assert titles(figure) == [
        "train 2 cat | test 1 car\nCONFLICT, near 0.0500",
        "train 1 truck | test 0 truck\nexact",
        "train 0 car | test 2 car\nnear 0.0123, mirrored",
    ]
    styles = [(axes.title.get_color(), axes.title.get_fontweight()) for axes in figure.axes[:3]]
    assert styles[0] == (contact_sheets.RED, "bold")
    assert contact_sheets.RED not in {colour for colour, _ in styles[1:]}


def test_both_images_of_a_pair_are_shown(draw):
    axes = draw(ROWS).axes[0]
    shown = torch.from_numpy(np.array(axes.images[0].get_array())).permute(2, 0, 1)
    assert torch.equal(shown[:, :, :32], TRAIN.images[2])
    assert torch.equal(shown[:, :, -32:], TEST.images[1])


def test_caption_states_source_and_numbers(draw):
    figure = draw(ROWS, most=2)
    assert len(titles(figure)) == 2
    caption = figure.get_supxlabel()
    for words in ("a source with a name", "n = 3 train, 3 test", "2 of 3 pairs", "1 of all"):
        assert words in caption


def test_long_titles_neither_overlap_nor_leave_the_figure(draw):
    changes = {"first_index": 2, "first_label": "an automobile", "conflict": "yes"}
    figure = draw([row | changes for row in ROWS * 3])
    width, height = figure.canvas.get_width_height()
    texts = [axes.title for axes in figure.axes] + [figure._suptitle, figure._supxlabel]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    for k, box in enumerate(boxes):
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
        assert not any(box.overlaps(other) for other in boxes[:k])
