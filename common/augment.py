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
) -> tuple[torch.Tensor, torch.Tensor]:
    """How `mix` is to mix an epoch's n images of size x size pixels, batch after batch.

    Returns each image's partner, as its place in the batch (n,), and how much of it: for mixup
    (Zhang et al. 2018) the share that the image keeps (n,), drawn for each; for cutmix (Yun et
    al. 2019) the box that the partner fills (n, 4), top, left, bottom and right, one for the
    batch and cut off at the border. In steps that don't mix, themselves. rng is NumPy's, as
    PyTorch draws no beta from a generator, and an epoch's draws go to the device at once.
    """
    partners, amounts = [], []
    for start in range(0, n, recipe.batch_size):
        batch = min(recipe.batch_size, n - start)
        mixes = rng.random() < recipe.mix_share
        partners.append(rng.permutation(batch) if mixes else np.arange(batch))
        if recipe.mix == "mixup":
            beta = (recipe.mix_alpha, recipe.mix_alpha)
            amounts.append(rng.beta(*beta, batch) if mixes else np.ones(batch))
        else:
            box = _box(size, recipe, rng) if mixes else np.zeros(4, int)
            amounts.append(np.tile(box, (batch, 1)))
    amount = torch.from_numpy(np.concatenate(amounts))
    return (
        torch.from_numpy(np.concatenate(partners)),
        amount.float() if recipe.mix == "mixup" else amount,
    )


def _box(size: int, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """The box of the paper's code: its centre anywhere, its half sides rounded down."""
    half = int(size * math.sqrt(1 - rng.beta(recipe.mix_alpha, recipe.mix_alpha))) // 2
    centre = rng.integers(size, size=2)
    return np.concatenate((np.maximum(centre - half, 0), np.minimum(centre + half, size)))


def mix(
    x: torch.Tensor,
    labels: torch.Tensor,
    partners: torch.Tensor,
    amounts: torch.Tensor,
    recipe: Recipe,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch x (N, 3, S, S) mixed with itself as `draw_mixing` says, all on one device.

    Returns the images, the labels (N,) of the images mixed in, and the shares (N,) that the
    batch's own labels keep: for cutmix that of the area that stays.
    """
    others, size = x[partners], x.shape[-1]
    if recipe.mix == "mixup":
        return torch.lerp(others, x, amounts[:, None, None, None]), labels[partners], amounts
    start, end = amounts.view(-1, 2, 2, 1).unbind(1)  # (N, 2, 1) each: of rows, of columns
    places = torch.arange(size, device=x.device)
    within = (start <= places) & (places < end)  # (N, 2, S)
    box = within[:, 0, :, None] & within[:, 1, None, :]
    shares = 1 - (end - start).prod(1)[:, 0] / size**2
    return torch.where(box[:, None], others, x), labels[partners], shares
