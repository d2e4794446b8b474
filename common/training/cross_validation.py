"""Cross-validation: each train image predicted by a network that was trained without it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from tqdm import tqdm

from common.dataset.cache_file import read_arrays, write_arrays
from common.dataset.split import LabelledImages
from common.errors import InputError
from common.files import versions
from common.networks.build import build
from common.networks.prediction import predict, predict_shifted
from common.training.fit import fit, require_finite
from common.training.recipe import Recipe
from common.training.workers import call_in_processes


def stratified_folds(
    labels: torch.Tensor, groups: torch.Tensor | None, classes: Sequence[str], folds: int,
    seed: int,
) -> list[np.ndarray]:  # fmt: skip
    """Return the positions of the images of each fold.

    labels: of each image, (N,). groups: of each image, (N,); those of one are in one fold.
    Raises InputError if a class has fewer images than there are folds, or all of them in one
    group.
    """
    for name, n in zip(classes, labels.bincount(minlength=len(classes)).tolist(), strict=True):
        if n < folds:
            raise InputError(
                f"{folds} folds need {folds} train images of each class, and of {name} there"
                f" are {n}; raise --train-counts"
            )
    splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    drawn = splitter(folds, shuffle=True, random_state=seed).split(labels, labels, groups)
    held_out = []
    for others, positions in drawn:
        if lacking := set(range(len(classes))) - set(labels[others].tolist()):
            name = classes[min(lacking)]
            raise InputError(
                f"{folds} folds: nearly all train images of {name} are of one group, or near"
                " duplicates of each other, and can't be held out together; add images"
            )
        held_out.append(positions)
    return held_out


def out_of_fold(
    part: LabelledImages, fingerprint: str, recipe: Recipe, *, folds: int,
    classes: Sequence[str], seed: int, device: torch.device, jobs: int, threads: int,
    cache: Path, shifted: bool = False, groups: torch.Tensor | None = None,
) -> np.ndarray:  # fmt: skip
    """Return logits (N, K), each image's from a network that was trained without the image.

    One network of the recipe is trained for each of `folds` stratified folds, `jobs` networks
    at a time with `threads` CPU threads each. The logits of a fold are saved in the folder
    `cache`, if that can be written, when its network is trained, and an interrupted call
    continues from there.
    fingerprint: of the images and labels; part of the cache key. shifted: whether to average
    over shifts of each image (`predict_shifted`). groups: of each image, (N,), if images of one
    must be held out together. Raises InputError as `stratified_folds` does.
    """
    held_out = stratified_folds(part.labels, groups, classes, folds, seed)
    # In the cache key the fingerprint represents the images. The recipe is represented by its
    # changes to the defaults: a field that is added to Recipe later leaves the key unchanged.
    key = [fingerprint, recipe.changes(), folds, len(classes), seed, str(device), threads]
    key += ["shifted"] if shifted else []
    key += [] if groups is None else [groups.tolist()]
    files = [_cache_file(cache, [fold, *key, versions()]) for fold in range(folds)]
    settings = (recipe, len(classes), str(device), threads, shifted)
    calls = {}
    logits = np.empty((len(part.labels), len(classes)), dtype=np.float32)
    for fold, positions in enumerate(held_out):
        saved = (read_arrays(files[fold]) or {}).get("logits")
        if saved is not None and saved.shape == (len(positions), len(classes)):
            logits[positions] = saved
        else:
            calls[fold] = (part, positions, seed + fold, f"fold {fold + 1}", *settings)
    done = folds - len(calls)
    bar = tqdm(desc="Folds", total=folds, initial=done, leave=False, disable=None)
    with bar:
        for fold, fold_logits in _train_folds(calls, min(jobs, len(calls))):
            write_arrays(files[fold], logits=fold_logits)
            logits[held_out[fold]] = fold_logits
            bar.update()
    return logits


def _cache_file(folder: Path, key: list[Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()
    return folder / f"folds-{digest[:16]}.npz"


def _train_folds(
    calls: dict[int, tuple[Any, ...]], jobs: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the fold and its logits for each call of `_fold_logits`, as the calls end."""
    if jobs <= 1:  # in this process, where the bar of `fit` is visible
        for fold, call in calls.items():
            yield fold, _fold_logits(*call)
        return
    folds = list(calls)
    for i, fold_logits in call_in_processes(_fold_logits, list(calls.values()), jobs):
        yield folds[i], fold_logits


def _fold_logits(
    part: LabelledImages, held_out: np.ndarray, seed: int, name: str, recipe: Recipe,
    classes: int, device: str, threads: int, shifted: bool,
) -> np.ndarray:  # fmt: skip
    """Train a network without the images at held_out (n,), and return their logits (n, K)."""
    torch.set_num_threads(threads)
    trained_on = np.ones(len(part.labels), dtype=bool)
    trained_on[held_out] = False
    train, judged = (
        part.select(torch.from_numpy(positions))
        for positions in (np.flatnonzero(trained_on), held_out)
    )
    no_validation = LabelledImages(part.images[:0], part.labels[:0])
    arguments = recipe.network_arguments(classes, part.images.shape[-1])
    network = build(recipe.network, arguments, seed)
    options = {"seed": seed, "device": torch.device(device), "name": name}
    history = fit(network, train, no_validation, recipe, **options)
    require_finite(history, recipe)
    return (predict_shifted if shifted else predict)(network, judged.images).numpy()
