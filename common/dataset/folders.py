"""Folders of images: a folder for each class, with a split into train and test or without."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from common.dataset import CIFAR10_CLASSES, duplicates
from common.dataset.class_counts import DRY_RUN
from common.dataset.image_files import SIZE, DamagedImageError, files_in, read_images
from common.dataset.pool import (
    ALL,
    PARTS,
    Pool,
    Request,
    Source,
    class_indices,
    require_printable,
)
from common.dataset.stored_images import Images, gather
from common.dataset.stratified import connected_groups, hold_out
from common.errors import InputError
from common.files import read_table
from common.terminal import printable

TEST_SHARE = 0.2
PART_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")
GROUPS_COLUMNS = ["file", "group"]
BLOCK = 256  # files to read at once


def image_folder(root: Path, request: Request) -> Source:
    """Return the images in `root`/{train,test}/CLASS/ or, without a split, `root`/CLASS/.

    Images are the `files_in` a class's folder. Without `request.classes` the classes are those
    of the folder, the largest first; but a folder with CIFAR-10's classes, and its split, is
    CIFAR-10. The key of the source holds the size and the times of each file: a changed file is
    noticed, also one that is not drawn. Raises InputError for classes that are missing or too
    small, and for a file of groups that can't be used.
    """
    parts = PARTS if is_split(root) else ("",)
    folders = {part: _subfolders(root / part) for part in parts}
    is_cifar10 = parts == PARTS and set(folders["train"]) == set(CIFAR10_CLASSES)
    if is_cifar10:
        classes = request.classes_of(CIFAR10_CLASSES)
    elif request.classes in (None, ALL):
        require_printable(folders[parts[0]])
        classes = _largest_first(root / parts[0], folders[parts[0]])
    else:
        classes = request.classes
    for part in parts:
        class_indices(list(map(printable, folders[part])), classes, str(root / part))
    if len(classes) == 1:
        raise InputError(_one_class(root, parts[0], classes[0]))
    _warn_of_unread_parts(root, parts)
    entries = {part: _entries(root / part, classes) for part in parts}
    name, groups = printable(root.resolve().name), []
    if parts != PARTS:
        _require_two_of_each(entries[""], classes)
        if request.dry_run:
            entries[""] = _handful(entries[""], request.seed)
        groups = _read_groups(request, root, entries[""], classes)
        read = partial(_read_and_split, root, entries[""], classes, groups, request)
    elif request.skip_damaged:
        read = partial(_read_whole, root, entries, request)
    else:
        read = partial(_read_when_drawn, root, entries, request)
    stamps = _stamps(root, entries)
    return Source(
        f"image folder {name}",
        f"folder {name} {stamps} {request.test_share} {groups} {request.skip_damaged}",
        classes,
        read,
        has_files=True,
        is_unsplit=parts != PARTS,
        is_cifar10=is_cifar10,
    )


def _one_class(root: Path, part: str, name: str) -> str:
    """Return the message for a folder with one class; an archive may have a folder too many."""
    remedy = "put the images of each class into a folder of its own"
    if len(_subfolders(root / part / name)) > 1 and not part:
        remedy = f"give --data {root / name} if its folders are the classes"
    return f"--data {root}: one class, {name}, and there must be two or more; {remedy}"


def _warn_of_unread_parts(root: Path, parts: Sequence[str]) -> None:
    """Say in one line on stderr which folders beside train/ and test/ are not read."""
    others = [name for name in _subfolders(root) if name not in parts] if parts == PARTS else []
    if others:
        names = ", ".join(map(printable, others))
        print(
            f"--data {root}: not read, beside train and test: {names}; --validation SHARE"
            " holds out train images",
            file=sys.stderr,
        )


def is_split(root: Path) -> bool:
    """Return whether a folder has the folders train and test."""
    return all((root / part).is_dir() for part in PARTS)


def has_classes(root: Path) -> bool:
    """Return whether a folder has a folder with images in it."""
    return any(next(files_in(root / name), None) for name in _subfolders(root))


def require_no_parts(root: Path) -> None:
    """Raise InputError if the folders in a folder are named as parts of a data set are."""
    names = _subfolders(root)
    if all(name.lower() in PART_NAMES for name in names):
        raise InputError(
            f"--data {root}: its folders {', '.join(names)} are parts of a data set, not"
            " classes; name two of them train and test, and move the others away"
        )


def _subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder, sorted, without the hidden ones."""
    # Not entry.is_dir(): it raises for a link to itself, also beside the classes.
    found = [entry.name for entry in os.scandir(folder) if os.path.isdir(entry.path)]
    return sorted(name for name in found if not name.startswith("."))


def _largest_first(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    sizes = {name: sum(1 for _ in files_in(folder / name)) for name in names}
    return tuple(sorted(sizes, key=lambda name: (-sizes[name], name)))


Entries = list[tuple[os.DirEntry, int]]  # files, and the labels of their classes


def _entries(folder: Path, classes: Sequence[str]) -> Entries:
    """Return the image files of the classes in a folder, by class and name."""
    entries = [
        (entry, label)
        for label, name in enumerate(classes)
        for entry in files_in(folder / name)
    ]
    for entry, _ in entries:
        if not entry.is_file():
            raise InputError(
                f"{entry.path}: not a file, nor a link to one; repair or remove it"
            )
    return entries


def _labels(entries: Entries) -> np.ndarray:
    return np.array([label for _, label in entries], dtype=np.int64)


def _files(root: Path, entries: Entries) -> list[str]:
    """Return the files' paths below `root`, as text."""
    # os.path.relpath would take 20 us per file.
    return [printable(entry.path.removeprefix(f"{root}{os.sep}")) for entry, _ in entries]


def _stamps(root: Path, entries: dict[str, Entries]) -> str:
    """Return a SHA-256 of the names, sizes and times of all files."""
    stamps = hashlib.sha256()
    for part in entries.values():
        for entry, _ in part:
            stat = entry.stat()
            times = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n"
            stamps.update(os.fsencode(entry.path.removeprefix(str(root))) + times.encode())
    return stamps.hexdigest()


def _require_two_of_each(entries: Entries, classes: Sequence[str]) -> None:
    counts = np.bincount(_labels(entries), minlength=len(classes))
    for name, n in zip(classes, counts.tolist(), strict=True):
        if n < 2:
            raise InputError(
                f"class {name}: {n} image(s), and the split into train and test needs at least"
                " 2; add images, or name the other classes with --classes"
            )


def _handful(entries: Entries, seed: int) -> Entries:
    """Return as many random files of each class as a dry run draws, in the same order."""
    labels, chosen = _labels(entries), []
    most = [sum(counts) for counts in zip(*DRY_RUN.values(), strict=True)]
    for label in np.unique(labels):
        positions = np.flatnonzero(labels == label)
        drawn = np.random.default_rng([seed, label]).permutation(positions)
        chosen += drawn[: most[min(label, 1)]].tolist()
    return [entries[i] for i in sorted(chosen)]


def _read_groups(
    request: Request, root: Path, entries: Entries, classes: Sequence[str]
) -> list[tuple[int, int]]:
    """Return pairs of positions of files that the CSV file of --groups puts into one group.

    A file's name is its path below `root`, in any spelling, or an absolute path.
    """
    path = request.groups
    if path is None:
        return []
    (_, columns), *lines = read_table(path) or [(1, ["none"])]
    if sorted(columns) != GROUPS_COLUMNS:
        unknown = ", ".join(map(printable, columns))
        raise InputError(
            f"--groups {path}: its columns are {unknown}; they must be file, group"
        )
    position_of = {name: i for i, name in enumerate(_files(root, entries))}
    first: dict[str, int] = {}
    pairs = []
    for line, cells in lines:
        where = f"--groups {path}, line {line}"
        if len(cells) != 2 or not all(cells):
            raise InputError(f"{where}: must have a file and a group")
        name, group = (cells[columns.index(column)] for column in GROUPS_COLUMNS)
        file = os.path.normpath(os.path.join(root, name))
        if not os.path.lexists(file):
            raise InputError(f"{where}: {root} has no file {printable(name)}")
        relative = os.path.relpath(file, root)
        i = position_of.get(printable(relative))
        if i is None:
            folder = relative.split(os.sep)[0]
            if folder == os.pardir or (folder in classes and not request.dry_run):
                raise InputError(f"{where}: {printable(name)} is none of the images in {root}")
            continue  # of a class that is not asked for, or left out of a dry run
        j = first.setdefault(group, i)
        labels = entries[i][1], entries[j][1]
        if labels[0] != labels[1]:
            both = " and ".join(sorted(classes[label] for label in labels))
            raise InputError(
                f"{where}: group {printable(group)} has images of {both}; a group must lie in"
                " one class"
            )
        pairs.append((j, i))
    return pairs


def _read_all(
    root: Path, entries: Entries, request: Request, store: Path
) -> tuple[Images, np.ndarray, list[str]]:
    """Return all images, the positions of their files (N,), and the damaged files."""
    paths = [Path(entry.path) for entry, _ in entries]
    size, kept, damaged = request.image_size or SIZE, [], []

    def blocks() -> Iterator[np.ndarray]:
        with tqdm(total=len(paths), desc="Reading images", leave=False, disable=None) as bar:
            for start in range(0, len(paths), BLOCK):
                found = read_images(paths[start : start + BLOCK], request.image_size)
                images = []
                for i, image in enumerate(found, start):
                    if not isinstance(image, DamagedImageError):
                        kept.append(i)
                        images.append(image)
                    elif request.skip_damaged:
                        damaged.append(i)
                    else:
                        raise _with_remedy(image)
                if images:
                    yield np.stack(images).transpose(0, 3, 1, 2)
                bar.update(len(found))

    images = gather(blocks(), len(paths), size, request.memory, store)
    files = _files(root, [entries[i] for i in damaged])
    return images, np.array(kept, dtype=np.int64), files


def _with_remedy(error: DamagedImageError) -> InputError:
    return InputError(f"{error}; --skip-damaged leaves such files out")


def _read_when_drawn(
    root: Path, entries: dict[str, Entries], request: Request, _: Path
) -> Pool:
    """Return a pool whose files are read when they are drawn."""

    def read(part: str, positions: np.ndarray) -> np.ndarray:
        paths = [Path(entries[part][i][0].path) for i in positions]
        images = read_images(paths, request.image_size)
        for image in images:
            if isinstance(image, DamagedImageError):
                raise _with_remedy(image)
        return np.stack(images)

    labels = {part: _labels(found) for part, found in entries.items()}
    files = {part: _files(root, found) for part, found in entries.items()}
    return Pool(labels, read, files=files)


def _read_whole(root: Path, entries: dict[str, Entries], request: Request, store: Path) -> Pool:
    """Return a pool of train and test images without the damaged files."""
    both = [each for part in PARTS for each in entries[part]]
    images, kept, damaged = _read_all(root, both, request, store)
    in_train = kept < len(entries["train"])
    rows = {"train": np.flatnonzero(in_train), "test": np.flatnonzero(~in_train)}
    changes = {"damaged": damaged} if damaged else {}
    return _pool(root, [both[i] for i in kept], images, rows, changes)


def _read_and_split(
    root: Path,
    entries: Entries,
    classes: Sequence[str],
    groups: list[tuple[int, int]],
    request: Request,
    store: Path,
) -> Pool:
    """Return a pool of train and test images, split so that near duplicates stay together."""
    images, kept, damaged = _read_all(root, entries, request, store)
    entries = [entries[i] for i in kept]
    _require_two_of_each(entries, classes)
    row_of = {i: row for row, i in enumerate(kept.tolist())}
    pairs = [(row_of[i], row_of[j]) for i, j in groups if i in row_of and j in row_of]
    pairs += [pair[:2] for pair in duplicates.within(images, complete=1)]
    labels, group_of = _labels(entries), connected_groups(len(entries), pairs)
    share = TEST_SHARE if request.test_share is None else request.test_share
    test, impossible = hold_out(labels, group_of, share, request.seed)
    if impossible:
        raise InputError(
            f"class {classes[impossible[0]]}: all its images are near duplicates or of one"
            " group, and the split needs at least 2 that are not; add images"
        )
    rows = {"train": np.setdiff1d(np.arange(len(entries)), test), "test": test}
    changes = {"test_share": share, "groups": request.groups and str(request.groups)}
    changes |= {"damaged": damaged} if damaged else {}
    return _pool(root, entries, images, rows, changes, group_of)


def _pool(
    root: Path,
    entries: Entries,
    images: Images,
    rows: dict[str, np.ndarray],
    changes: dict[str, Any],
    group_of: np.ndarray | None = None,
) -> Pool:
    """Return the pool of images (N, 3, S, S) of which `rows` gives those of each part."""
    labels, files = _labels(entries), np.array(_files(root, entries), dtype=object)
    return Pool(
        {part: labels[at] for part, at in rows.items()},
        images=images,
        rows=rows,
        files={part: files[at].tolist() for part, at in rows.items()},
        groups=None if group_of is None else group_of[rows["train"]],
        changes=changes,
    )
