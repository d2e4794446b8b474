"""Mixing of pairs of images: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019)."""

from __future__ import annotations

import math

import numpy as np
import torch

from common.training.recipe import Recipe


def draw_mixing(
    n: int, size: int, recipe: Recipe, rng: np.random.Generator
) -> tuple[torch.Tensor, ...]:
    """Draw how `mix` mixes the n images of an epoch, size x size pixels each, batch by batch.

    Returns the partner of each image, as a position in its batch (n,), and the share of the
    image itself in the mixture (n,), which is 1 in a step that does not mix. mixup draws a
    share for each image. cutmix draws one box for the batch, clipped at the border; the share
    is that of the pixels outside the box. For cutmix the function also returns the box, which
    the partner fills: top, left, bottom and right, the last two exclusive, (n, 4).

    The shares come from a NumPy generator because PyTorch's beta distribution takes no
    generator. A whole epoch is drawn at once because a copy from the CPU in each step would
    wait for the device.
    """
    beta = (recipe.mix_alpha, recipe.mix_alpha)
    partners, shares, boxes = [], [], []
    for start in range(0, n, recipe.batch_size):
        batch = min(recipe.batch_size, n - start)
        mixes = rng.random() < recipe.mix_share
        partners.append(rng.permutation(batch) if mixes else np.arange(batch))
        if recipe.mix == "mixup":
            shares.append(rng.beta(*beta, batch) if mixes else np.ones(batch))
        else:
            box = _box(size, rng.beta(*beta), rng) if mixes else np.zeros(4, int)
            boxes.append(np.tile(box, (batch, 1)))
    order = torch.from_numpy(np.concatenate(partners))
    if recipe.mix == "mixup":
        return order, torch.from_numpy(np.concatenate(shares)).float()
    box = torch.from_numpy(np.concatenate(boxes))  # (n, 4)
    area = (box[:, 2:] - box[:, :2]).prod(1)
    return order, 1 - area.float() / size**2, box


def _box(size: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return top, left, bottom and right of a random box of area 1 - `share`.

    Half of the side is rounded down, as in the code of the CutMix paper.
    """
    half = int(size * math.sqrt(1 - share)) // 2
    centre = rng.integers(size, size=2)
    return np.concatenate((np.maximum(centre - half, 0), np.minimum(centre + half, size)))


def mix(
    x: torch.Tensor,
    labels: torch.Tensor,
    partners: torch.Tensor,
    shares: torch.Tensor,
    boxes: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Mix a batch of images x (N, 3, S, S) with each other; all tensors are on one device.

    mixup takes features (N, D) as well.

    partners, shares, boxes: the batch's part of what `draw_mixing` returns. Returns the mixed
    images, the labels (N,) of the partners, and the shares (N,) of the batch's own labels.
    """
    others = x[partners]
    if boxes is None:
        x = torch.lerp(others, x, shares.view(-1, *[1] * (x.dim() - 1)))
    else:
        first, end = boxes.view(-1, 2, 2, 1).unbind(1)  # (N, 2, 1) each: of rows, of columns
        positions = torch.arange(x.shape[-1], device=x.device)
        within = (first <= positions) & (positions < end)  # (N, 2, S)
        filled = within[:, 0, :, None] & within[:, 1, None, :]
        x = torch.where(filled[:, None], others, x)
    return x, labels[partners], shares
