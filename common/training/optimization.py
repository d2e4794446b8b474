"""How a step changes the weights: optimiser, learning-rate schedule, SAM and a largest norm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from common.training.recipe import Recipe


def make_optimizer(recipe: Recipe, network: nn.Module) -> optim.Optimizer:
    """Return the recipe's optimiser for the parameters that require a gradient."""
    trained = [p for p in network.parameters() if p.requires_grad]
    shared = {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay, "fused": True}
    if recipe.optimizer == "adamw":
        return optim.AdamW(trained, **shared)
    return optim.SGD(trained, momentum=recipe.momentum, nesterov=recipe.nesterov, **shared)


def make_scheduler(
    recipe: Recipe, optimizer: optim.Optimizer, steps: int
) -> lr_scheduler.LRScheduler | None:
    """Return the recipe's schedule, to be advanced after each step; None where it is constant.

    steps: per epoch. step: times `step_factor` every `step_epochs`. cosine: down to 0 along
    half a cosine. one-cycle (Smith and Topin 2018): up from 1/25 of the rate for a share
    `warm_up` of the steps, then down to 1/250,000 of it.
    """
    total = recipe.epochs * steps
    match recipe.schedule:
        case "step":
            return lr_scheduler.StepLR(
                optimizer, recipe.step_epochs * steps, recipe.step_factor
            )
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, total)
        case "one-cycle":
            peak = recipe.learning_rate
            # OneCycleLR divides by zero if the rate rises for one step, or for all of them.
            rising = min(recipe.warm_up * total, total - 1)
            if rising <= 1:  # no step before the peak: only the way down
                steps_down = max(total - 1, 1)
                return lr_scheduler.CosineAnnealingLR(optimizer, steps_down, peak / 250_000)
            return lr_scheduler.OneCycleLR(
                optimizer, peak, total, pct_start=rising / total, cycle_momentum=False
            )
    return None


def sharpness_aware(
    network: nn.Module,
    rho: float,
    ascent: Callable[[], torch.Tensor],
    descent: Callable[[], torch.Tensor],
) -> torch.Tensor:
    """Compute the gradients of sharpness-aware minimisation (SAM, Foret et al. 2021).

    ascent, descent: functions that compute a loss, and its gradients in place of earlier ones.
    The gradient g of `ascent` at the weights w moves them to w + rho g / |g|, where |g| is the
    norm over all weights that have a gradient. The gradients of `descent` at that point are
    what the optimiser's step then uses, at the restored weights w. With the class-weighted
    ascent (Shwartz-Ziv et al. 2023) only the loss of `ascent` has class weights. Returns what
    `ascent` returns.

    The second pass draws a new dropout mask, as in the authors' code. It uses BatchNorm's
    statistics of the batch like the first pass, but leaves the running averages as they were.
    The function does not wait for the device.
    """
    loss = ascent()
    with torch.no_grad():
        weights = [p for p in network.parameters() if p.grad is not None]
        gradients = [p.grad for p in weights]
        before = [p.clone() for p in weights]
        buffers = [b.clone() for b in network.buffers()]
        norm = torch.stack(torch._foreach_norm(gradients)).norm()
        # The small number keeps a gradient of 0 from becoming 0 / 0.
        scale = rho / (norm + 1e-12)
        torch._foreach_add_(weights, torch._foreach_mul(gradients, scale))
    descent()
    with torch.no_grad():
        # From copies: adding and then subtracting a number can change the last bits.
        torch._foreach_copy_(weights, before)
        for buffer, value in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(value)
    return loss


@torch.no_grad()
def limit_class_norms(head: nn.Linear, max_norm: float) -> None:
    """Scale each class's weight vector that is longer than `max_norm` down to that L2 norm.

    The projection after a step of the MaxNorm constraint (Alshammari et al. 2022). The authors
    derive the norm from the norms of a trained classifier; here it is a number of the recipe.
    The bias is not limited. The function does not wait for the device.
    """
    head.weight.renorm_(p=2, dim=0, maxnorm=max_norm)
