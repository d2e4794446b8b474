"""The sources of images: CIFAR-10, image folders, the course's pickles, synthetic images."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import PIL
import torch
from tqdm import tqdm

from common.dataset import synthetic
from common.dataset.course_pickles import read_course_pickle
from common.dataset.download import download
from common.dataset.image_files import SUFFIXES, read_image
from common.errors import DownloadError, InputError
from common.terminal import printable

PARTS = ("train", "test")
ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = "cifar-10-batches-py"
# Images of each class; CIFAR-10 has the same numbers.
SYNTHETIC_COUNTS = {"train": 5000, "test": 1000}


class Pool(NamedTuple):
    """All images of a source, from which a split is drawn.

    labels: part -> int64 (N,), the index of each image's class among the requested classes,
    or -1 if its class was not requested.
    read_images: (part, positions (n,)) -> uint8 (n, S, S, 3).
    files: part -> the path of each image below the source; None if the images are not
    separate files.
    """

    labels: dict[str, np.ndarray]
    read_images: Callable[[str, np.ndarray], np.ndarray]
    files: dict[str, list[str]] | None = None


@dataclass(frozen=True)
class Source:
    """A source that was found, but not read.

    name: a description for reports. key: a string that is found without reading the images,
    and that changes when they change, except for sources with a digest. is_presplit: the train
    and test parts of the source are a finished split, which is kept whole and in order.
    digest: the SHA-256 of files that are never meant to change, or empty.
    """

    name: str
    key: str
    read: Callable[[], Pool]
    is_presplit: bool = False
    digest: str = ""


def find(data: str, classes: Sequence[str], cache: Path, may_download: bool = True) -> Source:
    """Return the source that `--data` names; the contents of a path tell the kind of source.

    Downloads and unpacked archives go to `cache`. Raises InputError for an unknown source, and
    for files and folders that can't be read. Reading the source raises DownloadError if it
    needs a download that fails or that `may_download` forbids.
    """
    if data == "cifar10":
        return cifar10(cache, classes, cache / ARCHIVE, may_download)
    if data == "synthetic":
        return synthetic_source(classes)
    try:
        # Path.expanduser() raises for a user that does not exist.
        return _find_files(data, Path(os.path.expanduser(data)), classes, cache)
    except OSError as error:
        raise InputError(
            f"--data {data}: {error.filename} can't be read ({error.strerror}); make it"
            " readable, or remove it"
        ) from None


def _find_files(data: str, path: Path, classes: Sequence[str], cache: Path) -> Source:
    """Return the source in the file or folder `path`; raise OSError if it can't be read."""
    if path.is_file() and path.name.endswith(".tar.gz"):
        return cifar10(cache, classes, path)
    if (path / BATCHES).is_dir():
        return cifar10(path, classes)
    if path.name == BATCHES and path.is_dir():
        return cifar10(path.parent, classes)
    if (path / "train.pickle").is_file() and (path / "dev.pickle").is_file():
        return course_pickles(path, classes)
    if all((path / part).is_dir() for part in PARTS):
        return image_folder(path, classes)
    if path.is_dir():
        contents = f"{BATCHES}, train/ and test/, train.pickle and dev.pickle"
        raise InputError(f"--data {data}: the folder holds none of {contents}")
    raise InputError(f"--data {data}: no such folder or {ARCHIVE}; or use cifar10 or synthetic")


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


def torchvision_datasets() -> ModuleType:
    """Return torchvision.datasets; raise InputError if torch and torchvision do not match."""
    try:
        import torchvision.datasets
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        raise InputError(
            f"torch {torch.__version__} and the installed torchvision are not a matching pair"
            " (operator torchvision::nms does not exist): install both together with"
            " pip install --force-reinstall torch torchvision"
        ) from None
    return torchvision.datasets


def cifar10(
    root: Path, classes: Sequence[str], archive: Path | None = None, may_download: bool = False
) -> Source:
    """Return CIFAR-10 in `root`/cifar-10-batches-py, unpacked from `archive` if necessary.

    torchvision checks the MD5 of every file before it reads one, so the pickles are safe.
    The environment variable CIFAR10_URL replaces the address of the download.
    """

    def read() -> Pool:
        datasets = torchvision_datasets()
        if archive is not None:
            _unpack(datasets, root, archive, may_download)
        try:
            parts = {part: datasets.CIFAR10(root, train=part == "train") for part in PARTS}
        except (RuntimeError, OSError):
            raise InputError(
                f"{root / BATCHES}: files are missing or have the wrong MD5; get a fresh copy"
            ) from None
        indices = class_indices(parts["train"].classes, classes, "CIFAR-10")
        labels = {part: indices[np.array(parts[part].targets)] for part in PARTS}
        return Pool(labels, lambda part, positions: parts[part].data[positions])

    return Source("CIFAR-10", "cifar10", read)


def _unpack(datasets: ModuleType, root: Path, archive: Path, may_download: bool) -> None:
    """Unpack CIFAR-10 into `root` unless it is there; download the archive if it is missing."""
    cifar = datasets.CIFAR10
    files = [*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], cifar.meta["md5"])]
    check_integrity = datasets.utils.check_integrity
    try:
        if all(check_integrity(root / BATCHES / name, md5) for name, md5 in files):
            return
        if not archive.is_file():
            if not may_download:
                raise DownloadError("CIFAR-10 is not downloaded yet")
            root.mkdir(parents=True, exist_ok=True)
            download(os.environ.get("CIFAR10_URL") or cifar.url, archive, cifar.tgz_md5)
        if not check_integrity(archive, cifar.tgz_md5):
            raise InputError(f"{archive}: not CIFAR-10's archive (wrong MD5); get a fresh copy")
        datasets.utils.extract_archive(archive, root)
    except OSError as error:
        raise DownloadError(f"CIFAR-10 can't be unpacked into {root} ({error})") from None


def image_folder(root: Path, classes: Sequence[str]) -> Source:
    """Return the images `root`/{train,test}/CLASS/*.{png,jpg,jpeg}, sorted by file name.

    The images are 32x32 pixels, in any colour mode. The key of the source holds the size and
    the times of each file: a changed file is noticed, also one that is not drawn.
    """
    entries: dict[str, list[os.DirEntry]] = {}
    labels, files = {}, {}
    stamps = hashlib.sha256()
    for part in PARTS:
        # Not entry.is_dir(): it raises for a link to itself, also beside the classes.
        folders = [e.name for e in os.scandir(root / part) if os.path.isdir(e.path)]
        class_indices(sorted(map(printable, folders)), classes, str(root / part))
        images = [
            (entry, label)
            for label, name in enumerate(classes)
            for entry in sorted(os.scandir(root / part / name), key=attrgetter("name"))
            if entry.name.lower().endswith(SUFFIXES)
        ]
        entries[part] = [entry for entry, _ in images]
        labels[part] = np.array([label for _, label in images], dtype=np.int64)
        # os.path.relpath would take 20 us per file.
        files[part] = [
            printable(entry.path.removeprefix(f"{root}{os.sep}")) for entry in entries[part]
        ]
        for entry in entries[part]:
            if not entry.is_file():
                raise InputError(
                    f"{entry.path}: not a file, nor a link to one; repair or remove it"
                )
            stat = entry.stat()
            times = f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}\n"
            stamps.update(os.fsencode(entry.path.removeprefix(str(root))) + times.encode())

    def read_images(part: str, positions: np.ndarray) -> np.ndarray:
        bar = tqdm(positions, f"Reading {part} images", leave=False, disable=None)
        return np.stack([read_image(Path(entries[part][i].path)) for i in bar])

    pool = Pool(labels, read_images, files)
    name = printable(root.resolve().name)
    return Source(f"image folder {name}", f"folder {name} {stamps.hexdigest()}", lambda: pool)


def synthetic_source(classes: Sequence[str]) -> Source:
    """Return the synthetic images; an image depends on its position alone, not on a seed."""
    indices = class_indices(synthetic.CLASSES, classes, "synthetic")

    def draw_images(part: str, positions: np.ndarray) -> np.ndarray:
        count, part_number = SYNTHETIC_COUNTS[part], PARTS.index(part)
        bar = tqdm(positions.tolist(), f"Drawing {part} images", leave=False, disable=None)
        return np.stack([synthetic.draw(i // count, (part_number, i)) for i in bar])

    # The images change with the code that draws them, so the key contains its hash.
    code = hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()
    key = f"synthetic {code} {np.__version__} {PIL.__version__}"
    labels = {part: np.repeat(indices, SYNTHETIC_COUNTS[part]) for part in PARTS}
    pool = Pool(labels, draw_images)
    return Source("synthetic (drawings, not photographs)", key, lambda: pool)


def course_pickles(root: Path, classes: Sequence[str]) -> Source:
    """Return the course's train.pickle and dev.pickle (the test part), a finished split.

    Each file is a list of (float tensor (3, 32, 32) in [-1, 1], int label).
    """
    paths = {"train": root / "train.pickle", "test": root / "dev.pickle"}
    digest = hashlib.sha256()
    for path in paths.values():
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())

    def read() -> Pool:
        images, labels = {}, {}
        for part, path in paths.items():
            images[part], labels[part] = read_course_pickle(path, len(classes))
        return Pool(labels, lambda part, positions: images[part][positions])

    folder = root.resolve()
    name, key = f"course pickles {printable(folder.name)}", f"course {printable(str(folder))}"
    return Source(name, key, read, is_presplit=True, digest=digest.hexdigest())
