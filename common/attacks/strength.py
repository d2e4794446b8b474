"""How strong a network is: the smallest noise that fools it, and the ensemble of attacks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from common.attacks.ball import noise_norm
from common.attacks.ensemble import WITHOUT_GRADIENTS, Budget, ensemble
from common.attacks.gradients import logits_of
from common.attacks.minimal_noise import STEPS, minimal_noise
from common.attacks.rounding import fool_in_8_bits
from common.metrics.report import Report, report

# If Square, which needs no gradient, is the only one to fool this share of the images, the
# gradients that the other attacks follow are of little use.
MASKED = 0.05


@dataclass(frozen=True)
class Stage:
    """One attack of the ensemble, after the ones before it.

    added: the number of images that this attack is the first to fool. report: of all images,
    with the predictions after this attack.
    """

    added: int
    report: Report
    seconds: float


@dataclass(frozen=True)
class EnsembleResult:
    """The ensemble at one epsilon.

    stages: by the attack's name; the report of the last one is the ensemble's. rounded: the
    adversarial images (N, 3, S, S), rounded to 8 bits; those that withstand all attacks are the
    originals. rounded_report: of these images. rounded_fools: how many of the attacked images
    still fool the network then.
    """

    stages: dict[str, Stage]
    rounded: torch.Tensor
    rounded_report: Report
    rounded_fools: int

    def report(self) -> Report:
        """Return the report of the whole ensemble."""
        return list(self.stages.values())[-1].report


@dataclass(frozen=True)
class Strength:
    """The strength of a network in one norm.

    radii: the norm (N,) of the smallest noise found for each image: 0 if the network
    misclassifies the image without noise, infinite if none was found. results: by the epsilon's
    text. seconds: of the search for the smallest noise; the ensemble's are in its stages.
    """

    norm: str
    attacked: int
    radii: torch.Tensor
    results: dict[str, EnsembleResult]
    seconds: float

    def masked(self) -> bool:
        """Return whether the gradients seem masked: see MASKED."""
        added = (result.stages[WITHOUT_GRADIENTS].added for result in self.results.values())
        return max(added, default=0) > MASKED * self.attacked


def measure_strength(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, classes: Sequence[str], *,
    norm: str, epsilons: dict[str, float], budget: Budget, seed: int,
) -> Strength:  # fmt: skip
    """Return the strength of a network on images x, float32 (N, 3, S, S) in [0, 1].

    labels: (N,). norm: "linf" or "l2". epsilons: by their texts, in pixel space. An image that
    is fooled at one epsilon is fooled at every larger one. The radius of an image is that of
    `minimal_noise`, or less if an attack of the ensemble finds less.
    """

    def report_of(predictions: torch.Tensor) -> Report:
        return report(labels.cpu(), predictions.cpu(), classes)

    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    steps = min(budget.steps, STEPS)
    smallest, radii = minimal_noise(network, x, labels, norm=norm, steps=steps)
    seconds = time.perf_counter() - start
    attacked = radii > 0
    results = {}
    for text, epsilon in sorted(epsilons.items(), key=lambda item: item[1]):
        stages, standing = {}, attacked
        attacks = ensemble(
            network, x, labels, smallest,
            epsilon=epsilon, norm=norm, budget=budget, generator=generator,
        )  # fmt: skip
        start = time.perf_counter()
        for name, images in attacks:
            seconds_of_stage = time.perf_counter() - start
            predictions = logits_of(network, images).argmax(1)
            added = int((standing & (predictions != labels)).sum())
            stages[name] = Stage(added, report_of(predictions), seconds_of_stage)
            standing, start = standing & (predictions == labels), time.perf_counter()
        size = noise_norm(images - x, norm)
        found = size > 0
        smallest = images.where(found.view(-1, 1, 1, 1), smallest)
        radii = size.where(found, radii)
        rounded = fool_in_8_bits(
            network, x, labels, images,
            epsilon=epsilon, norm=norm, generator=generator,
        )  # fmt: skip
        predictions = logits_of(network, rounded).argmax(1)
        rounded_fools = int((attacked & (predictions != labels)).sum())
        results[text] = EnsembleResult(stages, rounded, report_of(predictions), rounded_fools)
    return Strength(norm, int(attacked.sum()), radii, results, seconds)
