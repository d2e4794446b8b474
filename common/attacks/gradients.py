"""What all attacks share: evaluation mode, logits, gradients, and checks of arguments."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from common.errors import InputError

BATCH = 125  # images per batch: the activations of a larger batch don't fit a CPU's cache


@contextmanager
def attack_mode(network: nn.Module) -> Iterator[None]:
    """Put the network in evaluation mode, without parameter gradients, within the block.

    The mode of every module and `requires_grad` of every parameter are restored afterwards.
    """
    modes = {module: module.training for module in network.modules()}
    requires_grad = {p: p.requires_grad for p in network.parameters()}
    try:
        network.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for p, required in requires_grad.items():
            p.requires_grad_(required)


def logits_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Return the logits (N, K) of images x in evaluation mode, without gradient."""
    with attack_mode(network), torch.no_grad():
        return torch.cat([network(batch) for batch in x.split(BATCH)])


def gradient(
    network: nn.Module, x: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits (N, K), and the gradient (N, 3, S, S) of each image's cross-entropy."""
    logits, gradients = [], []
    with attack_mode(network), torch.enable_grad():
        for batch, y in zip(x.split(BATCH), classes.split(BATCH), strict=True):
            batch = batch.detach().requires_grad_()
            out = network(batch)
            # With the sum, an image's gradient doesn't depend on the size of its batch.
            loss = F.cross_entropy(out.float(), y, reduction="sum")
            gradients += torch.autograd.grad(loss, batch)
            logits.append(out.detach())
    return torch.cat(logits), torch.cat(gradients)


def check_arguments(
    labels: torch.Tensor, targets: torch.Tensor | None, *epsilons: float, most: float = 1.0
) -> None:
    """Raise InputError for an epsilon outside [0, most] or a target that is the true class."""
    for epsilon in epsilons:
        if not 0 <= epsilon <= most:
            raise InputError(f"epsilon {epsilon:g}: give a number between 0 and {most:g}")
    if targets is not None and (targets == labels).any():
        k = int(labels[targets == labels][0])
        raise InputError(f"target {k} is the true class of an image: choose another class")


def fools(
    logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None
) -> torch.Tensor:
    """Return which images (N,) are misclassified or, with targets, classified as the target."""
    predictions = logits.argmax(1)
    return predictions != labels if targets is None else predictions == targets


def objective_gradient(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None,
    need_gradient: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:  # fmt: skip
    """Return the logits (N, K), the gradient of an attack's objective, and the objective (N,).

    An attack raises its objective: the cross-entropy of the label or, with targets, minus the
    cross-entropy of the target. Without need_gradient, the gradient is None.
    """
    classes, sign = (labels, 1) if targets is None else (targets, -1)
    if need_gradient:
        logits, g = gradient(network, x, classes)
        g = sign * g
    else:
        logits, g = logits_of(network, x), None
    return logits, g, sign * F.cross_entropy(logits, classes, reduction="none")


def norms(x: torch.Tensor, p: float) -> torch.Tensor:
    """Return the p-norm of each image, (N, 1, 1, 1), at least 1e-12, so safe to divide by."""
    return x.flatten(1).norm(p, dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
