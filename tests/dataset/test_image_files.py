"""Image files and folders that are damaged, hostile, or not what their names say."""

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from limits import flips, limited, one_line_if_refused
from PIL import Image

from common.dataset import load as loader
from common.dataset.image_files import read_image
from common.errors import InputError

FULL = {"classes": ("automobile", "truck", "cat")}
PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
ROWS = b"".join(b"\0" + row.tobytes() for row in PIXELS)  # as PNG has them


def saved(format, **options):
    """Return PIXELS as a file of the format."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, format, **options)
    return file.getvalue()


def chunk(kind, content):
    crc = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + crc


def png(*chunks, size=(32, 32), after=b""):
    """Return a PNG of PIXELS that declares `size`, with chunks before and after the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(ROWS)) + after + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + pixels


def bomb(start=b"", megabytes=2000):
    """Return `start` and zeros, compressed a thousandfold; the checksum is missing."""
    squeeze = zlib.compressobj()
    first, zeros = (
        squeeze.compress(content) + squeeze.flush(zlib.Z_FULL_FLUSH)
        for content in (start, bytes(1 << 20))
    )
    return first + zeros * megabytes


def tiff_of_floats():
    file = io.BytesIO()
    Image.fromarray(np.zeros((32, 32), np.float32)).save(file, "TIFF")
    return file.getvalue()


BOMB = bomb()
NO_IMAGE = "not a PNG, JPEG, WEBP, BMP, TIFF or GIF image; repair or remove it"
TEXT = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(999_999)))
JPEG, PNG = saved("JPEG"), saved("PNG")
HUGE_JPEG = JPEG.replace(struct.pack(">HH", 32, 32), struct.pack(">HH", 65500, 65500), 1)
ANIMATED = saved("PNG", save_all=True, append_images=[Image.new("RGB", (32, 32))])
DAMAGED = r"damaged image \(.+\); repair"  # a MemoryError would have no text
REFUSED = {
    "181 megapixels": (png(size=(13454, 13454)), DAMAGED),
    "100 megapixels": (png(size=(10000, 10000)), "10000x10000 pixels, not 32x32; --image-size"),
    "JPEG of 4,290 megapixels": (HUGE_JPEG, DAMAGED),
    "no pixels": (png(size=(0, 32)), "image; repair or remove"),
    "33 rows": (png(size=(32, 33)), "32x33 pixels, not 32x32; --image-size N resizes"),
    "zTXt": (png(chunk(b"zTXt", b"key\0\0" + BOMB)), DAMAGED),
    "zTXt after the pixels": (png(after=chunk(b"zTXt", b"key\0\0" + BOMB)), DAMAGED),
    "70 zTXt": (
        png(chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(999_999))) * 70),
        "damaged image",
    ),
    "iTXt": (png(chunk(b"iTXt", b"key\0\1\0en\0key\0" + BOMB)), DAMAGED),
    "iCCP": (png(chunk(b"iCCP", b"key\0\0" + BOMB)), DAMAGED),
    "a long chunk": (PNG[:33] + struct.pack(">I", 1 << 31) + b"tEXt", DAMAGED),
    "4 MB": (png(chunk(b"tEXt", b"key\0" + bytes(4 << 20))), "more than 4 MB"),
    "empty": (b"", NO_IMAGE),
    "text": (b"hello", NO_IMAGE),
    "TIFF of two pages": (
        saved("TIFF", save_all=True, append_images=[Image.new("RGB", (32, 32))]),
        "several images in one file; save one of them alone",
    ),
    "TIFF of 32 bits": (tiff_of_floats(), "pixels of 32 bits; save the image with 8 or 16"),
    "PostScript": (saved("EPS"), NO_IMAGE),
    "animated": (ANIMATED, "several images in one file; save one of them alone"),
    "cut header": (PNG[:20], "image"),
    "cut PNG": (PNG[:-900], DAMAGED),
    "cut JPEG": (JPEG[:-90], DAMAGED),
}


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_other_files_are_refused_in_one_line(tmp_path, capfd, content, words):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    expected = pytest.raises(InputError, match=rf"a\.png: .*{words}")
    with warnings.catch_warnings(record=True) as printed, limited(), expected as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    assert (printed, capfd.readouterr()) == ([], ("", ""))


def test_data_behind_the_pixels_take_no_memory(tmp_path):
    path = tmp_path / "a.png"
    pixels = chunk(b"IDAT", bomb(ROWS))
    path.write_bytes(png()[:33] + pixels + chunk(b"IEND", b""))
    with limited():
        assert np.array_equal(read_image(path), PIXELS)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_flipped_bytes_give_an_image_or_one_line(tmp_path, format):
    path = tmp_path / "a.png"
    changed = 0
    for content in flips(saved(format), 1000):
        path.write_bytes(content)
        with one_line_if_refused():
            image = read_image(path)
            assert (image.dtype, image.shape) == (np.uint8, (32, 32, 3))
            changed += not np.array_equal(image, PIXELS)
    assert format != "PNG" or changed == 0  # only a PNG has checksums


def dangling(path):
    path.symlink_to("no such file")


def looping(path):
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [dangling, looping, os.mkfifo])
def test_an_image_that_is_no_file_is_named(image_folder, tmp_path, make):
    # Also where few images are drawn: this one is probably not among them.
    few = {"train_counts": [1, 1, 1], "test_counts": [1, 1, 1]}
    path = image_folder / "train/cat/9999.png"
    make(path)
    with limited(), pytest.raises(InputError, match=r"train/cat/9999\.png") as caught:
        loader.load(str(image_folder), **few, cache=tmp_path)
    assert "remove it" in str(caught.value)
    with limited(), pytest.raises(InputError, match=r"9999\.png: "):
        read_image(path)


def test_what_is_not_asked_for_does_no_harm(image_folder, tmp_path):
    before = loader.load(str(image_folder), **FULL, cache=tmp_path)
    for name in (b"dog\xff", b"dog\n"):
        os.mkdir(os.fsencode(image_folder / "train") + b"/" + name)
    looping(image_folder / "train/loop")
    dangling(image_folder / "test/none")
    (image_folder / "train/dog").mkdir()
    dangling(image_folder / "train/dog/1.png")
    dangling(image_folder / "train/cat/notes.txt")
    os.mkfifo(image_folder / "train/pipe")
    after = loader.load(str(image_folder), **FULL, seed=0, cache=tmp_path / "other")
    assert before.fingerprint == after.fingerprint
    with pytest.raises(InputError, match=r"(?s)--classes boat: .*dog\\xff"):
        loader.load(str(image_folder), classes=["cat", "boat"], cache=tmp_path)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"\xe9\xff", r"\xe9\xff"),
        (b"\x1b[31m red\n", r"\x1b[31m red\n"),
        ("\u732b \U0001f408".encode(), "\u732b \U0001f408"),
        ("\u202egnp".encode(), r"\u202egnp"),
    ],
)
def test_names_become_text(image_folder, tmp_path, name, shown):
    name = os.fsdecode(name)
    root = image_folder.with_name(name)
    image_folder.rename(root)
    (root / "train/cat/0003.png").rename(root / f"train/cat/{name}.png")
    for _ in range(2):  # drawn, then from the cache
        split = loader.load(str(root), **FULL, cache=tmp_path / "cache")
        assert f"train/cat/{shown}.png" in split.train_files
        assert split.source == f"image folder {shown}"
        "".join([split.source, *split.train_files]).encode()


@pytest.mark.parametrize("folder", ["", "train", "train/cat", "test/truck"])
def test_unreadable_folder_is_named(image_folder, tmp_path, monkeypatch, folder):
    # Tests may run as root, whom no permission stops.
    scandir, closed = os.scandir, image_folder / folder

    def refuse(path):
        if os.fspath(path).startswith(str(closed)):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=f"{closed}.* can't be read .Permission denied.; make"):
        loader.load(str(image_folder), **FULL, cache=tmp_path)


@pytest.mark.parametrize(("size", "target"), [((10001, 10000), 32), ((1, 60000), 224)])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, size, target):
    """The second has few pixels, but its shorter side grows."""
    (tmp_path / "a.png").write_bytes(png(size=size))
    with pytest.raises(InputError, match=f"{size[0]}x{size[1]} pixels are too many; reduce"):
        read_image(tmp_path / "a.png", target)


def test_a_changed_file_is_another_split(image_folder, tmp_path):
    path = image_folder / "train/cat/0001.png"
    before = loader.load(str(image_folder), **FULL, cache=tmp_path)
    stat = path.stat()
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0, 0] ^= 1
    content = path.read_bytes()
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes().ljust(len(content), b"\0"))
    assert path.stat().st_size == stat.st_size
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = loader.load(str(image_folder), **FULL, cache=tmp_path)
    assert after.train_fingerprint != before.train_fingerprint


def test_data_of_no_user_or_with_odd_names_is_refused(tmp_path):
    for data in ("~nobody-here/photos", "a\0b", "x" * 5000, str(tmp_path / ("y" * 300))):
        with pytest.raises(InputError, match="--data") as caught:
            loader.load(data, **FULL, cache=tmp_path)
        assert "\n" not in str(caught.value)
