"""Projected gradient descent, in the L-infinity or L2 norm, with or without momentum."""

from __future__ import annotations

import torch
from torch import nn

from common.attacks.ball import project, random_start
from common.attacks.gradients import check_arguments, fools, norms, objective_gradient


def pgd(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, epsilon: float,
    targets: torch.Tensor | None = None, norm: str = "linf", steps: int = 10,
    step_size: float | None = None, restarts: int = 1, momentum: float = 0.0, stop: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return the images of projected gradient descent (Madry et al. 2018) within epsilon.

    labels: classes (N,) or, without stop, probabilities (N, K), whose cross-entropy is raised.
    norm: "linf" or "l2", of the ball of radius epsilon around each image. restarts: number of
    random starting points in the ball. step_size: by default 2.5 epsilon / steps, enough to
    cross the ball. momentum: decay of the sum of gradients, each divided by its L1 norm, whose
    direction a step takes (MI-FGSM, Dong et al. 2018); with 0 a step takes the direction of the
    gradient. stop: an image that fools the network is left unchanged from then on. Every other
    image, and without stop every image, is returned at its highest objective over all steps.
    Without stop, and with a generator on the images' device, no step waits for the device.
    """
    # In L2 the distance of black from white, and with it a useful epsilon, grows with the size.
    check_arguments(labels, targets, epsilon, most=1.0 if norm == "linf" else torch.inf)
    if epsilon == 0:
        return x
    generator = generator or torch.Generator().manual_seed(0)
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    best, highest = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    active = torch.arange(len(x), device=x.device)  # positions of images still attacked
    for _ in range(restarts):
        noise = torch.zeros_like(x)
        noise[active] = random_start(x[active], epsilon, norm, generator)
        velocity = torch.zeros_like(x)
        for step in range(steps + 1):
            images = (x[active] + noise[active]).clamp(0, 1)
            y, t = labels[active], None if targets is None else targets[active]
            logits, g, objective = objective_gradient(
                network, images, y, t, need_gradient=step < steps
            )
            fooled = fools(logits, y, t) if stop else torch.zeros_like(active, dtype=torch.bool)
            improved = fooled | (objective > highest[active])
            best[active] = images.where(improved[:, None, None, None], best[active])
            highest[active] = objective.where(improved, highest[active])
            if stop:  # indexing by a mask waits for the device
                active = active[~fooled]
            if step == steps or len(active) == 0:
                break
            if stop:
                images, g = images[~fooled], g[~fooled]
            velocity[active] = momentum * velocity[active] + g / norms(g, 1)
            direction = velocity[active]
            direction = direction.sign() if norm == "linf" else direction / norms(direction, 2)
            noise[active] = project(images + step_size * direction - x[active], epsilon, norm)
        if len(active) == 0:
            break
    return best
