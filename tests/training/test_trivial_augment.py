import math

import numpy as np
import pytest
import torch
from conftest import check_seed
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from common.training.augmentation import augment
from common.training.recipe import Recipe
from common.training.trivial_augment import OPERATIONS, draw_operations, trivial_augment

NEAREST = {"interpolation": InterpolationMode.NEAREST}


def affine(image, shift=(0, 0), shear=(0.0, 0.0)):
    return functional.affine(image, 0.0, shift, 1.0, shear, center=[0, 0], **NEAREST)


def degrees(m):
    return math.degrees(math.atan(0.99 * m))


# What torchvision's TrivialAugmentWide does to one uint8 image at strength m.
REFERENCE = {
    "identity": lambda image, m: image,
    "shear_x": lambda image, m: affine(image, shear=(degrees(m), 0.0)),
    "shear_y": lambda image, m: affine(image, shear=(0.0, degrees(m))),
    "translate_x": lambda image, m: affine(image, shift=(int(32 * m), 0)),
    "translate_y": lambda image, m: affine(image, shift=(0, int(32 * m))),
    "rotate": lambda image, m: functional.rotate(image, 135 * m, **NEAREST),
    "brightness": lambda image, m: functional.adjust_brightness(image, 1 + 0.99 * m),
    "colour": lambda image, m: functional.adjust_saturation(image, 1 + 0.99 * m),
    "contrast": lambda image, m: functional.adjust_contrast(image, 1 + 0.99 * m),
    "sharpness": lambda image, m: functional.adjust_sharpness(image, 1 + 0.99 * m),
    "posterize": lambda image, m: functional.posterize(image, 8 - round(6 * abs(m))),
    "solarize": lambda image, m: functional.solarize(image, 255 * (1 - abs(m))),
    "autocontrast": lambda image, m: functional.autocontrast(image),
    "equalize": lambda image, m: functional.equalize(image),
}
# torchvision rounds a blend of uint8 images, and on the way the grey or smoothed image too.
ROUNDING = {"colour": 2, "contrast": 2, "sharpness": 2, "brightness": 1, "autocontrast": 1}


def images(n, size=32):
    """Return n smooth and noisy uint8 images, one of them of a single colour."""
    x = torch.randint(256, (n, 3, size, size), generator=torch.Generator().manual_seed(0))
    x[::2] = x[::2].float().cumsum(-1).div(size).long()
    x[0] = 77
    return x.to(torch.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("size", [32, 48])
def test_operations_equal_torchvision(name, direction, size):
    x = images(31, size)
    m = direction * torch.arange(31) / 30
    y = 255 * OPERATIONS[name](x / 255, m)
    pairs = zip(x, m.tolist(), strict=True)
    expected = torch.stack([REFERENCE[name](image, strength) for image, strength in pairs])
    assert (y - expected).abs().max() <= ROUNDING.get(name, 0) + 1e-3
    if name != "identity":
        assert not torch.equal(expected, x)


def test_sorted_batches_hold_the_epochs_draws():
    order = torch.randperm(1000)
    result, sizes = draw_operations(order, 128, torch.Generator().manual_seed(0))
    for before, after in zip(order.split(128), result.split(128), strict=True):
        assert sorted(before.tolist()) == sorted(after.tolist())
    assert [sum(each) for each in sizes] == [128] * 7 + [104]
    totals = np.sum(sizes, axis=0)
    assert len(totals) == 14
    assert totals.min() > 40  # 71 each on average, with a deviation of 8
    assert totals.max() < 105
    check_seed(lambda seed: draw_operations(order, 128, torch.Generator().manual_seed(seed))[0])


def test_each_image_gets_its_operation_a_strength_and_a_direction():
    x = torch.full((2000, 3, 8, 8), 0.4)
    sizes = [2000 if name == "brightness" else 0 for name in OPERATIONS]
    y = trivial_augment(x, sizes, torch.Generator().manual_seed(0))
    strengths, counts = (y[:, 0, 0, 0] / 0.4).unique(return_counts=True)
    expected = 1 + 0.99 * torch.arange(-30, 31) / 30
    torch.testing.assert_close(strengths, expected)
    assert 40 < counts[30] < 95  # no change comes twice as often as each other strength
    assert counts[:30].sum() == pytest.approx(2000 * 30 / 62, rel=0.1)
    mixed = [1 if name in ("identity", "solarize") else 0 for name in OPERATIONS]
    pair = trivial_augment(x[:2], mixed, torch.Generator().manual_seed(1))
    assert torch.equal(pair[0], x[0])  # identity is the first of OPERATIONS
    assert (pair[1] - 0.5).abs().flatten().tolist() == pytest.approx([0.1] * 192)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_augment_takes_trivial_augment(layout):
    x = (images(140) / 255).contiguous(memory_format=layout)
    before = x.clone()
    recipe = Recipe(augment=("cutout", "trivial-augment", "flip"))
    y = augment(x, recipe, torch.Generator().manual_seed(0), [10] * 14)
    assert torch.equal(x, before)
    assert y.is_contiguous(memory_format=layout)
    assert y.min() >= 0
    assert y.max() <= 1
    square = (y == 0.5).all(1).flatten(1).sum(1)  # cutout comes after it, and stays whole
    assert (square >= 16).all()
