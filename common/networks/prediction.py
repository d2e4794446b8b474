"""From images to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

MOST_IMAGES = 500  # in a batch


def to_pixel_space(images: torch.Tensor) -> torch.Tensor:
    """Return uint8 images as float32 in [0, 1], and float images unchanged."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


@torch.no_grad()
def predict(
    network: nn.Module, images: torch.Tensor, batch_size: int | None = None
) -> torch.Tensor:
    """Return the logits (N, classes), on the CPU, of images in evaluation mode.

    images: uint8, or float32 in [0, 1], (N, 3, S, S), on any device or in a file; or features,
    for a network that takes those. batch_size: by default 500, and fewer of images larger than
    32x32, in proportion, which bounds the memory. The network's mode is restored afterwards.
    """
    if batch_size is None:
        pixels = images.shape[2] * images.shape[3] if len(images.shape) == 4 else 1
        batch_size = min(MOST_IMAGES, max(1, MOST_IMAGES * 32 * 32 // pixels))
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    logits = [
        network(to_pixel_space(batch.to(device))).cpu() for batch in images.split(batch_size)
    ]
    network.train(was_training)
    return torch.cat(logits)


def predict_shifted(network: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return logits (N, classes): half those of the images, half the mean of four shifts.

    The images are shifted by one pixel along each diagonal, both ways, with the border
    reflected. (Jordan's airbench, 2024, has the same weights for two of these shifts.)
    images: as `predict` takes them.
    """
    size, blocks = images.shape[-1], []
    for block in images.split(MOST_IMAGES):
        padded = F.pad(to_pixel_space(block), (1, 1, 1, 1), mode="reflect")
        corners = [
            predict(network, padded[:, :, top : top + size, left : left + size])
            for top in (0, 2)
            for left in (0, 2)
        ]
        blocks.append((predict(network, block) + sum(corners) / 4) / 2)
    return torch.cat(blocks)
