"""The probabilities of a network: their calibration, and each class against the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, special
from sklearn.calibration import calibration_curve
from sklearn.metrics import average_precision_score, brier_score_loss

from common.metrics.intervals import interval, row_prior

BINS = 15  # of equal width, as in Guo et al. (2017)
DRAWS = 1000  # fewer than for a confusion matrix: each one ranks all images
BLOCK = 250  # draws at a time, which bounds the memory
TINY = np.finfo(float).tiny  # in place of a denominator of 0, or of the logarithm of 0


class Reliability(NamedTuple):
    """The bins that hold images: mean probability, share that is true, and images of each."""

    probability: list[float]
    share: list[float]
    images: list[int]

    @property
    def error(self) -> float:
        """The expected calibration error: the mean of |share - probability| over images."""
        gaps = np.abs(np.subtract(self.share, self.probability))
        return float(gaps @ self.images / np.sum(self.images))


@dataclass(frozen=True)
class ProbabilityReport:
    """How good probabilities are; `judge` gives the formulas.

    ece, brier, log_loss: of all classes together. class_ece, class_brier, average_precision:
    lists (K,), each class against the rest. mean_average_precision: over the classes. shares:
    of the classes among the images, (K,), which is the average precision of random answers.
    intervals: the 95% interval of each of these numbers but the shares, by name. reliability:
    of the predicted class; class_reliability: of each class.
    """

    classes: tuple[str, ...]
    ece: float
    brier: float
    log_loss: float
    class_ece: list[float]
    class_brier: list[float]
    average_precision: list[float]
    mean_average_precision: float
    shares: list[float]
    intervals: dict[str, Any]
    reliability: Reliability
    class_reliability: list[Reliability]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, for a result file."""
        bins = {
            "reliability": self.reliability._asdict(),
            "class_reliability": [each._asdict() for each in self.class_reliability],
        }
        return asdict(self) | bins


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return the probabilities (N, K) of logits (N, K), in float64."""
    return special.softmax(logits.astype(float), axis=1)


def judge(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> ProbabilityReport:
    """Return the ProbabilityReport of probabilities (N, K) for labels (N,).

    With p_ik the probability of class k for image i, and y_ik 1 for its class, else 0:

        Brier score of class k = mean_i (p_ik - y_ik)^2
        ECE of class k = sum_b n_b / N |mean y_ik - mean p_ik|, over the bins b of p_ik
        average precision of class k = sum_t (R_t - R_(t-1)) P_t, over the thresholds t of p_ik

    The Brier score is the sum of the classes' (Brier 1950). The ECE is that of the predicted
    class: its probability, and whether it is right (Guo et al. 2017; of each class: Nixon et
    al. 2019).

    The intervals come from a Bayesian bootstrap of the images within each class, with and
    without one imagined image of each class, whose probabilities are a draw of
    `intervals.row_prior` (as in `paired`). An ECE is biased upwards where bins hold few images.
    Raises ValueError if a class has no image.
    """
    truth = labels[:, None] == np.arange(len(classes))  # (N, K)
    if not truth.any(0).all():
        raise ValueError("each class needs an image")
    predicted = probabilities.argmax(1)
    confidence = probabilities.max(1)
    by_class = [(truth[:, k], probabilities[:, k]) for k in range(len(classes))]
    overall = reliability(predicted == labels, confidence)
    of_classes = [reliability(*each) for each in by_class]
    class_brier = [float(brier_score_loss(*each)) for each in by_class]
    precision = [float(average_precision_score(*each)) for each in by_class]
    values = {
        "ece": overall.error,
        "brier": sum(class_brier),
        "log_loss": float(_log_losses(labels, probabilities).mean()),
        "class_ece": [each.error for each in of_classes],
        "class_brier": class_brier,
        "average_precision": precision,
        "mean_average_precision": float(np.mean(precision)),
    }
    draws = draw_scores(labels, probabilities)
    return ProbabilityReport(
        classes=tuple(classes),
        **values,
        shares=truth.mean(0).tolist(),
        intervals={name: interval(draws[name], value) for name, value in values.items()},
        reliability=overall,
        class_reliability=of_classes,
    )


def reliability(is_true: np.ndarray, probabilities: np.ndarray) -> Reliability:
    """Return the Reliability of probabilities (N,) of events that came true or not, (N,)."""
    share, probability = calibration_curve(is_true, probabilities, n_bins=BINS)
    images = np.bincount(bin_of(probabilities))
    return Reliability(probability.tolist(), share.tolist(), images[images > 0].tolist())


def bin_of(probabilities: np.ndarray) -> np.ndarray:
    """Return the bin of each probability, from 0, as scikit-learn's calibration_curve does."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probabilities)


def draw_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, np.ndarray]:
    """Return draws (2, DRAWS) or (2, DRAWS, K) of each number of `judge`, by name.

    labels: (N,). probabilities: (N, K). In the first half the imagined images count, in the
    second they do not. The classes keep their shares of the images.
    """
    rng = np.random.default_rng(0)
    classes = probabilities.shape[1]
    prior = row_prior(classes)
    truth = labels[:, None] == np.arange(classes)
    shares = truth.mean(0)
    of_images = _terms(probabilities, labels)
    blocks = []
    for _ in range(DRAWS // BLOCK):
        weights = rng.standard_exponential((BLOCK, len(labels)))
        imagined = rng.standard_gamma(prior, (BLOCK, classes, classes))  # (BLOCK, truth, K)
        mass = imagined.sum(-1)
        guesses = imagined / mass[..., None]
        masses = np.stack([mass, np.zeros_like(mass)])  # (2, BLOCK, K)
        scale = shares / np.maximum(weights @ truth + masses, TINY)
        w, m = weights * scale[..., labels], masses * scale
        of_guesses = _terms(guesses, np.broadcast_to(np.arange(classes), mass.shape))
        block = {
            name: np.tensordot(w, of_images[name], (2, 0))
            + np.einsum("hbk,bk...->hb...", m, of_guesses[name])
            for name in of_images
        }
        block = {
            "log_loss": block["log_loss"],
            "class_brier": block["squared"],
            "brier": block["squared"].sum(-1),
            "ece": np.abs(block["top_gap"]).sum(-1),
            "class_ece": np.abs(block["class_gap"]).sum(-1),
            "average_precision": np.stack(
                [
                    _average_precision(
                        probabilities[:, k], truth[:, k], w, guesses[..., k], m, k
                    )
                    for k in range(classes)
                ],
                -1,
            ),
        }
        block["mean_average_precision"] = block["average_precision"].mean(-1)
        blocks.append(block)
    return {name: np.concatenate([block[name] for block in blocks], 1) for name in blocks[0]}


def _terms(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Return what each image adds to the scores if it weighs 1.

    probabilities: (..., K); labels: (...). squared: (p - y)^2, (..., K). log_loss: (...).
    top_gap, class_gap: p - y in the bin of p, elsewhere 0, (..., BINS) and (..., K, BINS).
    """
    truth = labels[..., None] == np.arange(probabilities.shape[-1])
    right = probabilities.argmax(-1) == labels
    return {
        "squared": (probabilities - truth) ** 2,
        "log_loss": _log_losses(labels, probabilities),
        "top_gap": _in_bins(probabilities.max(-1), right),
        "class_gap": _in_bins(probabilities, truth),
    }


def _log_losses(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return -log p of each image's label, (...), of labels (...) and probabilities (..., K).

    (scikit-learn's log_loss takes no p below 2e-16.)
    """
    of_label = np.take_along_axis(probabilities, labels[..., None], -1)[..., 0]
    return -np.log(np.maximum(of_label, TINY))


def _in_bins(probabilities: np.ndarray, is_true: np.ndarray) -> np.ndarray:
    """Return probability - truth, (...), in the bin of the probability, (..., BINS)."""
    is_bin = bin_of(probabilities)[..., None] == np.arange(BINS)
    return is_bin * (probabilities - is_true)[..., None]


def _average_precision(
    probabilities: np.ndarray, is_true: np.ndarray, weights: np.ndarray,
    guesses: np.ndarray, masses: np.ndarray, k: int,
) -> np.ndarray:  # fmt: skip
    """Return the average precision of class k in weighted images and imagined ones.

    probabilities, is_true: of the images, (N,); weights: (2, BLOCK, N). guesses: of the
    imagined image of each class, (BLOCK, K), of which that of class k is true; masses: their
    weights, (2, BLOCK, K). Returns (2, BLOCK).
    """
    order = np.argsort(-probabilities, kind="stable")
    ranked, is_true = probabilities[order], is_true[order]
    count = np.cumsum(weights[..., order], -1)
    hits = np.cumsum(weights[..., order[is_true]], -1)
    # Only thresholds at which a true image comes in add to the sum: of equal ones the last.
    thresholds, first = np.unique(-ranked[is_true], return_index=True)
    last = np.append(first[1:], is_true.sum()) - 1
    gains = np.diff(hits[..., last], prepend=0)
    count_at = count[..., np.searchsorted(-ranked, thresholds, side="right") - 1]
    # An imagined image counts from the first threshold on that is not above its guess.
    places = np.searchsorted(thresholds, -guesses)
    draws = np.arange(len(places))
    more = np.zeros((2, len(places), len(thresholds) + 1))
    for j, place in enumerate(places.T):
        more[:, draws, place] += masses[..., j]
    own = masses[..., k]
    more_hits = np.zeros_like(more)
    more_hits[:, draws, places[:, k]] = own
    all_counts = count_at + np.cumsum(more, -1)[..., :-1]
    all_hits = hits[..., last] + np.cumsum(more_hits, -1)[..., :-1]
    area = (gains * all_hits / np.maximum(all_counts, TINY)).sum(-1)
    # The threshold of the imagined image of class k itself: what is above it, and it.
    above = np.searchsorted(-ranked, -guesses[:, k])
    hits_above = np.searchsorted(-ranked[is_true], -guesses[:, k])
    before_count, before_hits = (
        np.where(n > 0, sums[:, draws, np.maximum(n - 1, 0)], 0)
        for sums, n in ((count, above), (hits, hits_above))
    )
    as_high = ((guesses >= guesses[:, [k]]) * masses).sum(-1)
    area += own * (before_hits + own) / np.maximum(before_count + as_high, TINY)
    return area / np.maximum(hits[..., -1] + own, TINY)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature T for which softmax(logits / T) has the least log loss.

    logits: (N, K); labels: (N,), of images that the network was not trained on (Guo et al.
    2017). T lies between 0.01 and 100.
    """
    logits = logits.astype(float)

    def loss(log_temperature: float) -> float:
        log_p = special.log_softmax(logits / np.exp(log_temperature), axis=1)
        return -float(log_p[np.arange(len(labels)), labels].mean())

    return float(np.exp(optimize.minimize_scalar(loss, bounds=(-4.6, 4.6), method="bounded").x))
