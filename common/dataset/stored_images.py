"""Images that lie in a file because they would take too much memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import InputError, OutputError
from common.files import atomic_write


class StoredImages:
    """Images in a file, indexed like a uint8 tensor (N, 3, S, S).

    Each access maps the file, copies the images that it asks for and unmaps the file, so that
    no other image stays in memory. Indexing returns tensors; `select` returns StoredImages.
    An instance can be pickled: another process reads the same file.
    """

    dtype = torch.uint8

    def __init__(
        self, path: Path, image_size: int, images: int, positions: np.ndarray | None = None
    ) -> None:
        """Refer to `images` images in the file `path`, or to those at positions (N,)."""
        self.path, self.image_size, self.images = path, image_size, images
        self.positions = np.arange(images) if positions is None else positions

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self), 3, self.image_size, self.image_size))

    def __getitem__(self, key: Any) -> torch.Tensor:
        """Return an image (3, S, S) for a number, images (n, 3, S, S) for any other index."""
        rows = self.positions[_as_numpy(key)]
        shape = (self.images, 3, self.image_size, self.image_size)
        stored = np.memmap(self.path, np.uint8, "r", shape=shape)
        found = stored[rows]  # a copy, unless it is one image
        return torch.from_numpy(np.array(found) if found.ndim == 3 else np.asarray(found))

    def select(self, positions: torch.Tensor | slice) -> StoredImages:
        """Return the images at `positions`, (n,) or a slice, without reading them."""
        chosen = self.positions[_as_numpy(positions)]
        return StoredImages(self.path, self.image_size, self.images, chosen)

    def split(self, size: int) -> Iterator[torch.Tensor]:
        """Yield all images in order, `size` at a time, as torch.Tensor.split does."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


Images = torch.Tensor | StoredImages


def select(images: Images, positions: torch.Tensor | slice) -> Images:
    """Return the images at `positions`, (n,) or a slice; stored images stay in their file."""
    return images.select(positions) if isinstance(images, StoredImages) else images[positions]


def gather(
    blocks: Iterable[np.ndarray], images: int, image_size: int, memory: int, path: Path
) -> Images:
    """Return all images of `blocks`, uint8 (n, 3, S, S) each, in order.

    images: their number, or more. If so many would take more than `memory` bytes, they are
    written to the file `path` and stay there. Raises InputError if it can't be written.
    """
    shape = (images, 3, image_size, image_size)
    if prod(shape) <= memory:
        array, n = np.empty(shape, np.uint8), 0
        for block in blocks:
            array[n : n + len(block)] = block
            n += len(block)
        return torch.from_numpy(array[:n])
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            n = sum(file.write(np.ascontiguousarray(block).data) for block in blocks)
    except OutputError as error:
        raise InputError(
            f"--memory: the images take {prod(shape) / 2**30:.1f} GB, and {error}; make room"
            " there, or allow more --memory"
        ) from None
    return StoredImages(path, image_size, n // prod(shape[1:]))


def _as_numpy(key: Any) -> Any:
    return key.numpy() if isinstance(key, torch.Tensor) else key
