"""Image files: one image each, in the formats of photographs."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import InputError
from common.files import require_regular
from common.networks.torchvision_networks import import_torchvision

SIZE = 32  # pixels of a side where no other size is asked for
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_BYTES = 4 << 20  # of 32x32 pixels: some KB, and a colour profile for print of up to 3 MB
MAX_PHOTOGRAPH_BYTES = 1 << 28
MAX_PIXELS = 100_000_000  # of a photograph; in memory 0.3 GB


def files_in(folder: Path | str) -> Iterator[os.DirEntry]:
    """Yield the image files in a folder and the folders below it, by name.

    Hidden files and folders are left out. Raises InputError for a link to a folder, which may
    lead anywhere, or round, and OSError for a folder that can't be read.
    """
    for entry in sorted(os.scandir(folder), key=attrgetter("name")):
        if entry.name.startswith("."):  # such as macOS's ._photo.jpg
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from files_in(entry.path)
        elif entry.is_symlink() and os.path.isdir(entry.path):
            raise InputError(f"{entry.path}: a link to a folder; put the folder itself there")
        elif entry.name.lower().endswith(SUFFIXES):
            yield entry


class DamagedImageError(InputError):
    """A file that no image can be read from."""


def read_image(path: Path, size: int | None = None) -> np.ndarray:
    """Return the image in a file as uint8 (S, S, 3), RGB.

    size: S. The shorter side is resized to it, antialiased, and the middle is kept. Without it
    S is 32, and an image of another size is refused. The orientation that EXIF data give is
    applied, transparent pixels become white, and of a GIF the first frame is read. Nothing is
    decoded before its format and size are known. Raises DamagedImageError for a file that no
    image can be read from, and InputError for an image of another size.
    """
    with quiet():
        return _read(path, size)


def read_images(
    paths: Sequence[Path], size: int | None = None
) -> list[np.ndarray | DamagedImageError]:
    """Return what `read_image` returns for each path, or its DamagedImageError.

    The files are read by several threads. Raises InputError for an image of another size.
    """

    def read(path: Path) -> np.ndarray | DamagedImageError:
        try:
            return _read(path, size)
        except DamagedImageError as error:
            return error

    # The filters of warnings are global: no thread may change them for itself.
    with quiet(), ThreadPoolExecutor() as executor:
        return list(executor.map(read, paths))


@contextmanager
def quiet() -> Iterator[None]:
    """Silence PIL's warnings within the block: a file that can't be used is one line anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(path: Path, size: int | None) -> np.ndarray:
    most = MAX_BYTES if size is None else MAX_PHOTOGRAPH_BYTES
    try:
        require_regular(path)
    except InputError as error:
        raise DamagedImageError(str(error)) from None
    try:
        if path.stat().st_size > most:
            raise DamagedImageError(f"{path}: more than {most >> 20} MB; save its pixels alone")
        return _decode(path.read_bytes(), path, size)
    except UnidentifiedImageError:
        formats = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        raise DamagedImageError(f"{path}: not a {formats} image; repair or remove it") from None
    except InputError:
        raise
    except Exception as error:  # PIL raises any exception for a damaged file
        reason = " ".join(str(error).split())
        raise DamagedImageError(
            f"{path}: a damaged image ({reason}); repair or remove it"
        ) from None


def _decode(content: bytes, path: Path, size: int | None) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        width, height = image.size
        if size is None and (width, height) != (SIZE, SIZE):
            raise InputError(
                f"{path}: {width}x{height} pixels, not {SIZE}x{SIZE}; --image-size N resizes"
                " the shorter side of each image to N and keeps the middle, N x N"
            )
        # A long and narrow image grows when its shorter side is resized.
        larger = max(1.0, (size or SIZE) / max(1, min(width, height)))
        if width * height * larger**2 > MAX_PIXELS:
            raise DamagedImageError(
                f"{path}: {width}x{height} pixels are too many; reduce or crop the image"
            )
        # Of an animation the first frame is read, of a photograph with previews (MPO) itself.
        if image.format not in ("GIF", "MPO") and getattr(image, "n_frames", 1) != 1:
            raise DamagedImageError(
                f"{path}: several images in one file; save one of them alone"
            )
        image.load()
        upright = image
        with suppress(Exception):  # EXIF data that can't be read give no orientation
            upright = ImageOps.exif_transpose(image)
        pixels = _as_rgb(upright, path)
        if size is not None and pixels.size != (size, size):
            pixels = _resize(pixels, size)
        return np.array(pixels)


def _as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """Return an image of any colour mode in RGB, its transparent pixels on white."""
    if image.mode.startswith("I;16"):  # 16-bit grey, which convert() would clip
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise DamagedImageError(f"{path}: pixels of 32 bits; save the image with 8 or 16")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _resize(image: Any, size: int) -> Any:
    """Return an image of PIL, or a tensor (..., H, W), resized and cropped to size x size."""
    functional = import_torchvision("transforms.v2.functional")
    image = functional.resize(image, [size], antialias=True)
    return functional.center_crop(image, [size])


def resize_images(images: np.ndarray, size: int) -> np.ndarray:
    """Return square images, uint8 (N, S, S, 3), at another size, antialiased."""
    if images.shape[1] == size:
        return images
    resized = _resize(torch.from_numpy(images).permute(0, 3, 1, 2), size)
    return resized.permute(0, 2, 3, 1).numpy()
