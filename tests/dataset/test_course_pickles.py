"""The course's pickles, and pickles that are damaged or hostile."""

import io
import itertools
import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest
import torch
from limits import flips, limited, one_line_if_refused

from common.dataset import load as loader
from common.dataset.course_pickles import MAX_BYTES, read_course_pickle
from common.errors import InputError

PROTOCOLS = range(6)


@pytest.fixture
def course(tmp_path):
    """A folder with the course's pickles, and the images of its parts."""
    root = tmp_path / "course"
    root.mkdir()
    images = {}
    for file, part, count in (("train", "train", 30), ("dev", "test", 9)):
        generator = torch.Generator().manual_seed(count)
        images[part] = torch.randint(0, 256, (count, 3, 32, 32), generator=generator)
        items = [(image.float() / 127.5 - 1, i % 3) for i, image in enumerate(images[part])]
        (root / f"{file}.pickle").write_bytes(pickle.dumps(items))
    return root, images


def test_course_pickles_stay_whole_and_in_order(course, tmp_path):
    root, images = course
    split = loader.load(str(root), cache=tmp_path / "cache")
    for part, found in (("train", split.train), ("test", split.test)):
        assert torch.equal(found.images.long(), images[part])
        assert found.labels.tolist() == [i % 3 for i in range(len(images[part]))]
    assert split.classes == ("car", "truck", "cat")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_type_and_layout_is_read(tmp_path, protocol):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (1003, 3, 32, 32), generator=generator)  # batches of 1000
    images = list(pixels.float() / 127.5 - 1)
    images = [image.clone() for image in images[: 1003 if protocol > 2 else 3]]
    images[0] = images[0].double()
    images[1] = images[1].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    images[2] = torch.zeros(()).expand(3, 32, 32).clone().requires_grad_()
    pixels[2] = 128  # of 127.5, to the nearest even number
    path = tmp_path / "train.pickle"
    path.write_bytes(pickle.dumps([(x, i % 7) for i, x in enumerate(images)], protocol))
    found, labels = read_course_pickle(path, 7)
    expected = pixels[: len(images)].permute(0, 2, 3, 1)
    assert (found.dtype, labels.dtype) == (np.uint8, np.int64)
    assert np.array_equal(found, expected)
    assert labels.tolist() == [i % 7 for i in range(len(images))]


def test_half_precision_is_read(tmp_path):
    path = tmp_path / "dev.pickle"
    image = torch.linspace(-1, 1, 3072).view(3, 32, 32).half()
    path.write_bytes(pickle.dumps([(image, 0)] * 9))
    with pytest.raises(InputError, match="lists more images"):
        read_course_pickle(path, 2)
    path.write_bytes(pickle.dumps([(image.clone(), 0) for _ in range(9)]))
    found, _ = read_course_pickle(path, 2)
    assert [found[0, 0, 0, 0], found[8, -1, -1, -1]] == [0, 255]


def test_a_change_after_the_first_drawing_is_refused(tmp_path):
    root, cache = tmp_path / "course", tmp_path / "cache"
    root.mkdir()
    train, dev = root / "train.pickle", root / "dev.pickle"
    items = [(torch.full((3, 32, 32), k / 4), k) for k in range(3)]
    for path in (train, dev):
        path.write_bytes(pickle.dumps(items))
    split = loader.load(str(root), cache=cache)
    (file,) = cache.iterdir()
    for path in (train, dev):
        whole, stat = path.read_bytes(), path.stat()
        for content in flips(whole, 500):
            path.write_bytes(content)
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            with pytest.raises(InputError, match=f"course: .* changed since {file} was drawn"):
                loader.load(str(root), cache=cache)
        path.write_bytes(whole)
    assert loader.load(str(root), cache=cache).fingerprint == split.fingerprint
    train.write_bytes(pickle.dumps(items[::-1]))
    file.unlink()  # the remedy that the message names
    assert loader.load(str(root), cache=cache).train.labels.tolist() == [2, 1, 0]


# Hostile and damaged pickles

MARK = "mark-that-something-was-executed"
IMAGE = torch.zeros(3, 32, 32)
GOOD = pickle.dumps([(IMAGE, 1), (IMAGE + 1, 0)])


class Call:
    """An object whose pickle calls function(*arguments)."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts


HARM = Call(os.mkdir, MARK)


def dumps(thing, protocol=4):
    return pickle.dumps(thing, protocol)


def item(thing, label=0, protocol=4):
    return dumps([(thing, label)], protocol)


def storage(content):
    """Return a pickle whose only tensor has this content as its storage."""
    rebuild = torch._utils._rebuild_tensor_v2
    load = Call(torch.storage._load_from_bytes, content)
    return item(Call(rebuild, load, 0, (3, 32, 32), (1024, 32, 1), False, OrderedDict()))


def saved_storage(values):
    file = io.BytesIO()
    torch.save(values.untyped_storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def typed_storage(values):
    file = io.BytesIO()
    torch.save(values._typed_storage(), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def zipped(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


def tensor(offset=0, size=(3, 32, 32), stride=(1024, 32, 1), values=3072):
    """Return a pickle of a tensor with this layout, which need not fit its storage."""
    content = typed_storage(torch.zeros(values))
    load = Call(torch.storage._load_from_bytes, content)
    return item(Call(torch._utils._rebuild_tensor_v2, load, offset, size, stride, False, None))


def many_images(content, count=100):
    """Return a pickle of a tuple with `count` images from one storage."""
    rebuild, load = torch._utils._rebuild_tensor_v2, torch.storage._load_from_bytes
    call = Call(rebuild, Call(load, content), 0, (3, 32, 32), (1024, 32, 1), False, None)
    # The function and its arguments, numbers 0 and 7 of the memo, are the list's first entries.
    once = dumps(call, 3).removesuffix(b"Rq\x08.")
    return b"\x80\3](" + once[2:] + b"(" + b"h\0h\7R" * count + b"tK\0\x86e."


PROLOGUE = b"\x80\x04"
# What a pickle of many references to one image looks like, from its 12 KB on.
ONE = dumps(IMAGE)[:-1] + b"\x94"
SAVED_AS = dumps(1001, 2)  # the number of the format
HEADER = typed_storage(IMAGE)[:-12288]
TEXT = b"X" + struct.pack("<I", 100_000) + bytes(100_000)

HOSTILE = {
    # Memory
    "LONG_BINPUT": (b"\x80\x04]r\xff\xff\xff\x3f.", "no images"),
    "LONG_BINPUT inside": (storage(b"\x80\x02]r\xff\xff\xff\x3f."), "not a list|storage"),
    "an expanded tensor": (tensor(size=(1 << 14, 1 << 14, 1), stride=(0, 0, 0)), "must be 3x"),
    "a huge offset": (tensor(offset=(1 << 31) - 1), "outside its storage"),
    "a huge stride": (tensor(stride=(0, 0, (1 << 31) - 1)), "outside its storage"),
    "a negative stride": (tensor(stride=(-1, 32, 1)), "outside its storage"),
    "a negative offset": (tensor(offset=-1), "outside its storage"),
    "one value too far": (tensor(offset=1), "outside its storage"),
    "strides of other number": (tensor(stride=(1, 1)), "not a list"),
    "strides that are text": (tensor(stride=("a", "b", "c")), "not a list"),
    "strides with a fraction": (tensor(stride=(1024, 32, 1.0)), "outside its storage"),
    "a size that is text": (tensor(size="big"), "must be 3x32x32"),
    "a small storage": (tensor(values=100), "other than 3072 values"),
    "a large storage": (tensor(values=6144), "more bytes than an image needs|other than 3072"),
    "a larger storage": (tensor(values=60000), "more bytes than an image needs"),
    "a storage that lies about its count": (
        storage(HEADER[:-8] + struct.pack("<Q", 1 << 40) + bytes(12288)),
        "other than 3072 values",
    ),
    "declared bytes": (PROLOGUE + b"]B\xff\xff\xff\x7fabc.", "not a list"),
    "declared text": (PROLOGUE + b"]X\xff\xff\xff\x7fabc.", "not a list"),
    "declared bytes of 64 bits": (PROLOGUE + b"\x8e" + b"\xff" * 7 + b"\x7fabc.", "not a list"),
    "bytearray of 64 bits": (PROLOGUE + b"\x96" + b"\xff" * 7 + b"\x7fabc.", "not a list"),
    "declared frame": (PROLOGUE + b"\x95" + b"\xff" * 8 + GOOD[11:-1], "not a list"),
    "a long number": (PROLOGUE + b"]\x8b\xff\xff\xff\x7f\x01.", "not a list"),
    "digits": (b"I" + b"9" * 1_000_000 + b"\n.", "not a list"),
    "one image 200,000 times": (
        PROLOGUE + b"]\x94(" + ONE + b"K\0\x86\x94" + b"h\1" * 200_000 + b"e.",
        "more instructions|lists more|no pair",
    ),
    "an image in every list entry": (
        PROLOGUE + b"](" + dumps((IMAGE, 0))[:-1].replace(b"\x80\x04", b"", 1) + b"r\1\0\1\0"
        + b"j\1\0\1\0" * 150 + b"e.",
        "not a list",
    ),
    "an image made 100 times": (many_images(typed_storage(IMAGE)), "makes more images"),
    "lists in lists": (PROLOGUE + b"]" * 100_000 + b"a" * 99_999 + b".", "more instructions"),
    "tuples in tuples": (PROLOGUE + b")" + b"\x85" * 100_000 + b".", "more instructions"),
    "duplicates": (PROLOGUE + b"](" + b"2" * 1000 + b"e.", "DUP is not allowed"),
    "a text encoded again and again": (
        b"\x80\x02]q\0(c_codecs\nencode\nq\1" + TEXT + b"q\2X\6\0\0\0latin1q\3\x86q\4R"
        + b"h\1h\4R" * 500 + b"e.",
        "lists more images",
    ),
    "a name joined again and again": (
        b"\x80\x04]\x94(" + TEXT + b"\x94" + b"h\1h\1\x93" * 500 + b"e.", "which is not allowed"
    ),
    # Code
    "mkdir": (item(HARM), "'posix.mkdir', which is not allowed"),
    "mkdir, protocol 0": (item(HARM, protocol=0), "'posix.mkdir', which is not allowed"),
    "mkdir, protocol 2": (item(HARM, protocol=2), "'posix.mkdir', which is not allowed"),
    "mkdir as label": (item(IMAGE, HARM), "'posix.mkdir', which is not allowed"),
    "mkdir alone": (dumps(HARM), "'posix.mkdir', which is not allowed"),
    "mkdir after the end": (GOOD + dumps(HARM), "goes on after its end"),
    "eval": (item(Call(eval, f"__import__('os').mkdir({MARK!r})")), "'builtins.eval', which"),
    "getattr": (item(Call(getattr, IMAGE, "numpy")), "'builtins.getattr', which is not"),
    "INST": (f"(V{MARK}\niposix\nmkdir\n.".encode(), "INST is not allowed"),
    "OBJ": (f"(cposix\nmkdir\nV{MARK}\no.".encode(), "'posix.mkdir', which is not allowed"),
    "NEWOBJ": (PROLOGUE + b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ is not allowed"),
    "BUILD": (PROLOGUE + b"](K\1K\2b.", "BUILD is not allowed"),
    "state": (item(Call(dict, state={"a": 1})), "'builtins.dict', which is not allowed"),
    "EXT1": (PROLOGUE + b"\x82\1.", "EXT1 is not allowed"),
    "a persistent id": (PROLOGUE + b"K\1Q.", "BINPERSID is not allowed"),
    "an out-of-band buffer": (b"\x80\x05\x97.", "NEXT_BUFFER is not allowed"),
    "mkdir inside": (storage(dumps(HARM, 2)), "not a list"),
    "mkdir for the number of the format": (
        storage(HEADER.replace(SAVED_AS, dumps(HARM, 2)) + bytes(12288)),
        "not as torch.save writes it",
    ),
    "mkdir for the names of types": (
        storage(HEADER.replace(b"torch\nFloatStorage", b"posix\nmkdir") + bytes(12288)),
        "none of floating-point values",
    ),
    "a zip file inside": (storage(zipped(IMAGE)), "not a list"),
    "a zip file of harm": (storage(zipped(HARM)), "not a list"),
    "a call of text": (PROLOGUE + b"X\1\0\0\0a)R.", "calls what is no function"),
    "a call with a list": (PROLOGUE + b"ccollections\nOrderedDict\n]R.", "no function"),
    # Other contents
    "another value": (dumps({"train": 1}), "EMPTY_DICT is not allowed"),
    "a number": (dumps(5), "no images"),
    "an empty list": (dumps([]), "no images"),
    "a tuple": (dumps(((IMAGE, 0),)), "no images"),
    "numbers": (dumps(list(range(9))), "lists more images|no pair"),
    "triples": (dumps([(IMAGE, 0, 0)]), "no pair of tensor and label"),
    "pairs of lists": (dumps([[IMAGE, 0]]), "no pair of tensor and label"),
    "numbers as images": (dumps([(0, 0), (IMAGE, 0)]), "no pair of tensor and label"),
    "33 rows": (item(torch.zeros(3, 33, 32)), "must be 3x32x32"),
    "rows of a fraction": (tensor(size=(3, 32, 32.5)), "must be 3x32x32"),
    "whole numbers": (item(IMAGE.int()), "none of floating-point values"),
    "bytes": (item(torch.zeros(3, 32, 32, dtype=torch.uint8)), "none of floating-point values"),
    "bfloat16": (item(IMAGE.bfloat16()), "none of floating-point values"),
    "an untyped storage": (storage(saved_storage(IMAGE)), "none of floating-point values"),
    "sparse": (item(IMAGE.to_sparse()), "which is not allowed"),
    "a parameter": (item(torch.nn.Parameter(IMAGE)), "which is not allowed"),
    "NumPy": (item(IMAGE.numpy()), "which is not allowed"),
    "1.5": (item(IMAGE + 1.5), "values in .-1, 1."),
    "NaN": (item(IMAGE + torch.nan), "values in .-1, 1."),
    "infinity": (item(IMAGE.double() - torch.inf), "values in .-1, 1."),
    "1e300": (item(IMAGE.double() + 1e300), "values in .-1, 1."),
    "a signalling NaN": (
        storage(HEADER + struct.pack("<I", 0x7F800001) + bytes(12284)), "values in .-1, 1."
    ),
    # Labels
    "1.7": (item(IMAGE, 1.7), "a label is of type float, not int"),
    "1.7, protocol 0": (item(IMAGE, 1.7, 0), "a label is of type float, not int"),
    "1.0": (item(IMAGE, 1.0), "a label is of type float, not int"),
    "NaN as label": (item(IMAGE, torch.nan), "a label is of type float, not int"),
    "True": (item(IMAGE, True), "a label is of type bool, not int"),
    "True, protocol 0": (item(IMAGE, True, 0), "a label is of type bool, not int"),
    "'1'": (item(IMAGE, "1"), "a label is of type str, not int"),
    "None": (item(IMAGE, None), "a label is of type NoneType, not int"),
    "NumPy label": (item(IMAGE, np.int64(1)), "numpy.*which is not allowed"),
    "tensor label": (item(IMAGE, torch.tensor(1)), "must be 3x32x32"),
    "a tuple as label": (item(IMAGE, (1,)), "a label is of type tuple, not int"),
    "-1": (item(IMAGE, -1), "labels go from -1 to -1, but --classes names 3"),
    "3": (item(IMAGE, 3), "labels go from 3 to 3, but --classes names 3 classes; name one"),
    "1 << 31": (item(IMAGE, (1 << 31) - 1), "labels go from 2147483647"),
    "1 << 80": (item(IMAGE, 1 << 80), "LONG1 is not allowed"),
    # Damage
    "empty": (b"", "not a list"),
    "text": (b"not a pickle", "not a list"),
    "cut": (GOOD[:-1], "not a list"),
    "cut in the middle": (GOOD[:9000], "not a list"),
    "another byte at the end": (GOOD + b"\0", "goes on after its end"),
    "more on the stack": (b"\x80\x04N" + GOOD[11:], "not a list"),
    "a mark that is missing": (PROLOGUE + b"e.", "not a list"),
    "a value that is missing": (PROLOGUE + b"\x86.", "takes more values than it has"),
    "a mark below the stack": (PROLOGUE + b"K\1(\x85\x85(\x86t.", "not a list"),
    "a memo that is missing": (PROLOGUE + b"h\5.", "not a list"),
    "append to a number": (PROLOGUE + b"K\1K\2a.", "not a list"),
    "a newline in a name": (PROLOGUE + b"V\nVa\\u000ab\n\x93.", "is not allowed"),
    "a storage cut in its names": (storage(HEADER[:100]), "not a list"),
    "a storage of odd length": (storage(HEADER + bytes(12287)), "not a list"),
    "a storage that lacks values": (storage(HEADER + bytes(12284)), "other than 3072 values"),
    "a storage that is a number": (storage(5), "not a list"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), HOSTILE.values(), ids=HOSTILE)
def test_other_pickles_are_refused(tmp_path, monkeypatch, recwarn, content, words):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "dev.pickle"
    path.write_bytes(content)
    expected = pytest.raises(InputError, match=rf"dev\.pickle: .*({words})")
    with limited(), expected as caught:
        read_course_pickle(path, 3)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "MemoryError" not in message
    assert [entry.name for entry in tmp_path.iterdir()] == ["dev.pickle"]
    assert not recwarn.list


def test_the_mark_would_show_that_something_was_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(item(HARM))
    assert (tmp_path / MARK).exists()


def test_a_larger_file_is_not_read(tmp_path):
    path = tmp_path / "train.pickle"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)  # takes no room on the disk
    with limited(), pytest.raises(InputError, match="more than 256 MB"):
        read_course_pickle(path, 3)


def test_instructions_take_no_time(tmp_path):
    path = tmp_path / "train.pickle"
    path.write_bytes(PROLOGUE + b"]0" * (30 << 20))
    with limited(), pytest.raises(InputError, match="not allowed"):
        read_course_pickle(path, 3)
    path.write_bytes(PROLOGUE + b"N" * (60 << 20))
    with limited(), pytest.raises(InputError, match="more instructions"):
        read_course_pickle(path, 3)


def test_instructions_of_a_storage_take_no_time(tmp_path):
    path = tmp_path / "train.pickle"
    names = b"\x80\2}q\0("  # that of the types begins
    assert names in HEADER
    slow = HEADER.replace(names, b"\x80\2" + b"N" * 12_000 + b"}q\0(") + bytes(12288)
    path.write_bytes(many_images(slow, 900) + bytes(10 << 20))
    with limited(), pytest.raises(InputError, match=r"as torch\.save writes it|not a list"):
        read_course_pickle(path, 3)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.pickle")
    with limited(), pytest.raises(InputError, match="not a regular file"):
        read_course_pickle(tmp_path / "train.pickle", 3)


def test_flipped_bytes_of_the_frame_are_noticed(tmp_path):
    """A flip outside of pixels and labels changes nothing that is read."""
    path = tmp_path / "train.pickle"
    images = [torch.full((3, 32, 32), value) for value in (-0.5, 0.25)]
    whole = pickle.dumps([(image, i) for i, image in enumerate(images)])
    pixels = [whole.index(image.numpy().tobytes()) for image in images]
    label = [whole.rindex(b"K\0\x86"), whole.rindex(b"K\1\x86")]
    path.write_bytes(whole)
    expected, _ = read_course_pickle(path, 2)
    refused = 0
    for content in itertools.chain(flips(whole, 1000), frame_flips(whole, pixels, 500)):
        path.write_bytes(content)
        ((changed,),) = np.nonzero(np.frombuffer(content, "u1") != np.frombuffer(whole, "u1"))
        refused += 1
        with one_line_if_refused():
            found, labels = read_course_pickle(path, 2)
            refused -= 1
            in_pixels = any(start <= changed < start + 12288 for start in pixels)
            assert np.array_equal(found, expected) or in_pixels
            assert labels.tolist() == [0, 1] or changed - 1 in label
    assert refused > 500


def frame_flips(whole, pixels, count):
    """Yield copies with a changed byte, none of the pixels."""
    first, second = pixels
    frame = whole[:first] + whole[first + 12288 : second] + whole[second + 12288 :]
    for damaged in flips(frame, count):
        middle = second - 12288
        yield (
            damaged[:first] + whole[first : first + 12288] + damaged[first:middle]
            + whole[second : second + 12288] + damaged[middle:]
        )  # fmt: skip
