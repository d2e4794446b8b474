"""Optimisers and learning-rate schedules, for all of a network's weights as one matrix.

The same arithmetic as torch.optim's, which a small network at batch 4 waits for: there a step
costs as much as a layer, and the first one two seconds of imports.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from common.recipes import Recipe

Rates = Sequence[float] | torch.Tensor
BETAS, EPSILON = (0.9, 0.999), 1e-8  # of AdamW
START, END = 1 / 25, 1 / 25e4  # of one-cycle, as shares of its peak


def flattened(
    trained: Sequence[nn.Parameter], stack: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """A network's trained weights and their gradients, each as one matrix (stack, P).

    The parameters and their `grad` become views of them. stack: how many networks it is; with
    more than one each parameter has a row for each.
    """
    columns = sum(p.numel() for p in trained) // stack
    weights = torch.zeros(stack, columns, device=trained[0].device)
    gradients = torch.zeros_like(weights)
    start = 0
    for p in trained:
        # With its own strides: a convolution's weights stay channels_last.
        strides = p.stride() if stack == 1 else (columns, *p.stride()[1:])
        p.data = weights.as_strided(p.shape, strides, start).copy_(p.data)
        p.grad = gradients.as_strided(p.shape, strides, start)
        start += p.numel() // stack
    return weights, gradients


def unflatten(network: nn.Module) -> None:
    """Give every parameter memory of its own again, and no gradient."""
    for p in network.parameters():
        p.data, p.grad = p.data.clone(memory_format=torch.contiguous_format), None


def make(
    recipe: Recipe, weights: torch.Tensor, gradients: torch.Tensor
) -> Callable[[Rates], None]:
    """A function that changes `weights` (K, P) in place by one step, at K learning rates:
    numbers, or a tensor (K,) on a device whose operators are captured.

    sgd: with momentum, Nesterov's on request; weight decay is added to the gradient.
    adamw: Loshchilov and Hutter 2019; weight decay shrinks the weights by itself.
    """
    first, second = torch.zeros_like(weights), torch.zeros_like(weights)
    steps = torch.zeros((), device=weights.device)

    def sgd(rates: Rates) -> None:
        g = gradients
        if recipe.weight_decay:
            g = g.add(weights, alpha=recipe.weight_decay)
        torch.add(g, first, alpha=recipe.momentum, out=first)
        change = g.add(first, alpha=recipe.momentum) if recipe.nesterov else first
        for row, own, rate in zip(weights, change, rates, strict=True):
            if isinstance(rate, torch.Tensor):
                row.addcmul_(own, rate, value=-1)
            else:
                row.sub_(own, alpha=rate)

    def adamw(rates: Rates) -> None:
        steps.add_(1)
        rate = torch.as_tensor(rates, device=weights.device)[:, None]
        corrections = [-torch.expm1(steps * math.log(beta)) for beta in BETAS]  # 1 - beta^steps
        weights.mul_(1 - rate * recipe.weight_decay)
        first.lerp_(gradients, 1 - BETAS[0])
        second.mul_(BETAS[1]).addcmul_(gradients, gradients, value=1 - BETAS[1])
        scale = second.sqrt().div_(corrections[1].sqrt()).add_(EPSILON)
        weights.addcmul_(first / scale, rate / corrections[0], value=-1)

    return adamw if recipe.optimizer == "adamw" else sgd


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Take weights and BatchNorm's statistics into their exponential moving average.

    As torch.optim.swa_utils, which waits for a GPU at each step, to count the steps.
    """
    averages, values = (
        [t for t in (*one.parameters(), *one.buffers()) if t.is_floating_point()]
        for one in (average, network)
    )
    torch._foreach_lerp_(averages, values, 1 - decay)


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """The rate of step `step`, from 0, with `steps` to an epoch.

    constant: recipe.learning_rate, from which the others go down. step: times step_factor
    every step_epochs. cosine: half a cosine's wave, to 0. one-cycle (Smith and Topin 2018):
    up from 1/25 of it for a share warm_up of the steps, then down to 1/250,000.
    """
    peak, total = recipe.learning_rate, recipe.epochs * steps
    match recipe.schedule:
        case "step":
            return peak * recipe.step_factor ** (step // (recipe.step_epochs * steps))
        case "cosine":
            return _wave(peak, 0.0, step / total)
        case "one-cycle":
            top = max(0.0, recipe.warm_up * total - 1)  # the step with the peak rate
            if step < top:
                return _wave(peak * START, peak, step / top)
            return _wave(peak, peak * END, (step - top) / (total - 1 - top or 1))
    return peak


def _wave(start: float, end: float, share: float) -> float:
    """Half a cosine's wave from start to end, at a share of the way."""
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
