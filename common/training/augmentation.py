"""Random augmentation of a batch of images, on the device of the batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from common.training.recipe import Recipe
from common.training.trivial_augment import luma, trivial_augment

GREY = 0.5  # 0 after the normalisation of the networks
JITTER = 0.3  # largest relative change of brightness, contrast and saturation


def max_shift(size: int) -> int:
    """Return the longest shift of images of size x size pixels: 4 pixels at 32."""
    return size // 8


def cutout_side(size: int) -> int:
    """Return the side of the square that `cutout` fills: 8 pixels at 32."""
    return size // 4


def augment(
    x: torch.Tensor,
    recipe: Recipe,
    generator: torch.Generator,
    operation_sizes: list[int] | None = None,
) -> torch.Tensor:
    """Apply the transformations of `recipe.augment` to images x (N, 3, S, S) in [0, 1].

    Each image is transformed independently, in the order flip, crop, trivial-augment, cutout,
    colour. All random numbers come from `generator`, which is on the device of x. No operation
    waits for the device, and the channels_last memory format is preserved.

    operation_sizes: of trivial-augment, for which the batch is sorted by operation.
    """
    n, size = len(x), x.shape[-1]
    on_device = {"generator": generator, "device": x.device}
    if "flip" in recipe.augment:
        x = flip(x, torch.rand(n, **on_device) < 0.5)
    if "crop" in recipe.augment:
        most = max_shift(size)
        x = shift(x, torch.randint(-most, most + 1, (n, 2), **on_device))
    if "trivial-augment" in recipe.augment:
        x = trivial_augment(x, operation_sizes, generator)
    if "cutout" in recipe.augment:
        x = cutout(x, torch.randint(0, size, (n, 2), **on_device))
    if "colour" in recipe.augment:
        x = jitter(x, random_factors(x, generator))
    return x


def flip(x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """Mirror the images of x (N, 3, S, S) horizontally where `which` (N,) is true."""
    return torch.where(which[:, None, None, None], x.flip(-1), x)


def shift(x: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Shift each image of x (N, 3, S, S): pixel (i, j) becomes the old (i + dy, j + dx).

    offsets: dy and dx of each image, (N, 2), integers from -m to m, where m is `max_shift(S)`.
    Pixels from outside the image are reflected.
    """
    size = x.shape[-1]
    most = max_shift(size)
    padded = F.pad(x, (most,) * 4, mode="reflect")
    # A view (N, 3, 2m + 1, 2m + 1, S, S); only the windows that are selected are copied.
    windows = padded.unfold(2, size, 1).unfold(3, size, 1)
    top, left = (offsets + most).unbind(1)
    return windows[torch.arange(len(x), device=x.device), :, top, left]


def cutout(x: torch.Tensor, centres: torch.Tensor) -> torch.Tensor:
    """Fill a square of each image of x with grey (DeVries and Taylor 2017).

    centres: row and column of the centre of each square, (N, 2). The side is `cutout_side(S)`
    pixels; the square is clipped at the border.
    """
    side = cutout_side(x.shape[-1])
    distance = torch.arange(x.shape[-1], device=x.device) - centres[:, :, None]  # (N, 2, S)
    near = (distance >= -(side // 2)) & (distance < side - side // 2)
    square = near[:, 0, :, None] & near[:, 1, None, :]  # (N, S, S)
    return torch.where(square[:, None], GREY, x)  # masked_fill would not keep channels_last


def jitter(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply brightness, contrast and saturation by factors (N, 3), and clamp to [0, 1]."""
    brightness, contrast, saturation = factors[:, :, None, None, None].unbind(1)
    grey = luma(x)
    x = torch.lerp(grey, x, saturation)
    x = torch.lerp(grey.mean((1, 2, 3), keepdim=True), x, contrast)
    return (x * brightness).clamp(0, 1)


def random_factors(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return factors (N, 3) for `jitter`, uniform from 1 - JITTER to 1 + JITTER."""
    u = torch.rand(len(x), 3, generator=generator, device=x.device)
    return 1 + JITTER * (2 * u - 1)
