"""The ensemble: attacks in turn, each on the images that withstood those before it.

It follows AutoAttack (Croce and Hein 2020), for any number of classes from two up: the standard
version of AutoAttack needs four classes for its targeted loss, and ten for nine targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from common.attacks.apgd import apgd
from common.attacks.ball import noise_norm
from common.attacks.gradients import fools, logits_of
from common.attacks.square import square

MINIMAL_NOISE, WITHOUT_GRADIENTS = "minimal noise", "Square"  # names: the first, the last
ROUNDING = 1e-6  # by which the norm of noise within epsilon may seem to exceed it
MOST_TARGETS = 9  # as AutoAttack; with K classes at most K - 1


@dataclass(frozen=True)
class Budget:
    """What the attacks may compute.

    steps: gradients of each run of APGD; the search for the smallest noise takes no more.
    queries: network evaluations of Square.
    """

    steps: int = 100
    queries: int = 1000


class Member(NamedTuple):
    """An attack of the ensemble.

    run: called as run(network, x, labels, epsilon=, norm=, budget=, generator=); returns the
    adversarial images.
    """

    name: str
    run: Callable[..., torch.Tensor]


def _apgd(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, loss: str, budget: Budget,
    **ball,
) -> torch.Tensor:  # fmt: skip
    return apgd(network, x, labels, loss=loss, steps=budget.steps, **ball)


def _apgd_targeted(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, budget: Budget, **ball
) -> torch.Tensor:
    """Return the images of APGD towards each other class in turn, the most probable first."""
    logits = logits_of(network, x).scatter(1, labels[:, None], -torch.inf)
    ranked = logits.argsort(1, descending=True)
    images = x.clone()
    standing = torch.arange(len(x), device=x.device)
    for rank in range(min(logits.shape[1] - 1, MOST_TARGETS)):
        y, targets = labels[standing], ranked[standing, rank]
        found = apgd(
            network, x[standing], y,
            targets=targets, loss="margin", steps=budget.steps, **ball,
        )  # fmt: skip
        images[standing] = found
        standing = standing[~fools(logits_of(network, found), y, None)]
        if len(standing) == 0:
            break
    return images


def _square(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, budget: Budget, **ball
) -> torch.Tensor:
    return square(network, x, labels, queries=budget.queries, **ball)


MEMBERS = (
    Member("APGD, cross-entropy", partial(_apgd, loss="cross-entropy")),
    Member("APGD, margin", partial(_apgd, loss="margin")),
    Member("APGD, each target", _apgd_targeted),
    Member(WITHOUT_GRADIENTS, _square),
)


def members(classes: int) -> list[Member]:
    """Return the members for a number of classes.

    With two classes the margin towards the only target is the margin without targets.
    """
    return [m for m in MEMBERS if classes > 2 or m.run is not _apgd_targeted]


def ensemble(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, smallest: torch.Tensor, *,
    epsilon: float, norm: str = "linf", budget: Budget = Budget(),
    generator: torch.Generator | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:  # fmt: skip
    """Yield the name of each attack, and the images after it, float32 (N, 3, S, S).

    smallest: the images of `minimal_noise` in this norm; those within epsilon count as the
    first attack. An image is changed by the first attack that fools the network with it, and by
    no later one. Images that the network misclassifies are not attacked.
    """
    generator = generator or torch.Generator().manual_seed(0)
    logits = logits_of(network, smallest)
    near = noise_norm(smallest - x, norm) <= epsilon + ROUNDING
    fooled = near & fools(logits, labels, None)
    images = smallest.where(fooled.view(-1, 1, 1, 1), x)
    yield MINIMAL_NOISE, images.clone()
    ball = {"epsilon": epsilon, "norm": norm, "generator": generator}
    standing = (~fooled).nonzero()[:, 0]
    for member in members(logits.shape[1]):
        if len(standing):
            y = labels[standing]
            found = member.run(network, x[standing], y, budget=budget, **ball)
            fooled = fools(logits_of(network, found), y, None)
            images[standing[fooled]] = found[fooled]
            standing = standing[~fooled]
        yield member.name, images.clone()
