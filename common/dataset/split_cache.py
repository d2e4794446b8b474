"""The cache of drawn splits: one file split-KEY.npz for each set of options."""

from pathlib import Path

import numpy as np
import torch

from common.dataset.cache_file import read_arrays, write_arrays
from common.dataset.image_files import SIZE
from common.dataset.split import LabelledImages, Split, make_split
from common.errors import InputError


def write(path: Path, split: Split, source_digest: str) -> None:
    """Write the train and test images of a drawn split to `path`, if that is possible."""
    write_arrays(
        path,
        source_digest=np.array(source_digest),
        train_images=split.train.images.numpy(),
        train_labels=split.train.labels.numpy(),
        test_images=split.test.images.numpy(),
        test_labels=split.test.labels.numpy(),
        train_files=np.array(split.train_files, dtype="U"),
        test_files=np.array(split.test_files, dtype="U"),
    )


def read(
    path: Path, classes: tuple[str, ...], source: str, source_digest: str, seed: int
) -> Split | None:
    """Return the split in `path`, or None if the file is missing or damaged.

    Raises InputError if the split was drawn from a source with another digest.
    """
    arrays = read_arrays(path)
    try:
        drawn_from = str(arrays["source_digest"])
        train, train_files = _part(arrays, "train", len(classes))
        test, test_files = _part(arrays, "test", len(classes))
    except (TypeError, KeyError, ValueError):
        return None
    if drawn_from != source_digest:
        raise InputError(
            f"{source}: its files have changed since {path} was drawn from them; get the"
            f" earlier files back, or delete {path} to go on with these"
        )
    return make_split(train, test, classes, source, seed, train_files, test_files)


def _part(
    arrays: dict[str, np.ndarray], name: str, classes: int
) -> tuple[LabelledImages, tuple[str, ...]]:
    """Return the images and files of a part; raise ValueError if they are not as written."""
    images, labels, files = (arrays[f"{name}_{each}"] for each in ("images", "labels", "files"))
    n = len(labels)
    if (
        (images.dtype, images.shape) != (np.uint8, (n, 3, SIZE, SIZE))
        or (labels.dtype, labels.shape) != (np.int64, (n,))
        or not set(labels.tolist()) <= set(range(classes))
        or (files.dtype.kind, files.shape) not in {("U", (0,)), ("U", (n,))}
    ):
        raise ValueError("not as `write` writes it")
    part = LabelledImages(torch.from_numpy(images), torch.from_numpy(labels))
    return part, tuple(files.tolist())
