"""Networks that a function of the user's makes, MODULE:FUNCTION."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.errors import InputError
from common.networks.build import torch_seed
from common.networks.external import ExternalNetwork, cause, find_last_layer, replace_layer
from common.networks.heads import Head


def function_network(
    architecture: str, classes: int, image_size: int = 32, **head: Any
) -> ExternalNetwork:
    """Return the network that the user's MODULE:FUNCTION makes for so many classes.

    FUNCTION(classes) returns a torch.nn.Module from float32 images (N, 3, S, S) in [0, 1] to
    logits (N, classes). If it ends in a Linear layer, that becomes a `Head` with the same
    weights. image_size: an S that the network takes. head: further arguments of `Head`. Raises
    InputError for whatever goes wrong in the function and its network.
    """
    given = f"--network {architecture}"
    network = _call(architecture, classes)
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise InputError(f"{given}: it returns a {kind:.40}; return a torch.nn.Module")
    if not list(network.parameters()):
        raise InputError(f"{given}: its network has no weights to train; give it some")
    network.cpu().eval()
    size = (2, 3, image_size, image_size)
    images = torch.rand(size, generator=torch.Generator().manual_seed(0))
    try:
        last_layer, logits = find_last_layer(network, images)
    except Exception as error:  # whatever the user's code raises
        raise InputError(
            f"{given}: its network takes no {image_size}x{image_size} images"
            f" ({cause(error)}); give another --image-size, or change the function"
        ) from None
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (2, classes):
        raise InputError(
            f"{given}: of 2 images its network makes {shape}, not logits of the shape"
            f" {(2, classes)}; return one number for each image and class"
        )
    made = _with_head(network, last_layer, images, logits, head)
    if made is None:
        if head.get("classifier", "linear") != "linear" or head.get("logit_offset"):
            raise InputError(f"{given}: {NO_HEAD}; leave --classifier cosine out")
        made = ExternalNetwork(network, None, None)
    return made.train()


NO_HEAD = "its network does not end in a linear layer that could be changed"


@torch.no_grad()
def _with_head(
    network: nn.Module,
    last_layer: str | None,
    images: torch.Tensor,
    logits: torch.Tensor,
    head: dict[str, Any],
) -> ExternalNetwork | None:
    """Return the network with a `Head` in place of its last layer, None if it can't have one.

    logits: what the network makes of the images.
    """
    if last_layer is None:
        return None
    linear = network.get_submodule(last_layer)
    replace_layer(network, last_layer, nn.Identity())
    try:
        same = torch.allclose(linear(network(images)), logits, atol=1e-4)
    except Exception:  # the network needs more of the layer than its output
        same = False
    if not same:
        replace_layer(network, last_layer, linear)
        return None
    inputs, classes = linear.in_features, linear.out_features
    ours = Head(inputs, classes, bias=linear.bias is not None, **head)
    ours.weight.copy_(linear.weight)
    if ours.bias is not None:
        ours.bias.copy_(linear.bias)
    return ExternalNetwork(network, last_layer, ours)


def _call(architecture: str, classes: int) -> Any:
    """Return what the user's function returns."""
    given = f"--network {architecture}"
    function_name = architecture.partition(":")[2]
    with _current_folder_on_path():
        function = import_function(architecture)
        try:
            return function(classes)
        except InputError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise InputError(
                f"{given}: {function_name}({classes}) fails ({cause(error)}); repair it"
            ) from None


def import_function(architecture: str) -> Callable[[int], Any]:
    """Return MODULE:FUNCTION; the current folder comes first on the path.

    Raises InputError if the module can't be imported or has no such function.
    """
    given = f"--network {architecture}"
    module_name, _, function_name = architecture.partition(":")
    # The import may draw random numbers, but only the first time.
    with _current_folder_on_path(), torch_seed(0):
        try:
            module = import_module(module_name)
        except Exception as error:  # whatever the user's code raises
            if isinstance(error, ModuleNotFoundError) and _is_within(error.name, module_name):
                raise InputError(
                    f"{given}: there is no module {module_name} in the current folder or among"
                    " the installed ones; change to its folder, or correct the name"
                ) from None
            raise InputError(
                f"{given}: importing {module_name} fails ({cause(error)}); repair it"
            ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(
            f"{given}: {module_name} has no function {function_name}; correct the name"
        )
    return function


def source_sha256(architecture: str) -> str | None:
    """Return the SHA-256 of the file of MODULE, in hexadecimal; None if it has no file."""
    file = getattr(sys.modules[architecture.partition(":")[0]], "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None


def _is_within(missing: str | None, module_name: str) -> bool:
    """Return whether the missing module is that module, or a package that it lies in."""
    return missing is not None and f"{module_name}.".startswith(f"{missing}.")


@contextmanager
def _current_folder_on_path() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
