"""Noise that is optimised for each image: report A's, and the smallest that fools."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from common.attacks.gradients import check_arguments, fools, gradient, norms

# Chosen on training images.
STEP_SIZE = 0.1  # largest change of a value in the first step
MOMENTUM = 0.8  # weight of the last step
ROUND_SCALE = 0.7  # each round of the bisection multiplies the step size by this factor
LEAST_C = 1e-3  # lower end of the bisection's first range of C, as a share of the upper end
START_DEVIATION = 0.1  # standard deviation of a Gaussian start


def proximal(
    noise: torch.Tensor, x: torch.Tensor, threshold: torch.Tensor, norm: str
) -> torch.Tensor:
    """Return the proximal operator of threshold * norm at `noise`, with x + noise in [0, 1].

    threshold: (N, 1, 1, 1). l1: each value moves towards 0 by the threshold, and stops at 0
    (soft thresholding). l2: the noise of each image is scaled so that its norm falls by the
    threshold, and stops at 0. x + noise is then clamped to [0, 1]; for l1 the result is still
    the exact proximal operator, because the operator acts on each value alone.
    """
    if norm == "l1":
        noise = noise.sign() * (noise.abs() - threshold).clamp(min=0)
    else:
        noise = noise * (1 - threshold / norms(noise, 2)).clamp(min=0)
    return (x + noise).clamp(0, 1) - x


def optimise(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, targets: torch.Tensor,
    c: float | torch.Tensor, norm: str = "l1", start: str = "zeros", steps: int = 300,
    generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return images with report A's noise, which minimises a loss with a norm as penalty.

    The loss is cross_entropy(network(x + noise), target) + c * norm(noise). norm: "l1" or
    "l2". c: one number, or one for each image, (N,). start: "zeros" or "gaussian". Takes
    proximal gradient steps with momentum (Ochs et al. 2014), in `steps` network evaluations.
    The images of the last step are returned, whether or not they fool the network.
    """
    check_arguments(labels, targets)
    c = torch.as_tensor(c, dtype=x.dtype, device=x.device).expand(len(x))
    noise = _noise_start(x, start, generator)
    for _, images in _descend(network, x, targets, noise, c, norm, steps):
        last = images
    return last


def minimise(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, targets: torch.Tensor,
    norm: str = "l1", start: str = "zeros", steps: int = 300, rounds: int = 6,
    generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return images with the smallest noise that fools: `optimise`, with C by bisection.

    Each image has a C of its own. A round starts from the smallest noise that fools so far; if
    the round finds a smaller one, C is raised, otherwise C is lowered. The upper end of the
    first range is the dual norm of the gradient at x: with a larger C, zero noise is a minimum.
    Takes rounds * steps + 1 network evaluations. An image for which no noise fools the network
    is returned unchanged.
    """
    check_arguments(labels, targets)
    dual_norm = torch.inf if norm == "l1" else 2
    high = norms(gradient(network, x, targets)[1], dual_norm).flatten()
    low = LEAST_C * high
    noise = _noise_start(x, start, generator)
    best, smallest = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    for i in range(rounds):
        step_size = STEP_SIZE * ROUND_SCALE**i
        c = (low * high).sqrt()
        improved = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for logits, images in _descend(network, x, targets, noise, c, norm, steps, step_size):
            size = norms(images - x, 1 if norm == "l1" else 2).flatten()
            smaller = fools(logits, labels, targets) & (size < smallest)
            best[smaller], smallest[smaller] = images[smaller], size[smaller]
            improved |= smaller
        low, high = torch.where(improved, c, low), torch.where(improved, high, c)
        noise = torch.where(smallest.isfinite().view(-1, 1, 1, 1), best - x, noise)
    return best


def _noise_start(
    x: torch.Tensor, start: str, generator: torch.Generator | None
) -> torch.Tensor:
    """Return the first noise, zeros or Gaussian, with x + noise in [0, 1]."""
    if start == "zeros":
        return torch.zeros_like(x)
    generator = generator or torch.Generator().manual_seed(0)
    noise = START_DEVIATION * torch.randn(x.shape, generator=generator).to(x)
    return (x + noise).clamp(0, 1) - x


def _descend(
    network: nn.Module, x: torch.Tensor, targets: torch.Tensor, noise: torch.Tensor,
    c: torch.Tensor, norm: str, steps: int, step_size: float = STEP_SIZE,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:  # fmt: skip
    """Yield the logits and images of each step; the first images are x + noise."""
    previous = noise
    for step in range(steps):
        images = (x + noise).clamp(0, 1)
        logits, g = gradient(network, images, targets)
        yield logits, images
        # The gradient's part of a step changes no value by more than step_size, however steep
        # the loss is; it falls linearly to 0 over the steps.
        rate = step_size * (1 - step / steps) / norms(g, torch.inf)
        moved = noise + MOMENTUM * (noise - previous) - rate * g
        previous, noise = noise, proximal(moved, x, rate * c.view(-1, 1, 1, 1), norm)
