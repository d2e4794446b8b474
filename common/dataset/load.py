"""The loader: draw a split from a source, change its train labels, hold out images."""

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from common.dataset import duplicates, sources, stratified
from common.dataset.class_counts import Counts
from common.dataset.draw import draw
from common.dataset.label_fixes import read_fixes
from common.dataset.label_noise import plant_noise
from common.dataset.pool import ALL, Request, require_printable
from common.dataset.split import Split
from common.errors import DownloadError, InputError
from common.files import ROOT

MEMORY = 2 << 30  # bytes


def load(
    data: str | None = None,
    *,
    classes: Sequence[str] | None = None,
    image_size: int | None = None,
    train_counts: Counts | None = None,
    test_counts: Counts | None = None,
    test_share: float | None = None,
    groups: Path | None = None,
    skip_damaged: bool = False,
    validation: float = 0.0,
    seed: int = 0,
    label_noise: Sequence[tuple[str, float]] = (),
    label_noise_seed: int = 0,
    label_fixes: Path | None = None,
    accept_above: float | None = None,
    drop_leaks: bool = False,
    dry_run: bool = False,
    memory: int = MEMORY,
    cache: Path = ROOT / "data",
) -> Split:
    """Return the split that the options describe, drawn from a source or read from the cache.

    The train part is changed in this order: wrong labels are planted, label fixes are applied,
    images that leak into the test part are dropped, and the validation part is held out.

    data: the source (see `sources.find`). None: CIFAR-10, or synthetic images and a warning on
    stderr if CIFAR-10 cannot be downloaded.
    classes: names in label order, ["all"], or None: those of the exercise, or of a folder of
    images its own, the largest first.
    image_size: S; images of another size are resized. None: all images have 32 pixels.
    train_counts, test_counts: see `class_counts`.
    test_share, groups: for a folder without a split of its own (see `folders`), by default 0.2
    and none.
    skip_damaged: leave image files that can't be read out, instead of refusing them.
    validation: the share of the train images to hold out, stratified by class.
    label_noise: (class, share of its labels to replace by wrong ones).
    label_fixes, accept_above: see `label_fixes.read_fixes`.
    memory: bytes; images that would take more stay in a file.
    cache: the folder for downloads and drawn splits. If it can't be written, one line on
    stderr says so, and splits are drawn again each time.

    A file in `cache` that was changed in any way is drawn again. If the course's pickles were
    changed after a split was drawn from them, that split is refused; changed image files make
    another split, with another fingerprint. Raises InputError for a source, class, count,
    share or file that cannot be used.
    """
    if classes is not None:
        classes = tuple(classes)
        if classes != ALL and (len(classes) < 2 or len(set(classes)) < len(classes)):
            raise InputError(
                f"--classes {' '.join(classes)}: name two or more different classes"
            )
        require_printable(classes)
    counts = {"train": train_counts, "test": test_counts}
    request = Request(
        classes, image_size, test_share, groups, skip_damaged, memory, seed, dry_run, cache
    )
    may_download = bool(data) or not dry_run
    try:
        source = sources.find(data or "cifar10", request, may_download)
        split = draw(source, counts, request)
    except DownloadError as error:
        if data:
            raise InputError(f"--data {data}: {error}; or use --data synthetic") from None
        print(f"*** GOING ON WITH SYNTHETIC IMAGES, NOT CIFAR-10: {error} ***", file=sys.stderr)
        source = sources.find("synthetic", request)
        split = draw(source, counts, request)
    if label_noise:
        split = _with_label_noise(split, source.classes, label_noise, label_noise_seed)
    if label_fixes:
        split = _with_label_fixes(split, label_fixes, accept_above)
    elif accept_above is not None:
        raise InputError("--accept-above: accepts rows of --label-fixes FILE; add that option")
    if drop_leaks:
        leaks = duplicates.leaks(split.train.images, split.test.images).tolist()
        split = _with_train_labels(split, split.train.labels, leaks, leaks_dropped=len(leaks))
        _require_every_class(split, "--drop-leaks")
    return hold_out(split, validation)


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

    def chosen(of_each: torch.Tensor | None) -> torch.Tensor | None:
        return None if of_each is None else of_each[positions]

    return replace(
        split,
        train=split.train.select(positions),
        train_files=tuple(split.train_files[i] for i in positions) if split.train_files else (),
        train_groups=chosen(split.train_groups),
        true_labels=chosen(split.true_labels),
    )


def hold_out(split: Split, share: float) -> Split:
    """Return the split with a stratified `share` of its train part held out, in order.

    Images that must stay together do.
    """
    if share == 0:
        return split
    labels = split.train.labels.numpy()
    positions = np.arange(len(labels))
    if split.train_groups is not None:
        groups = split.train_groups.numpy()
        held_out, _ = stratified.hold_out(labels, groups, share, split.seed)
    else:
        try:
            _, held_out = train_test_split(
                positions, test_size=share, random_state=split.seed, stratify=labels
            )
        except ValueError:
            raise _too_few(split, share) from None
    rest = np.setdiff1d(positions, held_out)
    if set(labels.tolist()) - set(labels[held_out].tolist()):
        raise _too_few(split, share)
    if missing := set(labels.tolist()) - set(labels[rest].tolist()):
        names = ", ".join(split.classes[label] for label in sorted(missing))
        raise InputError(f"--validation {share}: leaves no train image of {names}; take less")
    held_out, rest = torch.from_numpy(np.sort(held_out)), torch.from_numpy(rest)
    validation = split.train.select(held_out)
    return replace(_with_train_images(split, rest), validation=validation)


def _too_few(split: Split, share: float) -> InputError:
    counts = split.train.counts(len(split.classes))
    n = min(counts)
    return InputError(
        f"--validation {share}: too small to hold an image of each class; of"
        f" {split.classes[counts.index(n)]} there are {n} train images, and a split needs"
        f" {max(2, math.ceil(1 / share))}; or take a larger share"
    )
