"""The images of one experiment, in memory."""

import hashlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch


class LabelledImages(NamedTuple):
    """Images, uint8 (N, 3, S, S), and labels, int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def counts(self, classes: int) -> list[int]:
        """Return the number of images of each class, for labels 0 to classes - 1."""
        return torch.bincount(self.labels, minlength=classes).tolist()

    def fingerprint(self) -> str:
        """Return the first 12 hexadecimal digits of the SHA-256 of images and labels."""
        digest = hashlib.sha256()
        for tensor in self:
            digest.update(tensor.contiguous().numpy().data)
        return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Split:
    """All images of one experiment.

    validation: empty unless a share of the train images was held out.
    classes: display names, in label order. source: a description of the source.
    fingerprint: "TRAIN-TEST": the fingerprint of the train images and labels (before the
    validation images were held out), a dash, and the fingerprint of the test part.
    train_files, test_files: the path of each image below the source; empty if the images of
    the source are not separate files.
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
    true_labels: torch.Tensor | None = None
    changes: dict[str, Any] = field(default_factory=dict)

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
    train_files: tuple[str, ...] = (),
    test_files: tuple[str, ...] = (),
) -> Split:
    """Return the split of these images, with its fingerprint and an empty validation part."""
    empty = LabelledImages(train.images[:0], train.labels[:0])
    fingerprint = f"{train.fingerprint()}-{test.fingerprint()}"
    return Split(
        train, empty, test, classes, source, fingerprint, seed, train_files, test_files
    )
