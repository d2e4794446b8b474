"""What attacks do to a network: each attack of stage 5 run and measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from common.attacks import fgsm_sweep, fools, logits_of, pgd
from common.dataset import Part
from common.metrics import Report, report, wilson
from common.models import pixels
from common.noise import minimise, optimise, universal
from common.options import InputError, progress

NORMS = {"L1": 1, "L2": 2, "Linf": torch.inf}
ROUNDS = 6  # of the bisection for C
TRADEOFF = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # C where each image's is not searched for
# Images, labels and targets (or None) to one batch of adversarial images for each strength.
Attack = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class Outcome:
    """What one attack does at one strength.

    report: of all images; those that were wrong before stay wrong. flipped: how many of the
    `attacked` images, which were right before, are now wrong; of a targeted attack, how many
    are called their target. norms: the noise's mean over the attacked images, in pixel space.
    """

    report: Report
    flipped: int
    attacked: int
    norms: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for a result file."""
        return {
            "report": self.report.as_dict(),
            "flipped": self.flipped,
            "attacked": self.attacked,
            "norms": self.norms,
        }


@dataclass(frozen=True)
class Sweep:
    """One attack over its strengths: 1/255, or pixel values for the L2 norm.

    outcomes: by strength, as text. seconds: of them all.
    """

    name: str
    how: str
    unit: str
    targeted: bool
    outcomes: dict[str, Outcome]
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for a result file."""
        outcomes = {strength: o.as_dict() for strength, o in self.outcomes.items()}
        about = {"how": self.how, "unit": self.unit, "seconds": self.seconds}
        return about | {"outcomes": outcomes}


def to_attack(part: Part, device: torch.device) -> Part:
    """A part on the device, its images as float32 in [0, 1], (N, 3, 32, 32).

    channels_last in memory: convolution is faster so, on CPUs too.
    """
    images = pixels(part.images).to(device, memory_format=torch.channels_last)
    return Part(images, part.labels.to(device))


def noise_norms(noise: torch.Tensor) -> dict[str, torch.Tensor]:
    """L1, L2 and Linf norm of each image's noise (N, 3, 32, 32), each (N,)."""
    flat = noise.flatten(1).cpu()
    return {name: flat.norm(p, dim=1) for name, p in NORMS.items()}


def correct(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, name: str = "the network"
) -> torch.Tensor:
    """Which images (N,) the network gets right. Raises InputError where it is none."""
    right = logits_of(network, x).argmax(1) == labels
    if not right.any():
        raise InputError(
            f"{name} gets none of the {len(labels)} test images right, so there is nothing to"
            " attack; take another checkpoint"
        )
    return right


def outcomes(
    network: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    attack: Attack,
    targets: torch.Tensor | None = None,
) -> Iterator[Outcome]:
    """The Outcome of each strength of `attack`, which sees only the images that are right.

    x: float32 (N, 3, 32, 32) in [0, 1]; labels, targets: (N,). Some image is right: see
    `correct`.
    """
    clean = logits_of(network, x)
    right = clean.argmax(1) == labels
    attacked, aims = x[right], None if targets is None else targets[right]
    for adversarial in attack(attacked, labels[right], aims):
        unchanged = adversarial is attacked
        logits = clean[right] if unchanged else logits_of(network, adversarial)
        predictions = clean.argmax(1)
        predictions[right] = logits.argmax(1)
        norms = noise_norms(adversarial - attacked)
        yield Outcome(
            report=report(labels.cpu(), predictions.cpu(), classes),
            flipped=int(fools(logits, labels[right], aims).sum()),
            attacked=int(right.sum()),
            norms={name: float(values.mean()) for name, values in norms.items()},
        )


def sweeps(
    network: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    classes: Sequence[str],
    *,
    epsilons: Sequence[float],
    l2_epsilons: Sequence[float],
    steps: int,
    restarts: int,
    seed: int,
) -> Iterator[Sweep]:
    """FGSM, FGSM towards each image's next class, PGD, MI-FGSM, and PGD in L2.

    epsilons: in 1/255, l2_epsilons in pixel values; steps and restarts: of PGD.
    """
    levels = [epsilon / 255 for epsilon in epsilons]

    def fgsm(x: torch.Tensor, y: torch.Tensor, aims: torch.Tensor | None) -> Iterable:
        return fgsm_sweep(network, x, y, epsilons=levels, targets=aims)

    def iterated(levels: Sequence[float], **given: Any) -> Attack:
        given |= {"steps": steps, "restarts": restarts}
        given["generator"] = torch.Generator().manual_seed(seed)
        return lambda x, y, aims: (
            pgd(network, x, y, epsilon=epsilon, targets=aims, **given) for epsilon in levels
        )

    many = f"{steps} steps, random starts: {restarts}"
    momentum = f"momentum 1, {many}"
    aims = following(labels, classes)
    for name, how, unit, strengths, attack, targets in (
        ("FGSM", "one step", "1/255", epsilons, fgsm, None),
        ("targeted FGSM", "to the next class", "1/255", epsilons, fgsm, aims),
        ("PGD", many, "1/255", epsilons, iterated(levels), None),
        ("MI-FGSM", momentum, "1/255", epsilons, iterated(levels, momentum=1.0), None),
        ("PGD in L2", many, "epsilon", l2_epsilons, iterated(l2_epsilons, norm="l2"), None),
    ):  # fmt: skip
        start = time.perf_counter()
        found = outcomes(network, x, labels, classes, attack, targets)
        texts = [f"{strength:g}" for strength in strengths]
        found = dict(zip(progress(texts, name), found, strict=True))
        yield Sweep(name, how, unit, targets is not None, found, time.perf_counter() - start)


def following(labels: torch.Tensor, classes: Sequence[str]) -> torch.Tensor:
    """Report B's targets: each label's next class, the last one's the first."""
    return (labels + 1) % len(classes)


def targets(name: str | None, labels: torch.Tensor, classes: Sequence[str]) -> torch.Tensor:
    """One target for each of labels (N,): the class of that name, or the `following` one.

    Raises InputError where there is no such class.
    """
    if name is None:
        return following(labels, classes)
    if name not in classes:
        raise InputError(f"--target {name}: there is no such class; take {', '.join(classes)}")
    return torch.full_like(labels, classes.index(name))


def class_pairs(given: Sequence[str] | None, classes: Sequence[str]) -> list[tuple[int, int]]:
    """Labels of true class and target from "car:cat"; by default the first to each other.

    Raises InputError for an unknown class and for a target that is the true class.
    """
    if given is None:
        return [(0, k) for k in range(1, len(classes))]
    pairs = []
    for text in given:
        names = text.split(":")
        if len(names) != 2 or not set(names) <= set(classes):
            raise InputError(f"--pairs {text}: give TRUE:TARGET, of {', '.join(classes)}")
        if names[0] == names[1]:
            raise InputError(f"--pairs {text}: the target is the true class; take another")
        pairs.append((classes.index(names[0]), classes.index(names[1])))
    return pairs


def sample(
    network: nn.Module, part: Part, targets: torch.Tensor, n: int | str, seed: int
) -> torch.Tensor:
    """Places (n,) of images that are right and not of their target's class.

    As many of each class as can be: a class with fewer gives all, others make up for it.
    n: a number, or "all". Raises InputError where there is no such image.
    """
    x, labels = part
    usable = (correct(network, x, labels) & (labels != targets)).cpu()
    if not usable.any():
        raise InputError(
            "no image that is classified right is of another class than the target"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    order = order[usable[order]]
    of_class = labels.cpu()[order]
    rank = torch.empty_like(order)
    for k in of_class.unique():
        rank[of_class == k] = torch.arange(int((of_class == k).sum()))
    # All first images of their class, then all second ones, and so on.
    order = order[rank.argsort(stable=True)]
    return order.sort().values if n == "all" else order[:n].sort().values


def noises(
    network: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor,
    *,
    c: float | None,
    norm: str,
    steps: int,
    seed: int,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Report A's noise from zeros and from a Gaussian start, then with several C.

    Yields name and numbers: images called their target, of how many, the median norms of
    these images' noise, c (None: bisection), network evaluations per image, and seconds.
    """
    rows = {f"{start} start": (start, c) for start in ("zeros", "gaussian")}
    rows |= {f"C = {value:g}": ("zeros", value) for value in TRADEOFF}
    shared = {"targets": targets, "norm": norm}
    for name, (start, value) in progress(rows.items(), "Noise"):
        begin = time.perf_counter()
        shared |= {"start": start, "generator": torch.Generator().manual_seed(seed)}
        if value is None:
            noisy = minimise(network, x, labels, steps=steps, rounds=ROUNDS, **shared)
            evaluations = ROUNDS * steps + 1
        else:
            noisy = optimise(network, x, labels, c=value, steps=2 * steps, **shared)
            evaluations = 2 * steps
        fooled = (logits_of(network, noisy).argmax(1) == targets).cpu()
        yield (
            name,
            {
                "fooled": int(fooled.sum()),
                "images": len(x),
                "interval": wilson(int(fooled.sum()), len(x)),
                "medians": {
                    norm: float(values[fooled].median()) if fooled.any() else None
                    for norm, values in noise_norms(noisy - x).items()
                },
                "c": value,
                "evaluations": evaluations,
                "seconds": time.perf_counter() - begin,
            },
        )


def universals(
    network: nn.Module,
    train: Part,
    test: Part,
    classes: Sequence[str],
    *,
    epsilon: float,
    steps: int,
    seed: int,
) -> Iterator[tuple[str, torch.Tensor | None, dict[str, Any]]]:
    """Report B's noise for all images, bounded and not, and one that weighs classes equally.

    Learned on train, measured on train and test. Yields name, noise (1, 3, 32, 32), and for
    each part its Report and the share of predictions that the noise changes; first of all
    without noise (None). epsilon: of the bounded ones, 0 to 1.
    """
    aims = following(train.labels, classes)
    clean = {}
    for name, options in (
        ("no noise", None),
        ("label + 1", {"epsilon": epsilon, "targets": aims}),
        ("balanced", {"epsilon": epsilon, "balanced": True}),
        ("unbounded", {"epsilon": 1.0, "targets": aims}),
    ):
        noise = None
        if options is not None:
            generator = torch.Generator().manual_seed(seed)
            noise = universal(network, *train, steps=steps, generator=generator, **options)
        measured = {}
        for part_name, part in (("train", train), ("test", test)):
            x = pixels(part.images)
            x = x if noise is None else (x + noise).clamp(0, 1)
            called = logits_of(network, x).argmax(1)
            before = clean.setdefault(part_name, called)
            measured[part_name] = {
                "report": report(part.labels.cpu(), called.cpu(), classes),
                "fooling_rate": float((called != before).float().mean()),
            }
        yield name, noise, measured
