"""What is asked of a source of images, what a source is, and all its images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from common.dataset import DEFAULT_CLASSES
from common.dataset.stored_images import Images
from common.errors import InputError
from common.terminal import printable

PARTS = ("train", "test")
ALL = ("all",)


@dataclass(frozen=True)
class Request:
    """Which images of a source are asked for, as the command line has it.

    classes: names in label order, ("all",), or None for the source's own. image_size: S, or
    None for images that have 32 pixels already. test_share, groups: see `folders`; None where
    not given. memory: bytes that images may take before they are left in a file. seed: of
    the split. cache: the folder for downloads.
    """

    classes: tuple[str, ...] | None
    image_size: int | None
    test_share: float | None
    groups: Path | None
    skip_damaged: bool
    memory: int
    seed: int
    dry_run: bool
    cache: Path

    def classes_of(
        self, every: Sequence[str], default: Sequence[str] = DEFAULT_CLASSES
    ) -> tuple[str, ...]:
        """Return the classes that are asked for, of a source that has the classes `every`."""
        if self.classes is None:
            return tuple(default)
        return tuple(every) if self.classes == ALL else self.classes


@dataclass(frozen=True)
class Pool:
    """All images of a source, from which a split is drawn.

    labels: part -> int64 (N,), the index of each image's class among the requested classes,
    or -1 if its class was not requested.
    read_images: (part, positions (n,)) -> uint8 (n, S', S', 3), at the source's own size; or
    None, and then images: of both parts at the requested size, (M, 3, S, S), and rows: part ->
    the position of each image in `images`, (N,).
    files: part -> the path of each image below the source; None if the images are not
    separate files.
    groups: of each train image, int64 (N,): images that must stay together; None if the source
    has a split of its own. changes: see `Split`.
    """

    labels: dict[str, np.ndarray]
    read_images: Callable[[str, np.ndarray], np.ndarray] | None = None
    images: Images | None = None
    rows: dict[str, np.ndarray] | None = None
    files: dict[str, list[str]] | None = None
    groups: np.ndarray | None = None
    changes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """A source that was found, but not read.

    name: a description for reports. key: a string that is found without reading the images,
    and that changes when they change, except for sources with a digest. classes: the requested
    classes. read: (file for images that take too much memory) -> Pool. has_files: whether its
    images are separate files. is_unsplit: whether it has no split into train and test of its
    own. is_presplit: its parts are a finished split, which is kept whole and in order.
    is_cifar10: whether it is CIFAR-10, or stands in for it. digest: the SHA-256 of files that
    are never meant to change, or empty.
    """

    name: str
    key: str
    classes: tuple[str, ...]
    read: Callable[[Path], Pool]
    has_files: bool = False
    is_unsplit: bool = False
    is_presplit: bool = False
    is_cifar10: bool = False
    digest: str = ""


def class_indices(names: Sequence[str], classes: Sequence[str], source: str) -> np.ndarray:
    """Return the index of each name in `classes`, or -1; int64 (len(names),).

    names: the class names of a source. Raises InputError if a class is not among them.
    """
    for name in classes:
        if name not in names:
            raise InputError(
                f"--classes {name}: {source} has no such class; it has {', '.join(names)}"
            )
    return np.array([classes.index(n) if n in classes else -1 for n in names], dtype=np.int64)


def require_printable(classes: Sequence[str]) -> None:
    """Raise InputError for a class name that figures and checkpoints can't hold."""
    for name in classes:
        if not name.isprintable():
            raise InputError(
                f"--classes {printable(name)}: has control characters; rename the class"
            )
