from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_part

from common import balance
from common.dataset import COUNTS, Part
from common.options import InputError
from common.recipes import Recipe

CLASSES = ("car", "truck", "cat")
TRAIN, TEST = random_part((12, 8, 6)), random_part((4, 3, 2), seed=1)
SAMPLERS = {
    "balanced": Recipe(sampler="balanced"),
    "square-root": Recipe(sampler="square-root"),
    "progressive": Recipe(sampler="progressive"),
    "rotation": Recipe(sampler="rotation"),
    "weighted": Recipe(sampler="weighted", sampler_weights=(1.0, 5.0, 20.0)),
}
LAST_EPOCH = Recipe().epochs - 1


def examples(train=TRAIN, test=TEST, seed=0, **options):
    return balance.examples(train, test, Recipe(**options), CLASSES, seed)


def tiny_part(counts, seed):
    """The counts matter, and images of 4 x 4 pixels are quick to resample."""
    part = random_part(counts, seed)
    return Part(part.images[:, :, :4, :4].contiguous(), part.labels)


def shuffled_labels():
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS["train"]))
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(5))]


def order(recipe, epoch=LAST_EPOCH, labels=None, seed=0):
    labels = shuffled_labels() if labels is None else labels
    generator = torch.Generator().manual_seed(seed)
    return balance.epoch_order(labels, recipe, epoch, 3, generator)


def holds(images, image):
    return bool((images == image).flatten(1).all(1).any())


# Examples


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, [4949, 466, 210]),
        ({"copies": 1}, [9898, 932, 420]),
        ({"copies": 2}, [14847, 1398, 630]),
        ({"resample": "smote"}, [4949] * 3),
        ({"resample": "borderline-smote"}, [4949] * 3),
        ({"resample": "random-over"}, [4949] * 3),
        ({"resample": "random-under"}, [210] * 3),
        ({"train_on_test": True}, [5500, 517, 233]),
        ({"resample": "smote", "train_on_test": True}, [5500, 5000, 4972]),
        ({"resample": "random-over", "copies": 1}, [9898] * 3),
    ],
)
def test_counts_of_the_reports_classes(options, counts):
    train, test = tiny_part(COUNTS["train"], 0), tiny_part(COUNTS["test"], 1)
    result = examples(train, test, **options)
    assert result.counts(3) == counts
    assert result.images.shape == (sum(counts), 3, 4, 4)
    assert (result.images.dtype, result.labels.dtype) == (torch.uint8, torch.int64)


def test_totals_of_the_reports():
    train, test = tiny_part(COUNTS["train"], 0), tiny_part(COUNTS["test"], 1)
    assert len(examples(train, test, copies=1).labels) == 11_250
    assert len(examples(train, test, resample="smote").labels) == 14_847
    assert len(examples(train, test, resample="smote", train_on_test=True).labels) == 15_472


def test_adasyn_comes_near_equal_counts():
    train, test = tiny_part(COUNTS["train"], 0), tiny_part(COUNTS["test"], 1)
    counts = examples(train, test, resample="adasyn").counts(3)
    assert counts[0] == 4949
    assert counts[1:] == pytest.approx([4949, 4949], rel=0.05)


def between_neighbours(image, own, neighbours):
    """Whether an image lies, but for rounding, between one of own (n, D) and a near one."""
    for i, start in enumerate(own):
        distances = (own - start).norm(dim=1)
        distances[i] = math.inf
        for j in distances.argsort()[:neighbours]:
            step = own[j] - start
            u = ((image - start) @ step / (step @ step)).clamp(0, 1)
            if (start + u * step - image).abs().max() <= 0.6:
                return True
    return False


@pytest.mark.parametrize("resample", ["smote", "borderline-smote", "adasyn"])
def test_new_images_lie_between_neighbours_of_their_class(resample):
    result = examples(resample=resample, neighbours=3)
    n = len(TRAIN.labels)
    assert len(result.labels) > n
    assert torch.equal(result.images[:n], TRAIN.images)
    assert torch.equal(result.labels[:n], TRAIN.labels)
    for image, label in zip(result.images[n:], result.labels[n:], strict=True):
        own = TRAIN.images[TRAIN.labels == label].flatten(1).float()
        assert between_neighbours(image.flatten().float(), own, neighbours=3)
        assert not holds(TRAIN.images, image)


def test_neighbours_are_those_of_the_recipe():
    n, far = len(TRAIN.labels), 0
    for image, label in zip(*(t[n:] for t in examples(resample="smote")), strict=True):
        own = TRAIN.images[TRAIN.labels == label].flatten(1).float()
        assert between_neighbours(image.flatten().float(), own, neighbours=5)
        far += not between_neighbours(image.flatten().float(), own, neighbours=1)
    assert far


@pytest.mark.parametrize("resample", ["random-over", "random-under"])
def test_random_resampling_repeats_or_drops_images(resample):
    result = examples(resample=resample)
    for image, label in zip(*result, strict=True):
        assert holds(TRAIN.images[TRAIN.labels == label], image)
    dropped = [image for image in TRAIN.images if not holds(result.images, image)]
    assert len(dropped) == (0 if resample == "random-over" else 2 + 6)


def test_test_images_are_the_last_examples():
    n = len(TEST.labels)
    for options in ({}, {"resample": "smote"}, {"copies": 1}):
        result = examples(train_on_test=True, **options)
        assert torch.equal(result.images[-n:], TEST.images)
        assert torch.equal(result.labels[-n:], TEST.labels)
        assert not any(holds(examples(**options).images, image) for image in TEST.images)


@pytest.mark.parametrize("options", [{"copies": 2}, {"resample": "smote"}])
def test_one_seed_gives_the_same_examples_and_leaves_the_global_state(options):
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b, other = (examples(seed=seed, **options) for seed in (0, 0, 1))
    assert torch.equal(a.images, b.images)
    assert not torch.equal(a.images, other.images)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_copies_follow_the_images_and_all_differ():
    n = len(TRAIN.labels)
    result = examples(copies=2)
    first, *copies = result.images.split(n)
    assert torch.equal(first, TRAIN.images)
    assert torch.equal(result.labels, TRAIN.labels.repeat(3))
    for a, b in ((first, copies[0]), (first, copies[1]), copies):
        assert (a != b).flatten(1).any(1).all()


def moments(images):
    """Of the light in images (N, 3, 32, 32): centre (N, 2) from the middle, angle (N,)."""
    light = images.float().mean(1)
    light -= light.flatten(1).amin(1)[:, None, None]
    light /= light.sum((1, 2), keepdim=True)
    place = torch.arange(32) - 15.5
    y, x = (light * place[:, None]).sum((1, 2)), (light * place).sum((1, 2))
    dy, dx = place[:, None] - y[:, None, None], place - x[:, None, None]
    xy, xx, yy = ((light * product).sum((1, 2)) for product in (dx * dy, dx * dx, dy * dy))
    return torch.stack((y, x), 1), torch.atan2(2 * xy, xx - yy) / 2


def test_copies_move_by_4_pixels_and_turn_by_10_degrees_at_most():
    y, x = torch.meshgrid(*[torch.arange(32) - 15.5] * 2, indexing="ij")
    bar = 200 * torch.exp(-((x / 5) ** 2) - (y / 2) ** 2)
    bars = bar.to(torch.uint8).expand(300, 3, 32, 32)
    centre, angle = moments(balance.transformed(bars, torch.Generator().manual_seed(0)))
    assert 4 < centre.abs().max() < 4.7  # 4 (cos 10 + sin 10) = 4.63: moved, then turned
    assert (centre.amin(0) < -3.5).all()
    assert (centre.amax(0) > 3.5).all()
    assert 9 < angle.rad2deg().max() < 11
    assert -11 < angle.rad2deg().min() < -9


def test_copies_are_flipped_sideways_but_never_upside_down():
    slope = torch.linspace(50, 200, 32)
    turned = []
    for gradient, axis in ((slope[:, None].expand(32, 32), 0), (slope.expand(32, 32), 1)):
        images = gradient.to(torch.uint8).expand(300, 3, 32, 32)
        centre, _ = moments(balance.transformed(images, torch.Generator().manual_seed(0)))
        turned.append((centre[:, axis] < 0).sum().item())
    assert turned[0] == 0
    assert 110 < turned[1] < 190


def test_copies_differ_in_brightness():
    images = torch.full((100, 3, 32, 32), 100, dtype=torch.uint8)
    x = balance.transformed(images, torch.Generator().manual_seed(0)).float().mean((1, 2, 3))
    assert 69 < x.min() < 76
    assert 124 < x.max() < 131


# Errors


def message(**options):
    with pytest.raises(InputError) as caught:
        examples(**options)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("resample", ["smote", "borderline-smote", "adasyn"])
def test_too_few_images_for_the_neighbours_names_the_remedy(resample):
    text = message(resample=resample, neighbours=6)
    assert all(part in text for part in (resample, "of cat: 6", "--neighbours 5 or fewer"))
    examples(resample=resample, neighbours=5)
    examples(resample="random-over", neighbours=6)


def test_a_class_of_one_image_has_no_neighbour():
    text = message(train=random_part((12, 1, 6)), resample="smote", neighbours=1)
    assert "of truck: 1; take random-over" in text


def test_equal_classes_need_no_neighbours():
    assert examples(train=random_part((3, 3, 3)), resample="smote").counts(3) == [3, 3, 3]


def test_copies_count_as_neighbours():
    assert examples(resample="smote", neighbours=6, copies=1).counts(3) == [24] * 3


@pytest.mark.parametrize("options", [{}, {"resample": "smote"}, {"sampler": "balanced"}])
def test_a_class_with_no_image_is_named(options):
    assert "no training image of truck" in message(train=random_part((12, 0, 6)), **options)


@pytest.mark.parametrize(
    ("resample", "words"),
    [("adasyn", "Use SMOTE instead"), ("borderline-smote", "no image of truck is borderline")],
)
def test_classes_far_apart_leave_nothing_to_make(resample, words):
    train = random_part((20, 12, 8))
    # Class k's pixels lie within 8 of 100 k, so that no neighbour is of another class.
    apart = (train.images // 32 + 100 * train.labels[:, None, None, None]).to(torch.uint8)
    assert words in message(train=Part(apart, train.labels), resample=resample, neighbours=3)


@pytest.mark.parametrize("weights", [(1.0, 2.0), (1.0, 2.0, 3.0, 4.0)])
def test_a_wrong_number_of_sampler_weights(weights):
    text = message(sampler="weighted", sampler_weights=weights)
    assert f"{len(weights)} given; give 3" in text
    assert "car, truck, cat" in text


# Samplers


def test_shuffle_draws_each_image_once():
    a, b, other = (order(Recipe(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a.sort().values, torch.arange(5625))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)


@pytest.mark.parametrize(
    ("sampler", "epoch", "parts"),
    [
        ("balanced", 0, (1, 1, 1)),
        ("square-root", 0, (4949**0.5, 466**0.5, 210**0.5)),
        ("progressive", 0, (4949, 466, 210)),
        ("progressive", 3, tuple(2 / 3 * n / 5625 + 1 / 3 / 3 for n in (4949, 466, 210))),
        ("progressive", LAST_EPOCH, (1, 1, 1)),
        ("weighted", 0, (4949, 5 * 466, 20 * 210)),
    ],
)
def test_class_shares_of_a_sampler(sampler, epoch, parts):
    labels, n = shuffled_labels(), 5625
    drawn = order(SAMPLERS[sampler], epoch)
    assert drawn.shape == (n,)
    counts = torch.bincount(labels[drawn], minlength=3)
    for count, part in zip(counts.tolist(), parts, strict=True):
        p = part / sum(parts)
        assert abs(count - n * p) < 4 * (n * p * (1 - p)) ** 0.5


def test_progressive_with_one_epoch_draws_as_the_data_are():
    drawn = order(Recipe(sampler="progressive", epochs=1), epoch=0)
    assert (shuffled_labels()[drawn] == 0).float().mean() == pytest.approx(0.88, abs=0.02)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_changes_the_classes_of_the_batches(sampler):
    labels = shuffled_labels()
    cats, usual_cats = (
        torch.stack([(labels[batch] == 2).sum() for batch in order(recipe).split(32)])
        for recipe in (SAMPLERS[sampler], Recipe())
    )
    assert cats.float().mean() > 2.5 * usual_cats.float().mean()


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_draws_all_images_of_a_class_and_by_its_generator(sampler):
    recipe = replace(SAMPLERS[sampler], epochs=10)
    state = torch.get_rng_state()
    a, b, other = (order(recipe, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    assert torch.equal(torch.get_rng_state(), state)
    cats = (shuffled_labels() == 2).nonzero().squeeze(1)
    assert torch.isin(cats, a).float().mean() > 0.9


def test_rotation_takes_the_classes_in_turn_and_begins_anew_when_used_up():
    labels = torch.tensor([0] * 11 + [1] * 4 + [2] * 2)
    labels = labels[torch.randperm(17, generator=torch.Generator().manual_seed(0))]
    drawn = order(SAMPLERS["rotation"], labels=labels)
    assert labels[drawn].tolist() == [i % 3 for i in range(17)]
    for label, own in ((0, 11), (1, 4), (2, 2)):
        turns = drawn[labels[drawn] == label].tolist()
        for start in range(0, len(turns), own):  # a round holds no image twice
            assert len(set(turns[start : start + own])) == len(turns[start : start + own])
    rounds = order(SAMPLERS["rotation"])[2::3].split(210)[:-1]
    assert len(rounds) == 8
    assert not torch.equal(rounds[0], rounds[1])
    assert torch.equal(rounds[0].sort().values, rounds[1].sort().values)


@pytest.mark.parametrize(
    "options",
    [
        {"sampler": "shuffle"},
        {"sampler": "balanced"},
        {"sampler": "rotation"},
        {"sampler": "square-root"},
        {"sampler": "progressive", "epochs": 4},
        {"sampler": "weighted", "sampler_weights": (1.0, 3.0, 2.0)},
    ],
)
def test_class_shares_are_those_of_the_draws(options):
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([6000, 900, 300]))
    recipe = Recipe(**options)
    generator = torch.Generator().manual_seed(0)
    for epoch in (0, 2, 3):
        order = balance.epoch_order(labels, recipe, epoch, 3, generator)
        drawn = torch.bincount(labels[order], minlength=3) / len(labels)
        shares = balance.class_shares(torch.bincount(labels), recipe, epoch)
        assert torch.allclose(shares.float(), drawn, atol=0.02)
