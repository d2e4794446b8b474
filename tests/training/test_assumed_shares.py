"""The class shares that a recipe's probabilities assume."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from common.errors import InputError
from common.networks.checkpoint import Checkpoint
from common.training.assumed_shares import assumed_shares, of_checkpoint, train_counts
from common.training.losses import batch_loss, class_weights, make_loss
from common.training.recipe import Recipe
from common.training.sampling import class_shares

COUNTS = torch.tensor([880, 80, 40])
CLASSES = ("car", "truck", "cat")
EQUAL = [1 / 3] * 3


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.88, 0.08, 0.04]),
        ({"copies": 2}, [0.88, 0.08, 0.04]),
        ({"sampler": "balanced"}, EQUAL),
        ({"resample": "smote"}, EQUAL),
        ({"resample": "random-under"}, EQUAL),
        ({"class_weights": "inverse"}, EQUAL),
        ({"loss": "balanced-softmax"}, EQUAL),
        ({"loss": "logit-adjusted"}, EQUAL),
        ({"loss": "logit-adjusted", "sampler": "square-root"}, EQUAL),
        ({"loss": "vs"}, EQUAL),
        ({"loss": "vs", "tau": 0.5}, [0.660191, 0.199055, 0.140753]),
        ({"post_hoc": "logit-adjustment"}, EQUAL),
        ({"post_hoc": "crt"}, EQUAL),
        ({"post_hoc": "crt", "loss": "logit-adjusted"}, EQUAL),
        # 880 * 1, 80 * 11 and 40 * 22 are equal.
        ({"sampler": "weighted", "sampler_weights": (1.0, 11.0, 22.0)}, EQUAL),
        ({"sampler": "progressive"}, EQUAL),
        # 0.88 / 0.88**0.5, 0.08 / 0.08**0.5 and 0.04 / 0.04**0.5: square roots.
        ({"loss": "logit-adjusted", "tau": 0.5}, [0.660191, 0.199055, 0.140753]),
    ],
)
def test_shares_by_hand(changes, expected):
    shares = assumed_shares(Recipe(**changes), COUNTS)
    assert shares.tolist() == pytest.approx(expected, abs=1e-5)


def test_mirror_images_of_a_frozen_network_count():
    options = {"class_weights": "effective-number", "network": "own:network", "frozen": True}
    mirrored = assumed_shares(Recipe(augment=("flip",), **options), COUNTS)
    doubled = assumed_shares(Recipe(**options), 2 * COUNTS)
    assert torch.equal(mirrored, doubled)
    assert not torch.equal(mirrored, assumed_shares(Recipe(**options), COUNTS))


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(sampler="square-root", loss="logit-adjusted", tau=0.7),
        Recipe(class_weights="effective-number", beta=0.99),
        Recipe(loss="balanced-softmax", sampler="square-root", class_weights="inverse"),
    ],
)
def test_a_network_without_features_learns_the_assumed_shares(recipe):
    """The logits of constant images that minimise the expected loss have these shares."""
    draws = class_shares(COUNTS, recipe, recipe.epochs - 1).float()
    loss = make_loss(recipe, COUNTS, draws)
    weights = class_weights(recipe, COUNTS)
    logits = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.LBFGS([logits], max_iter=200, line_search_fn="strong_wolfe")
    labels = torch.arange(3)

    def closure():
        optimizer.zero_grad()
        per_class = loss(logits.expand(3, 3), labels)
        importance = draws if weights is None else draws * weights
        total = (importance * per_class).sum()
        total.backward()
        return total

    optimizer.step(closure)
    found = logits.detach().softmax(0).tolist()
    assert found == pytest.approx(assumed_shares(recipe, COUNTS).tolist(), abs=2e-3)
    # The weights act as in training: a mean weighted by those of the labels.
    mean = batch_loss(loss, weights, logits.expand(3, 3), labels)
    w = torch.ones(3) if weights is None else weights
    assert mean.item() == pytest.approx(
        (w * loss(logits.expand(3, 3), labels)).sum().item() / w.sum().item()
    )


def checkpoint(recipe, counts):
    data = None if counts is None else {"train_counts": counts}
    return Checkpoint(nn.Identity(), CLASSES, recipe=recipe, data=data)


def test_a_checkpoint_names_its_own_counts_and_recipe():
    saved = checkpoint({"sampler": "square-root"}, [900, 64, 36])
    shares = of_checkpoint(saved, "a.pt", [10, 10, 10])
    roots = [30 / 44, 8 / 44, 6 / 44]
    assert shares == pytest.approx(roots)
    assert of_checkpoint(replace(saved, data=None), "a.pt", [1, 1, 1]) == pytest.approx(EQUAL)
    # A bare course checkpoint was trained plainly on the images at hand.
    course = checkpoint(None, None)
    assert of_checkpoint(course, "a.pt", [8, 1, 1]) == pytest.approx([0.8, 0.1, 0.1])


@pytest.mark.parametrize(
    "counts",
    [None, "many", [1, 2], [1, 2, 0], [1, 2, -3], [1, 2, 3.5], [1, True, 2], [[], 2, 3]],
)
def test_counts_that_no_training_has_do_not_count(counts):
    assert train_counts(checkpoint({}, counts)) is None
    assert of_checkpoint(checkpoint({}, counts), "a.pt", [8, 1, 1])[0] == pytest.approx(0.8)


@pytest.mark.parametrize(
    "recipe",
    [
        {"sampler": "none of these"},
        {"a field": 1},
        {"tau": "1"},
        {"epochs": -3},
        {"epochs": 2.5},
        {"sampler": ["balanced"]},
        {"sampler_weights": [1.0, "a"], "sampler": "weighted"},
        {"sampler_weights": [1.0, 2.0], "sampler": "weighted"},
        {"loss": None},
        {"nesterov": 1},
    ],
)
def test_recipes_of_other_versions_are_refused_in_one_line(recipe):
    with pytest.raises(InputError) as error:
        of_checkpoint(checkpoint(recipe, [1, 2, 3]), "a.pt", [1, 2, 3])
    assert str(error.value).startswith("a.pt: ")
    assert "\n" not in str(error.value)
