"""Universal noise: one noise that is added to every image."""

from __future__ import annotations

import torch
from torch import nn

from common.attacks.gradients import check_arguments, norms, objective_gradient
from common.dataset.stored_images import Images
from common.networks.prediction import to_pixel_space

STEP_SIZE, MOMENTUM = 0.1, 0.9  # the first step, as a share of epsilon; decay of gradients


def universal(
    network: nn.Module, images: Images, labels: torch.Tensor, *, epsilon: float,
    targets: torch.Tensor | None = None, balanced: bool = False, steps: int = 100,
    batch_size: int = 100, generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return one noise (1, 3, S, S) within epsilon for all images (Shafahi et al. 2020).

    images: uint8, or float32 in [0, 1], (N, 3, S, S), in memory or in a file. Each step moves
    the noise along the sign of the gradient summed over a batch, with momentum; its size falls
    linearly to 0. Batches are drawn with replacement; balanced: with equal shares of all
    classes. With epsilon 1 the noise is unbounded. To apply the noise to other images, add it
    and clamp to [0, 1].
    """
    check_arguments(labels, targets, epsilon)
    weights = torch.ones(len(labels))
    if balanced:
        weights /= torch.bincount(labels.cpu())[labels.cpu()]
    generator = generator or torch.Generator().manual_seed(0)
    device = next(network.parameters()).device
    noise = torch.zeros(1, *images.shape[1:], device=device)
    velocity = torch.zeros_like(noise)
    for step in range(steps):
        batch = torch.multinomial(weights, batch_size, replacement=True, generator=generator)
        batch = batch.to(labels.device)
        x = (to_pixel_space(images[batch].to(device)) + noise).clamp(0, 1)
        y = labels[batch].to(device)
        t = None if targets is None else targets[batch].to(device)
        g = objective_gradient(network, x, y, t)[1].sum(0, keepdim=True)
        velocity = MOMENTUM * velocity + g / norms(g, 1)
        step_size = STEP_SIZE * epsilon * (1 - step / steps)
        noise = (noise + step_size * velocity.sign()).clamp(-epsilon, epsilon)
    return noise
