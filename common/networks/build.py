"""New networks from a name, arguments and a seed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import nn

from common.networks import ARCHITECTURES
from common.networks.heads import FlipAverage


@contextmanager
def torch_seed(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed PyTorch's global generators within the block, and restore them afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def build(architecture: str, arguments: dict[str, Any], seed: int = 0) -> nn.Module:
    """Return a new network with weights drawn from `seed`.

    architecture: a key of ARCHITECTURES. arguments: those of the network's class, with
    `flip_average` beside them. The global random state stays as it was.
    """
    arguments = dict(arguments)
    flip_average = arguments.pop("flip_average", False)
    module, name, _ = ARCHITECTURES[architecture]
    network_class = getattr(import_module(f"common.networks.{module}"), name)
    with torch_seed(seed):
        network = network_class(**arguments)
    return FlipAverage(network) if flip_average else network
