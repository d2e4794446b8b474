"""Files of tensors and plain values in PyTorch's zip format, read without trust in them.

torch.load compares no checksum, so that a changed byte changes a weight unnoticed, and a pickle
of some bytes can make it reserve any amount of memory. `read_tensors` reads the same format
with Python's zipfile and unpickler, in time and memory that only the size of the file bounds.

The format: a zip archive, in which NAME/data.pkl is a pickle of the content. Each tensor in it
refers to a record NAME/data/KEY, which holds the numbers.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import sys
import zipfile
from collections import OrderedDict
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch

from common.errors import InputError
from common.files import atomic_write, require_regular

# Far more than any file of this project has; they bound the time and memory of a hostile one.
MAX_RECORDS = 10_000
MAX_PICKLE_BYTES = 2**20
MAX_DIMENSIONS = 8
MAX_KEY = 2**16

# The course's pre_trained.ckpt: in PyTorch's older format, which has no checksums, so that only
# its own shows that the file is whole.
COURSE_SHA256 = "b5e59a596992c4b68d03ac30a4f5dddc98f88ad0db1cfc1de420f02124888607"
COURSE_BYTES = 266_295

AGAIN = "get the file from its source again"
SAVE_AGAIN = "load it with PyTorch, and save it again with torch.save"


def write_tensors(path: Path, content: dict[str, Any]) -> str:
    """Write tensors and plain values to `path`, atomically; return the SHA-256 of the file.

    The SHA-256 is in hexadecimal. Raises OutputError if the file can't be written.
    """
    # Given a path, torch.save stores the file's name in the file; given a stream, it does not.
    # Of a full disk it makes a RuntimeError, so it writes to memory.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with atomic_write(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())
    return hashlib.sha256(buffer.getbuffer()).hexdigest()


def read_tensors(path: Path) -> Any:
    """Return the content of `path`, as torch.load does, with the tensors on the CPU.

    The content consists of tensors of float32, int64 or uint8 and of None, bool, int, float,
    str, list, tuple, dict and OrderedDict. Nothing else is read, nothing is
    executed, and the memory that is needed is little more than the size of the file. Raises
    InputError for a file that is missing, damaged, or of another kind.
    """
    require_regular(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from None
    try:
        with file:
            return _read(file)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception:  # zipfile and the unpickler raise almost any error for a damaged file
        raise InputError(f"{path}: damaged, or not written by torch.save; {AGAIN}") from None


def _read(file: BinaryIO) -> Any:
    if not zipfile.is_zipfile(file):
        return _read_course_checkpoint(file)
    _require_few_records(file)
    size = file.seek(0, io.SEEK_END)
    with zipfile.ZipFile(file) as archive:
        _require_whole(archive, size)
        names = archive.namelist()
        root = names[0].partition("/")[0]
        byteorder = f"{root}/byteorder"
        if byteorder in names and archive.read(byteorder) != sys.byteorder.encode():
            raise InputError(f"written on a machine with another byte order; {SAVE_AGAIN}")
        return _Unpickler(archive, root).load()


def _read_course_checkpoint(file: BinaryIO) -> Any:
    file.seek(0)
    content = file.read(COURSE_BYTES + 1)
    if hashlib.sha256(content).hexdigest() != COURSE_SHA256:
        raise InputError(
            "damaged, or not in PyTorch's zip format, which has checksums;"
            f" {AGAIN}, or {SAVE_AGAIN}"
        )
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _require_few_records(file: BinaryIO) -> None:
    """Raise InputError for too many records, before zipfile makes an object of each."""
    file.seek(0)
    count = 0
    while block := file.read(2**20):
        count += block.count(b"PK\1\2")  # begins an entry of the archive's directory
    if count > MAX_RECORDS:
        raise InputError(f"has more than {MAX_RECORDS} records; {SAVE_AGAIN}")


def _require_whole(archive: zipfile.ZipFile, size: int) -> None:
    """Raise InputError unless all records are stored as they are, once, with their checksum.

    size: that of the file in bytes.
    """
    records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise InputError(f"has compressed records; {SAVE_AGAIN}")
    # Without this, records that share their bytes could take any time and memory.
    if sum(max(record.file_size, record.compress_size) for record in records) > size:
        raise InputError(f"damaged (its records declare more bytes than it has); {AGAIN}")
    if len({record.filename for record in records}) < len(records):
        raise InputError(f"damaged (two records have one name); {AGAIN}")
    if archive.testzip() is not None:
        raise InputError(f"damaged (the checksum of a record is wrong); {AGAIN}")


def _new_dict() -> OrderedDict[str, Any]:
    """Return an empty OrderedDict; the class would take arguments, such as one to copy."""
    return OrderedDict()


def _rebuild_tensor(
    storage: torch.Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> torch.Tensor:
    """Return a view of `storage`, which may not have fewer numbers than the view.

    A view can repeat a number without end, but a copy of it needs the memory.
    """
    if len(size) > MAX_DIMENSIONS or any(type(length) is not int for length in size):
        raise TypeError
    if prod(size) > storage.numel():
        raise InputError(f"damaged (a tensor declares more numbers than it has); {AGAIN}")
    return storage.as_strided(size, stride, offset)  # raises beyond the end of the storage


DTYPES = (torch.float32, torch.int64, torch.uint8)
GLOBALS = {
    ("collections", "OrderedDict"): _new_dict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "ByteStorage"): torch.uint8,
}

# What torch.save writes for the values that read_tensors allows.
OPCODES = (
    pickle.PROTO, pickle.STOP, pickle.MARK, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE,
    pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT,
    pickle.BINUNICODE, pickle.EMPTY_LIST, pickle.EMPTY_DICT, pickle.EMPTY_TUPLE,
    pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.APPEND, pickle.APPENDS,
    pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET,
    pickle.GLOBAL, pickle.REDUCE, pickle.BINPERSID,
)  # fmt: skip


class _Unpickler(pickle._Unpickler):
    """Unpickle the content of an archive: tensors, plain values and nothing else.

    It is the pure Python unpickler: that in C reserves memory for the largest index that a
    pickle names, and its opcodes can't be chosen.
    """

    dispatch: ClassVar = {code[0]: pickle._Unpickler.dispatch[code[0]] for code in OPCODES}

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        content = archive.getinfo(f"{root}/data.pkl")
        if content.file_size > MAX_PICKLE_BYTES:
            raise InputError(f"holds more than {MAX_PICKLE_BYTES} bytes beside its tensors")
        super().__init__(io.BytesIO(archive.read(content)))
        self.archive, self.root = archive, root
        self.storages: dict[str, bytearray] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in GLOBALS:
            raise InputError(
                "holds other objects than tensors and plain values, which are not safe to load;"
                " save no more than a state_dict"
            )
        return GLOBALS[module, name]

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> torch.Tensor:
        """Return the numbers of a record, one-dimensional."""
        _, dtype, key, _, count = pid
        if not isinstance(key, str):  # the hash of a nested tuple can take for ever
            raise TypeError
        if key not in self.storages:
            self.storages[key] = bytearray(self.archive.read(f"{self.root}/data/{key}"))
        content = self.storages[key]
        if count * dtype.itemsize != len(content):
            raise InputError(f"damaged (a record has another size than declared); {AGAIN}")
        # torch.frombuffer refuses an empty buffer.
        return (
            torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        )

    def load_setitems(self) -> None:
        self._update_dict(self.pop_mark())

    def load_setitem(self) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self._update_dict(items)

    def _update_dict(self, items: list[Any]) -> None:
        # Of other keys, thousands can be made to have the same hash.
        for key in items[::2]:
            if not (isinstance(key, str) or (type(key) is int and 0 <= key < MAX_KEY)):
                raise TypeError
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def load_build(self) -> None:
        """Give a state_dict the version numbers of its modules, which some can't do without."""
        attributes = self.stack.pop()
        if not isinstance(self.stack[-1], OrderedDict):  # a function has attributes too
            raise TypeError
        self.stack[-1]._metadata = attributes["_metadata"]

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BUILD[0]] = load_build
