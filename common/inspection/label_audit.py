"""The label audit: which train images may have a wrong label.

Confident learning (Northcutt, Jiang and Chuang 2021; the cleanlab library) estimates from
out-of-fold predictions how often an image of one class has the label of another. From this
estimate and the predictions, Bayes' rule gives the probability of each true label of an image,
given the image and its label.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.metrics import average_precision_score

from common.dataset.label_fixes import Suspect
from common.training.recipes import RESNET

# `best`, made shorter: 20 epochs rank the images well and take minutes on two CPU cores.
# So few epochs need weaker augmentation, and weights that are averaged over fewer steps.
RECIPE = replace(
    RESNET,
    epochs=20,
    warm_up=0.2,
    sampler="square-root",
    loss="logit-adjusted",
    augment=("flip", "crop", "cutout", "colour"),
    mix="cutmix",
    ema=0.98,
    flip_average=True,
)
FOLDS = 4
TEMPERATURES = (0.2, 5.0)  # range of the factor by which calibration multiplies the logits
# Northcutt, Athalye and Mueller (2021), "Pervasive label errors in test sets".
CAUTION = (
    "The audit proposes, you decide: of 275 suspects that cleanlab's label-errors study found"
    " in CIFAR-10's test set, people confirmed 54 as wrong."
)


class Audit(NamedTuple):
    """The result of confident learning on N images with K classes.

    joint: (K, K), the estimated share of images with given label (row) and true label (column).
    true_label_probabilities: (N, K), given image and label. self_confidence,
    normalized_margin: (N,), cleanlab's scores of the given label; a low score is suspect.
    suspects: positions of the images that are listed, the most suspect first.
    """

    joint: np.ndarray
    true_label_probabilities: np.ndarray
    self_confidence: np.ndarray
    normalized_margin: np.ndarray
    suspects: np.ndarray

    def error_probabilities(self, labels: np.ndarray) -> np.ndarray:
        """Return the probability (N,) that the label of an image is wrong."""
        return 1 - self.true_label_probabilities[np.arange(len(labels)), labels]


def audit(logits: np.ndarray, labels: np.ndarray) -> Audit:
    """Return the audit of labels (N,), from out-of-fold logits (N, K).

    The logits are those of a logit-adjusted network: log p(image | label) up to a constant per
    image. With the log share of each label added, they give p(given label | image), from which
    cleanlab estimates the joint. Then p(true = k | image, given = g) is proportional to
    p(image | k)^t joint[g, k]. The exponent t calibrates networks whose predictions are not
    confident enough, an effect of mixing: it maximises the likelihood of the given labels
    (after Guo et al. 2017). The number of suspects is the sum of the error probabilities.
    """
    from cleanlab.count import estimate_joint
    from cleanlab.rank import get_label_quality_scores

    rows = np.arange(len(labels))
    likelihood = log_softmax(logits.astype(np.float64), axis=1)
    shares = np.bincount(labels, minlength=logits.shape[1]) / len(labels)
    given = softmax(likelihood + np.log(shares), axis=1)
    # A joint probability of 0 would make an error impossible, whatever the image shows.
    joint = np.maximum(estimate_joint(labels, given), 1e-9)

    def negative_log_likelihood(t: float) -> float:
        true = softmax(t * likelihood + np.log(joint.sum(0)), axis=1)
        given = true @ (joint / joint.sum(0)).T
        return -np.log(given[rows, labels]).mean()

    t = minimize_scalar(negative_log_likelihood, bounds=TEMPERATURES, method="bounded").x
    true = softmax(t * likelihood + np.log(joint[labels]), axis=1)
    wrong = 1 - true[rows, labels]
    order = np.argsort(-wrong, kind="stable")
    scores = [
        get_label_quality_scores(labels, softmax(likelihood, axis=1), method=method)
        for method in ("self_confidence", "normalized_margin")
    ]
    return Audit(joint, true, *scores, order[: round(wrong.sum())])


def suspects(
    found: Audit, labels: np.ndarray, classes: Sequence[str], files: Sequence[str]
) -> list[Suspect]:
    """Return the listed images, each with its most probable other label.

    files: the name of each image, or empty. The confidence of a suspect is the probability of
    the suggested label.
    """
    others = found.true_label_probabilities.copy()
    others[np.arange(len(labels)), labels] = 0
    return [
        Suspect(
            int(i),
            files[i] if files else "",
            classes[labels[i]],
            classes[others[i].argmax()],
            float(others[i].max()),
        )
        for i in found.suspects
    ]


def ranking(
    found: Audit, labels: np.ndarray, classes: Sequence[str], files: Sequence[str]
) -> list[dict[str, str | int | float]]:
    """Return a row for each image, the highest error probability first.

    A row holds the three scores of an image and its place (from 1) in the ranking by each.
    """
    wrong = found.error_probabilities(labels)
    scores = {
        "wrong": -wrong,
        "self_confidence": found.self_confidence,
        "normalized_margin": found.normalized_margin,
    }
    orders = {name: np.argsort(score, kind="stable") for name, score in scores.items()}
    places = {name: np.argsort(order) + 1 for name, order in orders.items()}
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
        for i in orders["wrong"]
    ]


def against_truth(
    found: Audit, labels: np.ndarray, true_labels: np.ndarray, classes: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Return how well the audit found planted errors: all, and those of each true class.

    Each row holds the number of planted errors, the recall of the list of suspects, and the
    average precision of the rankings by error probability and by cleanlab's two scores. The
    row of a class ranks its errors among the correctly labelled images of all classes. The row
    "all" also holds the precision of the list. Classes without errors have no row.
    """
    bad = labels != true_labels
    listed = np.zeros(len(labels), dtype=bool)
    listed[found.suspects] = True
    scores = {
        "wrong": found.error_probabilities(labels),
        "self_confidence": -found.self_confidence,
        "normalized_margin": -found.normalized_margin,
    }
    rows = {"all": bad} | {name: bad & (true_labels == k) for k, name in enumerate(classes)}
    table = {}
    for name, positive in rows.items():
        if not positive.any():
            continue
        counted = positive | ~bad
        row = {"planted": int(positive.sum()), "recall": float(listed[positive].mean())}
        for ranked_by, score in scores.items():
            row[ranked_by] = float(average_precision_score(positive[counted], score[counted]))
        table[name] = row
    if table and listed.any():
        table["all"]["precision"] = float(bad[listed].mean())
    return table
