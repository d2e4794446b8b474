"""The sources of images: CIFAR-10, image folders, the course's pickles, synthetic images."""

import hashlib
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import PIL

from common.dataset import CIFAR10_CLASSES, DEFAULT_CLASSES, folders, synthetic
from common.dataset.course_pickles import read_course_pickle
from common.dataset.download import download
from common.dataset.image_files import SUFFIXES
from common.dataset.pool import PARTS, Pool, Request, Source, class_indices
from common.errors import DownloadError, InputError
from common.networks.torchvision_networks import import_torchvision
from common.terminal import printable

ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = "cifar-10-batches-py"
# Images of each class; CIFAR-10 has the same numbers.
SYNTHETIC_COUNTS = {"train": 5000, "test": 1000}


def find(data: str, request: Request, may_download: bool = True) -> Source:
    """Return the source that `--data` names; the contents of a path tell the kind of source.

    Downloads and unpacked archives go to `request.cache`. Raises InputError for an unknown
    source, for files and folders that can't be read, and for options that do nothing for this
    source. Reading the source raises DownloadError if it needs a download that fails or that
    `may_download` forbids.
    """
    if data == "cifar10":
        source = cifar10(request.cache, request, request.cache / ARCHIVE, may_download)
    elif data == "synthetic":
        source = synthetic_source(request)
    else:
        try:
            # Path.expanduser() raises for a user that does not exist.
            source = _find_files(data, Path(os.path.expanduser(data)), request)
        except OSError as error:
            raise InputError(
                f"--data {data}: {error.filename} can't be read ({error.strerror}); make it"
                " readable, or remove it"
            ) from None
    _require_useful(source, request)
    return source


def _find_files(data: str, path: Path, request: Request) -> Source:
    """Return the source in the file or folder `path`; raise OSError if it can't be read."""
    if path.is_file() and path.name.endswith(".tar.gz"):
        return cifar10(request.cache, request, path)
    if (path / BATCHES).is_dir():
        return cifar10(path, request)
    if path.name == BATCHES and path.is_dir():
        return cifar10(path.parent, request)
    if (path / "train.pickle").is_file() and (path / "dev.pickle").is_file():
        return course_pickles(path, request)
    if folders.is_split(path):
        return folders.image_folder(path, request)
    if (path / "train").is_dir():
        raise InputError(
            f"--data {data}: has a folder train, but none named test; give --data"
            f" {path / 'train'} to split that, or rename the folder of the test images"
        )
    if path.is_dir() and folders.has_classes(path):
        folders.require_no_parts(path)
        return folders.image_folder(path, request)
    if path.is_dir():
        contents = f"{BATCHES}, train/ and test/, train.pickle and dev.pickle"
        raise InputError(
            f"--data {data}: the folder holds none of {contents}, a folder of images"
            f" ({', '.join(SUFFIXES)}) for each class"
        )
    raise InputError(f"--data {data}: no such folder or {ARCHIVE}; or use cifar10 or synthetic")


def _require_useful(source: Source, request: Request) -> None:
    """Raise InputError for an option that does nothing for a source."""
    if not source.is_unsplit:
        for option in ("test_share", "groups"):
            if getattr(request, option) is not None:
                raise InputError(
                    f"--{option.replace('_', '-')}: {source.name} has test images of its own;"
                    " leave the option out"
                )
    if request.skip_damaged and not source.has_files:
        raise InputError(
            f"--skip-damaged: {source.name} has no image files; leave the option out"
        )


def torchvision_datasets() -> ModuleType:
    """Return torchvision.datasets; raise InputError if torch and torchvision do not match."""
    return import_torchvision("datasets")


def cifar10(
    root: Path, request: Request, archive: Path | None = None, may_download: bool = False
) -> Source:
    """Return CIFAR-10 in `root`/cifar-10-batches-py, unpacked from `archive` if necessary.

    torchvision checks the MD5 of every file before it reads one, so the pickles are safe.
    The environment variable CIFAR10_URL replaces the address of the download.
    """
    classes = request.classes_of(CIFAR10_CLASSES)
    class_indices(CIFAR10_CLASSES, classes, "CIFAR-10")

    def read(_: Path) -> Pool:
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

    return Source("CIFAR-10", "cifar10", classes, read, is_cifar10=True)


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


def synthetic_source(request: Request) -> Source:
    """Return the synthetic images; an image depends on its position alone, not on a seed."""
    classes = request.classes_of(synthetic.CLASSES)
    indices = class_indices(synthetic.CLASSES, classes, "synthetic")

    def draw_images(part: str, positions: np.ndarray) -> np.ndarray:
        count, part_number = SYNTHETIC_COUNTS[part], PARTS.index(part)
        return np.stack(
            [synthetic.draw(i // count, (part_number, i)) for i in positions.tolist()]
        )

    # The images change with the code that draws them, so the key contains its hash.
    code = hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()
    key = f"synthetic {code} {np.__version__} {PIL.__version__}"
    labels = {part: np.repeat(indices, SYNTHETIC_COUNTS[part]) for part in PARTS}
    name = "synthetic (drawings, not photographs)"
    pool = Pool(labels, draw_images)
    return Source(name, key, classes, lambda _: pool, is_cifar10=True)


def course_pickles(root: Path, request: Request) -> Source:
    """Return the course's train.pickle and dev.pickle (the test part), a finished split.

    Each file is a list of (float tensor (3, 32, 32) in [-1, 1], int label).
    """
    classes = request.classes_of(DEFAULT_CLASSES)
    paths = {"train": root / "train.pickle", "test": root / "dev.pickle"}
    digest = hashlib.sha256()
    for path in paths.values():
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())

    def read(_: Path) -> Pool:
        images, labels = {}, {}
        for part, path in paths.items():
            images[part], labels[part] = read_course_pickle(path, len(classes))
        return Pool(labels, lambda part, positions: images[part][positions])

    folder = root.resolve()
    name, key = f"course pickles {printable(folder.name)}", f"course {printable(str(folder))}"
    return Source(name, key, classes, read, is_presplit=True, digest=digest.hexdigest())
