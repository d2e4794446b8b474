import numpy as np
import pytest

from common.dataset.synthetic import CLASSES, draw

LABELS = range(len(CLASSES))


def test_image_is_32_by_32_rgb_bytes():
    for label in LABELS:
        for number in range(100):
            image = draw(label, number)
            assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)
            assert image.std() > 1, f"the image of {CLASSES[label]}, seed {number}, is empty"


def test_image_and_global_random_state_do_not_depend_on_each_other():
    seeds = [(label, (3, number)) for label in LABELS for number in range(10)]
    np.random.seed(2)
    again = [draw(*seed) for seed in reversed(seeds)]
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    assert np.array_equal([draw(*seed) for seed in seeds], again[::-1])
    assert np.random.random() == expected


def test_images_of_different_seeds_and_labels_differ():
    # Some seeds end in zeros, which NumPy ignores.
    zeros = [*((0, number) for number in range(1, 50)), (5, 0), (5, 0, 0), (0, 5, 0)]
    seeds = [*range(50), *zeros]
    images = {draw(label, seed).tobytes() for label in LABELS for seed in seeds}
    assert len(images) == len(LABELS) * len(seeds)
    assert np.array_equal(draw(0, 5), draw(0, (5,)))  # one number, alone or as a tuple


def test_mean_colour_does_not_tell_the_class():
    """A nearest-centroid classifier on mean colours is hardly better than guessing."""
    colours = np.array(
        [[draw(label, number).mean(axis=(0, 1)) for number in range(400)] for label in LABELS]
    )
    centroids = colours[:, :200].mean(axis=1)
    held_out = colours[:, 200:, None]
    nearest = np.linalg.norm(held_out - centroids, axis=-1).argmin(axis=-1)
    assert (nearest == np.arange(len(CLASSES))[:, None]).mean() < 0.45


def test_unknown_label_is_refused():
    with pytest.raises(IndexError):
        draw(len(CLASSES), 0)
