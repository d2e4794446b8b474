"""The course's pickles: a list of (float tensor (3, 32, 32) in [-1, 1], int label).

A pickle is a program, which Python's unpickler would run. This module interprets the few
instructions that such a list consists of, with few and small objects, and refuses all others.
"""

import io
import pickletools
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

from common.dataset.image_files import SIZE
from common.errors import InputError
from common.files import require_regular

MAX_BYTES = 1 << 28  # 20,000 images
SHAPE = (3, SIZE, SIZE)
VALUES = 3 * SIZE * SIZE
# An image takes at least these bytes of the file: in half precision. So a small file can't
# stand for many images.
IMAGE_BYTES = 2 * VALUES
# An image in single precision takes 12,600 bytes and 60 instructions.
BYTES_PER_INSTRUCTION = 64
DTYPES = {"torch HalfStorage": "<f2", "torch FloatStorage": "<f4", "torch DoubleStorage": "<f8"}
PUSHED = {
    "NONE", "INT", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT", "UNICODE",
    "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip


class Function(Enum):
    """The functions that a pickle of tensors calls, and no others."""

    REBUILD_TENSOR = ("torch._utils", "_rebuild_tensor_v2")
    LOAD_STORAGE = ("torch.storage", "_load_from_bytes")
    ENCODE = ("_codecs", "encode")  # makes bytes, up to protocol 2
    ORDERED_DICT = ("collections", "OrderedDict")  # a tensor's hooks: empty


def read_course_pickle(path: Path, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the images, uint8 (N, 32, 32, 3), and labels, int64 (N,), of a course pickle.

    Reads what pickle.dump writes with any protocol. Raises InputError if the file holds
    anything but tensors and labels 0 to classes - 1.
    """
    require_regular(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MB")
        images, labels = zip(*_interpret(path.read_bytes()), strict=True)
    except Exception as error:  # a damaged file leads to any exception
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise InputError(
            f"{path}: not a list of (float tensor 3x{SIZE}x{SIZE}, int label) as the course"
            f" has it: {reason}; get a fresh copy"
        ) from None
    if min(labels) < 0 or max(labels) >= classes:
        raise InputError(
            f"{path}: labels go from {min(labels)} to {max(labels)}, but --classes names"
            f" {classes} classes; name one class for each label"
        )
    return np.stack(images), np.array(labels, dtype=np.int64)


def _interpret(content: bytes) -> list[tuple[np.ndarray, int]]:
    """Return the list in a pickle, with images as uint8 (32, 32, 3).

    Raises ValueError and other exceptions for any other content.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    images = 0
    stream = io.BytesIO(content)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count > 1000 + len(content) // BYTES_PER_INSTRUCTION:
            raise ValueError("it has more instructions than images need")
        name = opcode.name
        if name in PUSHED:
            stack.append(argument)
            continue
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "NEWTRUE" | "NEWFALSE":
                stack.append(name == "NEWTRUE")
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "LIST":
                stack.append(_pop(stack, marks.pop()))
            case "TUPLE":
                stack.append(tuple(_pop(stack, marks.pop())))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(_pop(stack, len(stack) - int(name[-1]))))
            case "APPEND" | "APPENDS":
                items = _pop(stack, marks.pop() if name == "APPENDS" else len(stack) - 1)
                list.extend(stack[-1], items)
            case "GLOBAL":
                stack.append(_function(*argument.split(" ")))
            case "STACK_GLOBAL":
                stack.append(_function(*_pop(stack, len(stack) - 2)))
            case "REDUCE":
                function, arguments = _pop(stack, len(stack) - 2)
                stack.append(_call(function, arguments))
                images += isinstance(stack[-1], np.ndarray)
                if images * IMAGE_BYTES > len(content):
                    raise ValueError("it makes more images than it has bytes for")
            case _:
                raise ValueError(f"the instruction {name} is not allowed")
    (items,) = stack
    if stream.read(1):
        raise ValueError("it goes on after its end")
    return _checked(items, len(content) // IMAGE_BYTES)


def _pop(stack: list[Any], start: int) -> list[Any]:
    """Remove the items from position `start` on, and return them."""
    if not 0 <= start <= len(stack):
        raise ValueError("it takes more values than it has")
    items = stack[start:]
    del stack[start:]
    return items


def _checked(items: Any, most: int) -> list[tuple[np.ndarray, int]]:
    """Return `items`, which must be a list of at most `most` pairs of image and label."""
    if type(items) is not list or not items:
        raise ValueError("it has no images")
    if len(items) > most:
        raise ValueError("it lists more images than it has bytes for")
    for item in items:
        if type(item) is not tuple or len(item) != 2 or not isinstance(item[0], np.ndarray):
            raise ValueError("an entry is no pair of tensor and label")
        if type(item[1]) is not int:
            raise ValueError(f"a label is of type {type(item[1]).__name__}, not int")
    return items


def _function(module: str, name: str) -> Function:
    try:
        return Function((module, name))
    except ValueError:
        wanted = f"{module}.{name}"[:80]
        raise ValueError(f"it asks for {wanted!r}, which is not allowed") from None


def _call(function: Any, arguments: Any) -> Any:
    """Return what a function returns in a pickle of tensors.

    The functions that make the bytes of a tensor return them as they are, and the last one
    reads them: so no chain of calls can make much of little.
    """
    if type(function) is not Function or type(arguments) is not tuple:
        raise ValueError("it calls what is no function")
    if function is Function.REBUILD_TENSOR:
        return _read_tensor(*arguments)
    return arguments[0] if arguments else None


def _read_tensor(
    content: bytes | str, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any
) -> np.ndarray:
    """Return the image of a tensor, uint8 (32, 32, 3); content: see `_read_storage`."""
    if size != SHAPE:
        raise ValueError(f"tensors must be 3x{SIZE}x{SIZE}")
    numbers = (offset, *stride)
    last = offset + sum((n - 1) * step for n, step in zip(SHAPE, stride, strict=True))
    if any(type(n) is not int or n < 0 for n in numbers) or last >= VALUES:
        raise ValueError("a tensor lies outside its storage")
    values = _read_storage(content)
    steps = [step * values.itemsize for step in stride]
    image = np.lib.stride_tricks.as_strided(values[offset:], SHAPE, steps)
    if not (np.abs(image) <= 1).all():  # false for NaN
        raise ValueError("tensors must have values in [-1, 1]")
    pixels = ((image.astype(np.float32) + 1) * 127.5).round().astype(np.uint8)
    return pixels.transpose(1, 2, 0)


def _read_storage(content: bytes | str) -> np.ndarray:
    """Return the values (3072,) in what torch.save writes for a storage, before PyTorch 1.6.

    content: bytes, or the text that stands for them up to protocol 2. It consists of five
    pickles, of which the fourth tells type and number, the number as 8 bytes, and the values.
    """
    if len(content) > 8 * VALUES + 1000:
        raise ValueError("a storage has more bytes than an image needs")
    content = content.encode("latin1") if isinstance(content, str) else content
    stream = io.BytesIO(content)
    programs = [
        [
            argument
            for opcode, argument, _ in islice(pickletools.genops(stream), 60)
            if not opcode.name.endswith(("PROTO", "PUT"))
        ]
        for _ in range(5)
    ]
    (magic, *_), (version, *_), _, (mark, word, kind, *_), _ = programs
    if (magic, version, mark, word) != (MAGIC_NUMBER, PROTOCOL_VERSION, None, "storage"):
        raise ValueError("a storage is not as torch.save writes it")
    if kind not in DTYPES:
        raise ValueError("a storage is none of floating-point values")
    count = int.from_bytes(stream.read(8), "little")
    values = np.frombuffer(content, DTYPES[kind], offset=stream.tell())
    if count != VALUES or len(values) != VALUES:
        raise ValueError(f"a storage has other than {VALUES} values")
    return values
