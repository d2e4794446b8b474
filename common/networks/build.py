"""New networks from a name, arguments and a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from common.networks import ARCHITECTURES, is_torchvision
from common.networks.heads import FlipAverage


@contextmanager
def torch_seed(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed PyTorch's global generators within the block, and restore them afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class OnMeta(TorchFunctionMode):
    """Make new weights on the meta device, where a network of any size needs no memory.

    Other tensors have numbers, which `torch.device("meta")` would not leave them: torchvision's
    RegNet computes its widths with tensors.
    """

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.empty, torch.zeros, torch.ones) and not kwargs.get("device"):
            kwargs["device"] = "meta"
        return function(*args, **kwargs)


def build(architecture: str, arguments: dict[str, Any], seed: int = 0) -> nn.Module:
    """Return a new network with weights drawn from `seed`.

    architecture: a key of ARCHITECTURES, torchvision:NAME or MODULE:FUNCTION, which is imported
    and called. arguments: those of the network's class, with `flip_average` beside them. The
    global random state stays as it was. Raises InputError for a name that torchvision does not
    have, and for a function that can't be imported or that returns no network for the classes.
    """
    arguments = dict(arguments)
    flip_average = arguments.pop("flip_average", False)
    network_class = _network_class(architecture)
    with torch_seed(seed):
        network = network_class(**arguments)
    return FlipAverage(network) if flip_average else network


def _network_class(architecture: str) -> Callable[..., nn.Module]:
    if architecture in ARCHITECTURES:
        known = ARCHITECTURES[architecture]
        return getattr(import_module(f"common.networks.{known.module}"), known.name)
    # These two take from this module.
    if is_torchvision(architecture):
        from common.networks.torchvision_networks import torchvision_network

        return partial(torchvision_network, architecture)
    from common.networks.function_networks import function_network

    return partial(function_network, architecture)
