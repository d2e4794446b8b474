"""The cache of drawn splits: one file split-KEY.npz for each set of options."""

import zipfile
from pathlib import Path

import numpy as np
import torch

from common.dataset.split import LabelledImages, Split, make_split
from common.files import atomic_write


def write(path: Path, split: Split) -> None:
    """Write the train and test images of a drawn split, and its fingerprint, to `path`."""
    with atomic_write(path) as temporary:
        np.savez(
            temporary,
            fingerprint=split.fingerprint,
            train_images=split.train.images.numpy(),
            train_labels=split.train.labels.numpy(),
            test_images=split.test.images.numpy(),
            test_labels=split.test.labels.numpy(),
            train_files=np.array(split.train_files, dtype="U"),
            test_files=np.array(split.test_files, dtype="U"),
        )


def read(path: Path, classes: tuple[str, ...], source: str, seed: int) -> Split | None:
    """Return the split in `path`, or None if the file is missing or damaged.

    A file counts as damaged if its images and labels do not match its fingerprint.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        fingerprint = str(arrays.pop("fingerprint"))
        files = {key: tuple(arrays.pop(key).tolist()) for key in ("train_files", "test_files")}
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        train = LabelledImages(tensors["train_images"], tensors["train_labels"])
        test = LabelledImages(tensors["test_images"], tensors["test_labels"])
        split = make_split(train, test, classes, source, seed, **files)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    return split if split.fingerprint == fingerprint else None
