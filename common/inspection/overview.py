"""Everything that inspect_data.py measures without training a network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from common.dataset import duplicates
from common.dataset.split import LabelledImages, Split
from common.inspection import data_statistics
from common.inspection.data_statistics import RunsTest, SignificanceTest, image_statistics


@dataclass(frozen=True)
class Overview:
    """Statistics of the parts of a split.

    counts: images per class. channels: mean and standard deviation of red, green and blue.
    brightness, contrast: of each train image, (N,). order: whether the train labels lie in
    random order. similarity: tests of whether the test images resemble the train images.
    outliers: positions of unusual train images, the most extreme first.
    """

    counts: dict[str, list[int]]
    channels: dict[str, dict[str, list[float]]]
    brightness: np.ndarray
    contrast: np.ndarray
    order: RunsTest
    similarity: dict[str, SignificanceTest]
    outliers: dict[str, np.ndarray]

    @property
    def largest_class(self) -> int:
        """The label of the largest class of the train images."""
        return int(np.argmax(self.counts["train"]))

    @property
    def constant_accuracy(self) -> float:
        """The test accuracy of predicting the largest class for every image."""
        return self.counts["test"][self.largest_class] / sum(self.counts["test"])

    def record(self) -> dict[str, Any]:
        """Return the numbers, for a result file."""
        return {
            "always_largest_class": self.constant_accuracy,
            "channels": self.channels,
            "order": self.order._asdict(),
            "train_and_test": {name: test._asdict() for name, test in self.similarity.items()},
            "outliers": {kind: found.tolist() for kind, found in self.outliers.items()},
        }


def describe(parts: dict[str, LabelledImages], classes: int, device: torch.device) -> Overview:
    """Return the Overview of parts that have images: train, test, and perhaps validation."""
    counts = {name: part.counts(classes) for name, part in parts.items()}
    moments = {
        name: data_statistics.moments(part.images, device) for name, part in parts.items()
    }
    train, test = (image_statistics(moments[part]) for part in ("train", "test"))
    shares = data_statistics.shares_test(counts["train"], counts["test"])
    similarity = {"class shares, chi-square": shares}
    for kind, values in train.items():
        comparison = data_statistics.same_distribution_test(values, test[kind])
        similarity[f"{kind}, Kolmogorov-Smirnov"] = comparison
    return Overview(
        counts=counts,
        channels={name: data_statistics.channel_statistics(m) for name, m in moments.items()},
        **train,
        order=data_statistics.runs_test(parts["train"].labels.tolist()),
        similarity=similarity,
        outliers={kind: data_statistics.outliers(values) for kind, values in train.items()},
    )


def find_duplicates(split: Split) -> list[dict[str, str | int | float]]:
    """Return the rows of all duplicates between train and test images, and within train."""
    parts = {
        "train": (split.train.labels, split.train_files),
        "test": (split.test.labels, split.test_files),
    }
    rows = []
    for names, pairs in (
        (("train", "test"), duplicates.between(split.train.images, split.test.images)),
        (("train", "train"), duplicates.within(split.train.images)),
    ):
        labels, files = zip(*(parts[name] for name in names), strict=True)
        rows += duplicates.rows(pairs, names, labels, files, split.classes)
    return rows
