import hashlib
import pickle
import sys
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import CIFAR10

from common.dataset import DEFAULT_CLASSES, image_files, sources
from common.dataset import load as loader
from common.errors import InputError

NAMES = [
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
]  # fmt: skip
TRAIN_BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


@pytest.fixture
def load(tmp_path):
    """The loader with all images of the classes and a separate cache."""

    def load(data, **options):
        full = {"train_counts": ["full"], "test_counts": ["full"], "cache": tmp_path / "cache"}
        return loader.load(str(data), **(full | options))

    return load


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def small_cifar(tmp_path, monkeypatch):
    """A folder with cifar-10-batches-py of 20 images per file, and its archive.

    The checksums in torchvision are replaced by those of the small files.
    """
    root = tmp_path / "published"
    folder, archive = root / sources.BATCHES, root / sources.ARCHIVE
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in [*TRAIN_BATCHES, "test_batch"]:
        data = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
        content = {"data": data, "labels": [i % 10 for i in range(20)]}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": NAMES}))
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, sources.BATCHES)
    train = [[name, md5(folder / name)] for name in TRAIN_BATCHES]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(folder / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))
    return root


def check_cifar(split, root, classes=DEFAULT_CLASSES):
    """Check that train and test hold exactly the images of `classes` in the batch files."""
    for part, batches in ((split.train, TRAIN_BATCHES), (split.test, ["test_batch"])):
        contents = [pickle.loads((root / sources.BATCHES / b).read_bytes()) for b in batches]
        expected = {
            (row.tobytes(), classes.index(NAMES[label]))
            for content in contents
            for row, label in zip(content["data"], content["labels"], strict=True)
            if NAMES[label] in classes
        }
        images = [image.numpy().tobytes() for image in part.images]
        assert set(zip(images, part.labels.tolist(), strict=True)) == expected
        assert len(images) == len(expected)


@pytest.mark.parametrize(
    ("path", "classes"),
    [
        ("", DEFAULT_CLASSES),
        (sources.BATCHES, DEFAULT_CLASSES),
        (sources.ARCHIVE, DEFAULT_CLASSES),
        ("", ("ship", "dog", "airplane", "frog")),
    ],
)
def test_cifar_batches_and_archive_are_read(small_cifar, load, path, classes):
    split = load(small_cifar / path, classes=classes)
    check_cifar(split, small_cifar, classes)
    assert split.source == "CIFAR-10"


def test_cifar_is_downloaded_once(small_cifar, load, tmp_path, monkeypatch):
    requests = []

    class Handler(SimpleHTTPRequestHandler):
        def log_request(self, *_):
            requests.append(self.path)

    handler = partial(Handler, directory=small_cifar)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{sources.ARCHIVE}"
        monkeypatch.setenv("CIFAR10_URL", url)
        for seed in (0, 1):  # the split of seed 1 is not in the cache, but the images are
            check_cifar(load("cifar10", seed=seed), small_cifar)
            # As if the unpacking was interrupted: the next load repeats it.
            (tmp_path / "cache" / sources.BATCHES / "data_batch_3").write_bytes(b"half")
        server.shutdown()
    check_cifar(load("cifar10", seed=2), small_cifar)  # unpacks the archive again
    monkeypatch.setattr("torchvision.datasets.utils.extract_archive", None)  # would fail
    check_cifar(load("cifar10", seed=3), small_cifar)
    assert requests == [f"/{sources.ARCHIVE}"]


@pytest.mark.parametrize("path", ["", sources.ARCHIVE])
def test_changed_cifar_files_are_refused(small_cifar, load, path):
    for name in (sources.ARCHIVE, f"{sources.BATCHES}/data_batch_2"):
        (small_cifar / name).write_bytes(b"something else")
    with pytest.raises(InputError, match="MD5"):
        load(small_cifar / path)


def test_a_folder_that_cannot_hold_cifar_is_named(small_cifar, load, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--data .*can't be unpacked into .*file/data.*; or"):
        load(small_cifar / sources.ARCHIVE, cache=tmp_path / "file/data")
    with pytest.raises(InputError, match=r"--data cifar10: .*can't be unpacked"):
        load("cifar10", cache=tmp_path / "file/data")


def test_cifar_that_cannot_be_read_is_named(small_cifar, load, monkeypatch):
    error = PermissionError(13, "Permission denied")
    monkeypatch.setattr(CIFAR10, "_check_integrity", Mock(side_effect=error))
    with pytest.raises(InputError, match="files are missing or have the wrong MD5"):
        load(small_cifar)


def test_every_colour_mode_becomes_rgb(image_folder, load):
    ramp = np.arange(1024, dtype=np.uint8).reshape(32, 32)
    colour = np.stack([ramp, 255 - ramp, ramp // 2], -1)
    opaque = (ramp > 99).astype(np.uint8) * 255
    on_white = np.where(opaque[..., None] > 0, colour, 255)
    palette = Image.fromarray(colour).convert("P", palette=Image.Palette.ADAPTIVE)
    grey = np.repeat(ramp[..., None], 3, -1)
    images = {
        "grey.png": (Image.fromarray(ramp), grey),
        "rgba.png": (Image.fromarray(np.dstack([colour, opaque])), on_white),
        "sixteen.png": (Image.fromarray(ramp.astype(np.uint16) * 257), grey),
        "bits.png": (Image.fromarray(ramp > 127), (grey > 127) * 255),
        "palette.png": (palette, np.asarray(palette.convert("RGB"))),
        "cmyk.JPG": (Image.fromarray(colour).convert("CMYK"), None),
    }
    for name, (image, pixels) in images.items():
        path = image_folder / "train/cat" / name
        image.save(path)
        assert pixels is None or np.array_equal(image_files.read_image(path), pixels), name
    split = load(image_folder)
    assert split.classes == ("cat", "car", "truck")  # the largest first, then by name
    assert split.train.counts(3) == [14, 8, 8]
    assert split.source == "image folder photos"


def test_unusable_image_is_named(image_folder, load):
    path = image_folder / "train/truck/0003.png"
    whole = path.read_bytes()
    Image.new("RGB", (32, 31)).save(path)
    cases = [
        (b"hello", "not a PNG, JPEG, .* image; .*; --skip-damaged leaves"),
        (whole[:-900], "damaged"),
        (whole[:60] + bytes(30) + whole[90:], "damaged"),
        (path.read_bytes(), "32x31 pixels, not 32x32; --image-size N"),
    ]
    for content, words in cases:
        path.write_bytes(content)
        with pytest.raises(InputError, match=rf"train/truck/0003\.png: .*{words}"):
            load(image_folder)


def test_folder_of_no_known_kind_is_refused(load, tmp_path):
    with pytest.raises(InputError, match="holds none of cifar-10-batches-py, train/ and test/"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("message", "error", "words"),
    [
        ("operator torchvision::nms does not exist", InputError, "--force-reinstall torch"),
        ("something else", RuntimeError, "something else"),
    ],
)
def test_mismatched_torchvision_names_the_remedy(monkeypatch, message, error, words):
    class Mismatched:
        def find_spec(self, name, *_):
            if name == "torchvision.datasets":
                raise RuntimeError(message)

    monkeypatch.setattr(sys, "meta_path", [Mismatched(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    with pytest.raises(error, match=words):
        sources.torchvision_datasets()
