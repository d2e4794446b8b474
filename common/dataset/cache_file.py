"""Files of arrays that save time and may be missing, damaged or impossible to write."""

import hashlib
import io
import sys
import zipfile
from functools import cache
from pathlib import Path

import numpy as np

from common.errors import OutputError
from common.files import atomic_write, require_regular

DIGEST_BYTES = 32  # of a SHA-256


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
        content = path.read_bytes()
        content, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
        if hashlib.sha256(content).digest() != digest:
            return None
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            # A made-up file could stand for more than its size: compressed, or overlapping.
            if sum(entry.file_size for entry in entries) > len(content):
                return None
            return {
                entry.filename.removesuffix(".npy"): _parse_array(archive.read(entry))
                for entry in entries
            }
    except Exception:  # a made-up file leads to any exception
        return None


def _parse_array(content: bytes) -> np.ndarray:
    """Return the array in an .npy file; np.load would allocate whatever size it declares."""
    stream = io.BytesIO(content)
    np.lib.format.read_magic(stream)
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    return np.frombuffer(bytearray(content), dtype, offset=stream.tell()).reshape(shape)
