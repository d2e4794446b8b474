"""Images in a file: indexed as the tensor is, without holding it."""

import pickle

import numpy as np
import pytest
import torch
from conftest import is_one_line, random_part

from common.dataset import load as loader
from common.dataset.split import LabelledImages
from common.dataset.stored_images import StoredImages, gather, select
from common.errors import InputError

IMAGES = random_part((5, 4, 3)).images


def blocks(size):
    return (block.numpy() for block in IMAGES.split(size))


@pytest.fixture
def stored(tmp_path):
    return gather(blocks(5), len(IMAGES), 32, IMAGES.nbytes - 1, tmp_path / "a.images")


def test_few_images_stay_in_memory(tmp_path):
    images = gather(blocks(5), len(IMAGES) + 2, 32, 1 << 30, tmp_path / "a.images")
    assert torch.equal(images, IMAGES)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "key",
    [
        0,
        -1,
        slice(None),
        slice(2, 7),
        slice(0, 0),
        [3, 3, 1],
        torch.tensor([4, 0, 11]),
        torch.tensor([], dtype=torch.int64),
        torch.arange(12) % 3 == 0,
    ],
)
def test_indexing_equals_the_tensors(stored, key):
    assert isinstance(stored, StoredImages)
    assert torch.equal(stored[key], IMAGES[key])


def test_what_else_a_tensor_has(stored):
    assert (len(stored), stored.shape, stored.dtype) == (12, IMAGES.shape, torch.uint8)
    assert all(map(torch.equal, stored.split(5), IMAGES.split(5)))
    labels = torch.arange(12)
    in_file, in_memory = (LabelledImages(images, labels) for images in (stored, IMAGES))
    assert in_file.fingerprint() == in_memory.fingerprint()


def test_a_selection_stays_in_the_file(stored):
    chosen = select(select(stored, torch.tensor([5, 2, 9, 1])), torch.tensor([3, 0]))
    assert isinstance(chosen, StoredImages)
    assert torch.equal(chosen[:], IMAGES[[1, 5]])
    copy = pickle.loads(pickle.dumps(select(stored, slice(3, 6))))
    assert torch.equal(copy[:], IMAGES[3:6])
    copy[:][0] = 0  # a copy: the file stays
    assert torch.equal(stored[3], IMAGES[3])


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"--memory: .* 0\.0 GB, and .*file/a\.images"
    ) as caught:
        gather(blocks(5), len(IMAGES), 32, 1000, tmp_path / "file/a.images")
    assert is_one_line(f"{caught.value}\n", "can't be written")


def split_of(cache, memory, **options):
    counts = {"train_counts": [30, 9, 6], "test_counts": [6, 3, 3]}
    return loader.load("synthetic", **counts, memory=memory, cache=cache, **options)


@pytest.mark.parametrize("options", [{}, {"validation": 0.34}, {"image_size": 20}])
def test_a_split_in_a_file_equals_the_one_in_memory(tmp_path, options):
    whole = split_of(tmp_path / "a", 1 << 30, **options)
    for _ in range(2):  # drawn, then read from the cache
        split = split_of(tmp_path / "b", 1000, **options)
        for name in ("train", "validation", "test"):
            part = getattr(split, name)
            assert isinstance(part.images, StoredImages) or not len(part.labels)
            assert torch.equal(part.images[:], getattr(whole, name).images)
            assert torch.equal(part.labels, getattr(whole, name).labels)
        assert split.record() == whole.record()


def test_a_changed_or_missing_file_is_drawn_again(tmp_path):
    first = split_of(tmp_path, 1000)
    (store,) = tmp_path.glob("*.images")
    whole = store.read_bytes()
    changed = bytearray(whole)
    changed[-1] ^= 1
    for content in (bytes(changed), whole[:-1], b"", None):
        store.unlink() if content is None else store.write_bytes(content)
        assert split_of(tmp_path, 1000).fingerprint == first.fingerprint
        assert store.read_bytes() == whole


def test_positions_outside_the_file_are_refused_by_numpy(stored):
    with pytest.raises(IndexError):
        StoredImages(stored.path, 32, 12, np.array([12]))[:]
