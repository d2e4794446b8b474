"""What a run trains: a network, its examples, and the images that judge it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from torch import nn

from common.dataset.split import LabelledImages, Split
from common.networks import pretrained
from common.networks.build import build
from common.training.frozen import FrozenHead, compute_features
from common.training.recipe import Recipe
from common.training.resampling import check_examples, make_examples, resampled


class Setup(NamedTuple):
    """What `fit` takes, for any recipe.

    network: the whole network, which `build` makes from `arguments`. trained: what is trained
    and evaluated: the network itself or, of a frozen one, its head, which takes features; then
    these are the images of examples, validation and test. recipe: the recipe for `fit`.
    features: what the result file says of them, None where the whole network is trained.
    """

    network: nn.Module
    arguments: dict[str, Any]
    trained: nn.Module
    examples: LabelledImages
    validation: LabelledImages
    test: LabelledImages
    recipe: Recipe
    features: dict[str, Any] | None = None


def set_up(recipe: Recipe, split: Split, seed: int, **where: Any) -> Setup:
    """Return the network of the recipe, new or pretrained, and what it is trained with.

    where: device, threads, and perhaps facts and cache, as `compute_features` takes them for a
    frozen recipe. Raises InputError as `make_examples` does.
    """
    arguments, network = _network(recipe, split, seed)
    if not recipe.frozen:
        examples = make_examples(split.train, split.test, recipe, split.classes, seed)
        parts = (examples, split.validation, split.test)
        return Setup(network, arguments, network, *parts, recipe)
    features = compute_features(network, split, recipe, seed, **where)
    examples = resampled(features.train, features.test_examples, recipe, split.classes, seed)
    parts = (examples, features.validation, features.test)
    # The features of the mirror images are among the examples.
    recipe = replace(recipe, augment=())
    return Setup(network, arguments, FrozenHead(network.head), *parts, recipe, features.record)


def cache_features(recipe: Recipe, split: Split, seed: int, **where: Any) -> bool:
    """Compute the features that `set_up` will find; return whether the cache holds them."""
    _, network = _network(recipe, split, seed)
    return compute_features(network, split, recipe, seed, **where).cached


def _network(recipe: Recipe, split: Split, seed: int) -> tuple[dict[str, Any], nn.Module]:
    """Return the arguments of `build` and the network, once the images are known to suit."""
    check_examples(recipe, split.train, split.classes)
    arguments = recipe.network_arguments(len(split.classes), split.image_size)
    network = build(recipe.network, arguments, seed)
    if recipe.pretrained or recipe.weights:
        pretrained.load_weights(network, recipe.network, recipe.weights)
    return arguments, network
