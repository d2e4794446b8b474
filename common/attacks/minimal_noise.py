"""The smallest noise that fools a network, image by image."""

from __future__ import annotations

import math

import torch
from torch import nn

from common.attacks.ball import noise_norm, project
from common.attacks.deepfool import deepfool
from common.attacks.gradients import fools, logits_of, norms, objective_gradient

# Both fall by half a cosine from the first step to the last.
RATE = 0.05, 0.001  # share by which a step changes epsilon
STEP_SIZE = 1.0, 0.01  # share of epsilon that a step moves the image
STEPS = 40  # by default; twice as many find hardly less
HALVINGS = 10  # of the way from an image to a plain one


def minimal_noise(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, norm: str = "linf",
    steps: int = STEPS,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return images with the smallest noise found that fools, and its norm (N,), the radius.

    The radius is 0 for an image that is misclassified without noise and, where no noise was
    found that fools, infinity; both images are returned unchanged. norm: "linf" or "l2".

    Starts from the images of `deepfool`, or from grey, black or white ones where those don't
    fool, and takes the steps of FMN (Pintor et al. 2021): projected gradient descent on the
    margin, in a ball around each image whose radius epsilon falls after a step that fools and
    grows after one that doesn't. This is a bisection of epsilon with one step for each value.
    Computes `steps` gradients of each image after those of DeepFool, one for each of its steps
    and each class but the label. Draws no random numbers.
    """
    images, fooled = _first_images(network, x, labels, norm)
    images[~fooled] = x[~fooled]
    radii = noise_norm(images - x, norm)
    radii[~fooled] = torch.inf
    active = (radii > 0) & radii.isfinite()
    if active.any():
        images[active], radii[active] = _shrink(
            network, x[active], labels[active], images[active], radii[active], norm, steps
        )
    return images, radii


def _shrink(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, images: torch.Tensor,
    radii: torch.Tensor, norm: str, steps: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return images with smaller noise that fools than that of `images`, and its norm (N,)."""
    best, epsilon = images, radii
    for step in range(steps + 1):
        logits, g, _ = objective_gradient(
            network, images, labels, None, need_gradient=step < steps, loss="margin"
        )
        sizes = noise_norm(images - x, norm)
        fooled = fools(logits, labels, None)
        smaller = fooled & (sizes < radii)
        best = images.where(smaller[:, None, None, None], best)
        radii = sizes.where(smaller, radii)
        if step == steps:
            break
        rate, step_size = (
            last + (first - last) * (1 + math.cos(math.pi * step / steps)) / 2
            for first, last in (RATE, STEP_SIZE)
        )
        # Noise as large as the smallest that fools is of no use.
        grown = torch.minimum(epsilon * (1 + rate), radii)
        epsilon = torch.where(fooled, sizes * (1 - rate), grown)
        bound = epsilon.view(-1, 1, 1, 1)
        direction = g.sign() if norm == "linf" else g / norms(g, 2)
        noise = project(images + step_size * bound * direction - x, bound, norm)
        images = (x + noise).clamp(0, 1)
    return best, radii


def _first_images(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, norm: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images that DeepFool or a plain colour makes fool, and which of them do, (N,).

    Where DeepFool's image doesn't fool, as where gradients are zero: the image is moved towards
    grey, black or white, the first of them that fools, to the point where the prediction
    changes.
    """
    images = deepfool(network, x, labels, norm=norm)
    fooled = fools(logits_of(network, images), labels, None)
    for value in (0.5, 0.0, 1.0):
        left = (~fooled).nonzero().flatten()
        if len(left) == 0:
            break
        start, y = x[left], labels[left]
        plain = torch.full_like(start, value)
        low, high = (torch.full_like(start[:, :1, :1, :1], end) for end in (0.0, 1.0))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            over = fools(logits_of(network, start.lerp(plain, middle)), y, None)
            over = over.view(-1, 1, 1, 1)
            low, high = torch.where(over, low, middle), torch.where(over, middle, high)
        images[left] = start.lerp(plain, high)
        fooled[left] = fools(logits_of(network, images[left]), y, None)
    return images, fooled
