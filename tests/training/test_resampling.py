import math

import pytest
import torch
from conftest import check_seed, random_part

from common.dataset.class_counts import EXERCISE as COUNTS
from common.dataset.split import LabelledImages
from common.dataset.stored_images import gather
from common.errors import InputError
from common.training.recipe import Recipe
from common.training.resampling import (
    check_examples,
    make_examples,
    resampled,
    transform,
    with_copies,
)

CLASSES = ("car", "truck", "cat")
TRAIN, TEST = random_part((12, 8, 6)), random_part((4, 3, 2), seed=1)


def examples(train=TRAIN, test=TEST, seed=0, **options):
    return make_examples(train, test, Recipe(**options), CLASSES, seed)


def contains(images, image):
    return bool((images == image).flatten(1).all(1).any())


@pytest.mark.parametrize(
    ("train_counts", "options", "counts"),
    [
        *((COUNTS["train"], options, counts) for options, counts in (
            ({}, [4949, 466, 210]),
            ({"copies": 1}, [9898, 932, 420]),  # report A: 11,250
            ({"copies": 2}, [14847, 1398, 630]),
            ({"resample": "smote"}, [4949] * 3),  # report A: 14,847
            ({"resample": "borderline-smote"}, [4949] * 3),
            ({"resample": "adasyn"}, [4949] * 3),
            ({"resample": "random-over"}, [4949] * 3),
            ({"resample": "random-under"}, [210] * 3),
            ({"train_on_test": True}, [5500, 517, 233]),
            # report A: 15,472
            ({"resample": "smote", "train_on_test": True}, [5500, 5000, 4972]),
            ({"resample": "random-over", "copies": 1}, [9898] * 3),
        )),
        ((12, 8, 6), {"resample": "random-over", "neighbours": 6}, [12] * 3),  # no neighbours
        ((12, 8, 6), {"resample": "smote", "neighbours": 6, "copies": 1}, [24] * 3),
        ((3, 3, 3), {"resample": "smote"}, [3] * 3),  # nothing to resample
    ],
)  # fmt: skip
def test_number_of_examples_per_class(train_counts, options, counts):
    # Only the counts matter: images of 4 x 4 pixels are quick to resample.
    train, test = (
        LabelledImages(part.images[:, :, :4, :4].contiguous(), part.labels)
        for part in (random_part(train_counts), random_part(COUNTS["test"], seed=1))
    )
    result = examples(train, test, **options)
    tolerance = 0.05 if options.get("resample") == "adasyn" else 0
    assert result.counts(3) == pytest.approx(counts, rel=tolerance, abs=0)
    assert result.images.shape == (len(result.labels), 3, 4, 4)
    assert (result.images.dtype, result.labels.dtype) == (torch.uint8, torch.int64)


def between_neighbours(image, members, neighbours, tolerance=0.6):
    """Return whether an image lies, except for rounding, between a member and a neighbour.

    members: (n, D), of which each has this number of nearest neighbours.
    """
    for i, start in enumerate(members):
        distances = (members - start).norm(dim=1)
        distances[i] = math.inf
        for j in distances.argsort()[:neighbours]:
            step = members[j] - start
            u = ((image - start) @ step / (step @ step)).clamp(0, 1)
            if (start + u * step - image).abs().max() <= tolerance:
                return True
    return False


@pytest.mark.parametrize("resample", ["smote", "borderline-smote", "adasyn"])
@pytest.mark.parametrize("neighbours", [3, 5])  # 5 of 6 cats: just enough
def test_new_images_lie_between_neighbours_of_their_class(resample, neighbours):
    result = examples(resample=resample, neighbours=neighbours)
    n, distant = len(TRAIN.labels), 0
    assert len(result.labels) > n
    assert torch.equal(result.images[:n], TRAIN.images)
    assert torch.equal(result.labels[:n], TRAIN.labels)
    for image, label in zip(result.images[n:], result.labels[n:], strict=True):
        members = TRAIN.images[TRAIN.labels == label].flatten(1).float()
        assert between_neighbours(image.flatten().float(), members, neighbours)
        assert not contains(TRAIN.images, image)
        distant += not between_neighbours(image.flatten().float(), members, 1)
    assert distant  # more than the nearest neighbour is used


@pytest.mark.parametrize("resample", ["smote", "borderline-smote", "adasyn"])
def test_new_features_lie_between_neighbours_and_are_not_rounded(resample):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(26, 7, generator=generator) * 300 - 100  # far outside 0 to 255
    part = LabelledImages(features, TRAIN.labels)
    recipe = Recipe(resample=resample, neighbours=3)
    result = resampled(part, part, recipe, CLASSES, 0)
    assert (result.images.dtype, result.images.shape[1:]) == (torch.float32, (7,))
    assert torch.equal(result.images[:26], features)
    new = zip(result.images[26:], result.labels[26:], strict=True)
    for example, label in new:
        members = features[TRAIN.labels == label]
        assert between_neighbours(example, members, 3, tolerance=1e-3)
    assert len(result.labels) > 26
    assert (result.images[26:] % 1 != 0).all(1).all()


@pytest.mark.parametrize("resample", ["random-over", "random-under"])
def test_features_are_repeated_or_dropped(resample):
    features = torch.arange(26.0)[:, None] - 13
    part = LabelledImages(features, TRAIN.labels)
    result = resampled(part, part, Recipe(resample=resample), CLASSES, 0)
    assert result.counts(3) == [12] * 3 if resample == "random-over" else [6] * 3
    assert torch.equal(TRAIN.labels[(result.images[:, 0] + 13).long()], result.labels)


def test_test_features_are_the_last_examples():
    train = LabelledImages(torch.randn(26, 7), TRAIN.labels)
    test = LabelledImages(torch.randn(9, 7), TEST.labels)
    result = resampled(train, test, Recipe(train_on_test=True), CLASSES, 0)
    assert torch.equal(result.images, torch.cat([train.images, test.images]))


@pytest.mark.parametrize(
    ("options", "refused"),
    [({}, None), ({"sampler": "balanced"}, None), ({"copies": 1}, "--copies 1"),
     ({"resample": "smote"}, "--resample smote"), ({"train_on_test": True}, "--train-on-test"),
     ({"frozen": True, "copies": 1}, "--copies 1"),
     ({"frozen": True, "resample": "smote", "train_on_test": True}, None)],
)  # fmt: skip
def test_images_in_a_file_are_not_copied_or_resampled(tmp_path, options, refused):
    images = gather([TRAIN.images.numpy()], 26, 32, 0, tmp_path / "images")
    stored = LabelledImages(images, TRAIN.labels)
    network = {"network": "own:network"} if "frozen" in options else {}
    recipe = Recipe(**options, **network)
    if refused is None:
        check_examples(recipe, stored, CLASSES)
        assert with_copies(stored, recipe.copies, 0) is stored
        return
    with pytest.raises(InputError, match=f"^{refused}: .*--memory") as caught:
        check_examples(recipe, stored, CLASSES)
    assert "\n" not in str(caught.value)
    check_examples(recipe, TRAIN, CLASSES)


def test_copies_of_larger_images_are_shifted_further():
    size = 96
    position = torch.arange(size) - (size - 1) / 2
    spot = 200 * torch.exp(-(position**2 + position[:, None] ** 2) / 50)
    images = spot.to(torch.uint8).expand(300, 3, size, size)
    copies = transform(images, torch.Generator().manual_seed(0)).float().mean(1)
    weight = copies / copies.sum((1, 2), keepdim=True)
    rows, columns = (weight.sum(axis) @ position for axis in (2, 1))
    for centre in (rows, columns):
        assert 12 < centre.abs().max() < 13.9  # 12 (cos 10 + sin 10) = 13.9


@pytest.mark.parametrize(("resample", "dropped"), [("random-over", 0), ("random-under", 2 + 6)])
def test_random_resampling_repeats_or_drops_images(resample, dropped):
    result = examples(resample=resample)
    for image, label in zip(*result, strict=True):
        assert contains(TRAIN.images[TRAIN.labels == label], image)
    assert sum(not contains(result.images, image) for image in TRAIN.images) == dropped


@pytest.mark.parametrize("options", [{}, {"resample": "smote"}, {"copies": 1}])
def test_test_images_are_the_last_examples(options):
    result, without = examples(train_on_test=True, **options), examples(**options)
    assert torch.equal(result.images, torch.cat([without.images, TEST.images]))
    assert torch.equal(result.labels, torch.cat([without.labels, TEST.labels]))


@pytest.mark.parametrize("options", [{"copies": 2}, {"resample": "smote"}])
def test_examples_depend_only_on_the_seed(options):
    check_seed(lambda seed: examples(seed=seed, **options).images)


def test_copies_follow_the_images_and_all_differ():
    result = examples(copies=2)
    first, second, third = result.images.split(len(TRAIN.labels))
    assert torch.equal(first, TRAIN.images)
    assert torch.equal(result.labels, TRAIN.labels.repeat(3))
    for a, b in ((first, second), (first, third), (second, third)):
        assert (a != b).flatten(1).any(1).all()


def transformed(image, n=300):
    """Return n transformed copies of an image of floats, (32, 32) or smaller."""
    images = image.to(torch.uint8).expand(n, 3, 32, 32)
    return transform(images, torch.Generator().manual_seed(0))


def moments(images):
    """Return the centre of brightness (N, 2), from the middle, and the axis angle (N,)."""
    weight = images.float().mean(1)
    weight -= weight.flatten(1).amin(1)[:, None, None]
    weight /= weight.sum((1, 2), keepdim=True)
    position = torch.arange(32) - 15.5
    y, x = (weight * position[:, None]).sum((1, 2)), (weight * position).sum((1, 2))
    dy, dx = position[:, None] - y[:, None, None], position - x[:, None, None]
    xy, xx, yy = ((weight * product).sum((1, 2)) for product in (dx * dy, dx * dx, dy * dy))
    return torch.stack((y, x), 1), torch.atan2(2 * xy, xx - yy) / 2


def test_copies_are_shifted_by_4_pixels_and_rotated_by_10_degrees_at_most():
    y, x = torch.meshgrid(*[torch.arange(32) - 15.5] * 2, indexing="ij")
    centre, angle = moments(transformed(200 * torch.exp(-((x / 5) ** 2) - (y / 2) ** 2)))
    angle = angle.rad2deg()
    assert 4 < centre.abs().max() < 4.7  # 4 (cos 10 + sin 10) = 4.63: shifted, then rotated
    assert (centre.amin(0) < -3.5).all()
    assert (centre.amax(0) > 3.5).all()
    assert [angle.min(), angle.max()] == pytest.approx([-10, 10], abs=1)


def test_copies_are_flipped_horizontally_but_never_vertically():
    slope = torch.linspace(50, 200, 32)
    vertical, _ = moments(transformed(slope[:, None]))[0].unbind(1)
    _, horizontal = moments(transformed(slope))[0].unbind(1)
    assert vertical.min() > 0
    assert 110 < (horizontal < 0).sum() < 190


def test_copies_differ_in_brightness():
    brightness = transformed(torch.tensor(100), n=100).float().mean((1, 2, 3))
    assert 69 < brightness.min() < 76
    assert 124 < brightness.max() < 131


@pytest.mark.parametrize(
    ("counts", "options", "words"),
    [
        *(((12, 8, 6), {"resample": resample, "neighbours": 6},
           (resample, "6 neighbours", "of cat: 6", "--neighbours 5 or fewer"))
          for resample in ("smote", "borderline-smote", "adasyn")),
        ((12, 1, 6), {"resample": "smote", "neighbours": 1},
         ("of truck: 1", "--resample random-over")),
        *(((12, 0, 6), options, ("no training image of truck", "--train-counts"))
          for options in ({}, {"resample": "smote"}, {"sampler": "balanced"})),
        *(((12, 8, 6), {"sampler": "weighted", "sampler_weights": weights},
           (f"{len(weights)} given; give 3", "car, truck, cat"))
          for weights in ((1.0, 2.0), (1.0, 2.0, 3.0, 4.0))),
    ],
)  # fmt: skip
def test_impossible_recipes_are_refused_in_one_line(counts, options, words):
    with pytest.raises(InputError) as caught:
        examples(random_part(counts), **options)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("resample", "reason"),
    [("adasyn", "Use SMOTE instead"), ("borderline-smote", "no image of truck is borderline")],
)
def test_resampling_of_separate_classes_is_refused(resample, reason):
    train = random_part((20, 12, 8))
    # The pixels of class k are within 8 of 100 k: no neighbour has another class.
    separate = (train.images // 32 + 100 * train.labels[:, None, None, None]).to(torch.uint8)
    with pytest.raises(InputError, match=f"^--resample {resample}: .*{reason}.*; use"):
        examples(LabelledImages(separate, train.labels), resample=resample, neighbours=3)


def test_borderline_smote_leaves_a_class_far_from_the_others_as_it_is():
    train = random_part((20, 12, 8))
    train.images[32:] = 255 - train.images[32:] // 32  # the cats: bright, without neighbours
    result = examples(train, resample="borderline-smote", neighbours=3)
    assert result.counts(3) == [20, 20, 8]
