"""The examples of a training run: transformed copies, resampling, test images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from common.dataset.split import LabelledImages
from common.dataset.stored_images import StoredImages
from common.errors import InputError
from common.training.augmentation import jitter, max_shift, random_factors
from common.training.recipe import Recipe

RESAMPLERS = {  # classes of imbalanced-learn
    "smote": "SMOTE",  # Chawla et al. 2002
    "borderline-smote": "BorderlineSMOTE",  # Han et al. 2005
    "adasyn": "ADASYN",  # He et al. 2008
    "random-over": "RandomOverSampler",
    "random-under": "RandomUnderSampler",
}
NEIGHBOURS = {  # imbalanced-learn's name of the option
    "smote": "k_neighbors",
    "borderline-smote": "k_neighbors",
    "adasyn": "n_neighbors",
}
MAX_ROTATION = math.radians(10)
CHUNK = 1024  # images that are transformed at a time, which bounds the memory


def examples_per_image(recipe: Recipe) -> int:
    """Return how many training examples an image is, before resampling.

    The image itself and its copies, and with `frozen` the mirror image of each.
    """
    mirrored = recipe.frozen and "flip" in recipe.augment
    return (1 + recipe.copies) * (2 if mirrored else 1)


def check_class_counts(recipe: Recipe, counts: Sequence[int], classes: Sequence[str]) -> None:
    """Check that a recipe can train on `counts` images per class.

    Raises InputError for a class without images, a wrong number of sampler weights, and a
    class with too few images for the number of neighbours.
    """
    for name, count in zip(classes, counts, strict=True):
        if not count:
            raise InputError(f"no training image of {name}; raise --train-counts")
    weights = recipe.sampler_weights
    if weights is not None and len(weights) != len(classes):
        raise InputError(
            f"--sampler-weights: {len(weights)} given; give {len(classes)}, one for each of"
            f" {', '.join(classes)}"
        )
    counts = [count * examples_per_image(recipe) for count in counts]
    least, most = min(counts), max(counts)
    if recipe.resample in NEIGHBOURS and least < most and least <= recipe.neighbours:
        name = classes[counts.index(least)]
        remedy = f"--neighbours {least - 1} or fewer" if least > 1 else "--resample random-over"
        raise InputError(
            f"--resample {recipe.resample}: too few images for {recipe.neighbours} neighbours"
            f" (training images of {name}: {least}); use {remedy}"
        )


def check_examples(recipe: Recipe, train: LabelledImages, classes: Sequence[str]) -> None:
    """Check that a recipe can train on these images.

    Raises InputError as `check_class_counts` does, and for a recipe that needs more images in
    memory than `--memory` allows.
    """
    check_class_counts(recipe, train.counts(len(classes)), classes)
    in_memory = {f"--copies {recipe.copies}": recipe.copies > 0}
    if not recipe.frozen:  # features are small: they lie in memory
        in_memory[f"--resample {recipe.resample}"] = recipe.resample != "none"
        in_memory["--train-on-test"] = recipe.train_on_test
    for option, needed in in_memory.items():
        if needed and isinstance(train.images, StoredImages):
            raise InputError(
                f"{option}: needs all images in memory, and they are larger than --memory; give"
                f" a larger --memory, or leave {option.split()[0]} out"
            )


def make_examples(
    train: LabelledImages,
    test: LabelledImages,
    recipe: Recipe,
    classes: Sequence[str],
    seed: int,
) -> LabelledImages:
    """Return the training examples: images and copies, resampled, then the test images.

    Raises InputError as `check_examples` does, and if imbalanced-learn cannot resample a class.
    """
    check_examples(recipe, train, classes)
    return resampled(with_copies(train, recipe.copies, seed), test, recipe, classes, seed)


def resampled(
    train: LabelledImages,
    test: LabelledImages,
    recipe: Recipe,
    classes: Sequence[str],
    seed: int,
) -> LabelledImages:
    """Return the examples `train`, resampled, then the test images if they are trained on.

    With `frozen` the images of both are features, float32 (N, D).
    """
    if recipe.resample != "none":
        train = _resample(train, recipe, classes, seed)
    if recipe.train_on_test:
        train = LabelledImages(*(torch.cat(both) for both in zip(train, test, strict=True)))
    return train


def with_copies(part: LabelledImages, copies: int, seed: int) -> LabelledImages:
    """Return the part, followed by `copies` independently transformed copies of its images."""
    if not copies:
        return part
    generator = torch.Generator().manual_seed(seed)
    images = [part.images]
    for _ in range(copies):
        images.extend(transform(chunk, generator) for chunk in part.images.split(CHUNK))
    return LabelledImages(torch.cat(images), part.labels.repeat(copies + 1))


def transform(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Flip, rotate, shift and jitter uint8 images (N, 3, S, S), each image independently.

    Half of the images are flipped, only horizontally: cars are never upside down. Rotations
    are within MAX_ROTATION, shifts within `max_shift(S)` pixels. Pixels from outside the image
    are reflected.
    """
    n, size = len(images), images.shape[-1]
    mirror = torch.randint(0, 2, (n,), generator=generator) * 2.0 - 1
    angle, right, down = 2 * torch.rand(3, n, generator=generator) - 1
    cos, sin = (angle * MAX_ROTATION).cos(), (angle * MAX_ROTATION).sin()
    shift = 2 * max_shift(size) / size  # in the coordinates of affine_grid an image is 2 wide
    # The source of each pixel: its position rotated, shifted, then mirrored.
    source = torch.stack(
        (mirror * cos, -mirror * sin, mirror * right * shift, sin, cos, down * shift), 1
    )
    grid = F.affine_grid(source.view(n, 2, 3), list(images.shape), align_corners=False)
    x = F.grid_sample(
        images.float() / 255, grid, padding_mode="reflection", align_corners=False
    )
    return (jitter(x, random_factors(x, generator)) * 255).round().to(torch.uint8)


def _resample(
    part: LabelledImages, recipe: Recipe, classes: Sequence[str], seed: int
) -> LabelledImages:
    """Return the part with equally large classes.

    The size is that of the largest class (adasyn: approximately) or, for random-under, that of
    the smallest. borderline-smote leaves a class without any borderline image as it is; if
    it leaves all classes so, the function raises InputError.
    """
    # Imported here: the import takes a second, in every process that trains.
    from imblearn import over_sampling, under_sampling

    option, remedy = f"--resample {recipe.resample}", "use --resample smote"
    module = under_sampling if recipe.resample == "random-under" else over_sampling
    resampler = getattr(module, RESAMPLERS[recipe.resample])
    counts = part.counts(len(classes))
    arguments = {"random_state": seed}
    if recipe.resample in NEIGHBOURS:
        arguments[NEIGHBOURS[recipe.resample]] = recipe.neighbours
    # The resamplers subtract images: differences of uint8 would overflow.
    x = part.images.flatten(1).float().numpy()
    try:
        x, y = resampler(**arguments).fit_resample(x, part.labels.numpy())
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())  # on one line
        raise InputError(f"{option}: {reason} (imbalanced-learn); {remedy}") from None
    images = torch.from_numpy(x)
    if part.images.dtype == torch.uint8:
        images = images.round_().clamp_(0, 255).to(torch.uint8)
    result = LabelledImages(images.view(-1, *part.images.shape[1:]), torch.from_numpy(y))
    if recipe.resample == "borderline-smote" and result.counts(len(classes)) == counts:
        smaller = [name for name, n in zip(classes, counts, strict=True) if n < max(counts)]
        if smaller:
            raise InputError(f"{option}: no image of {smaller[0]} is borderline; {remedy}")
    return result
