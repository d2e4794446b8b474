"""Checkpoints: one file that a network is rebuilt from."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.files import short_name
from common.networks.build import build
from common.networks.checkpoint_fields import require, require_fields
from common.networks.tensor_file import read_tensors, write_tensors
from common.terminal import printable

COURSE_CLASSES = ("car", "truck", "cat")  # the outputs of a bare course checkpoint
MAX_BYTES = 430_000_000  # of a checkpoint: somewhat more than the widest ResNet9, of width 256


@dataclass(frozen=True)
class Checkpoint:
    """A network and what is known of its training.

    classes: names in label order. data: `Split.record()` of the images that it was trained on.
    trained_on_test: whether the test images were among them. Of a bare course checkpoint only
    the network and the classes are known.
    """

    network: nn.Module
    classes: tuple[str, ...]
    recipe: dict[str, Any] | None = None
    seed: int | None = None
    data: dict[str, Any] | None = None
    trained_on_test: bool = False

    def record(self, path: Path) -> dict[str, Any]:
        """Return what a result file says of the checkpoint at `path`."""
        return {
            "path": str(path),
            "recipe": self.recipe,
            "seed": self.seed,
            "data": self.data,
            "trained_on_test": self.trained_on_test,
        }


def save_checkpoint(
    path: Path, network: nn.Module, architecture: str, arguments: dict[str, Any], **facts: Any
) -> str:
    """Write one file that `load_checkpoint` rebuilds the network from, atomically.

    architecture, arguments: as `build` takes them. facts: the other fields of Checkpoint, and
    the library versions. Returns the file's SHA-256, in hexadecimal.
    """
    weights = {name: value.cpu() for name, value in network.state_dict().items()}
    content = {"architecture": architecture, "arguments": arguments, "weights": weights} | facts
    return write_tensors(path, content)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Return the checkpoint at `path`, its network in evaluation mode on `device`.

    A bare course checkpoint, {"model_state_dict": ...}, is loaded as a SimpleCNN. Raises
    InputError for a file that is missing, damaged, unsafe to unpickle or of another kind, and
    for a network whose weights or logits are not finite.
    """
    if not os.path.exists(path):
        raise InputError(f"{path}: no such checkpoint; train.py makes one")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: larger than any checkpoint ({MAX_BYTES // 10**6} MB)")
    content = read_tensors(path)
    try:
        checkpoint = _rebuild(content, path)
    except InputError as error:
        raise InputError(f"{path}: not a checkpoint of this project: {error}") from None
    except Exception:  # whatever PyTorch raises for values that no network can be built from
        raise InputError(
            f"{path}: not a checkpoint of this project: no network can be built from it"
        ) from None
    checkpoint.network.to(device)
    return checkpoint


def _rebuild(content: Any, path: Path) -> Checkpoint:
    """Return the checkpoint with this content, its network in evaluation mode."""
    require(isinstance(content, dict), "its content is not a dict")
    if "model_state_dict" in content:
        weights = content.pop("model_state_dict")
        _require_weights(weights)
        network = _load_network("simple-cnn", {"classes": len(COURSE_CLASSES)}, weights)
        return Checkpoint(network, COURSE_CLASSES)
    require_fields(content)
    architecture, arguments = content["architecture"], content["arguments"]
    weights = content.pop("weights")
    _require_weights(weights)
    _upgrade_weights(weights, arguments, path)
    facts = {name: content[name] for name in ("recipe", "seed", "data", "trained_on_test")}
    network = _load_network(architecture, arguments, weights)
    return Checkpoint(network, tuple(content["classes"]), **facts)


def _require_weights(weights: Any) -> None:
    require(
        isinstance(weights, dict)
        and all(isinstance(name, str) for name in weights)
        and all(isinstance(value, torch.Tensor) for value in weights.values()),
        "its weights are not tensors by name",
    )
    # Tensors can share their numbers in the file, but not in a network.
    size = sum(value.nbytes for value in weights.values())
    require(size <= MAX_BYTES, "its weights need more memory than any network")


def _load_network(
    architecture: str, arguments: dict[str, Any], weights: dict[str, torch.Tensor]
) -> nn.Module:
    """Return the network with these weights, in evaluation mode; `weights` is empty afterwards.

    Raises InputError unless names, shapes and types are the architecture's, and the weights and
    the logits of an image are finite.
    """
    # On the meta device a network of any size needs no memory. It is built for real once the
    # file turns out to hold as many weights as it declares.
    with torch.device("meta"):
        expected = build(architecture, arguments).state_dict()
    for name, value in expected.items():
        require(name in weights, f"{name} is missing")
        same = (weights[name].shape, weights[name].dtype) == (value.shape, value.dtype)
        require(same, f"{name} has another shape or type than in {architecture}")
    require(len(weights) == len(expected), f"it has more weights than {architecture}")
    network = build(architecture, arguments).eval()
    for name, value in network.state_dict().items():
        # Each weight of the file is released here: those of a wide network and what its forward
        # pass needs would be more than 1 GB.
        value.copy_(weights.pop(name))
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        require(bool(value.isfinite().all()), f"{name} is not finite")
        is_variance = name.endswith("running_var")
        require(not (is_variance and (value < 0).any()), f"{name} is negative")
    with torch.no_grad():
        logits = network(torch.full((1, 3, 32, 32), 0.5))
    require(bool(logits.isfinite().all()), "the logits of a grey image are not finite")
    return network


def _upgrade_weights(
    weights: dict[str, torch.Tensor], arguments: dict[str, Any], path: Path
) -> None:
    """Give a checkpoint's weights today's names, and log it if they had others.

    Until November 2026 ResNet9 called its last layer `last`, and a network that averages over
    mirror images had no wrapper.
    """
    names = list(weights)
    if "last.weight" in weights:
        weights["head.weight"] = weights.pop("last.weight")
    wrapped = any(name.startswith("network.") for name in weights)
    if arguments.get("flip_average") and not wrapped:
        for name in list(weights):
            weights[f"network.{name}"] = weights.pop(name)
    if list(weights) != names:
        logging.info("%s: weights of an earlier version renamed", path)


def load_checkpoints(
    paths: Sequence[Path], device: torch.device | str = "cpu"
) -> dict[str, Checkpoint]:
    """Return the checkpoints by names for tables, figures and further files.

    Such a name is that of the checkpoint's file; a repeated name gets a + added.
    """
    checkpoints: dict[str, Checkpoint] = {}
    for path in paths:
        name = short_name(printable(path.stem))
        while name in checkpoints:
            name += "+"
        checkpoints[name] = load_checkpoint(path, device)
    return checkpoints


def require_classes(
    paths: Sequence[Path], checkpoints: dict[str, Checkpoint], classes: Sequence[str]
) -> None:
    """Raise InputError for a checkpoint whose classes are not those of the images."""
    for path, checkpoint in zip(paths, checkpoints.values(), strict=True):
        if checkpoint.classes != tuple(classes):
            raise InputError(
                f"{path}: its classes are {', '.join(checkpoint.classes)}, not"
                f" {', '.join(classes)}; change --classes"
            )
