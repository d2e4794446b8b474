"""Where images come from: each kind of source, seen as labels and a way to take images."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, UnidentifiedImageError

from common import synthetic
from common.download import DownloadError, download
from common.options import InputError, progress

PARTS = ("train", "test")
SIZE = 32
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
ARCHIVE = "cifar-10-python.tar.gz"
BATCHES = "cifar-10-batches-py"
# As many synthetic images of a class as CIFAR-10 has.
SYNTHETIC_COUNTS = {"train": 5000, "test": 1000}


class Pool(NamedTuple):
    """A source that is open.

    labels: for each of PARTS, int64 (N,): an image's place in the asked-for classes; -1: none.
    take: part and positions (n,) -> uint8 (n, 32, 32, 3). files: for each part an image's path
    below the source, where each image is a file of its own.
    """

    labels: dict[str, np.ndarray]
    take: Callable[[str, np.ndarray], np.ndarray]
    files: dict[str, list[str]] | None = None


@dataclass(frozen=True)
class Source:
    """A source that is known but not yet read.

    name: for people. key: changes when the images do, yet is found without reading them.
    finished: its train and test parts are a split already, to be kept whole and in order.
    """

    name: str
    key: str
    read: Callable[[], Pool]
    finished: bool = False


def find(data: str, classes: Sequence[str], cache: Path, may_download: bool = True) -> Source:
    """The source that `--data` names; a path is recognised by what lies in it.

    Raises InputError where it is none of the known kinds. What is downloaded or unpacked
    goes to `cache`; reading raises DownloadError where `may_download` does not allow it.
    """
    if data == "cifar10":
        return cifar10(cache, classes, cache / ARCHIVE, may_download)
    if data == "synthetic":
        return drawings(classes)
    path = Path(data).expanduser()
    if path.is_file() and path.name.endswith(".tar.gz"):
        return cifar10(cache, classes, path, may_download=False)
    if (path / BATCHES).is_dir():
        return cifar10(path, classes)
    if path.name == BATCHES and path.is_dir():
        return cifar10(path.parent, classes)
    if (path / "train.pickle").is_file() and (path / "dev.pickle").is_file():
        return course_pickles(path, classes)
    if all((path / part).is_dir() for part in PARTS):
        return image_folder(path, classes)
    what = f"holds none of {BATCHES}, train/ and test/, train.pickle and dev.pickle"
    raise InputError(
        f"--data {data}: the folder {what}"
        if path.is_dir()
        else f"--data {data}: no such folder or {ARCHIVE}; or take cifar10 or synthetic"
    )


def label_of_each(names: Sequence[str], classes: Sequence[str], source: str) -> np.ndarray:
    """For each of a source's class names its place in `classes`, or -1; int64 (len(names),)."""
    for name in classes:
        if name not in names:
            raise InputError(
                f"--classes {name}: {source} has no such class; it has {', '.join(names)}"
            )
    return np.array([classes.index(n) if n in classes else -1 for n in names], dtype=np.int64)


def torchvision_datasets() -> ModuleType:
    """torchvision.datasets, or one line about a torch and a torchvision that don't match."""
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
    """CIFAR-10 in `root`/cifar-10-batches-py, unpacked there from `archive` if need be.

    torchvision checks every file's MD5 before it reads one, so the pickles inside are safe.
    The environment variable CIFAR10_URL names another address to download from.
    """

    def read() -> Pool:
        datasets = torchvision_datasets()
        if archive is not None:
            unpack(datasets)
        try:
            parts = {part: datasets.CIFAR10(root, train=part == "train") for part in PARTS}
        except RuntimeError:
            raise InputError(
                f"{root / BATCHES}: files are missing or their MD5 is wrong; take a fresh copy"
            ) from None
        place = label_of_each(parts["train"].classes, classes, "CIFAR-10")
        labels = {part: place[np.array(parts[part].targets)] for part in PARTS}
        return Pool(labels, lambda part, positions: parts[part].data[positions])

    def unpack(datasets: ModuleType) -> None:
        known = datasets.CIFAR10
        files = [
            *known.train_list,
            *known.test_list,
            (known.meta["filename"], known.meta["md5"]),
        ]
        if all(datasets.utils.check_integrity(root / BATCHES / f, md5) for f, md5 in files):
            return
        if not archive.is_file():
            if not may_download:
                raise DownloadError("CIFAR-10 is not downloaded yet")
            root.mkdir(parents=True, exist_ok=True)
            download(os.environ.get("CIFAR10_URL") or known.url, archive, known.tgz_md5)
        if not datasets.utils.check_integrity(archive, known.tgz_md5):
            raise InputError(
                f"{archive}: not CIFAR-10's archive (wrong MD5); take a fresh copy"
            )
        datasets.utils.extract_archive(archive, root)

    return Source("CIFAR-10", "cifar10", read)


def image_folder(root: Path, classes: Sequence[str]) -> Source:
    """`root`/{train,test}/CLASS/*.png|jpg, 32x32 in any colour mode, in the order of names."""
    files: dict[str, list[os.DirEntry]] = {}
    names, labels = {}, {}
    for part in PARTS:
        folders = sorted(entry.name for entry in os.scandir(root / part) if entry.is_dir())
        label_of_each(folders, classes, str(root / part))
        files[part] = []
        labels[part] = []
        for label, name in enumerate(classes):
            images = sorted(
                (
                    entry
                    for entry in os.scandir(root / part / name)
                    if entry.name.lower().endswith(IMAGE_SUFFIXES)
                ),
                key=lambda entry: entry.name,
            )
            files[part] += images
            labels[part] += [label] * len(images)
    stamps = hashlib.sha256()
    for part in PARTS:
        # relpath takes 20 us a file
        names[part] = [entry.path.removeprefix(f"{root}{os.sep}") for entry in files[part]]
        for entry, relative in zip(files[part], names[part], strict=True):
            stat = entry.stat()
            stamps.update(f"{relative} {stat.st_size} {stat.st_mtime_ns}\n".encode())

    def take(part: str, positions: np.ndarray) -> np.ndarray:
        bar = progress(positions, f"Reading {part} images")
        return np.stack([read_image(Path(files[part][i].path)) for i in bar])

    pool = Pool({part: np.array(labels[part], dtype=np.int64) for part in PARTS}, take, names)
    name = root.resolve().name
    return Source(f"image folder {name}", f"folder {name} {stamps.hexdigest()}", lambda: pool)


def read_image(path: Path) -> np.ndarray:
    """A file as uint8 (32, 32, 3); InputError names a file that is no image of that size."""
    try:
        with Image.open(path) as image:
            if image.size != (SIZE, SIZE):
                width, height = image.size
                raise InputError(f"{path}: {width}x{height} pixels; it must be {SIZE}x{SIZE}")
            if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image; mend or remove it") from None
    except (OSError, SyntaxError) as error:  # PIL raises SyntaxError for a broken PNG
        raise InputError(f"{path}: a damaged image ({error}); mend or remove it") from None


def drawings(classes: Sequence[str]) -> Source:
    """The project's own drawings; an image depends on its place alone, not on any seed."""
    place = label_of_each(synthetic.CLASSES, classes, "synthetic")

    def take(part: str, positions: np.ndarray) -> np.ndarray:
        count = SYNTHETIC_COUNTS[part]
        bar = progress(positions, f"Drawing {part} images")
        seeds = ((PARTS.index(part), int(i)) for i in bar)
        return np.stack([synthetic.draw(i // count, (p, i)) for p, i in seeds])

    # A drawing changes with the code that draws it, so the code is the key.
    code = hashlib.sha256(Path(synthetic.__file__).read_bytes()).hexdigest()
    key = f"synthetic {code} {np.__version__} {PIL.__version__}"
    labels = {part: np.repeat(place, SYNTHETIC_COUNTS[part]) for part in PARTS}
    return Source("synthetic (drawings, not photographs)", key, lambda: Pool(labels, take))


class TensorUnpickler(pickle.Unpickler):
    """Rebuilds tensors and plain values; refuses everything else by name."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return torch._utils._rebuild_tensor_v2
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch.storage", "_load_from_bytes"):
            # torch's own would unpickle these bytes without any restriction.
            return lambda data: torch.load(io.BytesIO(data), weights_only=True)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")


def course_pickles(root: Path, classes: Sequence[str]) -> Source:
    """The course's train.pickle and dev.pickle: a split that is drawn already.

    Each is a list of (float tensor (3, 32, 32) in [-1, 1], int label).
    """
    paths = {"train": root / "train.pickle", "test": root / "dev.pickle"}
    stats = [path.stat() for path in paths.values()]
    key = " ".join(f"{stat.st_size} {stat.st_mtime_ns}" for stat in stats)

    def read() -> Pool:
        images, labels = {}, {}
        for part, path in paths.items():
            images[part], labels[part] = read_course_pickle(path, len(classes))
        return Pool(labels, lambda part, positions: images[part][positions])

    return Source(f"course pickles {root.resolve().name}", f"course {key}", read, finished=True)


def read_course_pickle(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, 32, 32, 3) and labels int64 (N,) of one of the course's pickles."""
    try:
        with path.open("rb") as file:
            items = TensorUnpickler(file).load()
        images = torch.stack([image for image, _ in items]).float()
        labels = torch.tensor([int(label) for _, label in items])
    except Exception as error:  # a damaged pickle can raise anything
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: not a list of (image tensor, label): {message}") from None
    if images.shape[1:] != (3, SIZE, SIZE) or not (images.abs() <= 1).all():
        raise InputError(f"{path}: images must be 3x{SIZE}x{SIZE} with values in [-1, 1]")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{path}: labels go from {labels.min()} to {labels.max()}, but --classes names"
            f" {classes}; name one class for each label"
        )
    pixels = ((images + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).numpy(), labels.numpy()
