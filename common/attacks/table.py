"""The attacks that adversarial.py compares. To add one, write its module and add a row here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from common.attacks.fgsm import fgsm_per_epsilon
from common.attacks.pgd import pgd


@dataclass(frozen=True)
class Settings:
    """Settings that all attacks of the table share, from the options of adversarial.py.

    epsilons: L-infinity bounds in 1/255. l2_epsilons: L2 bounds in pixel values. steps,
    restarts: of the attacks that take several steps. seed: of the random starting points.
    """

    epsilons: Sequence[float]
    l2_epsilons: Sequence[float]
    steps: int
    restarts: int
    seed: int


class Attack(NamedTuple):
    """A row of the table.

    description: how the attack works, where {steps} and {restarts} stand for the settings.
    norm: "linf" or "l2". targeted: whether the target is the class after each image's label.
    run: called as run(network, x, labels, targets, epsilons=, settings=), with the epsilons in
    pixel space; returns an iterable of the adversarial images at each epsilon.
    """

    name: str
    description: str
    norm: str
    targeted: bool
    run: Callable[..., Iterable[torch.Tensor]]


def _fgsm(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None,
    epsilons: Sequence[float], settings: Settings,
) -> Iterable[torch.Tensor]:  # fmt: skip
    return fgsm_per_epsilon(network, x, labels, epsilons=epsilons, targets=targets)


def _pgd(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None,
    epsilons: Sequence[float], settings: Settings, *, norm: str = "linf", momentum: float = 0.0,
) -> Iterable[torch.Tensor]:  # fmt: skip
    generator = torch.Generator().manual_seed(settings.seed)
    for epsilon in epsilons:
        yield pgd(
            network, x, labels, epsilon=epsilon, targets=targets, norm=norm, momentum=momentum,
            steps=settings.steps, restarts=settings.restarts, generator=generator,
        )  # fmt: skip


ITERATED = "{steps} steps, random starts: {restarts}"
ATTACKS = (
    Attack("FGSM", "one step", "linf", False, _fgsm),
    Attack("targeted FGSM", "to the next class", "linf", True, _fgsm),
    Attack("PGD", ITERATED, "linf", False, _pgd),
    Attack("MI-FGSM", f"momentum 1, {ITERATED}", "linf", False, partial(_pgd, momentum=1.0)),
    Attack("PGD in L2", ITERATED, "l2", False, partial(_pgd, norm="l2")),
)
