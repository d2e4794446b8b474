"""The class shares that the probabilities of a trained network assume."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from common.errors import InputError
from common.networks.checkpoint import Checkpoint
from common.training.losses import class_weights
from common.training.recipe import Recipe
from common.training.recipe_record import from_record
from common.training.resampling import examples_per_image
from common.training.sampling import class_shares


def assumed_shares(recipe: Recipe, counts: torch.Tensor) -> torch.Tensor:
    """Return the class shares (K,) for which a network of this recipe was trained.

    counts: train images of each class, (K,), all above 0. A network that fits its loss gives
    the probabilities of images drawn with the shares

        draw_k * w_k / draw_k^tau, divided by their sum,

    where draw_k is the class's share of the draws of the last epoch, w_k its weight in the
    loss, and tau the strength of logit adjustment, in training or after it; 0 without.
    Resampling and crt draw the classes equally. LDAM, focal loss, the factors of VS loss,
    tau-normalisation and label smoothing change the probabilities in ways that no shares
    describe; they are left out.

    >>> assumed_shares(Recipe(), torch.tensor([90, 10]))
    tensor([0.9000, 0.1000], dtype=torch.float64)
    >>> assumed_shares(Recipe(loss="logit-adjusted"), torch.tensor([90, 10]))
    tensor([0.5000, 0.5000], dtype=torch.float64)
    """
    if recipe.post_hoc == "crt":  # which ends with a training of its own
        recipe = Recipe(sampler="balanced")
    counts = counts * examples_per_image(recipe)
    if recipe.resample != "none":
        counts = torch.full_like(counts, int(counts.max()))
    draws = class_shares(counts, recipe, recipe.epochs - 1)
    weights = class_weights(recipe, counts)
    shares = draws if weights is None else draws * weights
    if recipe.loss == "balanced-softmax":
        shares = shares / draws
    if recipe.loss in ("logit-adjusted", "vs") or recipe.post_hoc == "logit-adjustment":
        shares = shares / draws**recipe.tau
    return shares / shares.sum()


def of_checkpoint(checkpoint: Checkpoint, path: object, counts: Sequence[int]) -> list[float]:
    """Return the `assumed_shares` (K,) of the checkpoint at `path`.

    counts: train images of each class, for a checkpoint that does not hold its own. A bare
    course checkpoint has the reports' recipe. Raises InputError for a recipe that this
    version does not have.
    """
    try:
        recipe = from_record(checkpoint.recipe or {})
    except InputError as error:
        raise InputError(f"{path}: {error}, so that --prior can't be used") from None
    counts = train_counts(checkpoint) or counts
    if len(recipe.sampler_weights or counts) != len(counts):
        raise InputError(f"{path}: its sampler weights are not one for each class")
    return assumed_shares(recipe, torch.tensor(counts)).tolist()


def train_counts(checkpoint: Checkpoint) -> list[int] | None:
    """Return the train images of each class that a checkpoint names, None if it names none."""
    counts = (checkpoint.data or {}).get("train_counts")
    if not isinstance(counts, list) or len(counts) != len(checkpoint.classes):
        return None
    return counts if all(type(n) is int and 0 < n < 2**53 for n in counts) else None
