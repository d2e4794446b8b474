"""Networks that start from trained weights, and what is checked before a network is trained."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import nn

from common.errors import InputError
from common.files import require_regular, sha256
from common.networks import ARCHITECTURES, is_function
from common.networks.build import OnMeta, build
from common.networks.checkpoint import require_storable
from common.networks.external import ExternalNetwork, cause
from common.networks.function_networks import NO_HEAD, source_sha256
from common.networks.heads import FlipAverage
from common.networks.torchvision_networks import published_weights

TIMEOUT = 30.0  # seconds without an answer after which a download counts as failed
SIZES = range(16, 225, 16)  # of which one is offered to a user whose size is refused
# Entries of published weights that our networks do not have: of the auxiliary classifiers.
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# DenseNet's published weights have names of an early version of PyTorch: norm.1 is norm1 today.
DENSENET = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\.\w+)")


def prepare(
    recipe_network: str,
    pretrained: bool,
    weights: str | None,
    classes: int,
    image_size: int,
    head_option: str | None = None,
) -> dict[str, str]:
    """Check a recipe's network before any work; download its published weights if needed.

    pretrained, weights: those of the recipe. head_option: an option of the recipe that needs
    to know the network's last layer (`Recipe.head_option`). Returns what the trained weights
    depend on beyond the recipe: "weights_sha256", of the file that the network starts from, and
    "network_sha256", of the file of the user's function. Raises InputError if the network can't
    be built, if it does not take images of this size, if it is too large for a checkpoint, and
    if its weights are missing or not its own.
    """
    if recipe_network in ARCHITECTURES:  # these take any size, and start from random weights
        return {}
    arguments = {"classes": classes}
    if is_function(recipe_network):
        arguments["image_size"] = image_size
    with nullcontext() if is_function(recipe_network) else OnMeta():
        # Some of torchvision's need more memory than a machine has.
        require_storable(build(recipe_network, arguments), recipe_network)
    network = build(recipe_network, arguments)
    require_image_size(network, recipe_network, image_size)
    if network.head is None and head_option is not None:
        raise InputError(f"--network {recipe_network}: {NO_HEAD}; leave {head_option} out")
    facts = {}
    if is_function(recipe_network) and (digest := source_sha256(recipe_network)):
        facts["network_sha256"] = digest
    if pretrained or weights is not None:
        load_weights(network, recipe_network, weights)
        path = _published_path(recipe_network) if weights is None else _path(weights)
        facts["weights_sha256"] = str(sha256(path))
    return facts


@torch.no_grad()
def require_image_size(network: nn.Module, architecture: str, image_size: int) -> None:
    """Raise InputError unless the network takes images of this size; it offers another size."""

    def failure(size: int) -> Exception | None:
        try:
            network(torch.full((1, 3, size, size), 0.5))
        except Exception as error:  # whatever a network raises
            return error
        return None

    was_training = network.training
    network.eval()
    try:
        if error := failure(image_size):
            nearest = sorted(SIZES, key=lambda size: abs(size - image_size))
            other = next((size for size in nearest if failure(size) is None), None)
            remedy = f"give --image-size {other}" if other else "take another --network"
            raise InputError(
                f"--image-size {image_size}: {architecture} takes no images of"
                f" {image_size}x{image_size} pixels ({cause(error)}); {remedy}"
            )
    finally:
        network.train(was_training)


def load_weights(network: nn.Module, architecture: str, weights: str | None) -> None:
    """Load published weights (None) or those of a file into the network, but its last layer.

    Raises InputError if they can't be downloaded or read, and if they are not the network's.
    """
    network = network.network if isinstance(network, FlipAverage) else network
    if weights is None:
        _load(network, architecture, _download(architecture), f"--pretrained {architecture}")
    else:
        _load(network, architecture, _read(weights), f"--weights {weights}")


def _load(
    network: ExternalNetwork, architecture: str, state: dict[str, torch.Tensor], given: str
) -> None:
    """Load a state_dict into the network's backbone.

    The state_dict is changed in place: a copy would lack its version numbers.
    """
    expected = network.backbone.state_dict()
    left_out = (
        AUXILIARY if network.last_layer is None else (*AUXILIARY, f"{network.last_layer}.")
    )
    for name in list(state):
        if old_name := DENSENET.fullmatch(name):
            state["".join(old_name.groups())] = state.pop(name)
        elif name.startswith(left_out) and name not in expected:
            del state[name]
    wrong = f"{given}: not the weights of {architecture}"
    remedy = "give those of the same network"
    for name, value in state.items():
        if name in expected and value.shape != expected[name].shape:
            shapes = f"{tuple(value.shape)}, not {tuple(expected[name].shape)}"
            raise InputError(f"{wrong}: {name:.80} has the shape {shapes}; {remedy}")
        if not value.isfinite().all():
            raise InputError(f"{given}: {name:.80} is not finite; get the file again")
    try:
        missing, unexpected = network.backbone.load_state_dict(state, strict=False)
    except Exception as error:  # of a network with a format of its own
        raise InputError(f"{wrong} ({cause(error)}); {remedy}") from None
    if missing:
        raise InputError(f"{wrong}: {missing[0]} is missing; {remedy}")
    if unexpected:
        raise InputError(f"{wrong}, which has no {unexpected[0]:.80}; {remedy}")


def _path(weights: str) -> Path:
    try:
        return Path(weights).expanduser()
    except RuntimeError:  # a ~USER that does not exist
        return Path(weights)


def _read(weights: str) -> dict[str, torch.Tensor]:
    """Return the state_dict in a file, by itself or under "state_dict" or "model"."""
    given, path = f"--weights {weights}", _path(weights)
    try:
        require_regular(path)
    except InputError as error:
        raise InputError(f"--weights {error}") from None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle and PyTorch raise almost any error for a damaged file
        name = type(error).__name__
        raise InputError(
            f"{given}: PyTorch reads no weights from it ({name}); save a state_dict with"
            " torch.save, and no other objects"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not (
        isinstance(content, dict)
        and content
        and all(isinstance(name, str) for name in content)
        and all(isinstance(value, torch.Tensor) for value in content.values())
    ):
        raise InputError(
            f"{given}: holds no weights by name; save a state_dict with torch.save, by itself"
            ' or under "state_dict" or "model"'
        )
    return content


def _published_path(architecture: str) -> Path:
    """Return where torchvision keeps the published weights on this machine."""
    name = Path(urlparse(published_weights(architecture).url).path).name
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def _download(architecture: str) -> dict[str, torch.Tensor]:
    """Return the published weights; torchvision downloads and checks them if need be.

    A file's name ends in the first digits of its SHA-256.
    """
    published, path = published_weights(architecture), _published_path(architecture)
    was_there = path.exists()
    try:
        with _timeout():
            state = published.get_state_dict(
                check_hash=True,
                progress=sys.stderr.isatty(),
                map_location="cpu",
                weights_only=True,
            )
        digits = path.stem.rpartition("-")[2]
        if was_there and not str(sha256(path)).startswith(digits):
            raise ValueError("its SHA-256 is not that in its name")
    except Exception as error:  # of urllib, of torch.hub or of a damaged file
        if was_there:
            raise InputError(
                f"--pretrained: {path} is damaged ({cause(error)}); remove it, so that it is"
                " downloaded again"
            ) from None
        raise InputError(
            f"--pretrained: {published} can't be downloaded from {published.url}"
            f" ({cause(error)}); get the file in another way, and train this network alone with"
            " --no-pretrained --weights FILE"
        ) from None
    return state


@contextmanager
def _timeout() -> Iterator[None]:
    """Let no connection wait for ever within the block."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
