"""Frozen networks: the features of all images, computed once, on which the head is trained.

Features are what a network's last layer gets (`networks`): (N, D), in evaluation mode.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from common import files
from common.dataset.cache_file import read_arrays, write_arrays
from common.dataset.split import LabelledImages, Split
from common.dataset.stored_images import Images
from common.networks.heads import FlipAverage, Head
from common.networks.prediction import to_pixel_space
from common.training.recipe import Recipe
from common.training.resampling import with_copies

# Images in a forward pass, few enough for the caches. On an Intel Xeon with AMX a batch of
# 1,024 took EfficientNet-Lite0 3.5 times as long for each image.
BATCH = 16


class FrozenHead(nn.Module):
    """The head of a network, for features that were computed before.

    x: features (N, D), or (N, 2, D) of images and their mirror images, whose logits are
    averaged, as `FlipAverage` does. Returns logits (N, classes).
    """

    def __init__(self, head: Head) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.head(x)
        return logits if x.dim() == 2 else (logits[:, 0] + logits[:, 1]) / 2


class Features(NamedTuple):
    """The features of a split, each part with its labels.

    train: the examples before resampling, (N, D): images, their copies, and then the mirror
    images of both if the recipe has `augment flip`. test_examples: the test images likewise,
    for `train_on_test`. validation, test: as `FrozenHead` evaluates them. record: what the
    result file says of them. cached: whether the next run finds them.
    """

    train: LabelledImages
    test_examples: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    record: dict[str, Any]
    cached: bool


def compute_features(
    network: nn.Module, split: Split, recipe: Recipe, seed: int, *,
    device: torch.device, threads: int, facts: dict[str, str] | None = None,
    cache: Path | None = None,
) -> Features:  # fmt: skip
    """Return the features that a frozen recipe trains and evaluates its head with.

    network: with its pretrained weights; it is moved to `device` if features are missing in the
    folder `cache`. seed: of the copies. facts: what `pretrained.prepare` says of the network;
    part of the cache key. cache: None to keep nothing. The seconds in the record are those of
    the computation, also when it was done by an earlier run.
    """
    network.to(memory_format=torch.channels_last)  # as `fit` leaves a network
    backbone = network.network if isinstance(network, FlipAverage) else network
    # Threads and libraries can change the last bits. The images are part of each file's key.
    key = [
        recipe.network,
        _weights_digest(backbone),
        facts,
        str(device),
        threads,
        files.versions(),
    ]
    seconds, cached = 0.0, True

    def features(images: Images, mirrored: bool = False) -> torch.Tensor:
        """Return the features (N, D) of images, or of their mirror images."""
        nonlocal seconds, cached
        path = cache and _cache_file(cache, [*key, mirrored], images)
        saved = (path and read_arrays(path)) or {}
        values, took = saved.get("features"), saved.get("seconds")
        if took is None or values is None or values.shape != _shape(backbone, images):
            with _threads(threads):
                start = time.perf_counter()
                values = _forward(backbone, images, mirrored, device)
                took = time.perf_counter() - start
            if path:
                write_arrays(path, features=values, seconds=np.array(took))
            cached = bool(cached and path and path.exists())
        seconds += float(took)
        return torch.from_numpy(values)

    def examples(part: LabelledImages) -> LabelledImages:
        if "flip" not in recipe.augment:
            return LabelledImages(features(part.images), part.labels)
        both = torch.cat([features(part.images), features(part.images, mirrored=True)])
        return LabelledImages(both, part.labels.repeat(2))

    def evaluated(part: LabelledImages) -> LabelledImages:
        x = features(part.images)
        if recipe.flip_average:
            x = torch.stack([x, features(part.images, mirrored=True)], 1)  # (N, 2, D)
        return LabelledImages(x, part.labels)

    train = examples(with_copies(split.train, recipe.copies, seed))
    validation, test = evaluated(split.validation), evaluated(split.test)
    record = {"dimension": train.images.shape[1], "seconds": round(seconds, 2)}
    test_examples = examples(split.test) if recipe.train_on_test else test
    return Features(train, test_examples, validation, test, record, cached)


def _shape(backbone: nn.Module, images: Images) -> tuple[int, int]:
    return len(images), backbone.head.in_features


@torch.no_grad()
def _forward(
    backbone: nn.Module, images: Images, mirrored: bool, device: torch.device
) -> np.ndarray:
    """Return the features, float32 (N, D)."""
    backbone.to(device).eval()
    values = np.empty(_shape(backbone, images), dtype=np.float32)
    name = "Features of mirror images" if mirrored else "Features"
    start = 0
    with tqdm(desc=name, total=len(images), unit="image", leave=False, disable=None) as bar:
        for batch in images.split(BATCH):
            x = to_pixel_space(batch.to(device, memory_format=torch.channels_last))
            x = x.flip(-1) if mirrored else x
            if len(x):  # the split of no images is one batch without images
                values[start : start + len(x)] = backbone.features(x).cpu().numpy()
            start += len(x)
            bar.update(len(x))
    return values


def _cache_file(folder: Path, key: list[Any], images: Images) -> Path:
    """Return the file of the features of these images, whose labels play no part."""
    digest = hashlib.sha256(json.dumps([*key, list(images.shape)]).encode())
    for batch in images.split(1024):
        digest.update(batch.contiguous().numpy().data)
    return folder / f"features-{digest.hexdigest()[:16]}.npz"


def _weights_digest(backbone: nn.Module) -> str:
    """Return the SHA-256 of names and values of all weights but those of the head."""
    head = {id(value) for value in backbone.head.state_dict(keep_vars=True).values()}
    digest = hashlib.sha256()
    for name, value in backbone.state_dict(keep_vars=True).items():
        if id(value) not in head:
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
