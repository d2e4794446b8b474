"""Augmentation and mixing of a batch, on its device.

Everything random comes from the generator that is passed in.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from common.recipes import Recipe

MAX_SHIFT = 4  # pixels
CUTOUT = 8  # pixels a side
GREY = 0.5  # 0 after the networks' normalisation
JITTER = 0.3  # greatest change of brightness, contrast and saturation


def augment(x: torch.Tensor, recipe: Recipe, generator: torch.Generator) -> torch.Tensor:
    """Images (N, 3, S, S) in [0, 1], each changed in its own way by `recipe.augment`.

    Always in the order flip, crop, cutout, colour. The generator is on x's device; nothing
    waits for the device, and channels_last stays channels_last.
    """
    n, size = len(x), x.shape[-1]
    on_device = {"generator": generator, "device": x.device}
    if "flip" in recipe.augment:
        x = flipped(x, torch.rand(n, **on_device) < 0.5)
    if "crop" in recipe.augment:
        x = shifted(x, torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (n, 2), **on_device))
    if "cutout" in recipe.augment:
        x = cut_out(x, torch.randint(0, size, (n, 2), **on_device))
    if "colour" in recipe.augment:
        x = jittered(x, random_factors(x, generator))
    return x


def flipped(x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """x (N, 3, S, S) with the images where `which` (N,) is true mirrored sideways."""
    return torch.where(which[:, None, None, None], x.flip(-1), x)


def shifted(x: torch.Tensor, by: torch.Tensor) -> torch.Tensor:
    """x (N, 3, S, S): pixel (i, j) is the old (i + by[0], j + by[1]), edges reflected.

    by (N, 2): whole numbers from -MAX_SHIFT to MAX_SHIFT.
    """
    size = x.shape[-1]
    padded = F.pad(x, (MAX_SHIFT,) * 4, mode="reflect")
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)  # a view (N, 3, 9, 9, S, S)
    down, right = (by + MAX_SHIFT).unbind(1)
    return windows[torch.arange(len(x), device=x.device), :, down, right]


def cut_out(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """x with a grey square around each of centres (N, 2) (DeVries and Taylor 2017).

    The square is CUTOUT pixels a side, less where it reaches over the border.
    """
    distance = torch.arange(x.shape[-1], device=x.device) - centres[:, :, None]  # (N, 2, S)
    near = (distance >= -(CUTOUT // 2)) & (distance < CUTOUT // 2)
    square = near[:, 0, :, None] & near[:, 1, None, :]  # (N, S, S)
    return torch.where(square[:, None], GREY, x)  # masked_fill would lose channels_last


def jittered(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """x with brightness, contrast and saturation multiplied by factors (N, 3), in [0, 1]."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    grey = 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]  # ITU-R BT.601 luma
    x = torch.lerp(grey, x, saturation)
    x = torch.lerp(grey.mean((1, 2, 3), keepdim=True), x, contrast)
    return (x * brightness).clamp(0, 1)


def random_factors(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Random factors (N, 3) for `jittered`."""
    u = torch.rand(len(x), 3, generator=generator, device=x.device)
    return 1 + JITTER * (2 * u - 1)


def draw_mixing(
    n: int, size: int, recipe: Recipe, rng: np.random.Generator
) -> tuple[torch.Tensor, ...]:
    """How `mix` is to mix an epoch's n images of size x size pixels, batch after batch.

    Returns each image's partner, as its place in the batch (n,), and the share of itself that
    it keeps (n,), 1 in steps that don't mix. mixup (Zhang et al. 2018) draws a share for each
    image. cutmix (Yun et al. 2019) draws one box for the batch, cut off at the border, and
    also returns which pixels the partner fills (n, size, size); the share is of those that
    stay. rng is NumPy's, as PyTorch draws no beta from a generator. For an epoch, as what is
    drawn on the CPU makes a step wait for the device.
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
    edges = torch.from_numpy(np.concatenate(boxes)).view(n, 2, 2, 1)
    first, end = edges.unbind(1)  # (n, 2, 1) each: of rows and of columns
    within = (first <= torch.arange(size)) & (torch.arange(size) < end)  # (n, 2, size)
    filled = within[:, 0, :, None] & within[:, 1, None, :]
    return order, 1 - filled.float().mean((1, 2)), filled


def _box(size: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Top, left, bottom and right of a box that leaves `share`: its centre anywhere, its half
    sides rounded down, as in the paper's code."""
    half = int(size * math.sqrt(1 - share)) // 2
    centre = rng.integers(size, size=2)
    return np.concatenate((np.maximum(centre - half, 0), np.minimum(centre + half, size)))


def mix(
    x: torch.Tensor,
    labels: torch.Tensor,
    partners: torch.Tensor,
    shares: torch.Tensor,
    filled: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch x (N, 3, S, S) mixed with itself as `draw_mixing` says, all on one device.

    Returns the images, the labels (N,) of the images mixed in, and the shares (N,) that the
    batch's own labels keep.
    """
    others = x[partners]
    if filled is None:
        x = torch.lerp(others, x, shares[:, None, None, None])
    else:
        x = torch.where(filled[:, None], others, x)
    return x, labels[partners], shares
