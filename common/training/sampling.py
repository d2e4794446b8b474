"""Samplers: which examples an epoch draws, and in which order."""

from __future__ import annotations

import torch

from common.training.recipe import Recipe


def class_shares(counts: torch.Tensor, recipe: Recipe, epoch: int) -> torch.Tensor:
    """Return the share (K,) of each class in the draws of an epoch, counted from 0.

    counts: examples per class, n_k, (K,). The shares are proportional to n_k (shuffle), 1
    (balanced, rotation), sqrt(n_k) (square-root), w_k n_k (weighted, with `sampler_weights`),
    or (1 - t) n_k / n + t / K (progressive; Kang et al. 2020), where t rises from 0 in the
    first epoch to 1 in the last epoch. With a single epoch t is 0.
    """
    n = counts.double()
    match recipe.sampler:
        case "shuffle":
            shares = n
        case "balanced" | "rotation":
            shares = torch.ones_like(n)
        case "square-root":
            shares = n.sqrt()
        case "progressive":
            t = epoch / max(recipe.epochs - 1, 1)
            shares = (1 - t) * n / n.sum() + t / len(n)
        case "weighted":
            shares = n * torch.tensor(recipe.sampler_weights)
    return shares / shares.sum()


def epoch_order(
    labels: torch.Tensor, recipe: Recipe, epoch: int, classes: int, generator: torch.Generator
) -> torch.Tensor:
    """Return the positions (n,) that an epoch, counted from 0, draws from n labels (n,).

    shuffle: each example once. rotation: the classes in turn (0, 1, 2, 0, 1, 2, ...). The
    other samplers draw with replacement, each class with its share. labels (from 0 to
    `classes` - 1) and generator are on the CPU.
    """
    if recipe.sampler == "shuffle":
        return torch.randperm(len(labels), generator=generator)
    if recipe.sampler == "rotation":
        return _rotation(labels, generator)
    counts = torch.bincount(labels, minlength=classes)
    weights = class_shares(counts, recipe, epoch) / counts
    # The same draw as torch.utils.data.WeightedRandomSampler's.
    return torch.multinomial(
        weights[labels], len(labels), replacement=True, generator=generator
    )


def _rotation(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return as many positions as there are labels, with the classes in turn.

    The examples of a class are shuffled again whenever all of them have been drawn.
    """
    order = torch.empty_like(labels)
    present = labels.unique()
    for offset, label in enumerate(present):
        members = (labels == label).nonzero().squeeze(1)
        n = len(order[offset :: len(present)])
        shuffles = [
            members[torch.randperm(len(members), generator=generator)]
            for _ in range(-(-n // len(members)))
        ]
        order[offset :: len(present)] = torch.cat(shuffles)[:n]
    return order
