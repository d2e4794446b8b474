"""Checkpoints: one file that a network is rebuilt from."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.files import atomic_write, sha256, short_name
from common.networks.build import build
from common.terminal import printable

COURSE_CLASSES = ("car", "truck", "cat")  # the outputs of a bare course checkpoint


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
    # Given a path, torch.save stores the file's name in the file; given a stream, it does not.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(content, file)
    return sha256(path)


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Return the checkpoint at `path`, its network in evaluation mode on `device`.

    A bare course checkpoint, {"model_state_dict": ...}, is loaded as a SimpleCNN. Raises
    InputError for a file that is missing, damaged, unsafe to unpickle or of another kind.
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
            network = build("simple-cnn", {"classes": len(COURSE_CLASSES)})
        else:
            weights = _upgrade_weights(content, path)
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


def _upgrade_weights(content: dict[str, Any], path: Path) -> dict[str, torch.Tensor]:
    """Return a checkpoint's weights under today's names, and log what was renamed.

    Until November 2026 ResNet9 called its last layer `last`, and a network that averages over
    mirror images had no wrapper.
    """
    weights = dict(content["weights"])
    if "last.weight" in weights:
        weights["head.weight"] = weights.pop("last.weight")
    wrapped = any(name.startswith("network.") for name in weights)
    if content["arguments"].get("flip_average") and not wrapped:
        weights = {f"network.{name}": value for name, value in weights.items()}
    if weights.keys() != content["weights"].keys():
        logging.info("%s: weights of an earlier version renamed", path)
    return weights


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
