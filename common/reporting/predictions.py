"""What a network says of image files that belong to no data set: `evaluate.py --predict`."""

from __future__ import annotations

import csv
import heapq
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from common.dataset.image_files import SUFFIXES, DamagedImageError, files_in, read_images
from common.errors import InputError
from common.files import atomic_write
from common.metrics.probabilities import softmax
from common.networks.checkpoint import Checkpoint
from common.networks.prediction import predict
from common.reporting.tables import end_of, shorten, text_table
from common.terminal import printable

CHUNK_BYTES = 2**26  # of images in memory at a time, as uint8
MOST_FILES = 256  # to read at a time, so that the progress shows
LEAST_CERTAIN = 3  # images to show
FILE_WIDTH = 40  # letters of a file's path in a table, its end


@dataclass
class Predictions:
    """What was predicted: the numbers behind the table of all images.

    images: by predicted class, without the images that have none. abstain: the probability that
    a class needs, None if any will do. abstained: images without a class. unread: a message for
    each file that no image can be read from. least_certain: (margin, file, class, probability),
    the smallest margin first. seconds: how long it took.
    """

    images: dict[str, int]
    abstain: float | None
    abstained: int = 0
    unread: list[str] = field(default_factory=list)
    least_certain: list[tuple[float, str, str, float]] = field(default_factory=list)
    seconds: float = 0.0


def find_images(given: Sequence[Path]) -> list[Path]:
    """Return the files that are given, and the image files in the given folders, in order.

    Those of a folder are its `image_files.files_in`, sorted. Raises InputError for a path that
    does not exist, for a checkpoint, for a folder without image files, and for one that can't
    be read.
    """
    found: list[Path] = []
    for path in given:
        if path.suffix in (".pt", ".pth", ".ckpt"):
            raise InputError(f"--predict {path}: a checkpoint; name it before --predict")
        if os.path.isfile(path):
            found.append(path)
        elif os.path.isdir(path):
            in_folder = _files_in(path)
            if not in_folder:
                kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
                raise InputError(f"--predict: {path}: no image files in it ({kinds})")
            found += in_folder
        else:
            raise InputError(f"--predict: {path}: no such file or folder")
    return list(dict.fromkeys(found))


def _files_in(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in files_in(folder)]
    except OSError as error:
        raise InputError(
            f"--predict: {error.filename} can't be read ({error.strerror}); make it readable"
        ) from None


def save_predictions(
    path: Path, checkpoint: Checkpoint, images: Sequence[Path], abstain: float | None
) -> Predictions:
    """Predict the class of each image file, and write a row for each to the CSV `path`.

    The columns are file, class, p(CLASS) of each class, and margin: the highest probability
    less the second. abstain: the class stays empty where no probability is as high; None:
    every image has one. Images are resized to the size that the network was trained on. Raises
    InputError if none can be read; then there is no file.
    """
    classes = checkpoint.classes
    start = time.perf_counter()
    found = Predictions(dict.fromkeys(classes, 0), abstain)
    columns = ["file", "class", *(f"p({name})" for name in classes), "margin"]
    with atomic_write(path) as temporary:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            for name, p in _probabilities(checkpoint, images, found.unread):
                writer.writerow(_row(name, p, classes, found))
        if len(found.unread) == len(images):
            raise InputError(f"--predict: no image can be read; the first: {found.unread[0]}")
    found.seconds = time.perf_counter() - start
    return found


def _probabilities(
    checkpoint: Checkpoint, images: Sequence[Path], unread: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the probabilities (K,) of each file that can be read.

    unread: gets the messages of the others.
    """
    size = checkpoint.image_size
    chunk = min(MOST_FILES, max(1, CHUNK_BYTES // (3 * size * size)))
    with tqdm(desc="Predicting", total=len(images), leave=False, disable=None) as bar:
        for start in range(0, len(images), chunk):
            paths = images[start : start + chunk]
            read = list(zip(paths, read_images(paths, size), strict=True))
            unread += [str(each) for _, each in read if isinstance(each, DamagedImageError)]
            good = [(p, x) for p, x in read if not isinstance(x, DamagedImageError)]
            if good:
                pixels = np.stack([x for _, x in good]).transpose(0, 3, 1, 2)
                logits = predict(checkpoint.network, torch.from_numpy(pixels))
                for (path, _), p in zip(good, softmax(logits.numpy()), strict=True):
                    yield printable(str(path)), p
            bar.update(len(paths))


def _row(name: str, p: np.ndarray, classes: Sequence[str], found: Predictions) -> list[Any]:
    """Return the row of one image, and count it."""
    second, first = np.partition(p, -2)[-2:]
    k, margin = int(p.argmax()), float(first - second)
    found.least_certain = heapq.nsmallest(
        LEAST_CERTAIN, [*found.least_certain, (margin, name, classes[k], float(first))]
    )
    abstains = found.abstain is not None and first < found.abstain
    if abstains:
        found.abstained += 1
    else:
        found.images[classes[k]] += 1
    return [name, "" if abstains else classes[k], *(f"{v:.6f}" for v in p), f"{margin:.6f}"]


def predictions_text(found: Predictions) -> str:
    """Return how many images are of each class, and the least certain, in 80 columns."""
    counts = [[shorten(name), f"{n:,}"] for name, n in found.images.items() if n]
    if found.abstain is not None:
        counts.append([f"none: below {found.abstain:g}", f"{found.abstained:,}"])
    least = [
        [end_of(name, FILE_WIDTH), shorten(title), f"{p:.3f}", f"{margin:.3f}"]
        for margin, name, title, p in found.least_certain
    ]
    return "\n".join(
        [
            text_table(["predicted class", "images"], counts),
            "",
            "The least certain, by their margin to the second class:",
            text_table(["file", "class", "p", "margin"], least, "llrr"),
            "",
            fill(
                "The probabilities are the network's own, not calibrated: evaluate.py without"
                " --predict shows how far those of its test images can be trusted.",
                80,
            ),
        ]
    )
