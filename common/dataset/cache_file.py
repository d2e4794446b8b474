"""Files of arrays that save time and may be missing, damaged or impossible to write."""

import hashlib
import io
import math
import sys
import zipfile
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np

from common.errors import OutputError
from common.files import atomic_write, require_regular

DIGEST_BYTES = 32  # of a SHA-256
BLOCK = 1 << 20  # bytes to read at once


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays to `path`: an .npz file, and after its end the SHA-256 of its bytes.

    If that fails, say so on stderr, once for each folder and cause, and go on.
    """
    try:
        with atomic_write(path) as temporary, temporary.open("w+b") as file:
            np.savez(file, **arrays)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").digest()
            file.seek(0, io.SEEK_END)
            file.write(digest)
    except OutputError as error:
        reason = error.__cause__.strerror
        _say_once(f"{path.parent}: can't be written ({reason}); going on without a cache")


@cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr)


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Return the arrays in `path`, or None if the file is missing or was changed in any way."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            size = path.stat().st_size - DIGEST_BYTES
            if _sha256_of_first(file, size) != file.read():
                return None
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
                # A made-up file could stand for more than its size: compressed, or overlapping.
                if sum(entry.file_size for entry in entries) > size:
                    return None
                return {
                    entry.filename.removesuffix(".npy"): _read_array(archive, entry)
                    for entry in entries
                }
    except Exception:  # a made-up file leads to any exception
        return None


def _sha256_of_first(file: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of the first `size` bytes, and leave the file at their end."""
    digest = hashlib.sha256()
    for start in range(0, size, BLOCK):
        digest.update(file.read(min(BLOCK, size - start)))
    return digest.digest()


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """Return the array in an .npy file, read block by block into its own memory.

    np.load would allocate whatever size the file declares. Raises ValueError for an array of
    objects, or of another size than the file's.
    """
    with archive.open(entry) as stream:
        np.lib.format.read_magic(stream)
        shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
        left = entry.file_size - stream.tell()
        if dtype.hasobject or math.prod(shape) * dtype.itemsize != left:
            raise ValueError("not an array of numbers that fills its file")
        array = np.empty(math.prod(shape), dtype)
        content = array.view(np.uint8)
        for start in range(0, left, BLOCK):
            block = stream.read(min(BLOCK, left - start))
            content[start : start + BLOCK] = np.frombuffer(block, np.uint8)
    return array.reshape(shape)
