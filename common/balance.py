"""What an epoch sees: the examples made beforehand, and which of them an epoch draws.

Everything random comes from the seed or generator that is passed in.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import imblearn.over_sampling as over
import imblearn.under_sampling as under
import numpy as np
import torch
import torch.nn.functional as F

from common.augment import MAX_SHIFT, draw_mixing, jittered, random_factors
from common.dataset import Part
from common.options import InputError
from common.recipes import Recipe

RESAMPLERS = {
    "smote": over.SMOTE,  # Chawla et al. 2002
    "borderline-smote": over.BorderlineSMOTE,  # Han et al. 2005
    "adasyn": over.ADASYN,  # He et al. 2008
    "random-over": over.RandomOverSampler,
    "random-under": under.RandomUnderSampler,
}
NEIGHBOURS = {  # what imbalanced-learn calls the option, where there is one
    "smote": "k_neighbors",
    "borderline-smote": "k_neighbors",
    "adasyn": "n_neighbors",
}
MAX_ROTATION = math.radians(10)
CHUNK = 1024  # images that are copied at a time, to bound memory


def check(recipe: Recipe, counts: Sequence[int], classes: Sequence[str]) -> None:
    """Refuse a recipe that these training images, `counts` per class, can't be made to fit.

    Raises InputError for a class with no image, a wrong number of sampler weights, and a
    class too small for its neighbours.
    """
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise InputError(f"no training image of {name}: raise --train-counts")
    weights = recipe.sampler_weights
    if weights is not None and len(weights) != len(classes):
        raise InputError(
            f"--sampler-weights: {len(weights)} given; give {len(classes)}, one each for"
            f" {', '.join(classes)}"
        )
    counts = [count * (recipe.copies + 1) for count in counts]
    least, most = min(counts), max(counts)
    if recipe.resample in NEIGHBOURS and least < most and least <= recipe.neighbours:
        remedy = f"--neighbours {least - 1} or fewer" if least > 1 else "random-over"
        raise InputError(
            f"--resample {recipe.resample}: {recipe.neighbours} neighbours, but training"
            f" images of {classes[counts.index(least)]}: {least}; take {remedy}"
        )


def examples(
    train: Part, test: Part, recipe: Recipe, classes: Sequence[str], seed: int
) -> Part:
    """The examples to train on: transformed copies, then resampling, then test images.

    Raises InputError as `check` does, and for whatever else keeps a class from being
    resampled.
    """
    check(recipe, train.counts(len(classes)), classes)
    train = _with_copies(train, recipe.copies, seed)
    if recipe.resample != "none":
        train = _resampled(train, recipe, classes, seed)
    if recipe.train_on_test:
        train = Part(*(torch.cat(both) for both in zip(train, test, strict=True)))
    return train


def _with_copies(part: Part, copies: int, seed: int) -> Part:
    """The part, then `copies` times all its images, each transformed in its own way."""
    generator = torch.Generator().manual_seed(seed)
    images = [part.images]
    for _ in range(copies):
        images.extend(transformed(chunk, generator) for chunk in part.images.split(CHUNK))
    return Part(torch.cat(images), part.labels.repeat(copies + 1))


def transformed(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """uint8 images (N, 3, S, S), each flipped or not, rotated, shifted and jittered.

    Sideways flips only: a car upside down is none. Edges are reflected.
    """
    n, size = len(images), images.shape[-1]
    mirror = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
    angle, right, down = 2 * torch.rand(3, n, generator=generator) - 1
    cos, sin = (angle * MAX_ROTATION).cos(), (angle * MAX_ROTATION).sin()
    shift = 2 * MAX_SHIFT / size  # affine_grid counts an image as 2 wide
    # Where each pixel of the result comes from: its place turned, moved, then mirrored.
    source = torch.stack(
        (mirror * cos, -mirror * sin, mirror * right * shift, sin, cos, down * shift), 1
    )
    grid = F.affine_grid(source.view(n, 2, 3), list(images.shape), align_corners=False)
    x = F.grid_sample(
        images.float() / 255, grid, padding_mode="reflection", align_corners=False
    )
    return (jittered(x, random_factors(x, generator)) * 255).round().to(torch.uint8)


def _resampled(part: Part, recipe: Recipe, classes: Sequence[str], seed: int) -> Part:
    """All classes as large as the largest (adasyn: nearly; random-under: as the smallest)."""
    option = f"--resample {recipe.resample}"
    counts = part.counts(len(classes))
    arguments = {"random_state": seed}
    if recipe.resample in NEIGHBOURS:
        arguments[NEIGHBOURS[recipe.resample]] = recipe.neighbours
    # As float32: differences of uint8 would wrap round, and the new images be garbage.
    x = part.images.flatten(1).float().numpy()
    try:
        x, y = RESAMPLERS[recipe.resample](**arguments).fit_resample(x, part.labels.numpy())
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{option}: {reason} (imbalanced-learn); take smote") from None
    images = torch.from_numpy(x).round_().clamp_(0, 255).to(torch.uint8)
    result = Part(images.view(-1, *part.images.shape[1:]), torch.from_numpy(y))
    if recipe.resample == "borderline-smote":  # it passes over a class without a word
        for name, before, after in zip(
            classes, counts, result.counts(len(classes)), strict=True
        ):
            if after == before < max(counts):
                raise InputError(f"{option}: no image of {name} is borderline; take smote")
    return result


def class_shares(counts: torch.Tensor, recipe: Recipe, epoch: int) -> torch.Tensor:
    """The share (K,) of each class in what epoch `epoch`, from 0, draws of counts (K,).

    With n_k examples of class k, it is proportional to n_k (shuffle), 1 (balanced, rotation),
    sqrt(n_k) (square-root), w_k n_k (weighted, by `sampler_weights`), or
    (1 - t) n_k / n + t / K (progressive; Kang et al. 2020), where t rises from 0 in the first
    epoch to 1 in the last, and is 0 in an only one.
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
    """Positions (n,) that epoch `epoch`, from 0, draws of n labels (n,) below `classes`.

    shuffle: each example once. rotation: classes 0, 1, 2, 0, 1, 2, ... The others draw with
    replacement, each class with its share. labels and generator are on the CPU.
    """
    if recipe.sampler == "shuffle":
        return torch.randperm(len(labels), generator=generator)
    if recipe.sampler == "rotation":
        return _rotation(labels, generator)
    counts = torch.bincount(labels, minlength=classes)
    weights = class_shares(counts, recipe, epoch) / counts
    # The weight of each example; as torch.utils.data.WeightedRandomSampler draws.
    return torch.multinomial(
        weights[labels], len(labels), replacement=True, generator=generator
    )


def draws(
    parts: Sequence[Part], recipe: Recipe, seeds: Sequence[int], classes: int
) -> Iterator[list[torch.Tensor]]:
    """Epoch after epoch, what is drawn on the CPU for K parts of n examples each, in the order
    in which they are taken: their places among those of all parts (K, n), and where the recipe
    mixes what `draw_mixing` draws."""
    # The order has generators of its own, so that networks with and without dropout, or on
    # different devices, see the same batches.
    order_of = [torch.Generator().manual_seed(seed) for seed in seeds]
    mix_of = [np.random.default_rng(seed) for seed in seeds]
    n, size = len(parts[0].labels), parts[0].images.shape[-1]
    for epoch in itertools.count():
        drawn = []
        for k, part in enumerate(parts):
            order = epoch_order(part.labels, recipe, epoch, classes, order_of[k])
            mixing = ()
            if recipe.mix != "none":
                mixing = draw_mixing(n, size, recipe, mix_of[k])
            drawn.append((order + k * n, *mixing))
        yield [torch.stack(each) for each in zip(*drawn, strict=True)]


def _rotation(labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """As many positions as labels, the classes in turn, each shuffled anew when used up."""
    order = torch.empty_like(labels)
    present = labels.unique()
    for first, label in enumerate(present):
        own = (labels == label).nonzero().squeeze(1)
        turns = order[first :: len(present)]
        rounds = -(-len(turns) // len(own))
        drawn = [own[torch.randperm(len(own), generator=generator)] for _ in range(rounds)]
        turns.copy_(torch.cat(drawn)[: len(turns)])
    return order
