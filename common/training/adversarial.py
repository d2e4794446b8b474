"""Adversarial training: on PGD's images (Madry et al. 2018), or TRADES (Zhang et al. 2019)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from common.attacks.gradients import BATCH, logits_of
from common.attacks.pgd import pgd
from common.dataset.split import LabelledImages
from common.networks.prediction import to_pixel_space
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


def predict_under_attack(
    network: nn.Module, part: LabelledImages, recipe: Recipe
) -> torch.Tensor:
    """Return the logits (N, K), on the CPU, of the images that PGD makes of a part's images.

    PGD has VALIDATION_STEPS steps, and the same random starts in each call.
    """
    device, generator = next(network.parameters()).device, torch.Generator().manual_seed(0)
    logits = []
    for images, labels in zip(part.images.split(BATCH), part.labels.split(BATCH), strict=True):
        x, y = to_pixel_space(images.to(device)), labels.to(device)
        attacked = pgd(
            network, x, y, epsilon=recipe.adversarial / 255, steps=VALIDATION_STEPS,
            generator=generator,
        )  # fmt: skip
        logits.append(logits_of(network, attacked).cpu())
    return torch.cat(logits)


def divergence(logits: torch.Tensor, attacked: torch.Tensor) -> torch.Tensor:
    """Return the mean divergence KL(p || q), a scalar, of probabilities q under attack from p.

    logits, attacked: (N, K), of the images and of their adversarial images.
    """
    log_q, log_p = attacked.log_softmax(1), logits.log_softmax(1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
