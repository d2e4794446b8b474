"""Adversarial images as image files hold them: rounded to 8 bits."""

from __future__ import annotations

import torch
from torch import nn

from common.attacks.gradients import fools, logits_of
from common.attacks.pgd import pgd

STEPS = 20  # of PGD, to go on from the edge of a class


def round_to_8_bits(images: torch.Tensor) -> torch.Tensor:
    """Return images in [0, 1] rounded to multiples of 1/255.

    Where epsilon and the pixels of the originals are such multiples, noise within epsilon in
    L-infinity stays within epsilon.
    """
    return (images * 255).round() / 255


def fool_in_8_bits(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, images: torch.Tensor, *,
    epsilon: float, norm: str, generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Return adversarial images of x rounded to 8 bits, so that they still fool if possible.

    images: adversarial images within epsilon. An attack that stops at the first success leaves
    an image at the edge of its class, where rounding can undo the success. Such an image is
    replaced by one of PGD that does not stop, but goes on to the highest loss.
    """
    rounded = round_to_8_bits(images)
    undone = fools(logits_of(network, images), labels, None)
    undone &= ~fools(logits_of(network, rounded), labels, None)
    if undone.any():
        further = pgd(
            network, x[undone], labels[undone], epsilon=epsilon, norm=norm, steps=STEPS,
            stop=False, generator=generator,
        )  # fmt: skip
        rounded[undone] = round_to_8_bits(further)
    return rounded
