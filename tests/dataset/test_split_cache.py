"""The cache of drawn splits: damaged, made up, or impossible to write."""

import errno
import hashlib
import io
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from conftest import is_one_line, random_part
from limits import flips, limited

from common.dataset import load as loader
from common.dataset import split_cache
from common.dataset.cache_file import read_arrays
from common.dataset.split import make_split

CLASSES = ("car", "truck", "cat")
FILES = ("a.png", "\u732b.png", "c.png")
SPLIT = make_split(
    random_part((1, 1, 1), seed=1),
    random_part((1, 0, 1), seed=2),
    CLASSES,
    "photos",
    5,
    train_files=FILES,
    train_groups=torch.tensor([0, 1, 0]),
    changes={"damaged": ["b.png"]},
)
SMALL = {"train_counts": [6, 3, 3], "test_counts": [3, 2, 2]}


def read(path, digest="abc"):
    return split_cache.read(path, path.with_suffix(".images"), CLASSES, "photos", digest, 5)


@pytest.fixture
def cached(tmp_path):
    """The path of a cache file with SPLIT."""
    path = tmp_path / "split.npz"
    split_cache.write(path, SPLIT, "abc")
    return path


def test_a_split_is_read_as_written(cached):
    split = read(cached)
    for name in ("train", "test"):
        for a, b in zip(getattr(split, name), getattr(SPLIT, name), strict=True):
            assert torch.equal(a, b)
    assert split.record() == SPLIT.record()
    assert (split.train_files, split.test_files) == (FILES, ())
    assert torch.equal(split.train_groups, SPLIT.train_groups)
    assert read(cached.with_name("none.npz")) is None


def test_every_flipped_byte_is_noticed(cached):
    for content in flips(cached.read_bytes(), 1000):
        cached.write_bytes(content)
        assert read_arrays(cached) is None
    assert read(cached) is None


def npy(shape, dtype="|u1", content=b""):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header + content


def archive(entries, method=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as opened:
        for name, content in entries.items():
            opened.writestr(name, content)
    return file.getvalue()


def overlapping():
    """Return an archive with 100 entries, all of them the same 1 MB of the file."""
    content = archive({"a.npy": npy((1 << 20,), content=bytes(1 << 20))})
    start = content.index(b"PK\1\2")
    entry, end = content[start : start + 51], bytearray(content[-22:])
    end[8:12] = (100).to_bytes(2, "little") * 2
    end[12:16] = (100 * len(entry)).to_bytes(4, "little")
    return content[:start] + entry * 100 + bytes(end)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("mark",)


HARM = pickle.dumps(Harmful())
ZEROS = npy((1 << 26,), content=bytes(1 << 26))
MADE_UP = {
    "empty": b"",
    "no archive": b"hello",
    "a compressed bomb": archive(
        {"a.npy": npy((1 << 26,), content=bytes(1 << 26))}, zipfile.ZIP_DEFLATED
    ),
    "a huge shape": archive({"a.npy": npy((1 << 40,))}),
    "a shape beyond any size": archive({"a.npy": npy((1 << 62, 1 << 62))}),
    "a negative shape": archive({"a.npy": npy((-1, -1))}),
    "a huge type": archive({"a.npy": npy((1,), "|V2000000000")}),
    "a huge header": archive({"a.npy": npy("(" * 30_000)}),
    "overlapping entries": overlapping(),
    "objects": archive({"a.npy": npy((1,), "|O", HARM)}),
    "a pickle": archive({"a.npy": HARM}),
    "no array": archive({"a.npy": b"hello"}),
}


@pytest.mark.parametrize("content", MADE_UP.values(), ids=MADE_UP)
def test_a_made_up_file_is_no_split(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "split.npz"
    path.write_bytes(content + hashlib.sha256(content).digest())
    with limited():
        assert read_arrays(path) is None
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_images", np.zeros((3, 3, 32, 31), np.uint8)),
        ("train_images", np.zeros((2, 3, 32, 32), np.uint8)),
        ("train_images", np.zeros((3, 3, 32, 32), np.int8)),
        ("test_labels", np.array([0, 3])),
        ("test_labels", np.array([0, -1])),
        ("test_labels", np.array([0, 1], np.int32)),
        ("test_labels", np.array([[0], [1]])),
        ("test_labels", np.array(1)),
        ("train_files", np.array(["a"])),
        ("train_files", np.array([1, 2, 3])),
        ("train_files", None),
        ("train_groups", np.array([0, 1])),
        ("train_groups", np.array([0.0, 1, 2])),
        ("changes", np.array("damaged")),
        ("image_size", np.array(16)),
        ("fingerprint", np.array("0-0")),
        ("train_positions", np.array([0, 1, 2])),  # of images in a file that is not there
    ],
)
def test_other_contents_are_no_split(cached, name, value):
    arrays = read_arrays(cached)
    arrays[name] = value
    file = io.BytesIO()
    np.savez(file, **{key: array for key, array in arrays.items() if array is not None})
    content = file.getvalue()
    cached.write_bytes(content + hashlib.sha256(content).digest())
    assert read(cached) is None


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "split.npz")
    with limited():
        assert read(tmp_path / "split.npz") is None


def test_images_are_drawn_without_a_cache_too(tmp_path, capsys):
    expected = loader.load("synthetic", **SMALL, cache=tmp_path / "data")
    (tmp_path / "file").touch()
    folder = tmp_path / "file/data"  # not even root can write there
    for seed in (0, 1):
        split = loader.load("synthetic", **SMALL, seed=seed, cache=folder)
        assert (split.fingerprint == expected.fingerprint) == (seed == 0)
    assert is_one_line(
        capsys.readouterr().err, f"{folder}: can't be written", "without a cache"
    )


def test_a_full_disk_leaves_no_file(tmp_path, capsys, monkeypatch):
    error = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(error))
    split = loader.load("synthetic", **SMALL, cache=tmp_path)
    assert split.train.counts(3) == [6, 3, 3]
    assert is_one_line(capsys.readouterr().err, tmp_path, "(No space left on device)")
    assert list(tmp_path.iterdir()) == []
