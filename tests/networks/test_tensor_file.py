"""Files of tensors: what torch.save writes is read as torch.load reads it."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import is_one_line
from hostile_files import archive, tensor, value, weights

from common.errors import InputError, OutputError
from common.networks import tensor_file
from common.networks.build import build
from common.networks.tensor_file import read_tensors, write_tensors


def is_same(a, b):
    """Return whether two contents are the same, in value, type and strides."""
    if isinstance(a, torch.Tensor):
        return (a.dtype, a.stride()) == (b.dtype, b.stride()) and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(is_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(is_same, a, b))
    return type(a) is type(b) and a == b


NUMBERS = torch.arange(24.0).reshape(2, 3, 4)
CONTENTS = {
    "plain values": [None, True, False, 0, -1, 255, 65_536, -(2**31), 2**40, 2**130, 1.5, -0.0],
    "texts": ["", "text", "\u00e9\n\u4e2d", "a folder \udcff", "long " * 100],
    "containers": [[], {}, (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[[]]], {"a": {3: []}}],
    "one list twice": [[1, 2]] * 2,
    "300 texts twice": [str(i) for i in range(300)] * 2,
    "tensors": {"float": NUMBERS, "int": NUMBERS.long(), "byte": NUMBERS.byte()},
    "sizes": [torch.tensor(2.0), torch.zeros(0), torch.zeros(3, 0), torch.zeros(1, 1, 1, 1)],
    "views": [NUMBERS.transpose(0, 2), NUMBERS[1], NUMBERS[:, 1:, ::2], NUMBERS.flatten()],
    "channels_last": NUMBERS[None].contiguous(memory_format=torch.channels_last),
    "state_dict": build("resnet9", {"classes": 2, "width": 1}).state_dict(),
    "an OrderedDict": OrderedDict(b=1, a=2),
    "optimiser": torch.optim.AdamW(
        build("simple-cnn", {"classes": 2}).parameters()
    ).state_dict(),
    "generator": torch.Generator().manual_seed(3).get_state(),
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_the_content_is_read_as_torch_load_reads_it(tmp_path, content):
    path = tmp_path / "content.pt"
    write_tensors(path, content)
    read = read_tensors(path)
    assert is_same(read, content)
    assert is_same(read, torch.load(path, weights_only=True))


@pytest.mark.parametrize("name", ["resnet9", "torchvision:mnasnet0_5"])
def test_a_state_dict_keeps_the_version_numbers_of_its_modules(tmp_path, name):
    """Without them MNASNet raises an error."""
    state = build(name, {"classes": 2}, seed=1).state_dict()
    write_tensors(tmp_path / "state", state)
    read = read_tensors(tmp_path / "state")
    assert read._metadata == state._metadata
    again = build(name, {"classes": 2}, seed=2)
    again.load_state_dict(read)
    assert is_same(dict(again.state_dict()), dict(state))


def test_a_full_disk_is_an_output_error_and_the_earlier_file_stays(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "state"
    write_tensors(path, [1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OutputError, match=r"state: can't be written"):
            write_tensors(path, [torch.zeros(10_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert read_tensors(path) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_tensors_that_share_numbers_share_them_again_and_can_be_changed(tmp_path):
    write_tensors(tmp_path / "shared.pt", [NUMBERS, NUMBERS[1]])
    whole, part = read_tensors(tmp_path / "shared.pt")
    whole[1] = 7
    assert (part == 7).all()


def test_tensors_of_a_gpu_are_read_to_the_cpu(tmp_path):
    on_gpu = weights(tensor()).replace(value("cpu"), value("cuda:0"))
    (tmp_path / "gpu.pt").write_bytes(archive(on_gpu, np.float32([1, 2, 3, 4]).tobytes()))
    (read,) = read_tensors(tmp_path / "gpu.pt")["model_state_dict"].values()
    assert (read.device.type, read.tolist()) == ("cpu", [1, 2, 3, 4])


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "secret.pt").touch()
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"secret\.pt: can't be read \(Permission denied\)$"):
        read_tensors(tmp_path / "secret.pt")


def test_the_older_format_is_read_from_the_file_with_the_known_hash_alone(
    tmp_path, monkeypatch
):
    """It has no checksums: of the course's file, 95 of 100 flips changed weights unnoticed."""
    file, path = io.BytesIO(), tmp_path / "pre_trained.ckpt"
    content = {"model_state_dict": build("simple-cnn", {"classes": 3}).state_dict()}
    torch.save(content, file, _use_new_zipfile_serialization=False)
    whole = file.getvalue()
    path.write_bytes(whole)
    remedy = "load it with PyTorch, and save it again with torch.save"
    with pytest.raises(InputError, match="not in PyTorch's zip format") as refused:
        read_tensors(path)
    assert is_one_line(f"{refused.value}\n", path, remedy)
    monkeypatch.setattr(tensor_file, "COURSE_BYTES", len(whole))
    monkeypatch.setattr(tensor_file, "COURSE_SHA256", hashlib.sha256(whole).hexdigest())
    assert is_same(read_tensors(path), content)
    rng = np.random.default_rng(0)
    for position in rng.integers(len(whole), size=1000):
        flipped = bytearray(whole)
        flipped[position] ^= rng.integers(1, 256)
        path.write_bytes(flipped)
        with pytest.raises(InputError, match="not in PyTorch's zip format"):
            read_tensors(path)
