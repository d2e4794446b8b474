"""Files that are no checkpoints, each with a part of the line that must refuse it.

Those that execute something make a file called `executed` in the current folder.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from typing import Any

import numpy as np
import torch

DAMAGED = "damaged, or not written by torch.save"
NOT_A_ZIP = "not in PyTorch's zip format"
OBJECTS = "other objects than tensors"
HASH_0 = 2**61 - 1  # it and its multiples have the hash 0 in CPython
TOUCH = b"X\x0e\x00\x00\x00touch executed"
OPEN = b"(X\x08\x00\x00\x00executedX\x01\x00\x00\x00wt"


def archive(content: bytes, *records: bytes, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Return a file as torch.save writes it: a pickle and the records of its tensors."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as made:
        made.writestr("archive/data.pkl", content)
        for key, record in enumerate(records):
            made.writestr(f"archive/data/{key}", record)
    return file.getvalue()


def value(plain: Any) -> bytes:
    """Return what pushes a value onto the stack of an unpickler."""
    return pickle.dumps(plain, 2)[2:-1]


def tensor(
    size: Any = (4,),
    stride: Any = (1,),
    offset: Any = 0,
    count: Any = 4,
    key: Any = "0",
    storage: bytes = b"torch\nFloatStorage",
) -> bytes:
    """Return what pushes a tensor onto the stack; by default one of the record's 16 bytes."""
    reference = b"(" + value("storage") + b"c" + storage + b"\n" + value(key) + value("cpu")
    arguments = value(offset) + value(size) + value(stride) + b"\x89}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(%b%btQ%btR" % (
        reference,
        value(count),
        arguments,
    )


def weights(pushed: bytes) -> bytes:
    """Return the pickle of a bare checkpoint whose only weight is what `pushed` makes."""
    return b"\x80\x02}%b}%b%bss." % (value("model_state_dict"), value("fc3.bias"), pushed)


def calls(function: bytes, arguments: bytes) -> bytes:
    return b"\x80\x02c%b\n%bR." % (function, arguments)


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def damaged_archives() -> dict[str, tuple[str, bytes]]:
    """Return files that are damaged, compressed or declare too much, and other archives."""
    whole = archive(weights(tensor()), bytes(range(16)))
    entry = whole.index(b"PK\1\2")  # the directory's first entry, that of data.pkl
    last = whole.rindex(b"PK\1\2")

    def at(position: int, layout: str, *values: int) -> bytes:
        changed = bytearray(whole)
        struct.pack_into(layout, changed, position, *values)
        return bytes(changed)

    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as made:
        for i in range(20_000):
            made.writestr(f"archive/data/{i}", b"")
    twice = archive(weights(tensor()), bytes(16), bytes(8)).replace(b"data/1", b"data/0")
    directory = whole[entry:last] * 900  # 900 records are one
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 900, 900, len(directory), entry, 0)
    overlapping = whole[:entry] + directory + end
    foreign = archive(b"\x80\x02}.").replace(b"data.pkl", b"data.txt")
    byteorder = io.BytesIO(archive(b"\x80\x02}."))
    with zipfile.ZipFile(byteorder, "a") as made:
        made.writestr("archive/byteorder", "big")
    numbers = io.BytesIO()
    np.savez(numbers, a=np.zeros(3))
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as made:
        made.addfile(tarfile.TarInfo("storages"))
    legacy = {"_use_new_zipfile_serialization": False}
    bomb = archive(weights(tensor()), bytes(2**26), compression=zipfile.ZIP_DEFLATED)
    wrong = whole.replace(bytes(range(16)), bytes(16))
    return {
        "empty": (NOT_A_ZIP, b""),
        "one byte": (NOT_A_ZIP, b"P"),
        "text": (NOT_A_ZIP, b"not a checkpoint\n"),
        "HTML": (NOT_A_ZIP, b"<!DOCTYPE html><title>404</title>"),
        "JSON": (NOT_A_ZIP, b'{"weights": {}}'),
        "git-lfs": (NOT_A_ZIP, b"version https://git-lfs.github.com/spec/v1\nsize 2\n"),
        "zeros": (NOT_A_ZIP, bytes(2**20)),
        "random": (NOT_A_ZIP, np.random.default_rng(0).bytes(2**20)),
        "PyTorch's older format": (NOT_A_ZIP, saved({"model_state_dict": {}}, **legacy)),
        "PyTorch's oldest format": (NOT_A_ZIP, tar.getvalue()),
        **{
            f"cut to {share} %": (NOT_A_ZIP, whole[: len(whole) * share // 100])
            for share in (1, 10, 25, 50, 75, 90, 99)
        },
        "start cut off": (DAMAGED, whole[100:]),
        "archive without records": (DAMAGED, b"PK\5\6" + bytes(18)),
        "other archive": (DAMAGED, foreign),
        "NumPy archive": (DAMAGED, numbers.getvalue()),
        "deflated": ("has compressed records", bomb),
        "bzip2": ("has compressed records", archive(b"", compression=zipfile.ZIP_BZIP2)),
        "lzma": ("has compressed records", archive(b"", compression=zipfile.ZIP_LZMA)),
        "unknown compression": ("has compressed records", at(entry + 10, "<H", 77)),
        "encrypted": (DAMAGED, at(entry + 8, "<H", 1)),
        "needs a later zip": (DAMAGED, at(entry + 6, "<H", 99)),
        "wrong checksum": ("the checksum of a record is wrong", wrong),
        "wrong checksum in the directory": ("the checksum", at(last + 16, "<I", 5)),
        "size of 4 GB": ("declare more bytes", at(last + 20, "<2I", 2**32 - 2, 2**32 - 2)),
        "stored size of 4 GB": ("declare more bytes", at(last + 20, "<I", 2**32 - 2)),
        "inflated size of 4 GB": ("declare more bytes", at(last + 24, "<I", 2**32 - 2)),
        "other offset": ("the checksum of a record is wrong", at(last + 42, "<I", 3)),
        "offset beyond the end": (
            "the checksum of a record is wrong",
            at(last + 42, "<I", 2**31),
        ),
        "other name in the directory": (
            "the checksum of a record is wrong",
            at(last + 46, "<B", 65),
        ),
        "two records of one name": ("two records have one name", twice),
        "overlapping records": ("declare more bytes", overlapping),
        "20,000 records": ("more than 10000 records", many.getvalue()),
        "big-endian": ("another byte order", byteorder.getvalue()),
        "no record for a tensor": (DAMAGED, archive(weights(tensor()))),
    }


def hostile_pickles() -> dict[str, tuple[str, bytes]]:
    """Return files whose pickle executes something, or takes much time or memory."""
    save = b"\x80\x02%b."
    nested: tuple[Any, ...] = ()
    for _ in range(30):
        nested = (nested,) * 10
    empty_key = b"X\x00\x00\x00\x00"
    system = calls(b"os\nsystem", b"(" + TOUCH + b"t")
    pickles = {
        "no opcode": (DAMAGED, b""),
        "random": (DAMAGED, np.random.default_rng(1).bytes(1000)),
        "no end": (DAMAGED, weights(tensor())[:-1]),
        "stack underflow": (DAMAGED, b"\x80\x02s."),
        "no mark": (DAMAGED, b"\x80\x02]e."),
        "memo without entry": (DAMAGED, b"\x80\x02h\x07."),
        "2 MB": ("bytes beside its tensors", save % value("x" * 2**21)),
        # Executes
        "os.system": (OBJECTS, system),
        "posix.system": (OBJECTS, calls(b"posix\nsystem", b"(" + TOUCH + b"t")),
        "builtins.open": (OBJECTS, calls(b"builtins\nopen", OPEN)),
        "__builtin__.open": (OBJECTS, calls(b"__builtin__\nopen", OPEN)),
        "torch.os.system": (OBJECTS, calls(b"torch\nos.system", b"(" + TOUCH + b"t")),
        "torch.save": (OBJECTS, calls(b"torch\nsave", b"(]" + TOUCH[:5] + b"executed      t")),
        "torch.hub": (OBJECTS, calls(b"torch.hub\nload", OPEN)),
        "numpy.save": (OBJECTS, calls(b"numpy\nsave", OPEN)),
        "pathlib.Path": (OBJECTS, calls(b"pathlib\nPath", OPEN)),
        "this project's code": (OBJECTS, calls(b"common.files\nwrite_text", OPEN)),
        "opcode INST": (DAMAGED, b"\x80\x02(" + TOUCH + b"ios\nsystem\n."),
        "opcode OBJ": (OBJECTS, b"\x80\x02(cos\nsystem\n" + TOUCH + b"o."),
        "opcode NEWOBJ": (DAMAGED, b"\x80\x02ccollections\nOrderedDict\n)\x81."),
        "opcode STACK_GLOBAL": (DAMAGED, b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
        "opcode EXT1": (DAMAGED, b"\x80\x02\x82\x01."),
        "opcode PERSID": (DAMAGED, b"\x80\x02P0\n."),
        "opcode FRAME": (DAMAGED, b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N."),
        "protocol 255": (DAMAGED, b"\x80\xff}."),
        "call of a string": (DAMAGED, b"\x80\x02" + TOUCH + b")R."),
        "call of a type": (DAMAGED, calls(b"torch\nFloatStorage", b")")),
        "attribute of a function": (
            DAMAGED,
            b"\x80\x02ccollections\nOrderedDict\nN}%b)s\x86b." % value("__defaults__"),
        ),
        "metadata of a function": (
            DAMAGED, b"\x80\x02ccollections\nOrderedDict\n}%b)sb." % value("_metadata")
        ),
        "another attribute of a dict": (
            DAMAGED, b"\x80\x02ccollections\nOrderedDict\n)R}%b)sb." % value("keys")
        ),
        # Memory and time
        "LONG_BINPUT": ("not a dict", b"\x80\x02Nr\xff\xff\xff\x7f."),
        "BINUNICODE of 4 GB": (DAMAGED, b"\x80\x02X\xff\xff\xff\xff."),
        "BINUNICODE8": (DAMAGED, b"\x80\x04\x8d" + struct.pack("<Q", 2**33) + b"."),
        "BINBYTES8": (DAMAGED, b"\x80\x04\x8e" + struct.pack("<Q", 2**33) + b"."),
        "BYTEARRAY8": (DAMAGED, b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"."),
        "LONG4": (DAMAGED, b"\x80\x02\x8b\xff\xff\xff\x7f."),
        "bytearray of 4 GB": (OBJECTS, calls(b"builtins\nbytearray", b"(J\xff\xff\xff\x7ft")),
        "FloatTensor of 4 GB": (OBJECTS, calls(b"torch\nFloatTensor", b"(J\xff\xff\xff\x3ft")),
        "list in list": ("not a dict", save % (b"]" * 900_000 + b"a" * 90_000)),
        "tuple in tuple": ("not a dict", save % (b")" + b"\x85" * 1_000_000)),
        "1,000,000 dicts": ("architecture is missing", save % (b"}" * 1_000_000)),
        "marks": (DAMAGED, save % (b"(" * 1_000_000)),
        "dict of dicts": (
            # A dict of 10,000 names, and 70,000 calls of OrderedDict that would copy it.
            DAMAGED,
            save % (
                value({f"{i}": 0 for i in range(10_000)}) + b"\x85q\x02"
                + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x02R" * 70_000
            ),
        ),
        "keys of one hash": (
            DAMAGED,
            save % (b"}(%bu" % b"".join(value(i * HASH_0) + b"N" for i in range(30_000))),
        ),
        "key that is a tuple": (DAMAGED, b"\x80\x02})Ns."),
        "item of a tensor": (DAMAGED, save % (tensor() + empty_key + b"Ns")),
        "item of a list": (DAMAGED, b"\x80\x02]K\x00Ns."),
        "odd number of items": (DAMAGED, b"\x80\x02}(" + empty_key + b"u."),
        "append to a tensor": (DAMAGED, save % (tensor() + b"Na")),
        # Tensors
        "expanded tensor": ("more numbers than it has", weights(tensor((2**30,), (0,)))),
        "expanded in one dimension": ("more numbers", weights(tensor((2**28, 4), (0, 1)))),
        "tensor beyond its record": ("more numbers", weights(tensor((5,)))),
        "offset beyond its record": (DAMAGED, weights(tensor((4,), (1,), offset=1))),
        "stride beyond its record": (DAMAGED, weights(tensor((2,), (2**40,)))),
        "negative offset": (DAMAGED, weights(tensor((1,), (1,), offset=-1))),
        "negative stride": (DAMAGED, weights(tensor((2,), (-1,)))),
        "negative size": (DAMAGED, weights(tensor((-2,), (1,)))),
        "size beyond an integer": (DAMAGED, weights(tensor((0, 2**70), (1, 1)))),
        "size of text": (DAMAGED, weights(tensor(("x" * 1000, 3 * 10**6), (1, 1)))),
        "size of a float": (DAMAGED, weights(tensor((1.5,), (1,)))),
        "size None": (DAMAGED, weights(tensor(None, (1,)))),
        "more strides than sizes": (DAMAGED, weights(tensor((4,), (1, 1)))),
        "100,000 dimensions": (DAMAGED, weights(tensor((1,) * 100_000, (1,) * 100_000))),
        "record of other size": ("another size than declared", weights(tensor(count=3))),
        "record of other type": (
            "another size", weights(tensor(storage=b"torch\nLongStorage"))
        ),
        "count of text": ("another size", weights(tensor(count="4"))),
        "key outside": (DAMAGED, weights(tensor(key="../data.pkl"))),
        "key of a tuple": (DAMAGED, weights(tensor(key=nested))),
        "storage without type": (DAMAGED, weights(tensor(storage=b"collections\nOrderedDict"))),
        "half precision": (OBJECTS, weights(tensor(storage=b"torch\nHalfStorage"))),
        "reference of text": (DAMAGED, b"\x80\x02" + value("storage") + b"Q."),
        "reference of a number": (DAMAGED, b"\x80\x02K\x00Q."),
        "tensor of nothing": (DAMAGED, calls(b"torch._utils\n_rebuild_tensor_v2", b"(t")),
    }  # fmt: skip
    files = {
        f"pickle, {name}": (reason, archive(content, bytes(16)))
        for name, (reason, content) in pickles.items()
    }
    shared = b"".join(value(f"{i}") + tensor((2**21,), count=2**21) for i in range(60))
    shared = b"\x80\x02}%b}(%bus." % (value("model_state_dict"), shared)
    files["60 weights of the same 8 MB"] = ("need more memory", archive(shared, bytes(2**23)))
    for protocol in range(6):
        content = pickle.dumps(Executes(), protocol)
        files[f"bare pickle of protocol {protocol}"] = (NOT_A_ZIP, content)
    for name, made in {
        "parameter": torch.nn.Parameter(torch.zeros(3)),
        "sparse tensor": torch.zeros(3).to_sparse(),
        "meta tensor": torch.zeros(3, device="meta"),
        "complex tensor": torch.zeros(3, dtype=torch.complex64),
        "whole network": torch.nn.Linear(2, 2),
        "NumPy array": np.zeros(3),
        "set": {1, 2},
        "bytes": b"bytes",
        "complex number": 1j,
    }.items():
        files[f"saved {name}"] = (OBJECTS, saved({"model_state_dict": {"fc3.bias": made}}))
    return files


class Executes:
    def __reduce__(self):
        return open, ("executed", "w")
