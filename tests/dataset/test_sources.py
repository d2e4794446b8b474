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

from common.dataset import DEFAULT_CLASSES, sources
from common.dataset.load import load
from common.errors import InputError

NAMES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
]  # fmt: skip
FULL = {"train_counts": ["full"], "test_counts": ["full"]}


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """A folder with cifar-10-batches-py of 20 images per file, and its archive.

    The checksums in torchvision are replaced by those of the small files.
    """
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
    write("batches.meta", {"label_names": NAMES})
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


def is_small_cifar(split, root, classes=DEFAULT_CLASSES):
    """Return whether train and test hold exactly the images of `classes` in the batch files."""
    for part, batches in (
        (split.train, [f"data_batch_{i}" for i in range(1, 6)]),
        (split.test, ["test_batch"]),
    ):
        expected = set()
        for batch in batches:
            content = pickle.loads((root / sources.BATCHES / batch).read_bytes())
            for row, label in zip(content["data"], content["labels"], strict=True):
                if NAMES[label] in classes:
                    expected.add((row.tobytes(), classes.index(NAMES[label])))
        found = {
            (image.numpy().tobytes(), label)
            for image, label in zip(part.images, part.labels.tolist(), strict=True)
        }
        if found != expected:
            return False
    return True


@pytest.mark.parametrize("path", ["", sources.BATCHES, sources.ARCHIVE])
def test_cifar_batches_and_archive_are_read(small_cifar, tmp_path, path):
    split = load(str(small_cifar / path), **FULL, cache=tmp_path / "cache")
    assert is_small_cifar(split, small_cifar)
    assert split.source == "CIFAR-10"


def test_other_cifar_classes_are_read_in_any_order(small_cifar, tmp_path):
    classes = ("ship", "dog", "airplane", "frog")
    split = load(str(small_cifar), classes=classes, **FULL, cache=tmp_path / "cache")
    assert split.classes == classes
    assert (split.train.counts(4), split.test.counts(4)) == ([10] * 4, [2] * 4)
    assert is_small_cifar(split, small_cifar, classes)


def test_cifar_is_downloaded_once(small_cifar, tmp_path, monkeypatch):
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_):
            requests.append(self.path)

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=small_cifar))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{sources.ARCHIVE}"
    monkeypatch.setenv("CIFAR10_URL", url)
    try:
        for seed in (0, 1):  # the split of seed 1 is not in the cache, but the images are
            split = load("cifar10", **FULL, seed=seed, cache=tmp_path / "cache")
            assert is_small_cifar(split, small_cifar)
    finally:
        server.shutdown()
        server.server_close()
    assert requests == [f"/{sources.ARCHIVE}"]


def test_incomplete_unpacking_is_repeated(small_cifar, tmp_path):
    cache = tmp_path / "cache"
    archive = str(small_cifar / sources.ARCHIVE)
    load(archive, **FULL, cache=cache)
    (cache / sources.BATCHES / "data_batch_3").write_bytes(b"half")
    split = load(archive, **FULL, seed=1, cache=cache)
    assert is_small_cifar(split, small_cifar)


@pytest.mark.parametrize("path", ["", sources.ARCHIVE])
def test_changed_cifar_files_are_refused(small_cifar, tmp_path, path):
    for name in (sources.ARCHIVE, f"{sources.BATCHES}/data_batch_2"):
        (small_cifar / name).write_bytes(b"something else")
    with pytest.raises(InputError, match="MD5"):
        load(str(small_cifar / path), **FULL, cache=tmp_path / "cache")


def test_every_colour_mode_becomes_rgb(image_folder, tmp_path):
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
    expected = {"grey": grey, "rgba": colour, "sixteen": grey, "bits": (grey > 127) * 255}
    for name, pixels in expected.items():
        assert np.array_equal(sources.read_image(folder / f"{name}.png"), pixels), name
    split = load(str(image_folder), **FULL, cache=tmp_path / "cache")
    assert split.train.counts(3) == [8, 8, 14]
    assert split.source == "image folder photos"


def write_text(path):
    path.write_bytes(b"hello")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-900])


def overwrite_bytes(path):
    contents = path.read_bytes()
    path.write_bytes(contents[:60] + bytes(30) + contents[90:])


def change_size(path):
    Image.new("RGB", (32, 31)).save(path)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (write_text, "not an image"),
        (truncate, "damaged"),
        (overwrite_bytes, "damaged"),
        (change_size, "32x31 pixels; it must be 32x32"),
    ],
)
def test_unusable_image_is_named(image_folder, tmp_path, damage, words):
    damage(image_folder / "train/truck/0003.png")
    with pytest.raises(InputError, match=rf"train/truck/0003\.png: .*{words}"):
        load(str(image_folder), **FULL, cache=tmp_path / "cache")


def test_folder_of_no_known_kind_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds none of cifar-10-batches-py, train/ and test/"):
        load(str(tmp_path))


@pytest.fixture
def course(tmp_path):
    """A folder with the course's pickles, and the images of its parts."""
    root = tmp_path / "course"
    root.mkdir()
    images = {}
    for file, part, count in (("train", "train", 30), ("dev", "test", 9)):
        generator = torch.Generator().manual_seed(count)
        images[part] = torch.randint(0, 256, (count, 3, 32, 32), generator=generator)
        items = [(image.float() / 127.5 - 1, i % 3) for i, image in enumerate(images[part])]
        (root / f"{file}.pickle").write_bytes(pickle.dumps(items))
    return root, images


def test_course_pickles_stay_whole_and_in_order(course, tmp_path):
    root, images = course
    split = load(str(root), cache=tmp_path / "cache")
    for part in ("train", "test"):
        found = getattr(split, part)
        assert torch.equal(found.images.long(), images[part])
        assert found.labels.tolist() == [i % 3 for i in range(len(images[part]))]
    assert split.classes == ("car", "truck", "cat")


class Harmful:
    def __reduce__(self):
        return builtins.print, ("this must never be printed",)


class HarmfulStorage:
    """A call of torch.storage._load_from_bytes with a pickle that contains another call."""

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
        load(str(root), cache=tmp_path / "cache")
    assert "never" not in capsys.readouterr().out


def test_mismatched_torchvision_names_the_remedy(monkeypatch):
    class Mismatched:
        def find_spec(self, name, *_):
            if name == "torchvision.datasets":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(sys, "meta_path", [Mismatched(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    with pytest.raises(InputError, match="install --force-reinstall torch torchvision"):
        sources.torchvision_datasets()
