"""The cache of drawn splits: one file split-KEY.npz for each set of options.

Images that take too much memory lie beside it in split-KEY.images (`stored_images`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.dataset.cache_file import read_arrays, write_arrays
from common.dataset.split import LabelledImages, Split, make_split
from common.dataset.stored_images import StoredImages
from common.errors import InputError


def write(path: Path, split: Split, source_digest: str) -> None:
    """Write the train and test images of a drawn split to `path`, if that is possible."""
    arrays = {}
    for name, part in (("train", split.train), ("test", split.test)):
        if isinstance(part.images, StoredImages):
            arrays[f"{name}_positions"] = part.images.positions
        else:
            arrays[f"{name}_images"] = part.images.numpy()
        arrays[f"{name}_labels"] = part.labels.numpy()
    if split.train_groups is not None:
        arrays["train_groups"] = split.train_groups.numpy()
    write_arrays(
        path,
        **arrays,
        source_digest=np.array(source_digest),
        fingerprint=np.array(split.fingerprint),
        image_size=np.array(split.image_size),
        train_files=np.array(split.train_files, dtype="U"),
        test_files=np.array(split.test_files, dtype="U"),
        changes=np.array(json.dumps(split.changes)),
    )


def read(
    path: Path,
    store: Path,
    classes: tuple[str, ...],
    source: str,
    source_digest: str,
    seed: int,
) -> Split | None:
    """Return the split in `path`, or None if the file is missing or damaged.

    store: the file of its images, if they take too much memory. Raises InputError if the split
    was drawn from a source with another digest.
    """
    arrays = read_arrays(path)
    try:
        drawn_from, fingerprint = (str(arrays[k]) for k in ("source_digest", "fingerprint"))
        train = _part(arrays, "train", store, len(classes))
        test = _part(arrays, "test", store, len(classes))
        others = _others(arrays, len(train.labels), len(test.labels))
        if drawn_from == source_digest:
            split = make_split(train, test, classes, source, seed, **others)
            return split if split.fingerprint == fingerprint else None
    except (OSError, TypeError, KeyError, ValueError, IndexError):
        return None
    raise InputError(
        f"{source}: its files have changed since {path} was drawn from them; get the"
        f" earlier files back, or delete {path} to go on with these"
    )


def _part(
    arrays: dict[str, np.ndarray], name: str, store: Path, classes: int
) -> LabelledImages:
    """Return the images and labels of a part; raise ValueError if they are not as written."""
    labels, size = arrays[f"{name}_labels"], int(arrays["image_size"])
    n = len(labels)
    _require((labels.dtype, labels.shape) == (np.int64, (n,)))
    _require(set(labels.tolist()) <= set(range(classes)))
    if f"{name}_positions" in arrays:
        positions = arrays[f"{name}_positions"]
        stored, rest = divmod(store.stat().st_size, 3 * size * size)
        _require((positions.dtype, positions.shape, rest) == (np.int64, (n,), 0))
        _require(bool(((positions >= 0) & (positions < stored)).all()))
        images = StoredImages(store, size, stored, positions)
    else:
        array = arrays[f"{name}_images"]
        _require((array.dtype, array.shape) == (np.uint8, (n, 3, size, size)))
        images = torch.from_numpy(array)
    return LabelledImages(images, torch.from_numpy(labels))


def _others(arrays: dict[str, np.ndarray], train: int, test: int) -> dict[str, Any]:
    """Return the other fields of a split with so many train and test images."""
    fields: dict[str, Any] = {"changes": json.loads(str(arrays["changes"]))}
    for name, n in (("train_files", train), ("test_files", test)):
        names = arrays[name]
        _require(names.dtype.kind == "U" and names.shape in ((0,), (n,)))
        fields[name] = tuple(names.tolist())
    if "train_groups" in arrays:
        groups = arrays["train_groups"]
        _require((groups.dtype, groups.shape) == (np.int64, (train,)))
        fields["train_groups"] = torch.from_numpy(groups)
    return fields


def _require(condition: bool) -> None:
    """Raise ValueError unless the condition holds."""
    if not condition:
        raise ValueError("not as `write` writes it")
