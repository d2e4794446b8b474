"""The optimiser and the learning-rate schedule that a recipe names, from `torch.optim`."""

from __future__ import annotations

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
