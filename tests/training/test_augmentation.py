import resource

import numpy as np
import pytest
import torch
from conftest import check_seed, random_part

from common.training.augmentation import augment, cutout, flip, jitter, shift
from common.training.recipe import Recipe

NAMES = ("flip", "crop", "cutout", "colour")


def random_images(n=64):
    return random_part((n,)).images / 255


def augmented(x, *names, seed=0):
    return augment(x, Recipe(augment=names), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("names", [*((name,) for name in NAMES), NAMES])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_augment_keeps_shape_range_layout_and_input(names, layout):
    x = random_images().contiguous(memory_format=layout)
    before = x.clone()
    check_seed(lambda seed: augmented(x, *names, seed=seed))
    assert torch.equal(x, before)
    y = augmented(x, *names)
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert y.is_contiguous(memory_format=layout)
    assert y.min() >= 0
    assert y.max() <= 1
    assert torch.equal(y, augmented(x, *reversed(names)))  # the order of names has no effect
    assert augmented(x) is x


def test_flip_mirrors_half_of_the_images():
    x = random_images(400)
    y = augmented(x, "flip")
    mirrored = (y == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(mirrored, (y != x).flatten(1).any(1))
    assert 160 < mirrored.sum() < 240
    assert torch.equal(flip(x, mirrored), y)


def test_shift_equals_crops_of_numpy_padded_images():
    offsets = [(i, j) for i in (-4, -1, 0, 3, 4) for j in (-4, 0, 2, 4)]
    x = random_images(len(offsets))
    y = shift(x, torch.tensor(offsets))
    for image, (dy, dx), result in zip(x.numpy(), offsets, y.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        crop = padded[:, 4 + dy : 36 + dy, 4 + dx : 36 + dx]
        np.testing.assert_array_equal(result, crop)


@pytest.mark.parametrize(("size", "most"), [(16, 2), (20, 2), (100, 12), (224, 28)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shifts_grow_with_the_image(size, most, layout):
    offsets = [(-most, most), (0, -most), (most, 1)]
    x = torch.rand(3, 3, size, size).contiguous(memory_format=layout)
    y = shift(x, torch.tensor(offsets))
    assert y.is_contiguous(memory_format=layout)
    for image, (dy, dx), result in zip(x.numpy(), offsets, y.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (most, most), (most, most)), mode="reflect")
        top, left = most + dy, most + dx
        np.testing.assert_array_equal(result, padded[:, top : top + size, left : left + size])
    columns = torch.arange(float(size)).expand(500, 3, size, size)
    drawn = augmented(columns, "crop")[:, 0, 0, size // 2] - size // 2
    assert (drawn.min(), drawn.max()) == (-most, most)


def test_shifting_large_images_needs_little_memory():
    x = torch.rand(16, 3, 224, 224)  # 9.6 MB; all windows of one image would be 2 GB
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    shift(x, torch.full((16, 2), 28))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize(("size", "side"), [(16, 4), (22, 5), (224, 56)])
def test_cutout_grows_with_the_image(size, side):
    x = torch.zeros(1, 3, size, size)
    middle = torch.tensor([[size // 2, size // 2]])
    assert int((cutout(x, middle) == 0.5).sum()) == 3 * side * side


def test_crop_draws_every_offset():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    coordinates = torch.stack((y, x, x)).expand(2000, 3, 32, 32)
    offsets = augmented(coordinates, "crop")[:, :2, 16, 16] - 16
    counts = torch.bincount(((offsets[:, 0] + 4) * 9 + offsets[:, 1] + 4).long())
    assert len(counts) == 81
    assert counts.min() > 5
    assert counts.max() < 50


@pytest.mark.parametrize(
    ("centre", "rows", "columns"),
    [((16, 10), (12, 20), (6, 14)), ((0, 31), (0, 4), (27, 32)), ((31, 2), (27, 32), (0, 6))],
)
def test_cutout_fills_one_clipped_square_with_grey(centre, rows, columns):
    x = random_images(1)
    expected = x.clone()
    expected[..., slice(*rows), slice(*columns)] = 0.5
    assert torch.equal(cutout(x, torch.tensor([centre])), expected)


def test_cutout_centres_cover_the_image():
    grey = (augmented(torch.zeros(4000, 3, 32, 32), "cutout") == 0.5).float()[:, 0]
    areas = grey.sum((1, 2))
    assert areas.max() == 64
    assert areas.min() <= 20  # about 4 x 4 in a corner
    assert grey[:, 8:24, 8:24].mean().item() == pytest.approx(64 / 1024, rel=0.05)
    assert grey[:, 0, 0].mean() == pytest.approx(25 / 1024, rel=0.3)


def test_jitter_multiplies_brightness_contrast_and_saturation():
    x = 0.3 + 0.3 * random_images(5)  # the result needs no clamping
    red, green, blue = x.split(1, dim=1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    mean = luma.mean((2, 3), keepdim=True)
    factors = [(1, 1, 1), (0.8, 1, 1), (1, 1.2, 1), (1, 1, 0), (1.1, 0.9, 1.2)]
    saturated = luma[4] + 1.2 * (x[4] - luma[4])
    expected = (
        x[0],
        0.8 * x[1],
        mean[2] + 1.2 * (x[2] - mean[2]),
        luma[3].expand(3, -1, -1),
        1.1 * (mean[4] + 0.9 * (saturated - mean[4])),
    )
    torch.testing.assert_close(jitter(x, torch.tensor(factors)), torch.stack(expected))


def test_colour_draws_factors_from_0_7_to_1_3_and_clamps():
    x = torch.full((500, 3, 32, 32), 0.5)
    x[:, :, :, ::2] = 0.3  # grey: saturation has no effect
    y = augmented(x, "colour")
    brightness = y.mean((1, 2, 3)) / 0.4
    contrast = (y[:, 0, 0, 1] - y[:, 0, 0, 0]) / 0.2 / brightness
    x[:] = torch.tensor([0.5, 0.3, 0.4])[:, None, None]
    y = augmented(x, "colour")
    saturation = (y[:, 0] - y[:, 1])[:, 0, 0] / 0.2 / (brightness * contrast)
    for factor in (brightness, contrast, saturation):
        assert 0.69 < factor.min() < 0.73
        assert 1.27 < factor.max() < 1.31
        assert factor.mean() == pytest.approx(1, abs=0.02)
    assert augmented(torch.ones(100, 3, 32, 32), "colour").max() == 1
