"""What all attacks share: evaluation mode, logits, objectives, gradients, and checks."""

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


def objective(
    logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None = None,
    loss: str = "cross-entropy",
) -> torch.Tensor:  # fmt: skip
    """Return an attack's objective (N,), which the attack raises.

    loss: "cross-entropy", of the label or, with targets, minus that of the target; or "margin",
    a difference of logits, whose gradient doesn't vanish for a confident network. Without
    targets the margin is the largest other logit minus the label's, divided by the range of the
    image's logits (largest minus smallest). With three classes that is the DLR loss of Croce
    and Hein (2020). With targets the margin is the target's logit minus the label's. It isn't
    divided: where the label's logit is the largest and the target's the smallest, the quotient
    would be -1 and its gradient 0, and the targeted DLR loss needs four classes. With two
    classes no margin is divided, because every quotient would be -1 or 1.
    """
    if loss == "cross-entropy":
        classes, sign = (labels, 1) if targets is None else (targets, -1)
        return sign * F.cross_entropy(logits, classes, reduction="none")
    label = logits.gather(1, labels[:, None])[:, 0]
    if targets is not None:
        return logits.gather(1, targets[:, None])[:, 0] - label
    difference = logits.scatter(1, labels[:, None], -torch.inf).amax(1) - label
    if logits.shape[1] == 2:
        return difference
    return difference / (logits.amax(1) - logits.amin(1)).clamp(min=1e-12)


def gradient(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor,
    targets: torch.Tensor | None = None, loss: str = "cross-entropy",
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Return the logits (N, K), and the gradient (N, 3, S, S) of each image's `objective`.

    By default that is the cross-entropy of `labels`.
    """
    logits, gradients = [], []
    classes = [labels] if targets is None else [labels, targets]
    parts = zip(x.split(BATCH), *(k.split(BATCH) for k in classes), strict=True)
    with attack_mode(network), torch.enable_grad():
        for batch, *classes_of_batch in parts:
            batch = batch.detach().requires_grad_()
            out = network(batch)
            # With the sum, an image's gradient doesn't depend on the size of its batch.
            total = objective(out.float(), *classes_of_batch, loss=loss).sum()
            gradients += torch.autograd.grad(total, batch)
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
    need_gradient: bool = True, loss: str = "cross-entropy",
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:  # fmt: skip
    """Return the logits (N, K), the gradient of an attack's objective, and the objective (N,).

    Without need_gradient, the gradient is None.
    """
    if need_gradient:
        logits, g = gradient(network, x, labels, targets, loss)
    else:
        logits, g = logits_of(network, x), None
    return logits, g, objective(logits, labels, targets, loss)


def norms(x: torch.Tensor, p: float) -> torch.Tensor:
    """Return the p-norm of each image, (N, 1, 1, 1), at least 1e-12, so safe to divide by."""
    return x.flatten(1).norm(p, dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
