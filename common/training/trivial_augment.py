"""TrivialAugment (Müller and Hutter 2021), on batches: one random operation for each image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# The strongest of each operation, as in torchvision's TrivialAugmentWide.
SHEAR = 0.99  # the tangent of the angle
SHIFT = 32  # pixels
ROTATION = math.radians(135)
BLEND = 0.99  # change of the factor of brightness, colour, contrast and sharpness
FEWEST_BITS = 2  # of posterize
STEPS = 30  # from no change to the strongest


def draw_operations(
    order: torch.Tensor, batch_size: int, generator: torch.Generator
) -> tuple[torch.Tensor, list[list[int]]]:
    """Draw an operation for each example of an epoch, and sort each batch by operation.

    order: the positions that the epoch draws, (n,). Returns them, sorted within each batch, and
    for each batch how many examples each of OPERATIONS transforms. A sorted batch is
    transformed in slices whose sizes the host knows, so that no step waits for the device. All
    tensors, and the generator, are on the CPU.
    """
    operations = torch.randint(len(OPERATIONS), (len(order),), generator=generator)
    batch = torch.arange(len(order)) // batch_size
    key = batch * len(OPERATIONS) + operations
    sizes = torch.bincount(key, minlength=(int(batch[-1]) + 1) * len(OPERATIONS))
    return order[key.argsort(stable=True)], sizes.view(-1, len(OPERATIONS)).tolist()


def trivial_augment(
    x: torch.Tensor, sizes: list[int], generator: torch.Generator
) -> torch.Tensor:
    """Transform each image of x (N, 3, S, S) in [0, 1] by one operation of OPERATIONS.

    sizes: how many images, in turn, each operation transforms (`draw_operations`); their sum is
    N. Each image has a strength of its own, one of 31 from none to the strongest, and a random
    direction. Unlike torchvision's, blends are not rounded to multiples of 1/255. The
    channels_last memory format is preserved.
    """
    on_device = {"generator": generator, "device": x.device}
    strength = torch.randint(STEPS + 1, (len(x),), **on_device) / STEPS
    signed = strength * (2 * torch.randint(2, (len(x),), **on_device) - 1)  # (N,)
    result = torch.empty_like(x)
    start = 0
    for operation, size in zip(OPERATIONS.values(), sizes, strict=True):
        part = slice(start, start + size)
        if size:
            result[part] = operation(x[part], signed[part])
        start += size
    return result


# Each operation takes images x (n, 3, S, S) and strengths m (n,) from -1 to 1.


def identity(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return x


def shear_x(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Shift each row in proportion to its distance from the first row."""
    return _affine(x, m, [[1, SHEAR * m, SHEAR * m], [0, 1, 0]])


def shear_y(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Shift each column in proportion to its distance from the first column."""
    return _affine(x, m, [[1, 0, 0], [SHEAR * m, 1, SHEAR * m]])


def translate_x(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return _affine(x, m, [[1, 0, -_whole_pixels(m) * 2 / x.shape[-1]], [0, 1, 0]])


def translate_y(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return _affine(x, m, [[1, 0, 0], [0, 1, -_whole_pixels(m) * 2 / x.shape[-1]]])


def _whole_pixels(m: torch.Tensor) -> torch.Tensor:
    return (SHIFT * m).trunc()


def rotate(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    cos, sin = (ROTATION * m).cos(), (ROTATION * m).sin()
    return _affine(x, m, [[cos, -sin, 0], [sin, cos, 0]])


def _affine(
    x: torch.Tensor, m: torch.Tensor, rows: list[list[float | torch.Tensor]]
) -> torch.Tensor:
    """Return images whose pixel at p is that of x nearest to M p, black if it lies outside.

    rows: of M, 2 x 3 numbers or tensors (n,). Coordinates run from -1 to 1; the last column is
    added.
    """
    entries = [torch.zeros_like(m) + entry for row in rows for entry in row]
    matrix = torch.stack(entries, 1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", align_corners=False)


def luma(x: torch.Tensor) -> torch.Tensor:
    """Return the grey images (N, 1, S, S) of images x (N, 3, S, S), by ITU-R BT.601."""
    return 0.299 * x[:, :1] + 0.587 * x[:, 1:2] + 0.114 * x[:, 2:]


def brightness(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return _blend(torch.zeros_like(x), x, m)


def colour(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return _blend(luma(x), x, m)


def contrast(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return _blend(luma(x).mean((1, 2, 3), keepdim=True), x, m)


def sharpness(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Blend with a smoothed image; the pixels at the border stay as they are."""
    smoothed = x.clone()
    neighbours = F.avg_pool2d(x, 3, stride=1)  # of each pixel inside the border, and itself
    smoothed[..., 1:-1, 1:-1] = (9 * neighbours + 4 * x[..., 1:-1, 1:-1]) / 13
    return _blend(smoothed, x, m)


def _blend(other: torch.Tensor, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    factor = (1 + BLEND * m)[:, None, None, None]
    return torch.lerp(other.expand_as(x), x, factor).clamp(0, 1)


def posterize(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Keep the first 8 to 2 bits of each value."""
    bits = 8 - ((8 - FEWEST_BITS) * m.abs()).round()
    step = (2 ** (8 - bits))[:, None, None, None]
    return (255 * x).round().div(step, rounding_mode="floor") * step / 255


def solarize(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Invert the values from a threshold on, which falls from 1 to 0."""
    threshold = (1 - m.abs())[:, None, None, None]
    return torch.where(x >= threshold, 1 - x, x)


def autocontrast(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to the whole range; one of a single value stays as it is."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low), x)


def equalize(x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """Equalize the histogram of each channel, of 256 values."""
    from torchvision.transforms.v2 import functional  # takes a second to import

    values = (255 * x).round().to(torch.uint8)
    return functional.equalize(values).to(x.dtype) / 255


OPERATIONS = {
    each.__name__: each
    for each in (
        identity, shear_x, shear_y, translate_x, translate_y, rotate, brightness, colour,
        contrast, sharpness, posterize, solarize, autocontrast, equalize,
    )
}  # fmt: skip
