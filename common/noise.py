"""Noise that is optimised: the least that fools for each image, or one for all images.

The signature and the rules of `attacks.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from common.attacks import check, fools, gradient, norms, uphill
from common.models import pixels

# Chosen on training images.
STRIDE, INERTIA = 0.1, 0.8  # longest move of a value in the first step; share of the last move
ROUND_SCALE = 0.7  # each round of the bisection has strides shorter by this factor
LEAST_C = 1e-3  # bisection begins with the range from this share of the greatest useful C to it
START_DEVIATION = 0.1  # of gaussian starts
UNIVERSAL_STRIDE, UNIVERSAL_INERTIA = 0.1, 0.9  # the stride as a share of epsilon


def proximal(
    noise: torch.Tensor, x: torch.Tensor, threshold: torch.Tensor, norm: str
) -> torch.Tensor:
    """The noise nearest to `noise` when threshold (N, 1, 1, 1) times its norm is a cost too.

    l1: every value moves to 0 by the threshold and stays there once it reaches it; l2: each
    image's noise as a whole does. Then x + noise is clamped to [0, 1], which for l1 is still
    exact, value by value.
    """
    if norm == "l1":
        noise = noise.sign() * (noise.abs() - threshold).clamp(min=0)
    else:
        noise = noise * (1 - threshold / norms(noise, 2)).clamp(min=0)
    return (x + noise).clamp(0, 1) - x


def optimise(
    network: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    targets: torch.Tensor,
    c: float | torch.Tensor,
    norm: str = "l1",
    start: str = "zeros",
    steps: int = 300,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Report A's noise: minimises cross_entropy(network(x + noise), target) + c norm(noise).

    norm: l1 or l2; c: one for all or (N,); start: zeros or gaussian. Proximal gradient steps
    with momentum (Ochs et al. 2014), `steps` network evaluations. Returns the last images,
    whether they fool or not.
    """
    check(labels, targets)
    c = torch.as_tensor(c, dtype=x.dtype, device=x.device).expand(len(x))
    noise = _noise_start(x, start, generator)
    for _, images in _descend(network, x, targets, noise, c, norm, steps):
        last = images
    return last


def minimise(
    network: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    targets: torch.Tensor,
    norm: str = "l1",
    start: str = "zeros",
    steps: int = 300,
    rounds: int = 6,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The smallest noise that fools: `optimise` with each image's c found by bisection.

    `rounds` times `steps` network evaluations and one more. Every round starts from the
    smallest noise so far; one that makes it smaller raises c, another lowers it. The greatest
    c tried is the gradient's dual norm at x, above which zero noise is a minimum. Returns the
    images with the smallest noise met on the way; x where none fools.
    """
    check(labels, targets)
    dual = torch.inf if norm == "l1" else 2
    high = norms(gradient(network, x, targets)[1], dual).flatten()
    low = LEAST_C * high
    noise = _noise_start(x, start, generator)
    best, smallest = x.clone(), torch.full((len(x),), torch.inf, device=x.device)
    for turn in range(rounds):
        stride = STRIDE * ROUND_SCALE**turn
        c = (low * high).sqrt()
        smaller = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for logits, images in _descend(network, x, targets, noise, c, norm, steps, stride):
            size = norms(images - x, 1 if norm == "l1" else 2).flatten()
            now = fools(logits, labels, targets) & (size < smallest)
            best[now], smallest[now] = images[now], size[now]
            smaller |= now
        low, high = torch.where(smaller, c, low), torch.where(smaller, high, c)
        noise = torch.where(smallest.isfinite().view(-1, 1, 1, 1), best - x, noise)
    return best


def _noise_start(
    x: torch.Tensor, start: str, generator: torch.Generator | None
) -> torch.Tensor:
    if start == "zeros":
        return torch.zeros_like(x)
    generator = generator or torch.Generator().manual_seed(0)
    noise = START_DEVIATION * torch.randn(x.shape, generator=generator).to(x)
    return (x + noise).clamp(0, 1) - x


def _descend(
    network: nn.Module,
    x: torch.Tensor,
    targets: torch.Tensor,
    noise: torch.Tensor,
    c: torch.Tensor,
    norm: str,
    steps: int,
    stride: float = STRIDE,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits and images of each step, from `noise` itself on."""
    previous = noise
    for step in range(steps):
        images = (x + noise).clamp(0, 1)
        logits, g = gradient(network, images, targets)
        yield logits, images
        # A step's longest move is the stride, however steep the loss, and shrinks to 0.
        rate = stride * (1 - step / steps) / norms(g, torch.inf)
        moved = noise + INERTIA * (noise - previous) - rate * g
        previous, noise = noise, proximal(moved, x, rate * c.view(-1, 1, 1, 1), norm)


def universal(
    network: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    targets: torch.Tensor | None = None,
    balanced: bool = False,
    steps: int = 100,
    batch_size: int = 100,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """One noise (1, 3, 32, 32) within epsilon for all images (Shafahi et al. 2020).

    images: uint8 or float (N, 3, 32, 32). Steps along the sign of the summed gradients, with
    momentum, on batches drawn with replacement; balanced: each class as often. epsilon 1 is no
    bound. Add the noise to images it never saw, and clamp.
    """
    check(labels, targets, epsilon)
    weights = torch.ones(len(labels))
    if balanced:
        weights /= torch.bincount(labels.cpu())[labels.cpu()]
    generator = generator or torch.Generator().manual_seed(0)
    noise = images.new_zeros(1, 3, 32, 32, dtype=torch.float32)
    direction = torch.zeros_like(noise)
    for step in range(steps):
        batch = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
        batch = batch.to(images.device)
        x = (pixels(images[batch]) + noise).clamp(0, 1)
        aim = None if targets is None else targets[batch]
        g = uphill(network, x, labels[batch], aim)[1].sum(0, keepdim=True)
        direction = UNIVERSAL_INERTIA * direction + g / norms(g, 1)
        stride = UNIVERSAL_STRIDE * epsilon * (1 - step / steps)
        noise = (noise + stride * direction.sign()).clamp(-epsilon, epsilon)
    return noise
