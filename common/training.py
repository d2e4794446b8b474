"""fit(): the one training loop."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from imblearn.metrics import geometric_mean_score
from torch import nn
from tqdm import tqdm

from common.dataset import Part
from common.models import pixels, predict
from common.options import InputError
from common.recipes import Recipe

BAR_STEPS = 100  # steps between two looks at the loss, each of which waits for the device


@dataclass
class History:
    """Per epoch: mean training loss, and on the validation part, where there is one, the
    mean loss and the G-mean."""

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_g_mean: list[float] = field(default_factory=list)


def make_deterministic() -> None:
    """Only algorithms that give the same bits each time, on CUDA too (slower there)."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def fit(
    network: nn.Module,
    train: Part,
    validation: Part,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    name: str = "Training",
) -> History:
    """Train `network` in place on `device`, and leave it there in evaluation mode.

    seed decides order and dropout; the global random state stays as it was. name stands
    before the bar. Raises InputError where the loss stops being finite.
    """
    network.to(device)
    images, labels = train.images.to(device), train.labels.to(device)
    n, batch_size = len(labels), recipe.batch_size
    steps = -(-n // batch_size)
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, fused=True
    )
    history = History()
    # The order has a generator of its own, so that networks with and without dropout, or
    # on different devices, see the same batches.
    order_of = torch.Generator().manual_seed(seed)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        tqdm(total=recipe.epochs * steps, desc=name, unit="step", disable=None) as bar,
    ):
        torch.manual_seed(seed)
        for epoch in range(recipe.epochs):
            network.train()
            losses = torch.empty(steps, device=device)
            order = torch.randperm(n, generator=order_of).to(device)
            for step, batch in enumerate(order.split(batch_size)):
                loss = F.cross_entropy(network(pixels(images[batch])), labels[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                losses[step] = loss.detach()
                bar.update()
                if step % BAR_STEPS == 0 and not bar.disable:
                    recent = losses[max(0, step - BAR_STEPS) : step + 1].mean().item()
                    bar.set_postfix(_postfix(recent, history), refresh=False)
            finite = losses.isfinite()
            if not finite.all():
                step = epoch * steps + int(finite.logical_not().nonzero()[0]) + 1
                raise InputError(
                    f"{name}: the loss is not finite at step {step};"
                    f" take a --learning-rate below {recipe.learning_rate:g}"
                )
            # Every image counts once: a last, smaller batch with its own size.
            losses *= batch_size
            losses[-1] *= (n - (steps - 1) * batch_size) / batch_size
            history.loss.append(losses.sum().item() / n)
            if len(validation.labels):
                logits = predict(network, validation.images)
                loss = F.cross_entropy(logits, validation.labels)
                score = geometric_mean_score(validation.labels, logits.argmax(1))
                history.validation_loss.append(loss.item())
                history.validation_g_mean.append(float(score))
            bar.set_postfix(_postfix(history.loss[-1], history), refresh=False)
    network.eval()
    return history


def _postfix(loss: float, history: History) -> dict[str, str]:
    shown = {"loss": f"{loss:.3f}"}
    if history.validation_g_mean:
        shown["validation G-mean"] = f"{history.validation_g_mean[-1]:.3f}"
    return shown
