"""The label audit: which train images may have a wrong label.

Confident learning (Northcutt, Jiang and Chuang 2021, by cleanlab) on out-of-fold predictions
estimates how often an image of one class carries the label of another. From that and the
predictions Bayes' rule gives each image's probability of every true label, given its label.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedKFold

from common import models, results, training
from common.dataset import Part
from common.options import InputError, progress
from common.recipes import BEST, Recipe
from common.relabel import Suspect
from common.results import replacing

# Long enough to rank well, short enough for two CPU cores to end in minutes (README).
RECIPE = replace(BEST, epochs=20, flip_average=True)
FOLDS = 4
# What calibration may multiply the logits by.
TEMPERATURES = (0.2, 5.0)


def out_of_fold(
    part: Part,
    fingerprint: str,
    recipe: Recipe,
    *,
    folds: int,
    classes: Sequence[str],
    seed: int,
    device: torch.device,
    jobs: int,
    threads: int,
    cache: Path,
) -> np.ndarray:
    """Logits (N, K), each image's from a network that was trained without it.

    One network of the recipe for each of `folds` stratified parts, `jobs` at a time with
    `threads` CPU threads each. A network's logits are kept in `cache` under what decides them,
    the fingerprint (of the images and labels) among it, so that an audit that was interrupted
    goes on where it was. Raises InputError where a class has fewer images than there are folds.
    """
    for name, n in zip(classes, part.counts(len(classes)), strict=True):
        if n < folds:
            raise InputError(
                f"--audit-labels: {n} train images of {name}, fewer than {folds} folds"
            )
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    held_out = [places for _, places in splitter.split(part.labels, part.labels)]
    how = [
        fingerprint, asdict(recipe), folds, seed, str(device), threads, results.versions(),
    ]  # fmt: skip
    key = hashlib.sha256(json.dumps(how).encode()).hexdigest()[:16]
    files = [cache / f"audit-{key}-{fold}.npy" for fold in range(folds)]
    missing = [fold for fold in range(folds) if not files[fold].exists()]
    parallel = joblib.Parallel(min(jobs, max(len(missing), 1)), return_as="generator_unordered")
    fits = parallel(
        joblib.delayed(_fit)(
            fold, part, held_out[fold], recipe, len(classes), seed, device, threads
        )
        for fold in missing
    )
    for fold, logits in progress(fits, "Auditing: folds", total=len(missing)):
        with replacing(files[fold]) as unfinished, unfinished.open("wb") as file:
            np.save(file, logits)
    logits = np.empty((len(part.labels), len(classes)), dtype=np.float32)
    for places, file in zip(held_out, files, strict=True):
        logits[places] = np.load(file)
    return logits


def _fit(
    fold: int, part: Part, held_out: np.ndarray, recipe: Recipe, classes: int, seed: int,
    device: torch.device, threads: int,
) -> tuple[int, np.ndarray]:  # fmt: skip
    torch.set_num_threads(threads)
    rest = np.ones(len(part.labels), dtype=bool)
    rest[held_out] = False
    nothing = Part(part.images[:0], part.labels[:0])
    network = models.build(recipe.network, recipe.network_arguments(classes), seed + fold)
    training.fit(
        network,
        Part(part.images[rest], part.labels[rest]),
        nothing,
        recipe,
        seed=seed + fold,
        device=device,
        name=f"fold {fold + 1}",
    )
    return fold, models.predict(network, part.images[held_out]).numpy()


class Audit(NamedTuple):
    """What confident learning says of N images with K classes.

    joint: (K, K), the estimated share of images with given label (row) and true label (column).
    true: (N, K), the probability of each true label, given image and label. self_confidence,
    normalized_margin: (N,), cleanlab's scores of the given label; a low one is suspect.
    suspects: positions of those that are listed, most suspect first.
    """

    joint: np.ndarray
    true: np.ndarray
    self_confidence: np.ndarray
    normalized_margin: np.ndarray
    suspects: np.ndarray

    def wrong(self, labels: np.ndarray) -> np.ndarray:
        """(N,): the probability that an image's label is wrong."""
        return 1 - self.true[np.arange(len(labels)), labels]


def audit(logits: np.ndarray, labels: np.ndarray) -> Audit:
    """The audit of labels (N,) by out-of-fold logits (N, K) of a logit-adjusted network.

    Such logits are log p(image | label) up to a constant of the image; with the label's share
    added they are p(given label | image), from which cleanlab estimates the joint. Then
    p(true = k | image, given = g) is proportional to p(image | k)^t joint[g, k]; t makes up
    for networks that are not sure enough, as mixing makes them: the given labels are likeliest
    under it (after Guo et al. 2017). As many images are suspects as the probabilities of being
    wrong add up to.
    """
    from cleanlab.count import estimate_joint
    from cleanlab.rank import get_label_quality_scores

    everyone = np.arange(len(labels))
    likelihood = log_softmax(logits.astype(np.float64), axis=1)
    shares = np.bincount(labels, minlength=logits.shape[1]) / len(labels)
    given = softmax(likelihood + np.log(shares), axis=1)
    joint = np.maximum(estimate_joint(labels, given), 1e-9)  # log 0 would end every doubt

    def surprise(t: float) -> float:
        true = softmax(t * likelihood + np.log(joint.sum(0)), axis=1)
        of_given = true @ (joint / joint.sum(0)).T
        return -np.log(of_given[everyone, labels]).mean()

    t = minimize_scalar(surprise, bounds=TEMPERATURES, method="bounded").x
    true = softmax(t * likelihood + np.log(joint[labels]), axis=1)
    wrong = 1 - true[everyone, labels]
    first = np.argsort(-wrong, kind="stable")
    scores = [
        get_label_quality_scores(labels, softmax(likelihood, axis=1), method=method)
        for method in ("self_confidence", "normalized_margin")
    ]
    return Audit(joint, true, *scores, first[: round(wrong.sum())])


def suspects(
    found: Audit, labels: np.ndarray, classes: Sequence[str], files: Sequence[str]
) -> list[Suspect]:
    """The listed images, each with the likeliest other label and its probability."""
    other = found.true.copy()
    other[np.arange(len(labels)), labels] = 0
    return [
        Suspect(
            int(i),
            files[i] if files else "",
            classes[labels[i]],
            classes[other[i].argmax()],
            float(other[i].max()),
        )
        for i in found.suspects
    ]


def ranking(
    found: Audit, labels: np.ndarray, classes: Sequence[str], files: Sequence[str]
) -> list[dict[str, str | int | float]]:
    """A row for each image, the likeliest to be wrong first, with its place in each ranking."""
    wrong = found.wrong(labels)
    scores = {
        "wrong": -wrong,
        "self_confidence": found.self_confidence,
        "normalized_margin": found.normalized_margin,
    }
    first = {name: np.argsort(score, kind="stable") for name, score in scores.items()}
    places = {name: np.argsort(order) + 1 for name, order in first.items()}
    return [
        {
            "index": int(i),
            "file": files[i] if files else "",
            "given": classes[labels[i]],
            "wrong": round(float(wrong[i]), 4),
            "self_confidence": round(float(found.self_confidence[i]), 4),
            "normalized_margin": round(float(found.normalized_margin[i]), 4),
            **{f"place_by_{name}": int(place[i]) for name, place in places.items()},
        }
        for i in first["wrong"]
    ]


def against_truth(
    found: Audit, labels: np.ndarray, true_labels: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """How well planted errors were found: of all, and of each true class that has any.

    recall and, for all, precision: of the list of suspects. The rest are average precisions of
    the rankings by the probability of being wrong and by cleanlab's two scores; a class's own
    errors are told from the rightly labelled images of all classes. Empty without errors.
    """
    bad = labels != true_labels
    listed = np.zeros(len(labels), dtype=bool)
    listed[found.suspects] = True
    rankings = {
        "wrong": found.wrong(labels),
        "self_confidence": -found.self_confidence,
        "normalized_margin": -found.normalized_margin,
    }
    rows = {"all": bad} | {name: bad & (true_labels == k) for k, name in enumerate(classes)}
    table = {}
    for name, positive in rows.items():
        if not positive.any():
            continue
        counted = positive | ~bad
        table[name] = {
            "planted": int(positive.sum()),
            "recall": float(listed[positive].mean()),
        } | {
            ranking: float(average_precision_score(positive[counted], score[counted]))
            for ranking, score in rankings.items()
        }
    if table and listed.any():
        table["all"]["precision"] = float(bad[listed].mean())
    return table
