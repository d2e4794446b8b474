"""The scripts with networks of the user's own, with torchvision's, and ONNX files."""

from __future__ import annotations

import pytest
import torch
from conftest import is_one_line

from common.networks.build import build
from common.networks.checkpoint import load_checkpoint, save_checkpoint

DRY_RUN = ("--data", "synthetic", "--dry-run", "--output-dir", "out")
SOURCE = """
from pathlib import Path
from torch import nn

Path("imported").touch()


def tiny(classes):
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, classes))
"""


def test_a_function_of_the_users_is_trained_evaluated_attacked_and_exported(
    in_process, tmp_path
):
    (tmp_path / "own_nets.py").write_text(SOURCE)
    given = ("--network", "own_nets:tiny", *DRY_RUN)
    done = in_process("train.py", "original", *given)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    path = tmp_path / "out/models/original.pt"
    (tmp_path / "imported").unlink()
    for script in ("evaluate.py", "adversarial.py"):
        done = in_process(script, path, *DRY_RUN)
        assert (done.returncode, done.stdout) == (2, "")
        words = "is made by own_nets:tiny", "give --network own_nets:tiny"
        assert is_one_line(done.stderr, f"{script}: {path}: ", *words)
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = in_process("evaluate.py", path, *given, "--export", "own.onnx")
    assert done.returncode == 0, done.stderr
    assert "ONNX: its logits in ONNX Runtime are PyTorch's" in done.stdout
    assert (tmp_path / "own.onnx").stat().st_size > 144 * 4
    done = in_process("adversarial.py", path, *given)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--network", "torchvision:resnet19"], "torchvision has none; try torchvision:"),
        (["--network", "nowhere:f"], "there is no module nowhere in the current folder"),
        (["--network", "torchvision:vit_b_16"], "takes no images of 32x32 pixels"),
        (["--network", "torchvision:resnet18", "--weights", "no.pth"], "--weights no.pth"),
    ],
)  # fmt: skip
def test_a_network_that_can_not_be_trained_is_refused_before_any_work(
    in_process, tmp_path, options, words
):
    done = in_process("train.py", "original", *options, *DRY_RUN)
    assert (done.returncode, done.stdout) == (2, "")
    assert is_one_line(done.stderr, "train.py: ", words)
    assert not list(tmp_path.iterdir())


def test_one_network_is_exported(in_process):
    done = in_process("evaluate.py", "a.pt", "b.pt", "--export", "a.onnx")
    assert (done.returncode, done.stdout) == (2, "")
    assert is_one_line(done.stderr, "evaluate.py: --export: writes one network; name one")


def test_a_checkpoint_of_another_image_size_is_refused(in_process, tmp_path):
    arguments = {"classes": 3, "image_size": 48}
    facts = {"classes": ["car", "truck", "cat"], "recipe": None, "seed": 0, "data": None}
    network = build("simple-cnn", arguments)
    facts |= {"trained_on_test": False, "image_size": 48}
    save_checkpoint(tmp_path / "large.pt", network, "simple-cnn", arguments, **facts)
    loaded = load_checkpoint(tmp_path / "large.pt").network
    assert loaded(torch.rand(1, 3, 48, 48)).shape == (1, 3)
    for script in ("evaluate.py", "adversarial.py"):
        done = in_process(script, "large.pt", *DRY_RUN)
        assert done.returncode == 2
        words = "large.pt: its images have 48x48 pixels, not 32x32", "give --image-size 48"
        assert is_one_line(done.stderr, f"{script}: ", *words)
