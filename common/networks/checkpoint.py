"""Checkpoints: one file that a network is rebuilt from."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.files import short_name
from common.networks import is_function
from common.networks.build import OnMeta, build
from common.networks.checkpoint_fields import require, require_fields
from common.networks.tensor_file import (
    DTYPES,
    MAX_PICKLE_BYTES,
    read_tensors,
    write_tensors,
)
from common.terminal import printable

COURSE_CLASSES = ("car", "truck", "cat")  # the outputs of a bare course checkpoint
MAX_BYTES = 430_000_000  # of a checkpoint: somewhat more than the widest ResNet9, of width 256
# Of a network: torchvision's have up to 1,548. The saved state of a training has some of each.
MOST_TENSORS = 2000


class UntrustedCodeError(InputError):
    """A checkpoint whose network is made by code that the user did not name."""


@dataclass(frozen=True)
class Checkpoint:
    """A network and what is known of its training.

    classes: names in label order. data: `Split.record()` of the images that it was trained on.
    trained_on_test: whether the test images were among them. image_size: their side in pixels.
    Of a bare course checkpoint only the network and the classes are known.
    """

    network: nn.Module
    classes: tuple[str, ...]
    recipe: dict[str, Any] | None = None
    seed: int | None = None
    data: dict[str, Any] | None = None
    trained_on_test: bool = False
    image_size: int = 32  # of all checkpoints before December 2026, which do not say so
    architecture: str = "simple-cnn"

    def record(self, path: Path) -> dict[str, Any]:
        """Return what a result file says of the checkpoint at `path`."""
        return {
            "path": str(path),
            "recipe": self.recipe,
            "seed": self.seed,
            "data": self.data,
            "trained_on_test": self.trained_on_test,
            "image_size": self.image_size,
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


def load_checkpoint(
    path: Path, device: torch.device | str = "cpu", network: str | None = None
) -> Checkpoint:
    """Return the checkpoint at `path`, its network in evaluation mode on `device`.

    network: the MODULE:FUNCTION that may be imported to build the network; a checkpoint that
    names another, or any without it, is refused: a file is no reason to run code. A bare course
    checkpoint, {"model_state_dict": ...}, is loaded as a SimpleCNN. Raises InputError for a
    file that is missing, damaged, unsafe to unpickle or of another kind, and for a network
    whose weights or logits are not finite.
    """
    if not os.path.exists(path):
        raise InputError(f"{path}: no such checkpoint; train.py makes one")
    if path.stat().st_size > MAX_BYTES:
        raise InputError(f"{path}: larger than any checkpoint ({MAX_BYTES // 10**6} MB)")
    content = read_tensors(path)
    try:
        require(isinstance(content, dict), "its content is not a dict")
        if "model_state_dict" not in content:
            require_fields(content)
            _require_allowed(content["architecture"], network)
        checkpoint = _rebuild(content, path)
    except UntrustedCodeError as error:
        raise InputError(f"{path}: {error}") from None
    except InputError as error:
        raise InputError(f"{path}: not a checkpoint of this project: {error}") from None
    except Exception:  # whatever PyTorch raises for values that no network can be built from
        raise InputError(
            f"{path}: not a checkpoint of this project: no network can be built from it"
        ) from None
    checkpoint.network.to(device)
    return checkpoint


def _rebuild(content: dict[str, Any], path: Path) -> Checkpoint:
    """Return the checkpoint with this content, its network in evaluation mode."""
    if "model_state_dict" in content:
        weights = content.pop("model_state_dict")
        _require_weights(weights)
        network = _load_network("simple-cnn", {"classes": len(COURSE_CLASSES)}, weights)
        return Checkpoint(network, COURSE_CLASSES)
    architecture, arguments = content["architecture"], content["arguments"]
    weights = content.pop("weights")
    _require_weights(weights)
    _upgrade_weights(weights, arguments, path)
    facts = {name: content[name] for name in ("recipe", "seed", "data", "trained_on_test")}
    image_size = content.get("image_size", 32)
    network = _load_network(architecture, arguments, weights, image_size)
    facts |= {"image_size": image_size, "architecture": architecture}
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
    architecture: str,
    arguments: dict[str, Any],
    weights: dict[str, torch.Tensor],
    image_size: int = 32,
) -> nn.Module:
    """Return the network with these weights, in evaluation mode; `weights` is empty afterwards.

    Raises InputError unless names, shapes and types are the architecture's, and the weights and
    the logits of an image are finite.
    """
    # On the meta device a network of any size needs no memory. It is built for real once the
    # file turns out to hold as many weights as it declares. A function of the user's may load
    # weights, which would fail there; the user trusts it.
    with nullcontext() if is_function(architecture) else OnMeta():
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
        logits = network(torch.full((1, 3, image_size, image_size), 0.5))
    require(bool(logits.isfinite().all()), "the logits of a grey image are not finite")
    return network


def _require_allowed(architecture: str, network: str | None) -> None:
    """Raise UntrustedCodeError for a network of a function that the user did not name."""
    if is_function(architecture) and architecture != network:
        instead = "" if network is None else f", not by {network}"
        raise UntrustedCodeError(
            f"its network is made by {architecture}{instead}, code that a checkpoint does not"
            f" hold; if you trust that code, give --network {architecture}"
        )


def require_storable(network: nn.Module, architecture: str) -> None:
    """Raise InputError for a network that a checkpoint can't hold, before it is trained."""
    state = network.state_dict()
    given = f"--network {architecture}"
    size = sum(value.nbytes for value in state.values())
    # What the file holds beside the numbers is far below 1 KB for each tensor.
    if size + 1024 * len(state) + MAX_PICKLE_BYTES > MAX_BYTES or len(state) > MOST_TENSORS:
        raise InputError(
            f"{given}: its weights, {len(state)} tensors of {size / 1e6:.0f} MB, are more than"
            f" a checkpoint holds ({MOST_TENSORS} of {MAX_BYTES // 10**6} MB); take a smaller"
            " one"
        )
    for name, value in state.items():
        if value.dtype not in DTYPES:
            raise InputError(
                f"{given}: {name:.80} has the type {value.dtype}, which a checkpoint does not"
                f" hold; use {', '.join(map(str, DTYPES))}"
            )


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
    paths: Sequence[Path], device: torch.device | str = "cpu", network: str | None = None
) -> dict[str, Checkpoint]:
    """Return the checkpoints by names for tables, figures and further files.

    Such a name is that of the checkpoint's file; a repeated name gets a + added. network: as
    `load_checkpoint` takes it; checkpoints of other networks may be among them. Raises
    InputError if none of them needs it.
    """
    checkpoints: dict[str, Checkpoint] = {}
    for path in paths:
        name = short_name(printable(path.stem))
        while name in checkpoints:
            name += "+"
        checkpoints[name] = load_checkpoint(path, device, network)
    if network is not None and all(c.architecture != network for c in checkpoints.values()):
        raise InputError(f"--network {network}: no checkpoint's network is made by it")
    return checkpoints


def require_match(
    paths: Sequence[Path],
    checkpoints: dict[str, Checkpoint],
    classes: Sequence[str],
    image_size: int,
) -> None:
    """Raise InputError for a checkpoint of other classes or sizes than those of the images."""
    for path, checkpoint in zip(paths, checkpoints.values(), strict=True):
        if checkpoint.classes != tuple(classes):
            raise InputError(
                f"{path}: its classes are {', '.join(checkpoint.classes)}, not"
                f" {', '.join(classes)}; name a checkpoint that was trained on such images, or"
                " give --classes"
            )
        if (size := checkpoint.image_size) != image_size:
            raise InputError(
                f"{path}: its images have {size}x{size} pixels, not {image_size}x{image_size};"
                f" give --image-size {size}"
            )
