"""The networks, and the checkpoints that they are rebuilt from.

A network takes float32 images (N, 3, 32, 32) in [0, 1] and returns logits (N, classes); it
scales its input itself, so that nothing outside has to remember to.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common.options import InputError
from common.results import replacing


def pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 in [0, 1]; float images as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def to_unit_range(x: torch.Tensor) -> torch.Tensor:
    """[0, 1] to [-1, 1], the reports' normalisation (mean 0.5, standard deviation 0.5)."""
    return x * 2 - 1


class SimpleCNN(nn.Module):
    """The reports' network: two 5x5 convolutions, three fully connected layers, 66,171 weights.

    PyTorch's CIFAR-10 tutorial network with 16 channels in the first layer and dropout after
    each hidden fully connected layer. Layer names are those of the course's checkpoint.
    """

    def __init__(self, classes: int, dropout: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5)
        self.conv2 = nn.Conv2d(16, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = to_unit_range(x)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # (N, 16, 14, 14)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)  # (N, 16, 5, 5)
        x = self.dropout(F.relu(self.fc1(x.flatten(1))))
        x = self.dropout(F.relu(self.fc2(x)))
        return self.fc3(x)


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class Residual(nn.Sequential):
    """x + f(x), where f is the modules in sequence."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class ResNet9(nn.Module):
    """Nine layers with two residual blocks (Page 2018, "How to train your ResNet").

    width: channels of the first layer; the last has eight times as many. Width 16 has 0.4
    million weights, width 64 the original's 6.6 million.
    """

    LOGIT_SCALE = 0.125  # Page's: without it a new network's logits are too far apart

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        w1, w2, w4, w8 = width, 2 * width, 4 * width, 8 * width
        self.features = nn.Sequential(
            conv_block(3, w1),
            conv_block(w1, w2),
            nn.MaxPool2d(2),  # (N, w2, 16, 16)
            Residual(conv_block(w2, w2), conv_block(w2, w2)),
            conv_block(w2, w4),
            nn.MaxPool2d(2),  # (N, w4, 8, 8)
            conv_block(w4, w8),
            nn.MaxPool2d(2),  # (N, w8, 4, 4)
            Residual(conv_block(w8, w8), conv_block(w8, w8)),
            nn.AdaptiveMaxPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(w8, classes, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(to_unit_range(x))) * self.LOGIT_SCALE


# What a bare course checkpoint calls its outputs.
COURSE_CLASSES = ("car", "truck", "cat")
ARCHITECTURES = {"simple-cnn": SimpleCNN, "resnet9": ResNet9}


def build(architecture: str, arguments: dict[str, Any], seed: int = 0) -> nn.Module:
    """A new network with weights from `seed`; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ARCHITECTURES[architecture](**arguments)


@torch.no_grad()
def predict(network: nn.Module, images: torch.Tensor, batch_size: int = 500) -> torch.Tensor:
    """Logits (N, classes) on the CPU for pixel-space images, in evaluation mode.

    images: uint8 or float32 (N, 3, 32, 32), on any device.
    """
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    logits = [network(pixels(batch.to(device))).cpu() for batch in images.split(batch_size)]
    network.train(was_training)
    return torch.cat(logits)


@dataclass(frozen=True)
class Checkpoint:
    """A network with what is known of it.

    classes: names in label order. data: `results.data_record` of the split it was trained
    on. trained_on_test: whether the test images were among its training images. Of a bare
    course checkpoint only network and classes are known.
    """

    network: nn.Module
    classes: tuple[str, ...]
    recipe: dict[str, Any] | None = None
    seed: int | None = None
    data: dict[str, Any] | None = None
    trained_on_test: bool = False


def save_checkpoint(
    path: Path, network: nn.Module, architecture: str, arguments: dict[str, Any], **facts: Any
) -> None:
    """Write one file that `load_checkpoint` rebuilds the network from; atomic.

    facts: the other fields of Checkpoint, and the versions.
    """
    weights = {name: value.cpu() for name, value in network.state_dict().items()}
    content = {"architecture": architecture, "arguments": arguments, "weights": weights} | facts
    # torch.save would put a file's name into its bytes; a stream has none.
    with replacing(path) as unfinished, unfinished.open("wb") as file:
        torch.save(content, file)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """The network of a checkpoint, in evaluation mode on `device`, and its facts.

    A bare course checkpoint, {"model_state_dict": ...}, is a SimpleCNN. Raises InputError
    for a file that is missing, damaged, unsafe to unpickle or of another kind.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such checkpoint; train.py makes one") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: can't be read as a checkpoint: {reason}") from None
    try:
        if "model_state_dict" in content:
            weights = content["model_state_dict"]
            facts = {"classes": COURSE_CLASSES}
            network = SimpleCNN(len(COURSE_CLASSES))
        else:
            weights = content["weights"]
            facts = {
                name: content[name]
                for name in ("classes", "recipe", "seed", "data", "trained_on_test")
            }
            facts["classes"] = tuple(facts["classes"])
            network = build(content["architecture"], content["arguments"])
        network.load_state_dict(weights)
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: not a checkpoint of this project: {reason}") from None
    return Checkpoint(network.to(device).eval(), **facts)
