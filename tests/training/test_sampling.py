import math

import pytest
import torch
from conftest import check_seed
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import WeightedRandomSampler

from common.dataset.class_counts import EXERCISE as COUNTS
from common.training.recipe import Recipe
from common.training.sampling import class_shares, epoch_order

N = sum(COUNTS["train"])
NAMES = ("shuffle", "balanced", "square-root", "progressive", "rotation")
SAMPLERS = {name: Recipe(sampler=name) for name in NAMES}
SAMPLERS["weighted"] = Recipe(sampler="weighted", sampler_weights=(1.0, 5.0, 20.0))
LAST_EPOCH = Recipe().epochs - 1


def shuffled(counts, seed=5):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


LABELS = shuffled(COUNTS["train"])


def draw(recipe, epoch=LAST_EPOCH, labels=LABELS, seed=0):
    return epoch_order(labels, recipe, epoch, 3, torch.Generator().manual_seed(seed))


def test_shuffle_draws_each_example_once():
    assert torch.equal(draw(Recipe()).sort().values, torch.arange(N))


@pytest.mark.parametrize(
    ("sampler", "epoch", "parts"),
    [
        ("shuffle", 0, (4949, 466, 210)),
        ("balanced", 0, (1, 1, 1)),
        ("rotation", 0, (1, 1, 1)),
        ("square-root", 0, (4949**0.5, 466**0.5, 210**0.5)),
        ("progressive", 0, (4949, 466, 210)),
        ("progressive", 3, tuple(2 / 3 * n / N + 1 / 3 / 3 for n in (4949, 466, 210))),
        ("progressive", LAST_EPOCH, (1, 1, 1)),
        ("weighted", 0, (4949, 5 * 466, 20 * 210)),
    ],
)
def test_draws_follow_the_class_shares(sampler, epoch, parts):
    recipe = SAMPLERS[sampler]
    drawn = draw(recipe, epoch)
    assert drawn.shape == (N,)
    p = torch.tensor(parts).double() / sum(parts)
    assert torch.allclose(class_shares(torch.bincount(LABELS), recipe, epoch), p)
    deviation = (torch.bincount(LABELS[drawn], minlength=3) - N * p).abs()
    assert (deviation < 4 * (N * p * (1 - p)).sqrt()).all()


def test_progressive_with_one_epoch_has_the_shares_of_the_data():
    recipe, counts = Recipe(sampler="progressive", epochs=1), torch.bincount(LABELS)
    assert torch.allclose(class_shares(counts, recipe, 0), counts.double() / N)


@st.composite
def cases(draw, *names):
    """Draw a recipe with one of these samplers, an epoch of it, labels, and the classes."""
    k, epochs = draw(st.integers(2, 4)), draw(st.integers(1, 5))
    sampler = draw(st.sampled_from(names))
    weights = None
    if sampler == "weighted":
        weights = tuple(draw(st.lists(st.floats(0.1, 10), min_size=k, max_size=k)))
    recipe = Recipe(sampler=sampler, sampler_weights=weights, epochs=epochs)
    labels = draw(st.lists(st.integers(0, k - 1), min_size=1, max_size=40))
    return recipe, draw(st.integers(0, epochs - 1)), torch.tensor(labels), k


def shares_by_loop(counts, recipe, epoch):
    n, k, weights = sum(counts), len(counts), recipe.sampler_weights or counts
    t = epoch / (recipe.epochs - 1) if recipe.epochs > 1 else 0
    amounts = {
        "shuffle": counts,
        "balanced": [1] * k,
        "rotation": [1] * k,
        "square-root": [math.sqrt(c) for c in counts],
        "progressive": [(1 - t) * c / n + t / k for c in counts],
        "weighted": [w * c for w, c in zip(weights, counts, strict=True)],
    }[recipe.sampler]
    return [a / sum(amounts) for a in amounts]


@given(cases(*SAMPLERS))
def test_class_shares_equal_those_of_a_loop(case):
    recipe, epoch, labels, k = case
    counts = [1 + labels.tolist().count(label) for label in range(k)]
    shares = class_shares(torch.tensor(counts), recipe, epoch)
    assert shares.tolist() == pytest.approx(shares_by_loop(counts, recipe, epoch))


@given(cases("balanced", "square-root", "progressive", "weighted"), st.integers(0, 99))
def test_draws_with_replacement_are_those_of_weighted_random_sampler(case, seed):
    """Also where no example has the last class."""
    recipe, epoch, labels, k = case
    counts = [labels.tolist().count(label) for label in range(k)]
    shares = shares_by_loop(counts, recipe, epoch)
    weights = [shares[label] / counts[label] for label in labels.tolist()]
    generator = torch.Generator().manual_seed(seed)
    expected = list(WeightedRandomSampler(weights, len(labels), generator=generator))
    generator.manual_seed(seed)
    assert epoch_order(labels, recipe, epoch, k, generator).tolist() == expected


@given(cases("shuffle", "rotation"), st.integers(0, 99))
def test_draws_without_replacement_take_each_example_equally_often(case, seed):
    recipe, epoch, labels, k = case
    generator = torch.Generator().manual_seed(seed)
    drawn = epoch_order(labels, recipe, epoch, k, generator).tolist()
    assert len(drawn) == len(labels)
    present = labels.unique().tolist()
    if recipe.sampler == "rotation":
        turns = [present[i % len(present)] for i in range(len(labels))]
        assert labels[drawn].tolist() == turns
    else:
        assert len(set(drawn)) == len(labels)
    for label in present:
        members = (labels == label).nonzero().flatten().tolist()
        times = [drawn.count(member) for member in members]
        assert max(times) - min(times) <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_draws_cover_a_class_and_depend_only_on_the_generator(sampler):
    check_seed(lambda seed: draw(SAMPLERS[sampler], seed=seed))
    cats = (LABELS == 2).nonzero().squeeze(1)
    assert torch.isin(cats, draw(SAMPLERS[sampler])).float().mean() > 0.9


def test_rotation_takes_the_classes_in_turn_and_reshuffles_used_up_classes():
    counts = (11, 4, 2)
    labels = shuffled(counts)
    drawn = draw(SAMPLERS["rotation"], labels=labels)
    assert labels[drawn].tolist() == [i % 3 for i in range(17)]
    for label, count in enumerate(counts):
        for one_round in drawn[labels[drawn] == label].split(count):
            assert len(one_round.unique()) == len(one_round)
    rounds = draw(SAMPLERS["rotation"])[2::3].split(210)[:-1]
    assert len(rounds) == 8
    assert not torch.equal(rounds[0], rounds[1])
    assert torch.equal(rounds[0].sort().values, rounds[1].sort().values)
