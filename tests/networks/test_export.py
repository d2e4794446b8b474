"""ONNX files: as onnx and ONNX Runtime read them, beside PyTorch's logits."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from conftest import is_one_line

from common.errors import InputError
from common.networks import export
from common.networks.build import build
from common.networks.checkpoint import Checkpoint
from common.networks.export import export_onnx

SETTINGS = {
    "simple-cnn": ("simple-cnn", {"image_size": 48, "classifier": "cosine"}, 48),
    "resnet9": ("resnet9", {"width": 2, "logit_offset": [1.0, 0.0, -2.0]}, 32),
    "FlipAverage": ("resnet9", {"width": 2, "flip_average": True}, 32),
    "torchvision": ("torchvision:mobilenet_v3_small", {}, 64),
}


def checkpoint(name="resnet9"):
    architecture, arguments, size = SETTINGS[name]
    network = build(architecture, {"classes": 3} | arguments, seed=3)
    with torch.no_grad():
        network.head.weight.mul_(100)  # so that images have different logits
    return Checkpoint(network.eval(), ("car", "Käfer", "cat"), image_size=size)


@pytest.mark.parametrize("name", SETTINGS)
def test_onnx_runtime_gives_pytorchs_logits_of_any_number_of_images(tmp_path, name):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    saved, path = checkpoint(name), tmp_path / "deep" / "network.onnx"
    line = export_onnx(saved, path)
    assert line.startswith("its logits in ONNX Runtime are PyTorch's, up to ")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    size = saved.image_size
    assert (given.name, given.type) == ("images", "tensor(float)")
    assert given.shape[1:] == [3, size, size]
    assert isinstance(given.shape[0], str)  # any number
    assert (made.name, made.shape[1]) == ("logits", 3)
    properties = session.get_modelmeta().custom_metadata_map
    assert json.loads(properties["classes"]) == list(saved.classes)
    assert properties["image_size"] == str(size)
    for count in (1, 5):
        images = np.random.default_rng(count).random((count, 3, size, size), np.float32)
        (logits,) = session.run(["logits"], {"images": images})
        with torch.no_grad():
            expected = saved.network(torch.from_numpy(images)).numpy()
        assert np.abs(logits - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    assert [file.name for file in path.parent.iterdir()] == ["network.onnx"]


def test_other_logits_are_not_written(tmp_path, monkeypatch):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    other, to_onnx = checkpoint().network, export._to_onnx
    with torch.no_grad():
        other.head.weight.add_(0.01)
    monkeypatch.setattr(export, "_to_onnx", lambda _, *others: to_onnx(other, *others))
    with pytest.raises(InputError) as refused:
        export_onnx(checkpoint(), tmp_path / "network.onnx")
    assert is_one_line(f"{refused.value}\n", "network.onnx: ", "logits differ", "not written")
    assert not list(tmp_path.iterdir())


def test_without_onnx_runtime_a_line_says_that_nothing_was_checked(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    line = export_onnx(checkpoint(), tmp_path / "network.onnx")
    assert line == "not checked: for that, pip install onnxruntime"
    assert (tmp_path / "network.onnx").exists()


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"\.onnx: {package} is missing; pip install onnx on"):
        export_onnx(checkpoint(), tmp_path / "network.onnx")


def test_a_file_of_another_kind_is_not_replaced(tmp_path):
    (tmp_path / "best.pt").write_text("a checkpoint")
    with pytest.raises(InputError, match=r"best\.pt: give a name that ends in \.onnx"):
        export_onnx(checkpoint(), tmp_path / "best.pt")
    assert (tmp_path / "best.pt").read_text() == "a checkpoint"


def test_a_network_that_can_not_be_exported_is_refused(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")

    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.sum((2, 3)) if x.sum().item() > 0 else x.mean((2, 3))

    with pytest.raises(InputError) as refused:
        export_onnx(Checkpoint(Odd(), ("a", "b", "c")), tmp_path / "network.onnx")
    assert is_one_line(f"{refused.value}\n", "network.onnx: PyTorch can't export this network")
