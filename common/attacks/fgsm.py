"""The fast gradient sign method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from common.attacks.gradients import check_arguments, objective_gradient


def fgsm(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, epsilon: float,
    targets: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return clamp(x + epsilon * sign(gradient)), the FGSM of Goodfellow et al. (2015)."""
    return next(fgsm_per_epsilon(network, x, labels, epsilons=[epsilon], targets=targets))


def fgsm_per_epsilon(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, epsilons: Sequence[float],
    targets: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Yield the images of `fgsm` at each epsilon, all from one gradient."""
    check_arguments(labels, targets, *epsilons)
    sign = objective_gradient(network, x, labels, targets)[1].sign_()
    for epsilon in epsilons:
        yield torch.add(x, sign, alpha=epsilon).clamp_(0, 1) if epsilon else x
