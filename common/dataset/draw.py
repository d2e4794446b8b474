"""Draw a split from a source, or read it from the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from common.dataset import split_cache
from common.dataset.class_counts import Counts, class_counts
from common.dataset.image_files import SIZE, resize_images
from common.dataset.pool import PARTS, Pool, Request, Source
from common.dataset.split import LabelledImages, Split, make_split
from common.dataset.stored_images import Images, gather, select

DISPLAY_NAMES = {"automobile": "car"}
BLOCK = 256  # images to read at once


def draw(source: Source, counts: dict[str, Counts | None], request: Request) -> Split:
    """Return the split from the cache, or draw it and write it to the cache, if possible.

    counts: part -> see `class_counts`.
    """
    asked = [request.image_size, request.memory, request.seed, request.dry_run]
    key = json.dumps([source.key, list(source.classes), counts, *asked])
    name = f"split-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    path, store = (request.cache / f"{name}.{ending}" for ending in ("npz", "images"))
    names = tuple(DISPLAY_NAMES.get(name, name) for name in source.classes)
    if len(set(names)) < len(names):  # a folder with the classes automobile and car
        names = source.classes
    split = split_cache.read(path, store, names, source.name, source.digest, request.seed)
    if split is None:
        pool = source.read(store)
        positions = {
            part: _draw_positions(source, pool, part, counts[part], request) for part in PARTS
        }
        split = make_split(
            *_draw_images(pool, positions, request, store),
            names,
            source.name,
            request.seed,
            train_files=_files(pool, "train", positions["train"]),
            test_files=_files(pool, "test", positions["test"]),
            train_groups=_groups(pool, positions["train"]),
            changes=pool.changes,
        )
        split_cache.write(path, split, source.digest)
    return split


def _draw_positions(
    source: Source, pool: Pool, part: str, requested: Counts | None, request: Request
) -> np.ndarray:
    """Return the positions of random images of each class in a part, in random order."""
    labels, classes = pool.labels[part], source.classes
    counts = class_counts(
        part,
        requested,
        np.bincount(labels[labels >= 0], minlength=len(classes)).tolist(),
        classes,
        is_cifar10=source.is_cifar10,
        dry_run=request.dry_run,
    )
    # A larger draw of a class contains a smaller one, and does not depend on other classes.
    seeds = [request.seed, PARTS.index(part)]
    drawn = [
        np.random.default_rng([*seeds, k]).permutation(np.flatnonzero(labels == k))[:n]
        for k, n in enumerate(counts)
    ]
    chosen = np.random.default_rng([*seeds, len(classes)]).permutation(np.concatenate(drawn))
    if source.is_presplit:
        chosen.sort()
    return chosen


def _draw_images(
    pool: Pool, positions: dict[str, np.ndarray], request: Request, store: Path
) -> list[LabelledImages]:
    """Return the train and the test part with the images at these positions."""
    if pool.images is not None:
        rows = [pool.rows[part][positions[part]] for part in PARTS]
        images = [select(pool.images, torch.from_numpy(each)) for each in rows]
    else:
        images = _read_images(pool, positions, request, store)
    labels = [torch.from_numpy(pool.labels[part][positions[part]]) for part in PARTS]
    return [LabelledImages(*both) for both in zip(images, labels, strict=True)]


def _read_images(
    pool: Pool, positions: dict[str, np.ndarray], request: Request, store: Path
) -> list[Images]:
    """Return the train images and the test images, read from a pool."""
    size, n = request.image_size or SIZE, sum(map(len, positions.values()))

    def blocks() -> Iterator[np.ndarray]:
        with tqdm(total=n, desc="Reading images", leave=False, disable=None) as bar:
            for part in PARTS:
                for start in range(0, len(positions[part]), BLOCK):
                    images = pool.read_images(part, positions[part][start : start + BLOCK])
                    yield resize_images(images, size).transpose(0, 3, 1, 2)
                    bar.update(len(images))

    images = gather(blocks(), n, size, request.memory, store)
    end = len(positions["train"])
    return [select(images, slice(end)), select(images, slice(end, None))]


def _files(pool: Pool, part: str, positions: np.ndarray) -> tuple[str, ...]:
    return tuple(pool.files[part][i] for i in positions) if pool.files else ()


def _groups(pool: Pool, positions: np.ndarray) -> torch.Tensor | None:
    return None if pool.groups is None else torch.from_numpy(pool.groups[positions])
