"""Adversarial training: on PGD's images (Madry et al. 2018), or TRADES (Zhang et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.attacks.gradients import logits_of
from common.attacks.pgd import pgd
from common.training.recipe import Recipe

VALIDATION_STEPS = 10  # of PGD, on the images that choose the best epoch


def adversarial_images(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, recipe: Recipe,
    generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Return images within the recipe's epsilon of x (N, 3, S, S) that raise the loss.

    The loss is the cross-entropy of the labels (N,) or, for TRADES, that of the network's own
    probabilities for x, which differs from the divergence by a constant. The attack is on the
    network as it predicts: without dropout, with BatchNorm's running averages.
    """
    if recipe.trades:
        labels = logits_of(network, x).float().softmax(1)
    return pgd(
        network, x, labels, epsilon=recipe.adversarial / 255, steps=recipe.adversarial_steps,
        stop=False, generator=generator,
    )  # fmt: skip


def validation_images(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, recipe: Recipe
) -> torch.Tensor:
    """Return the images of PGD of VALIDATION_STEPS steps, always from the same random start."""
    epsilon = recipe.adversarial / 255
    return pgd(network, x, labels, epsilon=epsilon, steps=VALIDATION_STEPS)


def divergence(logits: torch.Tensor, attacked: torch.Tensor) -> torch.Tensor:
    """Return the mean divergence KL(p || q), a scalar, of probabilities q under attack from p.

    logits, attacked: (N, K), of the images and of their adversarial images.
    """
    log_q, log_p = attacked.log_softmax(1), logits.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
