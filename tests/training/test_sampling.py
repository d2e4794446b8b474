from __future__ import annotations

import pytest
import torch

from common.dataset.load import COUNTS
from common.training.recipe import Recipe
from common.training.sampling import class_shares, epoch_order

N = sum(COUNTS["train"])
SAMPLERS = {
    "balanced": Recipe(sampler="balanced"),
    "square-root": Recipe(sampler="square-root"),
    "progressive": Recipe(sampler="progressive"),
    "rotation": Recipe(sampler="rotation"),
    "weighted": Recipe(sampler="weighted", sampler_weights=(1.0, 5.0, 20.0)),
}
LAST_EPOCH = Recipe().epochs - 1


def shuffled(counts, seed=5):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


LABELS = shuffled(COUNTS["train"])


def draw(recipe, epoch=LAST_EPOCH, labels=LABELS, seed=0):
    return epoch_order(labels, recipe, epoch, 3, torch.Generator().manual_seed(seed))


def test_shuffle_draws_each_example_once():
    assert torch.equal(draw(Recipe()).sort().values, torch.arange(N))
    assert class_shares(torch.bincount(LABELS), Recipe(), 0).tolist() == pytest.approx(
        [4949 / N, 466 / N, 210 / N]
    )


@pytest.mark.parametrize(
    ("sampler", "epoch", "parts"),
    [
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
    drawn = draw(Recipe(sampler="progressive", epochs=1), epoch=0)
    assert (LABELS[drawn] == 0).float().mean() == pytest.approx(0.88, abs=0.02)


@pytest.mark.parametrize("recipe", [Recipe(), *SAMPLERS.values()], ids=lambda r: r.sampler)
def test_draws_cover_a_class_and_depend_only_on_the_generator(recipe):
    state = torch.get_rng_state()
    a, b, other = (draw(recipe, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    assert torch.equal(torch.get_rng_state(), state)
    cats = (LABELS == 2).nonzero().squeeze(1)
    assert torch.isin(cats, a).float().mean() > 0.9


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
