"""The ball of radius epsilon around each image: norms, random starts, projections."""

from __future__ import annotations

import torch

from common.attacks.gradients import norms


def noise_norm(noise: torch.Tensor, norm: str) -> torch.Tensor:
    """Return the norm of each image's noise, (N,): 0 without noise, unlike `norms`."""
    return noise.flatten(1).norm(torch.inf if norm == "linf" else 2, dim=1)


def random_start(
    x: torch.Tensor, epsilon: float, norm: str, generator: torch.Generator
) -> torch.Tensor:
    """Return noise that is uniform in the ball of radius epsilon, of the shape of x.

    The noise is drawn on the generator's device: a CPU generator gives every device the same.
    """
    options = {"generator": generator, "device": generator.device}
    if norm == "linf":
        return (epsilon * (2 * torch.rand(x.shape, **options) - 1)).to(x)
    noise = torch.randn(x.shape, **options)
    radius = torch.rand(len(x), 1, 1, 1, **options) ** (1 / x[0].numel())
    return (epsilon * radius * noise / norms(noise, 2)).to(x)


def project(noise: torch.Tensor, epsilon: float | torch.Tensor, norm: str) -> torch.Tensor:
    """Return the noise nearest to `noise` whose norm is at most epsilon.

    epsilon: one number, or one for each image, (N, 1, 1, 1).
    """
    if norm == "linf":
        return noise.clamp(-epsilon, epsilon)
    return noise * (epsilon / norms(noise, 2)).clamp(max=1)
