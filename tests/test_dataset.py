from __future__ import annotations

import numpy as np
import pytest
import torch

from common import dataset, sources
from common.options import InputError


@pytest.fixture
def load(tmp_path):
    """dataset.load on drawings, with small counts and a cache of the test's own."""

    def load(data="synthetic", **options):
        small = {"train_counts": [60, 20, 10], "test_counts": [12, 6, 3], "cache": tmp_path}
        return dataset.load(data, **(small | options))

    return load


def same(a: dataset.Split, b: dataset.Split) -> bool:
    tensors = zip((*a.train, *a.test), (*b.train, *b.test), strict=True)
    return all(torch.equal(x, y) for x, y in tensors)


def contents(part: dataset.Part) -> list[bytes]:
    return [image.numpy().tobytes() for image in part.images]


def test_a_split_keeps_the_contract(load):
    split = load()
    assert split.classes == ("car", "truck", "cat")
    assert split.train.images.shape == (90, 3, 32, 32)
    assert split.train.images.dtype == torch.uint8
    assert split.train.labels.dtype == torch.int64
    assert split.train.counts(3) == [60, 20, 10]
    assert split.test.counts(3) == [12, 6, 3]
    assert len(split.validation.labels) == 0
    assert "synthetic" in split.source


def test_the_designs_counts_are_the_default(tmp_path, monkeypatch):
    blank = np.zeros((1, 32, 32, 3), np.uint8)
    monkeypatch.setattr(sources.synthetic, "draw", lambda *_: blank[0])
    split = dataset.load("synthetic", cache=tmp_path)
    assert split.train.counts(3) == [4949, 466, 210]
    assert split.test.counts(3) == [551, 51, 23]


def test_labels_stay_with_their_images(load, image_folder):
    split = load(str(image_folder), train_counts=["full"], test_counts=["full"])
    for part, folder in ((split.train, "train"), (split.test, "test")):
        for image, label in zip(part.images, part.labels.tolist(), strict=True):
            name = ("automobile", "truck", "cat")[label]
            files = [sources.read_image(f) for f in (image_folder / folder / name).iterdir()]
            assert any(np.array_equal(image.permute(1, 2, 0), file) for file in files)


def test_the_split_seed_draws_and_orders(load):
    first = load()
    assert same(first, load())
    other = load(seed=1)
    assert not same(first, other)
    assert set(contents(first.train)) != set(contents(other.train))
    labels = first.train.labels.tolist()
    assert labels != sorted(labels)


def test_no_image_is_drawn_twice_or_in_both_parts(load):
    split = load()
    every = contents(split.train) + contents(split.test)
    assert len(set(every)) == len(every)


def test_a_larger_draw_holds_the_smaller(load):
    small, large = load(), load(train_counts=[80, 20, 10])
    assert set(contents(small.train)) < set(contents(large.train))
    assert set(contents(small.test)) == set(contents(large.test))


def test_validation_is_a_stratified_part_of_train(load):
    whole, split = load(), load(validation=0.2)
    assert split.train.counts(3) == [48, 16, 8]
    assert split.validation.counts(3) == [12, 4, 2]
    kept = contents(split.train) + contents(split.validation)
    assert sorted(kept) == sorted(contents(whole.train))
    assert torch.equal(split.test.images, whole.test.images)
    assert split.fingerprint == whole.fingerprint
    assert same(split, load(validation=0.2))


def test_the_fingerprint_follows_the_images(load, image_folder):
    def halves():
        full = {"train_counts": ["full"], "test_counts": ["full"]}
        return load(str(image_folder), **full).fingerprint.split("-")

    before = halves()
    assert before == halves()
    cats = image_folder / "train/cat"
    (cats / "0000.png").write_bytes((cats / "0001.png").read_bytes())
    after = halves()
    assert before[0] != after[0]
    assert before[1] == after[1]


def test_a_second_load_reads_the_cache(load, monkeypatch):
    first = load()
    monkeypatch.setattr(sources.synthetic, "draw", None)  # drawing again would fail
    assert same(first, load())


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "other"])
def test_a_damaged_cache_is_rebuilt(load, tmp_path, damage):
    first = load()
    (file,) = tmp_path.glob("split-*.npz")
    whole = bytearray(file.read_bytes())
    if damage == "changed":
        whole[len(whole) // 2] ^= 255
    lengths = {"cut": len(whole) // 2, "emptied": 0}
    file.write_bytes(whole[: lengths.get(damage, len(whole))])
    if damage == "other":
        np.savez(file, fingerprint="0", train_images=np.zeros(3))
    assert same(first, load())
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_without_a_network_the_default_falls_back_loudly(load, offline, capsys):
    split = load(None)
    assert split.source.startswith("synthetic")
    assert same(split, load())
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "GOING ON WITH SYNTHETIC IMAGES" in line


def test_a_source_asked_for_by_name_never_falls_back(load, offline):
    with pytest.raises(InputError, match=r"--data cifar10: .*--data synthetic"):
        load("cifar10")


def test_a_dry_run_downloads_nothing_by_itself(load, monkeypatch, capsys):
    monkeypatch.setattr(sources, "download", None)  # a download would fail
    assert load(None, dry_run=True, train_counts=None).source.startswith("synthetic")
    assert "not downloaded" in capsys.readouterr().err


def test_a_dry_run_takes_a_handful(load):
    split = load(dry_run=True, train_counts=None, test_counts=None)
    assert split.train.counts(3) == [60, 20, 20]
    assert split.test.counts(3) == [20, 6, 6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_counts": [60, 20]}, "--train-counts: 2 numbers for 3 classes"),
        ({"train_counts": [9999, 1, 1]}, "9999 images of automobile asked for, .* has 5000"),
        ({"test_counts": [1, 1, 1001]}, "1001 images of cat asked for, .* has 1000"),
        ({"classes": ["cat"]}, "two or more different classes"),
        ({"classes": ["cat", "cat"]}, "two or more different classes"),
        ({"classes": ["cat", "dog"]}, "--classes dog: .* it has automobile, truck, cat"),
        (
            {"classes": ["cat", "truck"], "train_counts": None},
            "2 classes: give --train-counts as many",
        ),
        ({"validation": 0.01}, "--validation 0.01"),
        ({"validation": 0.04}, "--validation 0.04: too small to hold an image of each class"),
        ({"validation": 0.995}, "--validation 0.995"),
        ({"data": "no/such/place"}, "--data no/such/place: no such folder"),
    ],
)
def test_what_cannot_be_had_is_named(load, options, words):
    with pytest.raises(InputError, match=words) as caught:
        load(**options)
    assert "\n" not in str(caught.value)


def test_classes_give_the_label_order(load, image_folder):
    options = {"train_counts": ["full"], "test_counts": ["full"]}
    split = load(str(image_folder), classes=["cat", "automobile"], **options)
    assert split.classes == ("cat", "car")
    cats = {sources.read_image(file).tobytes() for file in image_folder.glob("train/cat/*")}
    first = split.train.images[split.train.labels == 0].permute(0, 2, 3, 1)
    assert {image.numpy().tobytes() for image in first} == cats


def test_real_images_at_the_designs_counts(real_split):
    assert real_split.classes == ("car", "truck", "cat")
    assert real_split.train.counts(3) == [4949, 466, 210]
    assert real_split.test.counts(3) == [551, 51, 23]
    every = contents(real_split.train) + contents(real_split.test)
    assert len(set(every)) > 0.99 * len(every)  # CIFAR-10 holds a few duplicates
