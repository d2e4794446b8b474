"""The Square attack: random search over squares of noise, without gradients."""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import nn

from common.attacks.gradients import check_arguments, fools, logits_of

# The share of pixels is halved after each of these queries, of 10,000.
HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
TILES = 5  # in a row and in a column of the first noise in L2


def square(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, epsilon: float,
    norm: str = "linf", queries: int = 5000, share: float = 0.8,
    generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return the images of the Square attack (Andriushchenko et al. 2020) within epsilon.

    The attack needs the network's logits alone. Each query changes a square window of every
    image, at a random place, and keeps the change if it lowers the margin: the label's logit
    minus the largest other one. norm: "linf" or "l2", of the ball of radius epsilon around each
    image. In L-infinity the noise starts as vertical stripes, and a change sets each channel of
    the window to epsilon above or below x. In L2 the noise starts as tiles of a pattern, and a
    change moves the noise of a second window into the first. queries: evaluations of the
    network per image, that of x included. share: of the pixels, in the first windows; it is
    halved nine times on the authors' schedule. An image that fools the network is left
    unchanged from then on. Every other image is returned at its lowest margin over all queries.
    """
    check_arguments(labels, None, epsilon, most=1.0 if norm == "linf" else torch.inf)
    if epsilon == 0:
        return x
    generator = generator or torch.Generator().manual_seed(0)
    start, change, side = (
        (_stripes, _colour_windows, _linf_side)
        if norm == "linf"
        else (_tiles, _move_noise, _l2_side)
    )
    logits = logits_of(network, x)
    margins_of_x = _margins(logits, labels)
    active = (~fools(logits, labels, None)).nonzero()[:, 0]  # positions of images attacked
    best, lowest = x.clone(), torch.full_like(margins_of_x, torch.inf)
    for query in range(queries - 1):
        if len(active) == 0:
            break
        if query == 0:
            images = start(x, epsilon, generator)[active]
        else:
            s = side(share_of_pixels(share, query - 1, queries), x.shape[-1])
            images = change(x, best, active, s, epsilon, generator)
        y = labels[active]
        logits = logits_of(network, images)
        margins, fooled = _margins(logits, y), fools(logits, y, None)
        improved = fooled | (margins < lowest[active])
        best[active[improved]] = images[improved]
        lowest[active[improved]] = margins[improved]
        active = active[~fooled]
    # Among logits that tie, argmax takes the first: at equal margins of 0, only best may fool.
    return best.where((lowest <= margins_of_x)[:, None, None, None], x)


def share_of_pixels(share: float, query: int, queries: int) -> float:
    """Return the share of the pixels in the window of a query, of which 0 is the first.

    >>> share_of_pixels(0.8, 10, 10_000), share_of_pixels(0.8, 11, 10_000)
    (0.8, 0.4)
    """
    return share / 2 ** bisect_left(HALVINGS, query * 10_000 // queries)


def _margins(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the label's logit minus the largest other one, (N,); negative if that fools.

    Unlike the margin of `objective`, this one is not divided by the range of the logits: the
    search compares margins, so it needs no gradient.
    """
    label = logits.gather(1, labels[:, None])[:, 0]
    return label - logits.scatter(1, labels[:, None], -torch.inf).amax(1)


def _linf_side(share: float, size: int) -> int:
    """Return the side of a square with a share of the pixels of an image of size x size."""
    return max(round((share * size**2) ** 0.5), 1)


def _l2_side(share: float, size: int) -> int:
    """Return an odd side of at least 3, or the image's size."""
    return min(max(_linf_side(share, size), 3) | 1, size)


def _randint(most: int, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return random integers from 0 to most, on the device of the generator."""
    return torch.randint(most + 1, shape, generator=generator, device=generator.device)


def _signs(
    x: torch.Tensor, height: int, width: int, generator: torch.Generator
) -> torch.Tensor:
    """Return random signs (N, C, height, width), on the device of images x (N, C, S, S)."""
    return (2 * _randint(1, (*x.shape[:2], height, width), generator) - 1).to(x)


def _stripes(x: torch.Tensor, epsilon: float, generator: torch.Generator) -> torch.Tensor:
    """Return x with vertical stripes of noise, one pixel wide."""
    return (x + epsilon * _signs(x, 1, x.shape[-1], generator)).clamp(0, 1)


def _window(
    x: torch.Tensor, active: torch.Tensor, side: int, generator: torch.Generator
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Return a random window of each active image: an index into x, and one into x[active].

    Either index selects (n, C, side, side). Random numbers are drawn for all images of x, so
    that the windows of an image don't depend on which other images are still attacked.
    """
    n, channels, size, _ = x.shape
    corner = _randint(size - side, (2, n, 1), generator).to(active.device)[:, active]
    rows, columns = corner + torch.arange(side, device=active.device)  # each (n, side)
    channel = torch.arange(channels, device=active.device)[:, None, None]
    inside = channel, rows[:, None, :, None], columns[:, None, None, :]
    position = torch.arange(len(active), device=active.device)
    return (active[:, None, None, None], *inside), (position[:, None, None, None], *inside)


def _colour_windows(
    x: torch.Tensor, best: torch.Tensor, active: torch.Tensor, side: int, epsilon: float,
    generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Return best[active] with a random window at epsilon above or below x in each channel."""
    window, window_of_active = _window(x, active, side, generator)
    signs = _signs(x, 1, 1, generator)[active]
    images = best[active]
    # The noise is within epsilon, so the paper's step, +-2 epsilon and a projection, ends here.
    images[window_of_active] = (x[window] + epsilon * signs).clamp(0, 1)
    return images


def _bump(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """Return the authors' bump (rows, columns) of norm 1, highest in the middle.

    It is the sum of concentric squares of sides 1, 3, 5, ..., of heights 1, 1/4, 1/9, ...
    """
    down, across = ((torch.arange(n, device=device) - n // 2).abs() for n in (rows, columns))
    ring = torch.maximum(down[:, None], across)  # of each pixel: its distance from the middle
    heights = torch.arange(1, max(rows, columns) // 2 + 2, device=device) ** -2.0
    bump = heights.flip(0).cumsum(0).flip(0)[ring]
    return bump / bump.norm()


def _patterns(side: int, x: torch.Tensor) -> torch.Tensor:
    """Return the authors' eta of norm 1, and its transpose, (2, side, side), of the type of x.

    It is a bump above a negative bump.
    """
    halves = [_bump(rows, side, x.device) for rows in (side // 2, side - side // 2)]
    eta = (torch.cat([halves[0], -halves[1]]) / 2**0.5).to(x.dtype)
    return torch.stack([eta, eta.T])


def _tiles(x: torch.Tensor, epsilon: float, generator: torch.Generator) -> torch.Tensor:
    """Return x with noise of norm epsilon: TILES x TILES patterns of random signs."""
    n, channels, size, _ = x.shape
    side = size // TILES
    turned = _randint(1, (n, 1, TILES, TILES), generator).to(x.device)
    tiles = _patterns(side, x)[turned] * _signs(x, TILES, TILES, generator)[..., None, None]
    noise = torch.zeros_like(x)
    edge = (size - side * TILES) // 2
    middle = slice(edge, edge + side * TILES)
    noise[..., middle, middle] = tiles.transpose(3, 4).reshape(n, channels, *2 * [side * TILES])
    # Each tile and channel has norm 1.
    return (x + epsilon / (channels * TILES**2) ** 0.5 * noise).clamp(0, 1)


def _move_noise(
    x: torch.Tensor, best: torch.Tensor, active: torch.Tensor, side: int, epsilon: float,
    generator: torch.Generator,
) -> torch.Tensor:  # fmt: skip
    """Return best[active] with the noise of a random window moved into another one.

    Where the noise is removed, x is left. The noise of the other window gets a pattern added,
    and in each channel the norm that both windows had, plus an equal share of what the noise of
    the image lacks to norm epsilon (as it does after clamping to [0, 1]).
    """
    to, to_active = _window(x, active, side, generator)
    source, source_active = _window(x, active, side, generator)
    turned = _randint(1, (len(x), 1), generator).to(x.device)[active]
    patterns = _patterns(side, x)[turned] * _signs(x, 1, 1, generator)[active]
    images = best[active]
    noise = images - x[active]
    lacking = epsilon**2 - noise.square().sum((1, 2, 3), keepdim=True)
    old = noise[to_active]
    old_norms = old.square().sum((2, 3), keepdim=True)  # squared, as all norms here
    # By channel, as in AutoAttack since its fix; torchattacks adds up the channels.
    noise[to_active] = 0  # counts the intersection of both windows once
    both_norms = old_norms + noise[source_active].square().sum((2, 3), keepdim=True)
    new = patterns + old / old_norms.sqrt().clamp(min=1e-12)
    new /= new.square().sum((2, 3), keepdim=True).sqrt().clamp(min=1e-12)
    # Rounding can make the noise longer than epsilon; a negative share then shortens it.
    new *= (both_norms + lacking / x.shape[1]).clamp(min=0).sqrt()
    images[source_active] = x[source]
    images[to_active] = (x[to] + new).clamp(0, 1)
    return images
