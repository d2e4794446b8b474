import numpy as np
import pytest
import torch
from conftest import is_one_line

from common.dataset import image_files, sources
from common.dataset import load as loader
from common.dataset.split import LabelledImages, Split
from common.errors import InputError

FULL = {"train_counts": ["full"], "test_counts": ["full"]}


@pytest.fixture
def load(tmp_path):
    """The loader on synthetic images, with small counts and a separate cache."""

    def load(data="synthetic", **options):
        small = {"train_counts": [60, 20, 10], "test_counts": [12, 6, 3], "cache": tmp_path}
        return loader.load(data, **(small | options))

    return load


def same(a: Split, b: Split) -> bool:
    tensors = zip((*a.train, *a.test), (*b.train, *b.test), strict=True)
    return all(torch.equal(x, y) for x, y in tensors)


def contents(part: LabelledImages) -> list[bytes]:
    return [image.numpy().tobytes() for image in part.images]


def counts(split: Split) -> tuple[list[int], list[int]]:
    return split.train.counts(3), split.test.counts(3)


def test_split_has_documented_types_and_counts(load):
    split = load()
    assert split.classes == ("car", "truck", "cat")
    assert (split.train.images.shape, split.train.images.dtype) == (
        (90, 3, 32, 32),
        torch.uint8,
    )
    assert split.train.labels.dtype == torch.int64
    assert split.train.labels.tolist() != sorted(split.train.labels)
    assert counts(split) == ([60, 20, 10], [12, 6, 3])
    assert len(split.validation.labels) == 0
    assert "synthetic" in split.source
    images = contents(split.train) + contents(split.test)
    assert len(set(images)) == len(images)


REPORTED_COUNTS = ([4949, 466, 210], [551, 51, 23])


def test_default_counts_are_those_of_the_reports(tmp_path, monkeypatch):
    blank = np.zeros((32, 32, 3), np.uint8)
    monkeypatch.setattr(sources.synthetic, "draw", lambda *_: blank)
    assert counts(loader.load("synthetic", cache=tmp_path)) == REPORTED_COUNTS


def test_real_images_have_the_default_counts(real_split):
    assert real_split.classes == ("car", "truck", "cat")
    assert counts(real_split) == REPORTED_COUNTS
    images = contents(real_split.train) + contents(real_split.test)
    assert len(set(images)) > 0.99 * len(images)  # CIFAR-10 contains a few duplicates


@pytest.mark.parametrize("classes", [["automobile", "truck", "cat"], ["cat", "automobile"]])
def test_labels_follow_the_order_of_classes(load, image_folder, classes):
    split = load(str(image_folder), classes=classes, **FULL)
    assert split.classes == tuple({"automobile": "car"}.get(name, name) for name in classes)
    for part, folder in ((split.train, "train"), (split.test, "test")):
        for label, name in enumerate(classes):
            files = (image_folder / folder / name).iterdir()
            expected = {image_files.read_image(file).tobytes() for file in files}
            images = part.images[part.labels == label].permute(0, 2, 3, 1)
            assert {image.numpy().tobytes() for image in images} == expected


def test_draw_depends_on_the_seed_and_grows_with_the_counts(load):
    first, other, larger = load(), load(seed=1), load(train_counts=[80, 20, 10])
    assert set(contents(first.train)) != set(contents(other.train))
    assert set(contents(first.train)) < set(contents(larger.train))
    assert set(contents(first.test)) == set(contents(larger.test))


def test_validation_is_a_stratified_part_of_train(load):
    whole, split = load(), load(validation=0.2)
    assert split.train.counts(3) == [48, 16, 8]
    assert split.validation.counts(3) == [12, 4, 2]
    images = contents(whole.train)
    for part in (split.train, split.validation):
        positions = [images.index(image) for image in contents(part)]
        assert positions == sorted(positions)
    both = contents(split.train) + contents(split.validation)
    assert sorted(both) == sorted(images)
    assert torch.equal(split.test.images, whole.test.images)
    assert split.fingerprint == whole.fingerprint
    assert same(split, load(validation=0.2))


def test_fingerprint_depends_on_the_images(load, image_folder):
    cats = image_folder / "train/cat"
    first, again = (load(str(image_folder), **FULL).fingerprint.split("-") for _ in range(2))
    (cats / "0000.png").write_bytes((cats / "0001.png").read_bytes())
    after = load(str(image_folder), **FULL).fingerprint.split("-")
    assert first == again
    assert [x == y for x, y in zip(first, after, strict=True)] == [False, True]


@pytest.mark.parametrize(
    "damage", ["truncated", "changed", "empty", "other contents", "wrong label"]
)
def test_damaged_cache_is_rebuilt_and_whole_cache_is_read(load, tmp_path, monkeypatch, damage):
    first = load()
    (file,) = tmp_path.glob("split-*.npz")
    whole, arrays = bytearray(file.read_bytes()), dict(np.load(file))
    if damage == "changed":
        whole[len(whole) // 2] ^= 255
    lengths = {"truncated": len(whole) // 2, "empty": 0}
    file.write_bytes(whole[: lengths.get(damage, len(whole))])
    if damage == "other contents":
        np.savez(file, fingerprint="0", train_images=np.zeros(3))
    if damage == "wrong label":
        arrays["train_labels"][0] ^= 1
        np.savez(file, **arrays)
    assert same(first, load())
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    monkeypatch.setattr(sources.synthetic, "draw", None)  # another drawing would fail
    assert same(first, load())


def test_only_the_default_falls_back_to_synthetic(load, offline, capsys):
    split = load(None)
    assert split.source.startswith("synthetic")
    assert same(split, load())
    assert is_one_line(capsys.readouterr().err, "GOING ON WITH SYNTHETIC IMAGES")
    with pytest.raises(InputError, match=r"--data cifar10: .*--data synthetic"):
        load("cifar10")


def test_dry_run_takes_few_images_and_downloads_nothing(load, monkeypatch, capsys):
    monkeypatch.setattr(sources, "download", None)  # a download would fail
    split = load(None, dry_run=True, train_counts=None, test_counts=None)
    assert split.source.startswith("synthetic")
    assert counts(split) == ([60, 20, 20], [20, 6, 6])
    assert "not downloaded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"train_counts": [60, 20]}, "--train-counts: 2 numbers for 3 classes"),
        ({"train_counts": [9999, 1, 1]}, "9999 images of automobile requested, there are 5000"),
        ({"test_counts": [1, 1, 1001]}, "1001 images of cat requested, there are 1000"),
        ({"classes": ["cat"]}, "two or more different classes"),
        ({"classes": ["cat", "cat"]}, "two or more different classes"),
        ({"classes": ["cat", "dog"]}, "--classes dog: .* it has automobile, truck, cat"),
        ({"classes": ["cat", "a\x1b[31m"]}, "--classes a.*: has control characters"),
        ({"classes": ["cat", "truck"]}, "--train-counts: 3 numbers for 2 classes"),
        ({"validation": 0.01}, "--validation 0.01"),
        ({"validation": 0.04}, "--validation 0.04: too small to hold an image of each class"),
        ({"validation": 0.995}, "--validation 0.995"),
        (
            {"validation": 0.9, "train_counts": [60, 20, 4]},
            "leaves no train image of cat",
        ),
        ({"data": "no/such/place"}, "--data no/such/place: no such folder"),
        ({"label_noise": [("boat", 0.1)]}, "noise boat: no such class; .* car, truck, cat"),
        ({"label_noise": [("car", 0.1), ("automobile", 0.2)]}, "automobile: give one share"),
        ({"label_noise": [("cat", 0.99)]}, "--label-noise: leaves no image with the label cat"),
        ({"accept_above": 0.9}, "--accept-above: .*--label-fixes FILE; add"),
    ],
)
def test_impossible_option_is_named(load, options, words):
    with pytest.raises(InputError, match=words) as caught:
        load(**options)
    assert "\n" not in str(caught.value)
