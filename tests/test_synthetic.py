"""The built-in drawings: what they are, and that label and seed alone decide them."""

import numpy as np
import pytest

from common.synthetic import CLASSES, draw

LABELS = range(len(CLASSES))


@pytest.mark.parametrize("label", LABELS)
def test_an_image_is_32_by_32_rgb_bytes(label: int) -> None:
    for number in range(100):
        image = draw(label, number)
        assert image.shape == (32, 32, 3)
        assert image.dtype == np.uint8
        assert image.std() > 1, f"seed {number} gives an empty image"


@pytest.mark.parametrize("label", LABELS)
def test_order_and_global_random_state_change_nothing(label: int) -> None:
    np.random.seed(1)
    first = [draw(label, (3, number)) for number in range(10)]
    np.random.seed(2)
    draw((label + 1) % len(CLASSES), 7)
    again = [draw(label, (3, number)) for number in reversed(range(10))]
    assert np.array_equal(first, again[::-1])


def test_global_random_state_is_left_alone() -> None:
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    for label in LABELS:
        draw(label, 0)
    assert np.random.random() == expected


def test_every_seed_and_label_has_its_own_image() -> None:
    # With zeros at the end, too, which numpy's seeding drops.
    seeds = [
        *range(50),
        *((0, number) for number in range(1, 50)),
        (5, 0),
        (5, 0, 0),
        (0, 5, 0),
    ]
    images = {draw(label, seed).tobytes() for label in LABELS for seed in seeds}
    assert len(images) == len(LABELS) * len(seeds)


def test_a_number_and_a_tuple_of_it_are_the_same_seed() -> None:
    assert np.array_equal(draw(0, 5), draw(0, (5,)))


def test_mean_colour_hardly_tells_the_class() -> None:
    """Going by the class whose mean colour is nearest is little better than guessing."""
    colours = np.array(
        [[draw(label, number).mean(axis=(0, 1)) for number in range(400)] for label in LABELS]
    )
    centres = colours[:, :200].mean(axis=1)
    held_out = colours[:, 200:, None]
    nearest = np.linalg.norm(held_out - centres, axis=-1).argmin(axis=-1)
    assert (nearest == np.arange(len(CLASSES))[:, None]).mean() < 0.45


def test_an_unknown_label_is_refused() -> None:
    with pytest.raises(IndexError):
        draw(len(CLASSES), 0)
