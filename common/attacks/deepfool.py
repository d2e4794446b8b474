"""DeepFool: step by step to the nearest boundary of the linearised network."""

from __future__ import annotations

import torch
from torch import nn

from common.attacks.gradients import BATCH, attack_mode, norms

# The shortest step. Without it an image stops short of the boundary where clamping to [0, 1]
# takes more off each step than the overshoot adds. (The authors add 1e-4 to each step.)
LEAST_STEP = {"linf": 1e-5, "l2": 1e-4}


def deepfool(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, norm: str = "l2",
    steps: int = 50, overshoot: float = 0.02,
) -> torch.Tensor:  # fmt: skip
    """Return the images of DeepFool (Moosavi-Dezfooli, Fawzi and Frossard 2016).

    Each step replaces the network by its tangent plane at the image, adds the smallest noise
    that reaches the nearest boundary of the label's region there, times 1 + overshoot, and
    clamps the image to [0, 1]. norm: "linf" or "l2", in which the noise is smallest. An image
    that fools the network is left unchanged from then on; one that is misclassified from the
    start is returned unchanged. An image that doesn't fool the network within `steps` steps is
    returned as the last step left it. A step computes a gradient for every class but the label.
    """
    images = x.clone()
    active = torch.arange(len(x), device=x.device)  # positions of images still attacked
    for _ in range(steps):
        fooled, noise = _noise_to_boundary(network, images[active], labels[active], norm)
        active, noise = active[~fooled], noise[~fooled]
        if len(active) == 0:
            break
        images[active] = (images[active] + (1 + overshoot) * noise).clamp(0, 1)
    return images


def _noise_to_boundary(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, norm: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which images are misclassified, (N,), and the linearised network's noise.

    The noise, (N, 3, S, S), is the smallest that makes a class's logit as high as the label's
    in the tangent plane at x. With f the label's logit minus the class's, and g the gradient of
    f, that noise is -f g / |g|^2 in L2 and -f sign(g) / |g|_1 in L-infinity.
    """
    fooled, noises = [], []
    with attack_mode(network), torch.enable_grad():
        for batch, y in zip(x.split(BATCH), labels.split(BATCH), strict=True):
            batch = batch.detach().requires_grad_()
            logits = network(batch)
            classes = logits.shape[1]
            fooled.append(logits.argmax(1) != y)
            y = y[:, None]
            others = (y + torch.arange(1, classes, device=y.device)) % classes
            differences = logits.gather(1, y) - logits.gather(1, others)  # (n, K - 1)
            noise = torch.zeros_like(batch)
            nearest = torch.full_like(norms(batch, 2), torch.inf)  # distance so far
            for f in differences.unbind(1):
                [g] = torch.autograd.grad(f.sum(), batch, retain_graph=True)
                size = norms(g, 1 if norm == "linf" else 2)
                distance = f.detach().view(-1, 1, 1, 1) / size
                direction = -(g.sign() if norm == "linf" else g / size)
                step = distance.clamp(min=LEAST_STEP[norm]) * direction
                noise = torch.where(distance < nearest, step, noise)
                nearest = torch.minimum(distance, nearest)
            noises.append(noise)
    return torch.cat(fooled), torch.cat(noises)
