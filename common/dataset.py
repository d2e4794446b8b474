"""From a source to one Split in memory: drawn to counts, cached, validation held out."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from common import sources
from common.download import DownloadError
from common.options import DEFAULT_CLASSES, ROOT, InputError
from common.results import replacing

# The reports' data set; its classes have these counts in label order.
COUNTS = {"train": (4949, 466, 210), "test": (551, 51, 23)}
# A dry run's counts: of the first class, and of each other.
DRY_COUNTS = {"train": (60, 20), "test": (20, 6)}
DISPLAY_NAMES = {"automobile": "car"}
Counts = Sequence[int | str]


class Part(NamedTuple):
    """Images uint8 (N, 3, 32, 32) and labels int64 (N,)."""

    images: torch.Tensor
    labels: torch.Tensor

    def counts(self, classes: int) -> list[int]:
        """Images per class, for labels 0 to classes - 1."""
        return torch.bincount(self.labels, minlength=classes).tolist()


@dataclass(frozen=True)
class Split:
    """All images of one experiment. `validation` is empty unless a share was held out.

    classes: names for people, in label order. source: where the images come from.
    fingerprint: of the train images and labels (with validation), a dash, and of the test's.
    """

    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    source: str
    fingerprint: str
    seed: int


def load(
    data: str | None = None,
    *,
    classes: Sequence[str] = DEFAULT_CLASSES,
    train_counts: Counts | None = None,
    test_counts: Counts | None = None,
    validation: float = 0.0,
    seed: int = 0,
    dry_run: bool = False,
    cache: Path = ROOT / "data",
) -> Split:
    """The Split that these options describe, from the cache in `cache` where it holds it.

    Without `data`, CIFAR-10, and synthetic images with a loud line on stderr where that can't
    be downloaded. Counts are images per class, "full" for all; `["full"]` stands for each
    class. Raises InputError for a source, class, count or share that can't be had.
    """
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise InputError(f"--classes {' '.join(classes)}: name two or more different classes")
    given = {"train": train_counts, "test": test_counts}
    try:
        source = sources.find(
            data or "cifar10", classes, cache, may_download=bool(data) or not dry_run
        )
        train, test, fingerprint = _prepared(source, classes, given, seed, dry_run, cache)
    except DownloadError as error:
        if data:
            raise InputError(f"--data {data}: {error}; or take --data synthetic") from None
        print(f"*** {error}: GOING ON WITH SYNTHETIC IMAGES, NOT CIFAR-10 ***", file=sys.stderr)
        source = sources.find("synthetic", classes, cache)
        train, test, fingerprint = _prepared(source, classes, given, seed, dry_run, cache)
    train, held_out = _hold_out(train, validation, seed)
    names = tuple(DISPLAY_NAMES.get(name, name) for name in classes)
    return Split(train, held_out, test, names, source.name, fingerprint, seed)


def _prepared(
    source: sources.Source,
    classes: Sequence[str],
    given: dict[str, Counts | None],
    seed: int,
    dry_run: bool,
    cache: Path,
) -> tuple[Part, Part, str]:
    """Train part, test part and fingerprint, from the cache or drawn and cached."""
    counts = {
        part: _wanted_counts(part, given[part], len(classes), source.finished, dry_run)
        for part in sources.PARTS
    }
    key = json.dumps([source.key, list(classes), counts, seed, dry_run])
    path = cache / f"split-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    cached = _read_cache(path)
    if cached is not None:
        return cached
    pool = source.read()
    arrays = {}
    for number, part in enumerate(sources.PARTS):
        labels = pool.labels[part]
        supply = np.bincount(labels[labels >= 0], minlength=len(classes)).tolist()
        wanted = [
            have if count == "full" else min(count, have) if dry_run else count
            for count, have in zip(counts[part], supply, strict=True)
        ]
        for name, want, have in zip(classes, wanted, supply, strict=True):
            if not 0 < want <= have:
                shortage = f"{want} images of {name} asked for, {source.name} has {have}"
                raise InputError(f"--{part}-counts: {shortage}")
        chosen = _draw(labels, wanted, [seed, number], keep_order=source.finished)
        arrays[f"{part}_images"] = pool.take(part, chosen).transpose(0, 3, 1, 2).copy()
        arrays[f"{part}_labels"] = labels[chosen]
    fingerprint = _fingerprint(arrays)
    with replacing(path) as unfinished:
        np.savez(unfinished, fingerprint=fingerprint, **arrays)
    return *_parts(arrays), fingerprint


def _wanted_counts(
    part: str, given: Counts | None, classes: int, finished: bool, dry_run: bool
) -> list[int | str]:
    option = f"--{part}-counts"
    if dry_run and given is None:
        first, other = DRY_COUNTS[part]
        return [first] + [other] * (classes - 1)
    if (given is None and finished) or list(given or ()) == ["full"]:
        return ["full"] * classes
    if given is None and classes != len(COUNTS[part]):
        raise InputError(f"--classes names {classes} classes: give {option} as many, or full")
    counts = list(given or COUNTS[part])
    if len(counts) != classes:
        raise InputError(f"{option}: {len(counts)} numbers for {classes} classes")
    return counts


def _draw(
    labels: np.ndarray, wanted: Sequence[int], seed: Sequence[int], keep_order: bool
) -> np.ndarray:
    """Positions of `wanted` images of each class, shuffled unless their order is to be kept.

    A class's larger draw contains its smaller one, and no class's draw depends on another's.
    """
    drawn = []
    for label, n in enumerate(wanted):
        of_class = np.flatnonzero(labels == label)
        drawn.append(np.random.default_rng([*seed, label]).permutation(of_class)[:n])
    chosen = np.concatenate(drawn)
    if keep_order:
        return np.sort(chosen)
    return np.random.default_rng([*seed, len(wanted)]).permutation(chosen)


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    """Of train and of test, 12 hex digits of the SHA-256 of images and labels."""
    halves = []
    for part in sources.PARTS:
        digest = hashlib.sha256()
        for kind in ("images", "labels"):
            digest.update(np.ascontiguousarray(arrays[f"{part}_{kind}"]).data)
        halves.append(digest.hexdigest()[:12])
    return "-".join(halves)


def _parts(arrays: dict[str, np.ndarray]) -> tuple[Part, Part]:
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return (
        Part(tensors["train_images"], tensors["train_labels"]),
        Part(tensors["test_images"], tensors["test_labels"]),
    )


def _read_cache(path: Path) -> tuple[Part, Part, str] | None:
    """What the file holds; None where there is none or its bytes are damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        fingerprint = str(arrays.pop("fingerprint"))
        parts = _parts(arrays)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (*parts, fingerprint) if _fingerprint(arrays) == fingerprint else None


def _hold_out(train: Part, share: float, seed: int) -> tuple[Part, Part]:
    """A stratified `share` of the train part apart from the rest, each in its first order."""
    positions = np.arange(len(train.labels))
    if share == 0:
        return train, Part(train.images[:0], train.labels[:0])
    try:
        rest, held_out = train_test_split(
            positions, test_size=share, random_state=seed, stratify=train.labels.numpy()
        )
    except ValueError as error:
        raise InputError(f"--validation {share}: {error}") from None
    missing = set(train.labels.tolist()) - set(train.labels[held_out].tolist())
    if missing:
        raise InputError(f"--validation {share}: too small to hold an image of each class")
    rest, held_out = np.sort(rest), np.sort(held_out)
    return (
        Part(train.images[rest], train.labels[rest]),
        Part(train.images[held_out], train.labels[held_out]),
    )
