"""How robust a network is to the attacks of the table."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from common.attacks.gradients import fools, logits_of
from common.attacks.table import ATTACKS, Attack, Settings
from common.dataset.split import LabelledImages
from common.errors import InputError
from common.metrics.report import Report, report
from common.networks.prediction import to_pixel_space

NORMS = {"L1": 1, "L2": 2, "Linf": torch.inf}
MOST_PAIRS = 7  # of true class and target, in the figure of optimised noise


@dataclass(frozen=True)
class AttackResult:
    """The result of one attack at one epsilon.

    Only images that the network classifies correctly are attacked. report: of all images, with
    the predictions after the attack. flipped: how many of the `attacked` images are then
    misclassified or, by a targeted attack, classified as their target. norms: mean L1, L2 and
    L-infinity norm of the noise over the attacked images, in pixel space.
    """

    report: Report
    flipped: int
    attacked: int
    norms: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, for a result file."""
        return vars(self) | {"report": self.report.as_dict()}


@dataclass(frozen=True)
class AttackCurve:
    """The results of one attack at several epsilons.

    unit: of the epsilons: "1/255", or "epsilon" for L2 norms in pixel values. results: one for
    each epsilon, whose text is the key. seconds: the duration for all epsilons together.
    """

    name: str
    description: str
    unit: str
    targeted: bool
    results: dict[str, AttackResult]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers, for a result file."""
        return {
            "description": self.description,
            "unit": self.unit,
            "seconds": self.seconds,
            "results": {epsilon: r.as_dict() for epsilon, r in self.results.items()},
        }


def to_attack(part: LabelledImages, device: torch.device) -> LabelledImages:
    """Return a part on the device, with its images as float32 in [0, 1], (N, 3, S, S)."""
    # Convolutions are faster with channels_last, on CPUs too.
    images = to_pixel_space(part.images[:]).to(device, memory_format=torch.channels_last)
    return LabelledImages(images, part.labels.to(device))


def noise_norms(noise: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the L1, L2 and L-infinity norms, each (N,), of noise (N, 3, S, S)."""
    flat = noise.flatten(1).cpu()
    return {name: flat.norm(p, dim=1) for name, p in NORMS.items()}


def correctly_classified(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, name: str = "the network"
) -> torch.Tensor:
    """Return which images (N,) are classified correctly; raise InputError if there is none."""
    correct = logits_of(network, x).argmax(1) == labels
    if not correct.any():
        raise InputError(
            f"{name} classifies none of the {len(labels)} test images correctly, so there is"
            " nothing to attack; choose another checkpoint"
        )
    return correct


def attack_results(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, classes: Sequence[str],
    attack: Callable[..., Iterable[torch.Tensor]], targets: torch.Tensor | None = None,
) -> Iterator[AttackResult]:  # fmt: skip
    """Yield an AttackResult for each epsilon of an attack.

    x: float32 (N, 3, S, S) in [0, 1], at least one of them classified correctly. labels,
    targets: (N,). attack: called with the images that are classified correctly, their labels,
    and their targets or None; returns an iterable of the adversarial images at each epsilon.
    """
    clean_logits = logits_of(network, x)
    correct = clean_logits.argmax(1) == labels
    attacked, y = x[correct], labels[correct]
    t = None if targets is None else targets[correct]
    for adversarial in attack(attacked, y, t):
        unchanged = adversarial is attacked  # at epsilon 0
        logits = clean_logits[correct] if unchanged else logits_of(network, adversarial)
        predictions = clean_logits.argmax(1)
        predictions[correct] = logits.argmax(1)
        norms = noise_norms(adversarial - attacked)
        yield AttackResult(
            report=report(labels.cpu(), predictions.cpu(), classes),
            flipped=int(fools(logits, y, t).sum()),
            attacked=len(attacked),
            norms={name: float(values.mean()) for name, values in norms.items()},
        )


def attack_curves(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, classes: Sequence[str],
    settings: Settings, attacks: Sequence[Attack] = ATTACKS,
) -> Iterator[AttackCurve]:  # fmt: skip
    """Yield the AttackCurve of each attack; x and labels are those of `attack_results`."""
    for attack in attacks:
        linf = attack.norm == "linf"
        values = settings.epsilons if linf else settings.l2_epsilons
        epsilons = [epsilon / 255 if linf else epsilon for epsilon in values]
        targets = next_class(labels, len(classes)) if attack.targeted else None
        run = partial(attack.run, network, epsilons=epsilons, settings=settings)
        start = time.perf_counter()
        results = attack_results(network, x, labels, classes, run, targets)
        bar = tqdm([f"{value:g}" for value in values], attack.name, leave=False, disable=None)
        result_by_epsilon = dict(zip(bar, results, strict=True))
        yield AttackCurve(
            attack.name,
            attack.description.format(steps=settings.steps, restarts=settings.restarts),
            "1/255" if linf else "epsilon",
            attack.targeted,
            result_by_epsilon,
            time.perf_counter() - start,
        )


def next_class(labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return report B's targets (N,): the class after each label; class 0 after the last."""
    return (labels + 1) % num_classes


def make_targets(
    name: str | None, labels: torch.Tensor, classes: Sequence[str]
) -> torch.Tensor:
    """Return targets (N,): all the class `name` or, without a name, the `next_class`.

    Raises InputError if there is no class of that name.
    """
    if name is None:
        return next_class(labels, len(classes))
    if name not in classes:
        raise InputError(
            f"--target {name}: there is no such class; choose from {', '.join(classes)}"
        )
    return torch.full_like(labels, classes.index(name))


def class_pairs(texts: Sequence[str] | None, classes: Sequence[str]) -> list[tuple[int, int]]:
    """Return the labels of true class and target for each text, such as "car:cat".

    None: the first class is paired with the next ones, at most MOST_PAIRS. Raises InputError
    for an unknown class and for a target that is the true class.
    """
    if texts is None:
        return [(0, k) for k in range(1, len(classes))][:MOST_PAIRS]
    pairs = []
    for text in texts:
        names = text.split(":")
        if len(names) != 2 or not set(names) <= set(classes):
            raise InputError(
                f"--pairs {text}: give TRUE:TARGET, each one of {', '.join(classes)}"
            )
        if names[0] == names[1]:
            raise InputError(f"--pairs {text}: the target is the true class; choose another")
        pairs.append((classes.index(names[0]), classes.index(names[1])))
    return pairs


def sample(
    network: nn.Module, part: LabelledImages, targets: torch.Tensor, n: int | str, seed: int
) -> torch.Tensor:
    """Return the positions (n,), in order, of a random sample of images to attack.

    Usable images are classified correctly, and their target is another class. The sample has
    equally many images of each class; if a class has too few, the other classes make up for
    it. n: a number, or "all". Raises InputError if no image is usable.
    """
    x, labels = part
    usable = (correctly_classified(network, x, labels) & (labels != targets)).cpu()
    if not usable.any():
        raise InputError(
            "every correctly classified image is of its target class; choose another --target"
        )
    order = _random_order(labels, seed)
    order = order[usable[order]]
    if n == "all":
        return order.sort().values
    # The first image of each class, then the second of each, and so on.
    ranks = _ranks_within_class(labels.cpu()[order])
    return order[ranks.argsort(stable=True)][:n].sort().values


def sample_per_class(labels: torch.Tensor, n: int | str, seed: int) -> torch.Tensor:
    """Return the positions, in order, of a random sample of at most n images of each class.

    labels: (N,). n: a number, or "all".
    """
    if n == "all":
        return torch.arange(len(labels))
    order = _random_order(labels, seed)
    return order[_ranks_within_class(labels.cpu()[order]) < n].sort().values


def _random_order(labels: torch.Tensor, seed: int) -> torch.Tensor:
    return torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))


def _ranks_within_class(labels: torch.Tensor) -> torch.Tensor:
    """Return how many labels before each one, (N,), are the same."""
    ranks = torch.empty_like(labels)
    for k in labels.unique():
        ranks[labels == k] = torch.arange(int((labels == k).sum()))
    return ranks
