"""From a source to one Split in memory: drawn to counts, cached, validation held out."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.model_selection import train_test_split

from common import duplicates, relabel, sources
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
    train_files, test_files: each image's path below the source, empty where it has none.
    true_labels: the train part's before wrong ones were planted; None where none were.
    changes: what was done to the train images and labels that the source gave, for records.
    """

    train: Part
    validation: Part
    test: Part
    classes: tuple[str, ...]
    source: str
    fingerprint: str
    seed: int
    train_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    true_labels: torch.Tensor | None = None
    changes: dict[str, Any] = field(default_factory=dict)


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
    """The Split that these options describe, from the cache in `cache` where it holds it.

    Without `data`, CIFAR-10, and synthetic images with a loud line on stderr where that can't
    be downloaded. Counts are images per class, "full" for all; `["full"]` stands for each
    class. The train part's labels are spoilt (label_noise: class, share), then fixed, then
    images that leak into the test part dropped, then the validation part held out. Raises
    InputError for a source, class, count, share or file of fixes that can't be had.
    """
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise InputError(f"--classes {' '.join(classes)}: name two or more different classes")
    given = {"train": train_counts, "test": test_counts}
    try:
        source = sources.find(
            data or "cifar10", classes, cache, may_download=bool(data) or not dry_run
        )
        split = _prepared(source, classes, given, seed, dry_run, cache)
    except DownloadError as error:
        if data:
            raise InputError(f"--data {data}: {error}; or take --data synthetic") from None
        print(f"*** GOING ON WITH SYNTHETIC IMAGES, NOT CIFAR-10: {error} ***", file=sys.stderr)
        source = sources.find("synthetic", classes, cache)
        split = _prepared(source, classes, given, seed, dry_run, cache)
    if label_noise:
        split = _spoilt(split, classes, label_noise, label_noise_seed)
    if label_fixes:
        split = _fixed(split, label_fixes, accept_above)
    elif accept_above is not None:
        raise InputError("--accept-above: says which of --label-fixes FILE to accept; give it")
    if drop_leaks:
        leaks = duplicates.leaks(split.train.images, split.test.images)
        split = _changed(split, split.train.labels, leaks, leaks_dropped=len(leaks))
    return _hold_out(split, validation)


def _spoilt(
    split: Split, classes: Sequence[str], shares: Sequence[tuple[str, float]], seed: int
) -> Split:
    """The split with wrong labels planted."""
    numbers = {name: k for names in (classes, split.classes) for k, name in enumerate(names)}
    of_class: dict[int, float] = {}
    for name, share in shares:
        if name not in numbers:
            raise InputError(f"--label-noise {name}: no such class; {', '.join(split.classes)}")
        if numbers[name] in of_class:
            raise InputError(f"--label-noise {name}: give one share for each class")
        of_class[numbers[name]] = share
    before = split.train.labels
    noisy = relabel.plant_noise(before, list(of_class.items()), len(classes), seed)
    left = torch.bincount(noisy, minlength=len(classes))
    for name, n in zip(split.classes, left.tolist(), strict=True):
        if n == 0:
            raise InputError(f"--label-noise: leaves no image with the label {name}")
    planted = torch.bincount(before[noisy != before], minlength=len(classes)).tolist()
    record = {
        "shares": {split.classes[k]: share for k, share in of_class.items()},
        "seed": seed,
        "planted": dict(zip(split.classes, planted, strict=True)),
    }
    split = replace(split, true_labels=before)
    return _changed(split, noisy, label_noise=record)


def _fixed(split: Split, path: Path, accept_above: float | None) -> Split:
    """The split with the fixes that the user accepted."""
    fixes = relabel.read_fixes(
        path, train_fingerprint(split), split.train.labels, split.classes, accept_above
    )
    fixed = split.train.labels.clone()
    fixed[fixes.relabelled] = fixes.labels
    record = {
        "file": str(path),
        "accept_above": accept_above,
        "relabelled": len(fixes.relabelled),
        "dropped": len(fixes.dropped),
    }
    split = _changed(split, fixed, fixes.dropped, label_fixes=record)
    for name, n in zip(split.classes, split.train.counts(len(split.classes)), strict=True):
        if n == 0:
            raise InputError(f"--label-fixes {path}: leaves no image with the label {name}")
    return split


def train_fingerprint(split: Split) -> str:
    """Of the train images and labels alone: what label fixes must agree with."""
    return split.fingerprint.partition("-")[0]


def _changed(
    split: Split,
    new_labels: torch.Tensor,
    dropped: torch.Tensor | None = None,
    **record: Any,
) -> Split:
    """The split with other labels of its train part, without the images at `dropped`."""
    kept = torch.ones(len(new_labels), dtype=torch.bool)
    if dropped is not None:
        kept[dropped] = False
    train = Part(split.train.images[kept], new_labels[kept])
    arrays = {"train_images": train.images.numpy(), "train_labels": train.labels.numpy()}
    test = split.fingerprint.partition("-")[2]
    return replace(
        split,
        train=train,
        train_files=_of(split.train_files, kept.nonzero().flatten().tolist()),
        true_labels=None if split.true_labels is None else split.true_labels[kept],
        fingerprint=f"{_half_fingerprint(arrays, 'train')}-{test}",
        changes=split.changes | record,
    )


def _of(files: tuple[str, ...], positions: Sequence[int]) -> tuple[str, ...]:
    return tuple(files[i] for i in positions) if files else ()


def _prepared(
    source: sources.Source,
    classes: Sequence[str],
    given: dict[str, Counts | None],
    seed: int,
    dry_run: bool,
    cache: Path,
) -> Split:
    """The split as drawn, from the cache or from the source, then cached."""
    counts = {
        part: _wanted_counts(part, given[part], len(classes), source.finished, dry_run)
        for part in sources.PARTS
    }
    key = json.dumps([source.key, list(classes), counts, seed, dry_run])
    path = cache / f"split-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    cached = _read_cache(path)
    if cached is not None:
        return _split(*cached, classes, source, seed)
    pool = source.read()
    arrays, files = {}, {}
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
        names = pool.files[part] if pool.files else []
        files[f"{part}_files"] = np.array(
            [names[i] for i in chosen] if names else [], dtype="U"
        )
    fingerprint = _fingerprint(arrays)
    with replacing(path) as unfinished:
        np.savez(unfinished, fingerprint=fingerprint, **arrays, **files)
    return _split(arrays, files, fingerprint, classes, source, seed)


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
    return "-".join(_half_fingerprint(arrays, part) for part in sources.PARTS)


def _half_fingerprint(arrays: dict[str, np.ndarray], part: str) -> str:
    digest = hashlib.sha256()
    for kind in ("images", "labels"):
        digest.update(np.ascontiguousarray(arrays[f"{part}_{kind}"]).data)
    return digest.hexdigest()[:12]


def _split(
    arrays: dict[str, np.ndarray],
    files: dict[str, np.ndarray],
    fingerprint: str,
    classes: Sequence[str],
    source: sources.Source,
    seed: int,
) -> Split:
    """The split of these arrays, with no validation part yet."""
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    train = Part(tensors["train_images"], tensors["train_labels"])
    return Split(
        train,
        Part(train.images[:0], train.labels[:0]),
        Part(tensors["test_images"], tensors["test_labels"]),
        tuple(DISPLAY_NAMES.get(name, name) for name in classes),
        source.name,
        fingerprint,
        seed,
        **{name: tuple(paths.tolist()) for name, paths in files.items()},
    )


def _read_cache(
    path: Path,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], str] | None:
    """Arrays, files and fingerprint; None where there is no file or its bytes are damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        fingerprint = str(arrays.pop("fingerprint"))
        files = {f"{part}_files": arrays.pop(f"{part}_files") for part in sources.PARTS}
        sound = _fingerprint(arrays) == fingerprint
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (arrays, files, fingerprint) if sound else None


def _hold_out(split: Split, share: float) -> Split:
    """A stratified `share` of the train part apart from the rest, each in its first order."""
    if share == 0:
        return split
    train, seed = split.train, split.seed
    positions = np.arange(len(train.labels))
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
    true = split.true_labels
    return replace(
        split,
        train=Part(train.images[rest], train.labels[rest]),
        validation=Part(train.images[held_out], train.labels[held_out]),
        train_files=_of(split.train_files, rest.tolist()),
        true_labels=None if true is None else true[rest],
    )
