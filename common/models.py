"""The networks, and the checkpoints that they are rebuilt from.

A network takes float32 images (N, 3, 32, 32) in [0, 1] and returns logits (N, classes); it
scales its input itself, so that nothing outside has to remember to.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from common import kernels
from common.options import InputError
from common.results import replacing

COSINE_SCALE = 30.0  # of a cosine classifier's logits, as LDAM's authors have it


def pixels(images: torch.Tensor) -> torch.Tensor:
    """uint8 images as float32 in [0, 1]; float images as they are."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def to_unit_range(x: torch.Tensor) -> torch.Tensor:
    """[0, 1] to [-1, 1], the reports' normalisation (mean 0.5, standard deviation 0.5)."""
    return (x * 2).sub_(1)


class Network(nn.Module):
    """What all networks share: how logits come from features.

    A subclass has `features`, images (N, 3, 32, 32) in [-1, 1] to (N, F), and `last`, the
    layer that turns them into logits. flip_average: in evaluation mode, the mean of the
    logits of an image and its mirror image. logit_offset: added to the logits, one a class.
    """

    def __init__(self, flip_average: bool, logit_offset: Sequence[float] | None) -> None:
        super().__init__()
        self.flip_average = flip_average
        offset = None if logit_offset is None else torch.tensor(logit_offset)
        # Not persistent: it is an argument, and the course's checkpoint has none.
        self.register_buffer("offset", offset, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = to_unit_range(x)
        logits = self.last(self.features(x))
        if self.flip_average and not self.training:
            logits = (logits + self.last(self.features(x.flip(-1)))) / 2
        return logits if self.offset is None else logits + self.offset


class Linear(nn.Linear):
    """nn.Linear; with the weights (K, outputs, inputs) of K networks, for x (K, N, inputs)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    if weight.dim() == 2:
        return F.linear(x, weight, bias)
    return x @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


class CosineLinear(nn.Linear):
    """COSINE_SCALE times the cosine of features and class weights (Wang et al. 2018)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, weight = F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1)
        return COSINE_SCALE * linear(x, weight, None)


def last_layer(classifier: str, inputs: int, classes: int, bias: bool) -> nn.Linear:
    if classifier == "cosine":
        return CosineLinear(inputs, classes)
    return Linear(inputs, classes, bias=bias)


class SimpleCNN(Network):
    """The reports' network: two 5x5 convolutions, three fully connected layers, 66,171 weights.

    PyTorch's CIFAR-10 tutorial network with 16 channels in the first layer and dropout after
    each hidden fully connected layer. Layer names are those of the course's checkpoint. With
    the weights of K networks (`stacked`) it returns their logits (K, N, classes). generators:
    what dropout draws from, one for each network, or PyTorch's own.
    """

    generators: Sequence[torch.Generator] | None = None

    def __init__(
        self,
        classes: int,
        dropout: float = 0.5,
        classifier: str = "linear",
        flip_average: bool = False,
        logit_offset: Sequence[float] | None = None,
    ) -> None:
        super().__init__(flip_average, logit_offset)
        self.conv1 = nn.Conv2d(3, 16, 5)
        self.conv2 = nn.Conv2d(16, 16, 5)
        self.fc1 = Linear(16 * 5 * 5, 120)
        self.fc2 = Linear(120, 84)
        self.fc3 = last_layer(classifier, 84, classes, bias=True)
        self.dropout = dropout

    @property
    def last(self) -> nn.Linear:
        return self.fc3

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return kernels.hidden(x, self.kept(x), *self.hidden_parameters())

    def hidden_parameters(self) -> list[nn.Parameter]:
        layers = (self.conv1, self.conv2, self.fc1, self.fc2)
        return [p for layer in layers for p in (layer.weight, layer.bias)]

    def kept(self, x: torch.Tensor) -> torch.Tensor | None:
        """What dropout multiplies the hidden values by; None where it drops nothing."""
        if not self.training or not self.dropout:
            return None
        stack = self.fc1.weight.shape[:-2]  # () or (K,)
        kept = x.new_empty(*stack, x.shape[-4], kernels.DROPPED)
        generators = self.generators or [None] * stack.numel()
        for rows, generator in zip(kept if stack else [kept], generators, strict=True):
            rows.uniform_(generator=generator)
        return kept.lt_(1 - self.dropout).div_(1 - self.dropout)


def stacked(networks: Sequence[SimpleCNN]) -> SimpleCNN:
    """K networks as one, each parameter (K, ...), row k a copy of network k's."""
    stack = copy.deepcopy(networks[0])
    for rows in zip(stack.parameters(), *(n.parameters() for n in networks), strict=True):
        data = torch.stack([p.detach() for p in rows[1:]])
        rows[0].data = kernels.channels_last(data) if data.dim() == 5 else data
    return stack


def copy_row(stack: SimpleCNN, k: int, network: SimpleCNN) -> SimpleCNN:
    """Network k of a stack, in `network`, which is returned."""
    for p, rows in zip(network.parameters(), stack.parameters(), strict=True):
        p.data.copy_(rows.detach()[k])
    return network


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


class ResNet9(Network):
    """Nine layers with two residual blocks (Page 2018, "How to train your ResNet").

    width: channels of the first layer; the last has eight times as many. Width 16 has 0.4
    million weights, width 64 the original's 6.6 million.
    """

    FEATURE_SCALE = 0.125  # Page's: without it a new network's logits are too far apart

    def __init__(
        self,
        classes: int,
        width: int = 16,
        classifier: str = "linear",
        flip_average: bool = False,
        logit_offset: Sequence[float] | None = None,
    ) -> None:
        super().__init__(flip_average, logit_offset)
        w1, w2, w4, w8 = width, 2 * width, 4 * width, 8 * width
        self.layers = nn.Sequential(
            conv_block(3, w1),
            conv_block(w1, w2),
            nn.MaxPool2d(2),  # (N, w2, 16, 16)
            Residual(conv_block(w2, w2), conv_block(w2, w2)),
            conv_block(w2, w4),
            nn.MaxPool2d(2),  # (N, w4, 8, 8)
            conv_block(w4, w8),
            nn.MaxPool2d(2),  # (N, w8, 4, 4)
            Residual(conv_block(w8, w8), conv_block(w8, w8)),
            nn.MaxPool2d(4),  # (N, w8, 1, 1); on CUDA no adaptive pooling is deterministic
            nn.Flatten(),
        )
        self.last = last_layer(classifier, w8, classes, bias=False)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x) * self.FEATURE_SCALE


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


def load_checkpoints(
    paths: Sequence[Path], device: torch.device | str = "cpu"
) -> dict[str, Checkpoint]:
    """The checkpoints by their file's name; one of a name that is taken gets a + to it."""
    checkpoints: dict[str, Checkpoint] = {}
    for path in paths:
        name = path.stem
        while name in checkpoints:
            name += "+"
        checkpoints[name] = load_checkpoint(path, device)
    return checkpoints


def check_classes(
    paths: Sequence[Path], checkpoints: dict[str, Checkpoint], classes: Sequence[str]
) -> None:
    """Raise InputError for a checkpoint with other classes than the images'."""
    for path, checkpoint in zip(paths, checkpoints.values(), strict=True):
        if checkpoint.classes != tuple(classes):
            raise InputError(
                f"{path}: its classes are {', '.join(checkpoint.classes)}, not"
                f" {', '.join(classes)}; change --classes"
            )
