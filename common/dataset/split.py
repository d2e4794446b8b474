"""The images of one experiment."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, NamedTuple

import torch

from common.dataset.stored_images import Images, select

HASH_BLOCK = 128  # images to hash at once


class LabelledImages(NamedTuple):
    """Images, uint8 (N, 3, S, S), in memory or in a file, and labels, int64 (N,)."""

    images: Images
    labels: torch.Tensor

    def counts(self, classes: int) -> list[int]:
        """Return the number of images of each class, for labels 0 to classes - 1."""
        return torch.bincount(self.labels, minlength=classes).tolist()

    def fingerprint(self) -> str:
        """Return the first 12 hexadecimal digits of the SHA-256 of images and labels.

        The pixels of N images have 3 N S^2 bytes, the labels 8 N, so S is in it too.
        """
        digest = hashlib.sha256()
        for tensor in chain(self.images.split(HASH_BLOCK), [self.labels]):
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:12]

    def select(self, positions: torch.Tensor) -> LabelledImages:
        """Return the images and labels at `positions`, (n,)."""
        return LabelledImages(select(self.images, positions), self.labels[positions])


@dataclass(frozen=True)
class Split:
    """All images of one experiment.

    validation: empty unless a share of the train images was held out.
    classes: display names, in label order. source: a description of the source.
    fingerprint: "TRAIN-TEST": the fingerprint of the train images and labels (before the
    validation images were held out), a dash, and the fingerprint of the test part.
    train_files, test_files: the path of each image below the source; empty if the images of
    the source are not separate files.
    train_groups: of each train image, int64 (N,), equal for images that must stay together;
    None for a source with a split of its own.
    true_labels: the train labels before wrong labels were planted; None if none were planted.
    changes: a record of each change to the train images and labels of the source.
    """

    train: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    classes: tuple[str, ...]
    source: str
    fingerprint: str
    seed: int
    train_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    train_groups: torch.Tensor | None = None
    true_labels: torch.Tensor | None = None
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def image_size(self) -> int:
        """S, the width and height of each image in pixels."""
        return self.train.images.shape[-1]

    @property
    def train_fingerprint(self) -> str:
        """The fingerprint of the train part, which a file of label fixes must match."""
        return self.fingerprint.partition("-")[0]

    def record(self) -> dict[str, Any]:
        """Return source, fingerprint, counts and changes, for result files and checkpoints."""
        k = len(self.classes)
        return {
            "source": self.source,
            "fingerprint": self.fingerprint,
            "classes": list(self.classes),
            "image_size": self.image_size,
            "split_seed": self.seed,
            "train_counts": self.train.counts(k),
            "validation_counts": self.validation.counts(k),
            "test_counts": self.test.counts(k),
            **self.changes,
        }


def make_split(
    train: LabelledImages,
    test: LabelledImages,
    classes: tuple[str, ...],
    source: str,
    seed: int,
    **others: Any,
) -> Split:
    """Return the split of these images, with its fingerprint and an empty validation part.

    others: further fields of Split.
    """
    empty = LabelledImages(train.images[:0], train.labels[:0])
    fingerprint = f"{train.fingerprint()}-{test.fingerprint()}"
    return Split(train, empty, test, classes, source, fingerprint, seed, **others)
