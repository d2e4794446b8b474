from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import EMPTY, random_part

from common.dataset.split import Split
from common.reporting.data_tables import split_text

TRAIN = random_part((3, 2, 2))
SPLIT = Split(TRAIN, EMPTY, EMPTY, ("car", "truck", "cat"), "a source", "a-b", 0)
NOISE = {"planted": {"car": 6, "truck": 0, "cat": 5}, "seed": 3}
FIXES = {"file": "fixes.csv", "relabelled": 2, "dropped": 1}
NOISE_LINE = "Wrong labels planted: 6 of car, 5 of cat (seed 3)"
FIXES_LINE = "Label fixes: 2 relabelled, 1 dropped (fixes.csv)"


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, []),
        ({"label_noise": NOISE}, [NOISE_LINE]),
        ({"label_fixes": FIXES}, [FIXES_LINE]),
        (
            {"label_noise": NOISE, "label_fixes": FIXES},
            [NOISE_LINE, FIXES_LINE, "Wrong labels left: 3"],
        ),
        ({"leaks_dropped": 2}, ["Train images left out as duplicates of test images: 2"]),
    ],
)
def test_changes_of_the_train_labels_are_printed(changes, lines):
    true = torch.tensor([1, 1, 1, 1, 1, 2, 2])  # three labels differ
    split = replace(SPLIT, changes=changes, true_labels=true)
    expected = ["Images: a source", "Fingerprint: a-b", *lines]
    assert split_text(split).splitlines() == expected
