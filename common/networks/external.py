"""Networks from elsewhere, with a `Head` in place of their last layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from common.networks.heads import Head
from common.terminal import printable


class ExternalNetwork(nn.Module):
    """A network whose last layer is our `Head` in place of its own.

    backbone: the network, with an Identity in place of its layer `last_layer`, a name in
    `backbone.named_modules()`. normalise: what is done to the images first. If head and
    last_layer are None, the backbone is used as it is.

    x: float32 images (N, 3, S, S) in [0, 1]. Returns logits (N, classes).
    """

    def __init__(
        self,
        backbone: nn.Module,
        last_layer: str | None,
        head: Head | None,
        normalise: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.last_layer = last_layer
        self.normalise = normalise or nn.Identity()
        self.backbone = backbone
        self.head = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        return x if self.head is None else self.head(x)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the last layer gets, (N, D)."""
        x = self.normalise(x)
        if not self.training or len(x) > 1:
            return self.backbone(x)
        # Of a small image a deep network leaves one pixel, of whose channels a single image has
        # no variance. The last batch of an epoch can be one image.
        layers = [m for m in self.backbone.modules() if _is_batch_norm(m) and m.training]
        for layer in layers:
            layer.eval()
        features = self.backbone(x)
        for layer in layers:
            layer.train()
        return features


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


@torch.no_grad()
def find_last_layer(network: nn.Module, images: torch.Tensor) -> tuple[str | None, Any]:
    """Return the name of the Linear layer whose output is the network's, and that output.

    The name is None if there is no such layer.
    """
    outputs: list[tuple[str, Any]] = []
    hooks = [
        module.register_forward_hook(lambda _m, _x, y, name=name: outputs.append((name, y)))
        for name, module in network.named_modules()
        if name and isinstance(module, nn.Linear)
    ]
    try:
        output = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return next((name for name, y in outputs if y is output), None), output


def replace_layer(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the network's module of this name."""
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)


def cause(error: BaseException) -> str:
    """Return the type and the first line of an error, for a message of one line."""
    text = printable(str(error).strip().partition("\n")[0])
    return f"{type(error).__name__}: {text:.200}" if text else type(error).__name__
