from __future__ import annotations

import numpy as np
import pytest
import torch

from common.augment import augment, cut_out, draw_mixing, flipped, jittered, mix, shifted
from common.recipes import Recipe

NAMES = ("flip", "crop", "cutout", "colour")
MIXES = ("mixup", "cutmix")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=64, seed=1):
    return torch.rand(n, 3, 32, 32, generator=generator(seed))


def augmented(x, *names, seed=0):
    return augment(x, Recipe(augment=names), generator(seed))


# Augmentation


@pytest.mark.parametrize("names", [*((name,) for name in NAMES), NAMES])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_augment_keeps_shape_range_layout_input_and_seed(names, layout):
    x = images().contiguous(memory_format=layout)
    before, state = x.clone(), torch.get_rng_state()
    a, b, other = (augmented(x, *names, seed=seed) for seed in (0, 0, 1))
    assert (a.shape, a.dtype) == (x.shape, x.dtype)
    assert a.is_contiguous(memory_format=layout)
    assert a.min() >= 0
    assert a.max() <= 1
    assert torch.equal(a, b)
    assert not torch.equal(a, other)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("name", "least"), list(zip(NAMES, (0.3, 0.9, 1, 1), strict=True)))
def test_augment_changes_images_and_each_in_its_own_way(name, least):
    x = images(1).expand(200, -1, -1, -1)
    y = augmented(x, name)
    changed = (y != x).flatten(1).any(1).float().mean()
    assert changed >= least
    assert len(y.unique(dim=0)) >= {"flip": 2, "crop": 60}.get(name, 150)


def test_no_names_change_nothing():
    x = images()
    assert augmented(x) is x


def test_names_in_any_order_do_the_same():
    x = images()
    assert torch.equal(augmented(x, *NAMES), augmented(x, *reversed(NAMES)))


def test_half_of_the_images_are_mirrored_and_the_others_untouched():
    x = images(400)
    y = augmented(x, "flip")
    mirrored = (y == x.flip(-1)).flatten(1).all(1)
    assert torch.equal(mirrored, (y != x).flatten(1).any(1))
    assert 160 < mirrored.sum() < 240


def test_flipped_mirrors_those_that_it_is_told_to():
    x = images(3)
    y = flipped(x, torch.tensor([True, False, True]))
    assert torch.equal(y, torch.stack((x[0].flip(-1), x[1], x[2].flip(-1))))


def test_no_image_is_turned_upside_down():
    x = torch.linspace(0.2, 0.8, 32)[:, None].expand(400, 3, 32, 32)
    y = augmented(x, *NAMES)
    assert (y[:, :, 16:].mean((1, 2, 3)) > y[:, :, :16].mean((1, 2, 3))).all()


def test_shifted_equals_numpy_crops_of_padded_images():
    by = [(i, j) for i in (-4, -1, 0, 3, 4) for j in (-4, 0, 2, 4)]
    x = images(len(by))
    y = shifted(x, torch.tensor(by))
    for image, (down, right), result in zip(x.numpy(), by, y.numpy(), strict=True):
        padded = np.pad(image, ((0, 0), (4, 4), (4, 4)), mode="reflect")
        crop = padded[:, 4 + down : 36 + down, 4 + right : 36 + right]
        np.testing.assert_array_equal(result, crop)


def test_crop_draws_every_shift():
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    places = torch.stack((y, x, x)).expand(2000, 3, 32, 32)
    drawn = augmented(places, "crop")[:, :2, 16, 16] - 16
    counts = torch.bincount(((drawn[:, 0] + 4) * 9 + drawn[:, 1] + 4).long())
    assert len(counts) == 81
    assert counts.min() > 5
    assert counts.max() < 50


@pytest.mark.parametrize(
    ("centre", "rows", "columns"),
    [((16, 10), (12, 20), (6, 14)), ((0, 31), (0, 4), (27, 32)), ((31, 2), (27, 32), (0, 6))],
)
def test_cut_out_fills_one_square_with_grey(centre, rows, columns):
    x = images(1)
    expected = x.clone()
    expected[..., slice(*rows), slice(*columns)] = 0.5
    assert torch.equal(cut_out(x, torch.tensor([centre])), expected)


def test_cutout_centres_are_all_over_the_image():
    grey = (augmented(torch.zeros(4000, 3, 32, 32), "cutout") == 0.5).float()
    areas = grey[:, 0].sum((1, 2))
    assert areas.max() == 64
    assert areas.min() <= 20  # a corner of 4 x 4 or so
    middle = grey[:, 0, 8:24, 8:24].mean().item()
    assert middle == pytest.approx(64 / 1024, rel=0.05)
    assert grey[:, 0, 0, 0].mean() == pytest.approx(25 / 1024, rel=0.3)


def luma(x):
    return (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(-3, keepdim=True)


def test_jittered_multiplies_brightness_contrast_and_saturation():
    x = 0.3 + 0.3 * images(5)  # far enough from 0 and 1
    mean = luma(x).mean((2, 3), keepdim=True)
    factors = [(1, 1, 1), (0.8, 1, 1), (1, 1.2, 1), (1, 1, 0), (1.1, 0.9, 1.2)]
    y = jittered(x, torch.tensor(factors))
    more_colour = luma(x[4]) + 1.2 * (x[4] - luma(x[4]))
    expected = (
        x[0],
        0.8 * x[1],
        mean[2] + 1.2 * (x[2] - mean[2]),
        luma(x[3]).expand(3, -1, -1),
        1.1 * (mean[4] + 0.9 * (more_colour - mean[4])),
    )
    torch.testing.assert_close(y, torch.stack(expected))


def test_colour_jitters_each_factor_by_three_tenths_and_clamps():
    x = torch.full((500, 3, 32, 32), 0.5)
    x[:, :, :, ::2] = 0.3  # grey: contrast and brightness alone change it
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


# Mixing


def mixed(x, kind, rng=0, **options):
    """The batch with labels 0 to N - 1, which tell the images that were mixed in."""
    recipe = Recipe(mix=kind, batch_size=len(x), **{"mix_share": 1.0} | options)
    rng = np.random.default_rng(rng) if isinstance(rng, int) else rng
    drawn = draw_mixing(len(x), x.shape[-1], recipe, rng)
    return mix(x, torch.arange(len(x)), *drawn)


@pytest.mark.parametrize("kind", MIXES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mix_keeps_shape_layout_input_and_seed(kind, layout):
    x = images().contiguous(memory_format=layout)
    before, state = x.clone(), np.random.get_state()[1].copy()
    a, b, other = (mixed(x, kind, rng=seed) for seed in (0, 0, 1))
    assert a[0].is_contiguous(memory_format=layout)
    assert (a[0].shape, a[1].shape, a[2].shape) == (x.shape, (64,), (64,))
    assert (a[0].dtype, a[1].dtype, a[2].dtype) == (x.dtype, torch.int64, torch.float32)
    assert all(torch.equal(one, two) for one, two in zip(a, b, strict=True))
    assert not torch.equal(a[0], other[0])
    assert torch.equal(x, before)
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.parametrize("kind", MIXES)
def test_shares_are_those_of_the_light_in_black_and_white_images(kind):
    x = torch.stack((torch.zeros(3, 32, 32), torch.ones(3, 32, 32)))
    swaps = []
    for seed in range(200):
        y, partners, shares = mixed(x, kind, rng=seed)
        if partners.tolist() == [1, 0]:
            light = y.mean((1, 2, 3))
            torch.testing.assert_close(light, torch.stack((1 - shares[0], shares[1])))
            swaps.append(shares[0].item())
        else:
            assert partners.tolist() == [0, 1]
            torch.testing.assert_close(y, x)
    assert 60 < len(swaps) < 140
    assert min(swaps) < 0.3
    assert max(swaps) > 0.9


def test_mixup_is_linear_with_a_share_for_each_image():
    x = images(200)
    y, partners, shares = mixed(x, "mixup")
    weight = shares[:, None, None, None]
    torch.testing.assert_close(y, weight * x + (1 - weight) * x[partners])
    assert torch.equal(partners.sort().values, torch.arange(200))
    assert (partners == torch.arange(200)).sum() < 10
    assert len(shares.unique()) > 190


def test_cutmix_puts_in_one_box_of_the_partner():
    x = images(8)
    clipped = 0
    for seed in range(50):
        y, partners, shares = mixed(x, "cutmix", rng=seed)
        put_in = (y != x)[partners != torch.arange(8)].any(1)  # (moved images, 32, 32)
        box = put_in[0]
        assert (put_in == box).all()
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns)
        assert torch.equal(y, torch.where(box, x[partners], x))
        assert shares.tolist() == [1 - box.sum().item() / 1024] * 8
        clipped += int(rows.sum() != columns.sum())
    assert clipped > 5


def test_mix_fills_the_pixels_that_it_is_told():
    x, partners, filled = images(2), torch.tensor([1, 0]), torch.zeros(2, 32, 32).bool()
    filled[0, 2:10, 5:8] = True
    y, labels, shares = mix(x, torch.tensor([7, 8]), partners, torch.tensor([0.3, 1]), filled)
    expected = x.clone()
    expected[0, :, 2:10, 5:8] = x[1, :, 2:10, 5:8]
    assert torch.equal(y, expected)
    assert labels.tolist() == [8, 7]
    assert shares.tolist() == pytest.approx([0.3, 1])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_shares_follow_the_beta_distribution(alpha):
    shares = mixed(torch.zeros(20_000, 3, 1, 1), "mixup", mix_alpha=alpha)[2]
    assert shares.mean() == pytest.approx(0.5, abs=0.015)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_cutmix_box_has_the_area_of_its_share():
    # A beta this narrow gives 1/2; a side of 32 sqrt(1/2) = 22.6 is rounded down to 22.
    rng = np.random.default_rng(0)
    shares = [mixed(images(4), "cutmix", rng, mix_alpha=1e6)[2][0].item() for _ in range(300)]
    assert min(shares) == 1 - 22 * 22 / 1024
    assert 1 - 11 * 11 / 1024 >= max(shares) > 0.8  # centres near a corner


@pytest.mark.parametrize("kind", MIXES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_share_of_the_steps_that_mix(kind, share):
    x, rng, steps = images(4), np.random.default_rng(0), 0
    for _ in range(1000):
        y, partners, shares = mixed(x, kind, rng, mix_share=share)
        if partners.tolist() == [0, 1, 2, 3] and shares.tolist() == [1.0] * 4:
            assert torch.equal(y, x)
        else:
            steps += 1
    assert steps == pytest.approx(1000 * share, abs=0 if share in (0, 1) else 60)


@pytest.mark.parametrize("kind", MIXES)
def test_an_epoch_is_mixed_batch_after_batch(kind):
    recipe = Recipe(mix=kind, batch_size=8, mix_share=0.7)
    epoch = draw_mixing(27, 32, recipe, np.random.default_rng(0))
    rng, sizes = np.random.default_rng(0), []
    for batch in zip(*(t.split(8) for t in epoch), strict=True):
        sizes.append(len(batch[0]))
        alone = draw_mixing(sizes[-1], 32, recipe, rng)
        assert all(torch.equal(a, b) for a, b in zip(batch, alone, strict=True))
        assert torch.equal(batch[0].sort().values, torch.arange(sizes[-1]))
    assert sizes == [8, 8, 8, 3]
