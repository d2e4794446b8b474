import numpy as np
import pytest
import torch
from conftest import check_seed, random_part

from common.training.mixing import draw_mixing, mix
from common.training.recipe import Recipe

MIXES = ("mixup", "cutmix")


def random_images(n=64):
    return random_part((n,)).images / 255


def mixed(x, kind, rng=0, **options):
    """Return the mixed images, partners (N,) and shares (N,); rng: a seed or a generator."""
    recipe = Recipe(mix=kind, batch_size=len(x), **{"mix_share": 1.0} | options)
    drawn = draw_mixing(len(x), x.shape[-1], recipe, np.random.default_rng(rng))
    return mix(x, torch.arange(len(x)), *drawn)  # the labels are the positions of the images


@pytest.mark.parametrize("kind", MIXES)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_mix_keeps_shape_layout_and_input(kind, layout):
    x = random_images().contiguous(memory_format=layout)
    before = x.clone()
    for output in range(3):
        check_seed(lambda seed, output=output: mixed(x, kind, seed)[output])
    assert torch.equal(x, before)
    result = mixed(x, kind)
    assert result[0].is_contiguous(memory_format=layout)
    assert [t.shape for t in result] == [x.shape, (64,), (64,)]
    assert [t.dtype for t in result] == [x.dtype, torch.int64, torch.float32]


def test_mixup_is_linear_with_a_share_for_each_image():
    x = random_images(200)
    y, partners, shares = mixed(x, "mixup")
    s = shares[:, None, None, None]
    torch.testing.assert_close(y, s * x + (1 - s) * x[partners])
    assert torch.equal(partners.sort().values, torch.arange(200))
    assert (partners == torch.arange(200)).sum() < 10
    assert len(shares.unique()) > 190


def test_mixup_mixes_features_as_it_mixes_images():
    x = torch.randn(20, 48)
    y, partners, shares = mixed(x, "mixup")
    s = shares[:, None]
    torch.testing.assert_close(y, s * x + (1 - s) * x[partners])
    images = mixed(x.view(20, 3, 4, 4), "mixup")[0]
    assert torch.equal(images.flatten(1), y)


def test_cutmix_copies_one_box_from_the_partners():
    x = random_images(8)
    clipped = 0
    for seed in range(50):
        y, partners, shares = mixed(x, "cutmix", seed)
        changed = (y != x).any(1)[partners != torch.arange(8)]  # (n, 32, 32)
        box = changed.any(0)
        rows, columns = box.any(1), box.any(0)
        assert torch.equal(box, rows[:, None] & columns)
        assert torch.equal(y, torch.where(box, x[partners], x))
        assert shares.tolist() == [1 - box.sum().item() / 1024] * 8
        clipped += int(rows.sum() != columns.sum())
    assert clipped > 5


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_mixup_shares_follow_the_beta_distribution(alpha):
    shares = mixed(torch.zeros(20_000, 3, 1, 1), "mixup", mix_alpha=alpha)[2]
    assert shares.mean() == pytest.approx(0.5, abs=0.015)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_cutmix_box_has_the_area_of_its_share():
    # A beta this narrow gives 1/2; a side of 32 sqrt(1/2) = 22.6 is rounded down to 22.
    rng = np.random.default_rng(0)
    x = random_images(4)
    shares = [mixed(x, "cutmix", rng, mix_alpha=1e6)[2][0].item() for _ in range(300)]
    assert min(shares) == 1 - 22 * 22 / 1024
    assert 1 - 11 * 11 / 1024 >= max(shares) > 0.8  # the centre is near a corner


@pytest.mark.parametrize("kind", MIXES)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_mix_share_is_the_proportion_of_steps_that_mix(kind, share):
    x, rng, steps = random_images(4), np.random.default_rng(0), 0
    for _ in range(1000):
        y, partners, shares = mixed(x, kind, rng, mix_share=share)
        if partners.tolist() == [0, 1, 2, 3] and shares.tolist() == [1.0] * 4:
            assert torch.equal(y, x)
        else:
            steps += 1
    assert steps == pytest.approx(1000 * share, abs=0 if share in (0, 1) else 60)


@pytest.mark.parametrize("kind", MIXES)
def test_an_epoch_is_drawn_batch_by_batch(kind):
    recipe = Recipe(mix=kind, batch_size=8, mix_share=0.7)
    epoch = draw_mixing(27, 32, recipe, np.random.default_rng(0))
    rng, sizes = np.random.default_rng(0), []
    for batch in zip(*(t.split(8) for t in epoch), strict=True):
        sizes.append(len(batch[0]))
        alone = draw_mixing(sizes[-1], 32, recipe, rng)
        assert all(torch.equal(a, b) for a, b in zip(batch, alone, strict=True))
        assert torch.equal(batch[0].sort().values, torch.arange(sizes[-1]))
    assert sizes == [8, 8, 8, 3]
