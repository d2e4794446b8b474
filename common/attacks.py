"""Attacks: images to adversarial images, all at once and on the device they lie on.

FGSM and PGD; the noises that are optimised are in `noise.py`. All have one signature,
`attack(network, x, labels, *, targets=None, ...)`: float32 images x (N, 3, 32, 32) in [0, 1]
("pixel space") and their true classes, int64 (N,), to images of the same kind. Untargeted they
raise the true class's loss; with targets (N,) they lower the target's. At epsilon 0 they
return x itself. A network's mode and its parameters' gradients are as before afterwards, and
what is random comes from `generator` alone (seed 0 where None). InputError: an epsilon outside
[0, 1], or a target that is the true class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from common.options import InputError

BATCH = 125  # images at a time: the activations of more don't fit a CPU's cache


@contextmanager
def attacked(network: nn.Module) -> Iterator[None]:
    """`network` in evaluation mode, its parameters without gradients; as before afterwards."""
    modes = {module: module.training for module in network.modules()}
    wanted = {p: p.requires_grad for p in network.parameters()}
    try:
        network.eval().requires_grad_(False)
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        for p, requires_grad in wanted.items():
            p.requires_grad_(requires_grad)


def logits_of(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Logits (N, K) in evaluation mode, on the device of x, without gradient."""
    with attacked(network), torch.no_grad():
        return torch.cat([network(batch) for batch in x.split(BATCH)])


def gradient(
    network: nn.Module, x: torch.Tensor, classes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, K), and each image's gradient (N, 3, 32, 32) of its own cross-entropy."""
    logits, gradients = [], []
    with attacked(network), torch.enable_grad():
        for batch, y in zip(x.split(BATCH), classes.split(BATCH), strict=True):
            batch = batch.detach().requires_grad_()
            out = network(batch)
            # The sum: an image's gradient is then the same in any batch.
            loss = F.cross_entropy(out.float(), y, reduction="sum")
            gradients += torch.autograd.grad(loss, batch)
            logits.append(out.detach())
    return torch.cat(logits), torch.cat(gradients)


def check(labels: torch.Tensor, targets: torch.Tensor | None, *epsilons: float) -> None:
    """Raise InputError for an epsilon outside [0, 1] or a target that is the true class."""
    for epsilon in epsilons:
        if not 0 <= epsilon <= 1:
            raise InputError(f"epsilon {epsilon:g}: it must lie between 0 and 1 (255/255)")
    if targets is not None and (targets == labels).any():
        k = int(labels[targets == labels][0])
        raise InputError(f"target {k}: it is the true class; take another")


def fgsm(
    network: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    targets: torch.Tensor | None = None,
) -> torch.Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015): each value moves by epsilon."""
    return next(fgsm_sweep(network, x, labels, epsilons=[epsilon], targets=targets))


def fgsm_sweep(
    network: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilons: Sequence[float],
    targets: torch.Tensor | None = None,
) -> Iterator[torch.Tensor]:
    """`fgsm` at each epsilon, from one gradient, which is the same for all."""
    check(labels, targets, *epsilons)
    sign = uphill(network, x, labels, targets)[1].sign_()
    for epsilon in epsilons:
        yield torch.add(x, sign, alpha=epsilon).clamp_(0, 1) if epsilon else x


def pgd(
    network: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    *,
    epsilon: float,
    targets: torch.Tensor | None = None,
    norm: str = "linf",
    steps: int = 10,
    step_size: float | None = None,
    restarts: int = 1,
    momentum: float = 0.0,
    stop: bool = True,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Projected gradient descent (Madry et al. 2018) within epsilon in norm linf or l2.

    Starts at a random point of the ball, `restarts` times. step_size: 2.5 epsilon / steps
    where None, enough to cross the ball. momentum: decay of the sum of gradients, each of L1
    norm 1, whose direction is taken (MI-FGSM, Dong et al. 2018); 0: the gradient's alone.
    stop: leave an image alone once it fools. One that never does, or without stop, ends at its
    worst point, where the loss that the attack raises is highest. Without stop, and with a
    generator of the device, nothing waits for it.
    """
    check(labels, targets, epsilon)
    if epsilon == 0:
        return x
    generator = generator or torch.Generator().manual_seed(0)
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    best, highest = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    left = torch.arange(len(x), device=x.device)
    for _ in range(restarts):
        noise = torch.zeros_like(x)
        noise[left] = _random_start(x[left], epsilon, norm, generator)
        direction = torch.zeros_like(x)
        for step in range(steps + 1):
            at = (x[left] + noise[left]).clamp(0, 1)
            aim = None if targets is None else targets[left]
            logits, g, loss = uphill(network, at, labels[left], aim, last=step == steps)
            fooled = fools(logits, labels[left], aim) & stop
            better = fooled | (loss > highest[left])
            best[left] = at.where(better[:, None, None, None], best[left])
            highest[left] = loss.where(better, highest[left])
            if stop:  # how many are left the host waits to know
                left = left[~fooled]
            if step == steps or len(left) == 0:
                break
            if stop:
                at, g = at[~fooled], g[~fooled]
            direction[left] = momentum * direction[left] + g / norms(g, 1)
            move = direction[left]
            move = move.sign() if norm == "linf" else move / norms(move, 2)
            noise[left] = _project(at + step_size * move - x[left], epsilon, norm)
        if len(left) == 0:
            break
    return best


def fools(
    logits: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor | None
) -> torch.Tensor:
    """Which images (N,) are called something else than labels, or are called targets."""
    called = logits.argmax(1)
    return called != labels if targets is None else called == targets


def uphill(
    network: nn.Module,
    x: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor | None,
    last: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Logits, the gradient of what the attack raises (None for the last) and its value (N,)."""
    classes, sign = (labels, 1) if targets is None else (targets, -1)
    if last:
        logits, g = logits_of(network, x), None
    else:
        logits, g = gradient(network, x, classes)
        g = sign * g
    return logits, g, sign * F.cross_entropy(logits, classes, reduction="none")


def norms(x: torch.Tensor, p: float) -> torch.Tensor:
    """Each image's norm, (N, 1, 1, 1); never 0, so that one can divide by it."""
    return x.flatten(1).norm(p, dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


def _random_start(
    x: torch.Tensor, epsilon: float, norm: str, generator: torch.Generator
) -> torch.Tensor:
    """Uniform in the ball of radius epsilon; drawn where the generator is: one of the CPU
    draws the same for every device."""
    drawn = {"generator": generator, "device": generator.device}
    if norm == "linf":
        return (epsilon * (2 * torch.rand(x.shape, **drawn) - 1)).to(x)
    noise = torch.randn(x.shape, **drawn)
    radius = torch.rand(len(x), 1, 1, 1, **drawn) ** (1 / x[0].numel())
    return (epsilon * radius * noise / norms(noise, 2)).to(x)


def _project(noise: torch.Tensor, epsilon: float, norm: str) -> torch.Tensor:
    """The nearest noise within epsilon."""
    if norm == "linf":
        return noise.clamp(-epsilon, epsilon)
    return noise * (epsilon / norms(noise, 2)).clamp(max=1)
