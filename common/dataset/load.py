"""The loader: draw a split from a source, change its train labels, hold out images."""

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from common.dataset import DEFAULT_CLASSES, duplicates, sources, split_cache
from common.dataset.label_fixes import read_fixes
from common.dataset.label_noise import plant_noise
from common.dataset.split import LabelledImages, Split, make_split
from common.errors import DownloadError, InputError
from common.files import ROOT

# The images of each class in the reports' data set, in label order.
COUNTS = {"train": (4949, 466, 210), "test": (551, 51, 23)}
# In a dry run: the images of the first class, and of each other class.
DRY_COUNTS = {"train": (60, 20), "test": (20, 6)}
DISPLAY_NAMES = {"automobile": "car"}
Counts = Sequence[int | str]


def load(
    data: str | None = None,
    *,
    classes: Sequence[str] = DEFAULT_CLASSES,
    train_counts: Counts | None = None,
    test_counts: Counts | None = None,
    validation: float = 0.0,
    seed: int = 0,
    label_noise: Sequence[tuple[str, float]] = (),
    label_noise_seed: int = 0,
    label_fixes: Path | None = None,
    accept_above: float | None = None,
    drop_leaks: bool = False,
    dry_run: bool = False,
    cache: Path = ROOT / "data",
) -> Split:
    """Return the split that the options describe, drawn from a source or read from the cache.

    The train part is changed in this order: wrong labels are planted, label fixes are applied,
    images that leak into the test part are dropped, and the validation part is held out.

    data: the source (see `sources.find`). None: CIFAR-10, or synthetic images and a warning on
    stderr if CIFAR-10 cannot be downloaded.
    train_counts, test_counts: images per class; "full" takes all images of a class, and
    ["full"] all images of every class.
    validation: the share of the train images to hold out, stratified by class.
    label_noise: (class, share of its labels to replace by wrong ones).
    label_fixes, accept_above: see `label_fixes.read_fixes`.
    cache: the folder for downloads and drawn splits. If it can't be written, one line on
    stderr says so, and splits are drawn again each time.

    A file in `cache` that was changed in any way is drawn again. If the course's pickles were
    changed after a split was drawn from them, that split is refused; changed image files make
    another split, with another fingerprint. Raises InputError for a source, class, count,
    share or file of fixes that cannot be used.
    """
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise InputError(f"--classes {' '.join(classes)}: name two or more different classes")
    for name in classes:
        if not name.isprintable():  # figures and checkpoints hold the names
            raise InputError(f"--classes {name}: has control characters; rename the class")
    counts = {"train": train_counts, "test": test_counts}
    may_download = bool(data) or not dry_run
    try:
        source = sources.find(data or "cifar10", classes, cache, may_download)
        split = _cached_split(source, classes, counts, seed, dry_run, cache)
    except DownloadError as error:
        if data:
            raise InputError(f"--data {data}: {error}; or use --data synthetic") from None
        print(f"*** GOING ON WITH SYNTHETIC IMAGES, NOT CIFAR-10: {error} ***", file=sys.stderr)
        source = sources.find("synthetic", classes, cache)
        split = _cached_split(source, classes, counts, seed, dry_run, cache)
    if label_noise:
        split = _with_label_noise(split, classes, label_noise, label_noise_seed)
    if label_fixes:
        split = _with_label_fixes(split, label_fixes, accept_above)
    elif accept_above is not None:
        raise InputError("--accept-above: accepts rows of --label-fixes FILE; add that option")
    if drop_leaks:
        leaks = duplicates.leaks(split.train.images, split.test.images).tolist()
        split = _with_train_labels(split, split.train.labels, leaks, leaks_dropped=len(leaks))
    return _hold_out(split, validation)


def _cached_split(
    source: sources.Source,
    classes: Sequence[str],
    counts: dict[str, Counts | None],
    seed: int,
    dry_run: bool,
    cache: Path,
) -> Split:
    """Return the split from the cache, or draw it and write it to the cache, if possible."""
    counts = {
        part: _requested_counts(part, counts[part], len(classes), source.is_presplit, dry_run)
        for part in sources.PARTS
    }
    key = json.dumps([source.key, list(classes), counts, seed, dry_run])
    path = cache / f"split-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    names = tuple(DISPLAY_NAMES.get(name, name) for name in classes)
    split = split_cache.read(path, names, source.name, source.digest, seed)
    if split is None:
        pool = source.read()
        (train, train_files), (test, test_files) = (
            _draw_part(source, pool, part, classes, counts[part], seed, dry_run)
            for part in sources.PARTS
        )
        split = make_split(train, test, names, source.name, seed, train_files, test_files)
        split_cache.write(path, split, source.digest)
    return split


def _draw_part(
    source: sources.Source,
    pool: sources.Pool,
    part: str,
    classes: Sequence[str],
    counts: Sequence[int | str],
    seed: int,
    dry_run: bool,
) -> tuple[LabelledImages, tuple[str, ...]]:
    """Return `counts` random images of each class, in random order, and their files."""
    labels = pool.labels[part]
    available = np.bincount(labels[labels >= 0], minlength=len(classes)).tolist()
    requested = [
        n if count == "full" else min(count, n) if dry_run else count
        for count, n in zip(counts, available, strict=True)
    ]
    for name, count, n in zip(classes, requested, available, strict=True):
        if not 0 < count <= n:
            shortage = f"{count} images of {name} requested, {source.name} has {n}"
            raise InputError(f"--{part}-counts: {shortage}")
    # A larger draw of a class contains a smaller one, and does not depend on other classes.
    seeds = [seed, sources.PARTS.index(part)]
    drawn = [
        np.random.default_rng([*seeds, k]).permutation(np.flatnonzero(labels == k))[:n]
        for k, n in enumerate(requested)
    ]
    chosen = np.random.default_rng([*seeds, len(classes)]).permutation(np.concatenate(drawn))
    if source.is_presplit:
        chosen.sort()
    pixels = pool.read_images(part, chosen).transpose(0, 3, 1, 2).copy()
    images = LabelledImages(torch.from_numpy(pixels), torch.from_numpy(labels[chosen]))
    return images, tuple(pool.files[part][i] for i in chosen) if pool.files else ()


def _requested_counts(
    part: str, counts: Counts | None, classes: int, is_presplit: bool, dry_run: bool
) -> list[int | str]:
    """Return one count for each class: a number, or "full"."""
    option = f"--{part}-counts"
    if dry_run and counts is None:
        first, other = DRY_COUNTS[part]
        return [first] + [other] * (classes - 1)
    if (counts is None and is_presplit) or list(counts or ()) == ["full"]:
        return ["full"] * classes
    if counts is None and classes != len(COUNTS[part]):
        raise InputError(f"--classes names {classes} classes: give {option} as many, or full")
    counts = list(counts or COUNTS[part])
    if len(counts) != classes:
        raise InputError(f"{option}: {len(counts)} numbers for {classes} classes")
    return counts


def _with_label_noise(
    split: Split, classes: Sequence[str], shares: Sequence[tuple[str, float]], seed: int
) -> Split:
    """Return the split with wrong labels planted in its train part."""
    label_of = {name: k for names in (classes, split.classes) for k, name in enumerate(names)}
    share_of: dict[int, float] = {}
    for name, share in shares:
        if name not in label_of:
            known = ", ".join(split.classes)
            raise InputError(f"--label-noise {name}: no such class; the classes are {known}")
        if label_of[name] in share_of:
            raise InputError(f"--label-noise {name}: give one share for each class")
        share_of[label_of[name]] = share
    true = split.train.labels
    noisy = plant_noise(true, list(share_of.items()), len(classes), seed)
    planted = torch.bincount(true[noisy != true], minlength=len(classes)).tolist()
    record = {"shares": {split.classes[k]: share for k, share in share_of.items()}}
    record |= {"seed": seed, "planted": dict(zip(split.classes, planted, strict=True))}
    split = _with_train_labels(replace(split, true_labels=true), noisy, label_noise=record)
    _require_every_class(split, "--label-noise")
    return split


def _with_label_fixes(split: Split, path: Path, accept_above: float | None) -> Split:
    """Return the split with the label fixes that the user accepted in the file `path`."""
    relabelled, dropped = read_fixes(path, split, accept_above)
    labels = split.train.labels.clone()
    for i, label in relabelled.items():
        labels[i] = label
    record = {"file": str(path), "accept_above": accept_above}
    record |= {"relabelled": len(relabelled), "dropped": len(dropped)}
    split = _with_train_labels(split, labels, dropped, label_fixes=record)
    _require_every_class(split, f"--label-fixes {path}")
    return split


def _require_every_class(split: Split, option: str) -> None:
    """Raise InputError if a class has no train image."""
    for name, n in zip(split.classes, split.train.counts(len(split.classes)), strict=True):
        if n == 0:
            raise InputError(f"{option}: leaves no image with the label {name}")


def _with_train_labels(
    split: Split, labels: torch.Tensor, dropped: Sequence[int] = (), **record: Any
) -> Split:
    """Return the split with other train labels, without the train images at `dropped`."""
    keep = torch.ones(len(labels), dtype=torch.bool)
    keep[list(dropped)] = False
    split = replace(split, train=split.train._replace(labels=labels))
    split = _with_train_images(split, keep.nonzero().flatten())
    fingerprint = f"{split.train.fingerprint()}-{split.fingerprint.partition('-')[2]}"
    return replace(split, fingerprint=fingerprint, changes=split.changes | record)


def _with_train_images(split: Split, positions: torch.Tensor) -> Split:
    """Return the split with only the train images at `positions`; the fingerprint stays."""
    return replace(
        split,
        train=LabelledImages(*(tensor[positions] for tensor in split.train)),
        train_files=tuple(split.train_files[i] for i in positions) if split.train_files else (),
        true_labels=None if split.true_labels is None else split.true_labels[positions],
    )


def _hold_out(split: Split, share: float) -> Split:
    """Return the split with a stratified `share` of its train part held out, in order."""
    if share == 0:
        return split
    images, labels = split.train
    positions = np.arange(len(labels))
    try:
        rest, held_out = train_test_split(
            positions, test_size=share, random_state=split.seed, stratify=labels.numpy()
        )
    except ValueError as error:
        raise InputError(f"--validation {share}: {error}") from None
    if set(labels.tolist()) - set(labels[held_out].tolist()):
        raise InputError(f"--validation {share}: too small to hold an image of each class")
    rest, held_out = np.sort(rest), np.sort(held_out)
    validation = LabelledImages(images[held_out], labels[held_out])
    return replace(_with_train_images(split, torch.from_numpy(rest)), validation=validation)
