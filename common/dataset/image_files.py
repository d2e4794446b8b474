"""Image files: PNG and JPEG, 32x32 pixels."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.errors import InputError
from common.files import require_regular

SIZE = 32
FORMATS = ("PNG", "JPEG")
SUFFIXES = (".png", ".jpg", ".jpeg")
MAX_BYTES = 4 << 20  # the pixels take some KB; a colour profile for print takes up to 3 MB


def read_image(path: Path) -> np.ndarray:
    """Return an image file as uint8 (32, 32, 3); raise InputError if it is no such image.

    The image has any colour mode. Nothing is decoded before its format and size are known.
    """
    require_regular(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: more than {MAX_BYTES >> 20} MB; save its pixels alone")
        content = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the checks below decide, in one line
            return _decode(content, path)
    except UnidentifiedImageError:
        raise InputError(f"{path}: not a PNG or JPEG image; repair or remove it") from None
    except InputError:
        raise
    except Exception as error:  # PIL raises any exception for a damaged file
        raise InputError(f"{path}: a damaged image ({error}); repair or remove it") from None


def _decode(content: bytes, path: Path) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        if image.size != (SIZE, SIZE):
            width, height = image.size
            raise InputError(f"{path}: {width}x{height} pixels; it must be {SIZE}x{SIZE}")
        if getattr(image, "n_frames", 1) != 1:
            raise InputError(f"{path}: several images in one file; save one of them alone")
        if image.mode.startswith("I"):  # 16-bit grey, which convert() would clip
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return np.asarray(image.convert("RGB"))
