"""Adversarial images as image files hold them: rounded to 8 bits."""

from __future__ import annotations

import math

import torch
from torch import nn

from common.attacks.ball import noise_norm
from common.attacks.gradients import fools, logits_of
from common.attacks.pgd import pgd

STEPS = 20  # of PGD, to go on from the edge of a class
SCALES = [1 - k / 50 for k in range(1, 51)]  # of noise in L2, until it fits; the last is 0
TOLERANCE = 1e-4  # of a step of 1/255: the rounding of float32


def round_to_8_bits(
    images: torch.Tensor, x: torch.Tensor, *, epsilon: float, norm: str
) -> torch.Tensor:
    """Return adversarial images of x rounded to multiples of 1/255, within epsilon.

    images: within epsilon of x, in [0, 1]. x: multiples of 1/255. In L-infinity noise of more
    whole steps than epsilon has is cut off. In L2, where rounding can lengthen the noise, it is
    scaled down before rounding until it fits.
    """
    noise = (images - x) * 255
    steps = noise.round()
    if norm == "linf":
        most = math.floor(255 * epsilon + TOLERANCE)
        steps = steps.clamp(-most, most)
    else:
        for scale in SCALES:
            too_long = noise_norm(steps, norm) > 255 * epsilon + TOLERANCE
            steps = (scale * noise).round().where(too_long.view(-1, 1, 1, 1), steps)
    return ((x * 255).round() + steps) / 255


def fool_in_8_bits(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, images: torch.Tensor, *,
    epsilon: float, norm: str, generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Return adversarial images of x rounded to 8 bits, so that they still fool if possible.

    images: adversarial images within epsilon. An attack that stops at the first success leaves
    an image at the edge of its class, where rounding can undo the success. Such an image is
    replaced by one of PGD that does not stop, but goes on to the highest loss.
    """
    limits = {"epsilon": epsilon, "norm": norm}
    rounded = round_to_8_bits(images, x, **limits)
    undone = fools(logits_of(network, images), labels, None)
    undone &= ~fools(logits_of(network, rounded), labels, None)
    if undone.any():
        further = pgd(
            network, x[undone], labels[undone], steps=STEPS, stop=False, generator=generator,
            **limits,
        )  # fmt: skip
        rounded[undone] = round_to_8_bits(further, x[undone], **limits)
    return rounded
