from __future__ import annotations

import builtins
import hashlib
import pickle
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from common import dataset, sources
from common.options import InputError

NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
FULL = {"train_counts": ["full"], "test_counts": ["full"]}


# CIFAR-10 in small, with checksums of its own


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """A folder with cifar-10-batches-py (20 images a file) and its archive."""
    root = tmp_path / "published"
    folder = root / sources.BATCHES
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    checksums = {}

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        checksums[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()

    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        data = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        write(name, {"data": data, "labels": [i % 10 for i in range(20)]})
    write("batches.meta", {"label_names": list(NAMES)})
    archive = root / sources.ARCHIVE
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, sources.BATCHES)
    train = [[name, checksums[name]] for name in checksums if name.startswith("data")]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", checksums["test_batch"]]])
    meta = CIFAR10.meta | {"md5": checksums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    return root


def is_small_cifar(split, folder):
    """Whether train and test hold just what the files of `folder` hold for the classes."""
    for part, names in (
        (split.train, [f"data_batch_{i}" for i in range(1, 6)]),
        (split.test, ["test_batch"]),
    ):
        expected = set()
        for name in names:
            content = pickle.loads((folder / sources.BATCHES / name).read_bytes())
            for row, label in zip(content["data"], content["labels"], strict=True):
                if NAMES[label] in ("automobile", "truck", "cat"):
                    new = ("automobile", "truck", "cat").index(NAMES[label])
                    expected.add((row.tobytes(), new))
        found = {
            (image.numpy().tobytes(), label)
            for image, label in zip(part.images, part.labels.tolist(), strict=True)
        }
        if found != expected:
            return False
    return True


@pytest.mark.parametrize("place", ["", sources.BATCHES, sources.ARCHIVE])
def test_cifar_batches_and_archive(small_cifar, tmp_path, place):
    split = dataset.load(str(small_cifar / place), **FULL, cache=tmp_path / "cache")
    assert is_small_cifar(split, small_cifar)
    assert split.source == "CIFAR-10"


def test_any_of_cifars_classes_in_any_order(small_cifar, tmp_path):
    classes = ["ship", "dog", "airplane", "frog"]
    split = dataset.load(str(small_cifar), classes=classes, **FULL, cache=tmp_path / "cache")
    assert split.classes == tuple(classes)
    assert (split.train.counts(4), split.test.counts(4)) == ([10] * 4, [2] * 4)
    content = pickle.loads((small_cifar / sources.BATCHES / "test_batch").read_bytes())
    rows = zip(content["data"], content["labels"], strict=True)
    ships = {row.tobytes() for row, label in rows if NAMES[label] == "ship"}
    assert {i.numpy().tobytes() for i in split.test.images[split.test.labels == 0]} == ships


def test_cifar_is_downloaded_once(small_cifar, tmp_path, monkeypatch):
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_):
            asked.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=small_cifar))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{sources.ARCHIVE}"
    monkeypatch.setenv("CIFAR10_URL", url)
    try:
        for seed in (0, 1):  # the second is not in the cache, but the images are there
            cache = tmp_path / "cache"
            split = dataset.load("cifar10", **FULL, seed=seed, cache=cache)
            assert is_small_cifar(split, small_cifar)
    finally:
        server.shutdown()
        server.server_close()
    assert asked == [f"/{sources.ARCHIVE}"]


def test_an_unpacking_that_was_cut_off_is_done_again(small_cifar, tmp_path):
    cache = tmp_path / "cache"
    archive = str(small_cifar / sources.ARCHIVE)
    dataset.load(archive, **FULL, cache=cache)
    (cache / sources.BATCHES / "data_batch_3").write_bytes(b"half")
    split = dataset.load(archive, **FULL, seed=1, cache=cache)
    assert is_small_cifar(split, small_cifar)


@pytest.mark.parametrize("place", ["", sources.ARCHIVE])
def test_changed_cifar_files_are_refused(small_cifar, tmp_path, place):
    for name in (sources.ARCHIVE, f"{sources.BATCHES}/data_batch_2"):
        (small_cifar / name).write_bytes(b"something else")
    with pytest.raises(InputError, match="MD5"):
        dataset.load(str(small_cifar / place), **FULL, cache=tmp_path / "cache")


# Image folders


def test_any_mode_becomes_rgb(image_folder, tmp_path):
    ramp = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    colour = np.stack([ramp, 255 - ramp, ramp // 2], -1)
    folder = image_folder / "train/cat"
    Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE).save(folder / "p.png")
    Image.fromarray(ramp).save(folder / "grey.png")
    Image.fromarray(np.dstack([colour, ramp])).save(folder / "rgba.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(folder / "sixteen.png")
    Image.fromarray(ramp > 127).save(folder / "bits.png")
    Image.fromarray(colour).convert("CMYK").save(folder / "cmyk.JPG")
    grey = np.repeat(ramp[..., None], 3, -1)
    for name, expected in {
        "grey": grey,
        "rgba": colour,
        "sixteen": grey,
        "bits": (grey > 127) * 255,
    }.items():
        assert np.array_equal(sources.read_image(folder / f"{name}.png"), expected), name
    split = dataset.load(str(image_folder), **FULL, cache=tmp_path / "cache")
    assert split.train.counts(3) == [8, 8, 14]


def test_a_folder_is_named_in_the_source(image_folder, tmp_path):
    split = dataset.load(str(image_folder), **FULL, cache=tmp_path / "cache")
    assert split.source == "image folder photos"


def damaged(path, how):
    if how == "no image":
        path.write_bytes(b"hello")
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-900])
    elif how == "broken":
        whole = bytearray(path.read_bytes())
        whole[60:90] = bytes(30)
        path.write_bytes(whole)
    else:
        Image.new("RGB", (32, 31)).save(path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("no image", "not an image"),
        ("truncated", "damaged"),
        ("broken", "damaged"),
        ("size", "32x31 pixels; it must be 32x32"),
    ],
)
def test_a_bad_image_is_named(image_folder, tmp_path, how, words):
    damaged(image_folder / "train/truck/0003.png", how)
    with pytest.raises(InputError, match=rf"train/truck/0003\.png: .*{words}"):
        dataset.load(str(image_folder), **FULL, cache=tmp_path / "cache")


def test_a_folder_of_another_kind_says_what_is_missing(tmp_path):
    with pytest.raises(InputError, match="holds none of cifar-10-batches-py, train/ and test/"):
        dataset.load(str(tmp_path))


# The course's pickles


def course_items(count, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=generator)
    return [(image.float() / 127.5 - 1, i % 3) for i, image in enumerate(images)], images


@pytest.fixture
def course(tmp_path):
    root = tmp_path / "course"
    root.mkdir()
    images = {}
    for seed, (file, part, count) in enumerate(
        (("train", "train", 30), ("dev", "test", 9)),
    ):
        items, images[part] = course_items(count, seed)
        (root / f"{file}.pickle").write_bytes(pickle.dumps(items))
    return root, images


def test_course_pickles_stay_whole_and_in_order(course, tmp_path):
    root, images = course
    split = dataset.load(str(root), cache=tmp_path / "cache")
    for part in ("train", "test"):
        found = getattr(split, part)
        assert torch.equal(found.images.long(), images[part])
        assert found.labels.tolist() == [i % 3 for i in range(len(images[part]))]
    assert split.classes == ("car", "truck", "cat")


class Harmful:
    def __reduce__(self):
        return builtins.print, ("this must never be printed",)


class HarmfulStorage:
    """torch.storage._load_from_bytes, handed a pickle with a call inside."""

    def __reduce__(self):
        return torch.storage._load_from_bytes, (pickle.dumps(Harmful(), protocol=2),)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps([(Harmful(), 1)]), "builtins.print, which is not allowed"),
        (pickle.dumps([(HarmfulStorage(), 1)]), "not a list of"),
        (b"not a pickle", "not a list of"),
        (b"", "not a list of"),
        (pickle.dumps([]), "not a list of"),
        (pickle.dumps([(torch.zeros(3, 32, 31), 0)]), "must be 3x32x32"),
        (pickle.dumps([(torch.full((3, 32, 32), 1.5), 0)]), r"values in \[-1, 1\]"),
        (pickle.dumps([(torch.full((3, 32, 32), torch.nan), 0)]), r"values in \[-1, 1\]"),
        (pickle.dumps([(torch.zeros(3, 32, 32), 3)]), "labels go from 3 to 3"),
    ],
)
def test_other_pickles_are_refused(course, tmp_path, capsys, content, words):
    root, _ = course
    (root / "dev.pickle").write_bytes(content)
    with pytest.raises(InputError, match=rf"dev\.pickle: .*{words}"):
        dataset.load(str(root), cache=tmp_path / "cache")
    assert "never" not in capsys.readouterr().out


# torch and torchvision that don't match


def test_a_mismatched_torchvision_says_what_to_install(monkeypatch):
    class Broken:
        def find_spec(self, name, *_):
            if name == "torchvision.datasets":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    with pytest.raises(InputError, match="install --force-reinstall torch torchvision"):
        sources.torchvision_datasets()
