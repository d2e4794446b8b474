"""The training loop: `fit` trains one network with one recipe."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler
from tqdm import tqdm

from common.attacks.pgd import pgd
from common.dataset.split import LabelledImages
from common.errors import DivergedError
from common.metrics.report import g_mean
from common.networks.build import torch_seed
from common.networks.prediction import predict, to_pixel_space
from common.training import augmentation, losses, mixing, sampling
from common.training.optimization import make_optimizer, make_scheduler
from common.training.recipe import Recipe

BAR_STEPS = 100  # steps between two readings of the loss, each of which waits for the device


@dataclass
class History:
    """What a training run measured after each epoch.

    loss: mean training loss. validation_loss: mean cross-entropy, and validation_g_mean:
    G-mean, both empty without validation images. best_epoch: with patience, the epoch (from 1)
    whose weights were kept. diverged_at: the first step (from 1) with a loss that is not
    finite, None if there was none; the last entry of `loss` is then the mean of the steps
    before it in its epoch.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_g_mean: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    diverged_at: int | None = None


def fit(
    network: nn.Module,
    examples: LabelledImages,
    validation: LabelledImages,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    name: str = "Training",
) -> History:
    """Train `network` in place on `device`, and leave it there in evaluation mode.

    Only parameters that require a gradient are trained. seed: of order, dropout, augmentation
    and mixing; the global random state stays as it was. name: the label of the progress bar. If
    the loss stops being finite the training ends with that epoch; see `require_finite`.
    """
    network.to(device, memory_format=torch.channels_last)  # faster convolutions, on CPUs too
    steps = -(-len(examples.labels) // recipe.batch_size)
    optimizer = make_optimizer(recipe, network)
    scheduler = make_scheduler(recipe, optimizer, steps)
    history, average, best_weights = History(), None, None
    bar = tqdm(total=recipe.epochs * steps, desc=name, unit="step", disable=None)
    with torch_seed(seed, device), flush_denormals(), bar:
        training = train_steps(
            network, examples, recipe, optimizer, scheduler, seed=seed, device=device
        )
        for _ in range(recipe.epochs):
            epoch_losses: list[torch.Tensor] = []
            for step in range(steps):
                epoch_losses.append(next(training))
                if recipe.ema:
                    average = update_ema(average, network, recipe.ema)
                bar.update()
                if step % BAR_STEPS == 0 and not bar.disable:
                    recent = torch.stack(epoch_losses[-BAR_STEPS:]).mean().item()
                    bar.set_postfix(_postfix(recent, history), refresh=False)
            last_batch = len(examples.labels) - (steps - 1) * recipe.batch_size
            _record_epoch(history, torch.stack(epoch_losses), recipe.batch_size, last_batch)
            if history.diverged_at:
                break
            evaluated = network if average is None else average
            if len(validation.labels):
                _validate(evaluated, validation, history)
            if recipe.patience:
                epoch, scores = len(history.loss), history.validation_g_mean
                if epoch == 1 or scores[-1] > scores[history.best_epoch - 1]:
                    history.best_epoch = epoch
                    best_weights = copy.deepcopy(evaluated.state_dict())
                elif epoch - history.best_epoch >= recipe.patience:
                    break
            bar.set_postfix(_postfix(history.loss[-1], history), refresh=False)
    if best_weights is not None:
        network.load_state_dict(best_weights)
    elif average is not None:
        network.load_state_dict(average.state_dict())
    network.zero_grad()
    network.eval()
    return history


def train_steps(
    network: nn.Module,
    examples: LabelledImages,
    recipe: Recipe,
    optimizer: optim.Optimizer,
    scheduler: LRScheduler | None = None,
    *,
    seed: int,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Train `network` without end, epoch after epoch; yield each step's loss.

    A loss is a scalar on `device`, and no step waits for the device. Dropout draws from
    PyTorch's global generator, everything else from generators of its own.
    """
    # With the channels last in memory, selecting a batch keeps the layout that is fastest.
    images = examples.images.to(device).movedim(1, -1).contiguous()  # (n, S, S, 3)
    labels = examples.labels.to(device)
    n, size, classes = len(labels), images.shape[1], network.head.out_features
    counts = torch.bincount(examples.labels, minlength=classes)
    class_weights = losses.class_weights(recipe, counts)
    if class_weights is not None:
        class_weights = class_weights.to(device)
    order_generator = make_generator(seed)
    mixing_rng = np.random.default_rng(seed)
    augmentation_generator = make_generator(seed, device)
    attack_generator = make_generator(seed, device)
    autocast = nullcontext
    if precision(recipe, device) == "bfloat16":
        autocast = partial(torch.autocast, device.type, torch.bfloat16)

    def train_on_batch(
        objective: Callable[..., torch.Tensor], x: torch.Tensor, y: torch.Tensor,
        *mixed: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Take one step on images x (N, 3, S, S) with labels y (N,); return the loss, a scalar.

        objective: `losses.batch_loss` with the epoch's loss and class weights. mixed: the
        batch's rows of `mixing.draw_mixing`, if the recipe mixes.
        """
        targets = [y]
        if mixed:
            x, *partners = mixing.mix(x, y, *mixed)
            targets += partners
        if recipe.adversarial:
            # Against the network as it predicts: without dropout, with BatchNorm's running
            # averages, which only the step below updates.
            x = pgd(
                network, x, y, epsilon=recipe.adversarial / 255,
                steps=recipe.adversarial_steps, stop=False, generator=attack_generator,
            )  # fmt: skip

        def closure() -> torch.Tensor:
            """Compute loss and gradients; an optimiser such as SAM calls it twice per step."""
            optimizer.zero_grad()
            with autocast():
                logits = network(x)
            loss = objective(logits.float(), *targets)
            loss.backward()
            return loss.detach()

        loss = optimizer.step(closure)
        if scheduler is not None:
            scheduler.step()
        return loss

    for epoch in itertools.count():
        set_training_mode(network)
        prior = sampling.class_shares(counts, recipe, epoch).float().to(device)
        reweighted = epoch >= recipe.reweight_from * recipe.epochs
        epoch_class_weights = class_weights if reweighted else None
        per_example_loss = losses.make_loss(recipe, counts.to(device), prior)
        objective = partial(losses.batch_loss, per_example_loss, epoch_class_weights)
        drawn = [sampling.epoch_order(examples.labels, recipe, epoch, classes, order_generator)]
        if recipe.mix != "none":
            drawn += mixing.draw_mixing(n, size, recipe, mixing_rng)
        for batch, *mixed in zip(
            *(each.to(device).split(recipe.batch_size) for each in drawn), strict=True
        ):
            x, y = to_pixel_space(images[batch].movedim(-1, 1)), labels[batch]
            x = augmentation.augment(x, recipe, augmentation_generator)
            yield train_on_batch(objective, x, y, *mixed)


def require_finite(history: History, recipe: Recipe) -> None:
    """Raise DivergedError if the loss stopped being finite."""
    if history.diverged_at:
        raise DivergedError(
            f"the loss is not finite at step {history.diverged_at};"
            f" take a --learning-rate below {recipe.learning_rate:g}"
        )


def make_deterministic() -> None:
    """Let PyTorch use only algorithms that give the same bits each time, also on CUDA."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


@contextmanager
def flush_denormals() -> Iterator[None]:
    """Treat numbers below 1e-38 as 0 within the block, and restore the setting afterwards.

    The momentum of a dead unit's weights stays among these numbers, and slows a CPU down.
    """
    smallest = torch.ones(1, dtype=torch.int32).view(torch.float32)  # 1.4e-45
    before = (smallest * 1).item() == 0  # PyTorch has no function that returns the setting
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def precision(recipe: Recipe, device: torch.device) -> str:
    """Return the precision of forward passes: the recipe's, or what is faster on the device.

    bfloat16 is faster where the hardware multiplies matrices in it: on a CPU, with AMX. A CPU
    without AMX is slower in bfloat16 than in float32.
    """
    if recipe.precision != "auto":
        return recipe.precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and _cpu_capabilities().get("amx_bf16")
    return "bfloat16" if fast else "float32"


def first_draw(examples: LabelledImages, recipe: Recipe, classes: int, seed: int) -> list[int]:
    """Return how many examples of each class the first epoch of `fit` draws."""
    order = sampling.epoch_order(examples.labels, recipe, 0, classes, make_generator(seed))
    return torch.bincount(examples.labels[order], minlength=classes).tolist()


def make_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device`, seeded."""
    return torch.Generator(device).manual_seed(seed)


def set_training_mode(network: nn.Module) -> None:
    """Set training mode, except for frozen layers: their statistics stay as they are."""
    network.train()
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            module.eval()


@torch.no_grad()
def update_ema(average: nn.Module | None, network: nn.Module, decay: float) -> nn.Module:
    """Move the exponential moving average of the weights towards those of `network`.

    The average starts as a copy after the first step. Buffers are averaged too: BatchNorm's
    statistics must fit the averaged weights. (torch.optim.swa_utils.AveragedModel waits for
    the device at every step, to read its counter.)
    """
    if average is None:
        return copy.deepcopy(network)
    averages, values = (
        [t for t in (*each.parameters(), *each.buffers()) if t.is_floating_point()]
        for each in (average, network)
    )
    torch._foreach_lerp_(averages, values, 1 - decay)
    return average


def _record_epoch(
    history: History, epoch_losses: torch.Tensor, batch_size: int, last_batch: int
) -> None:
    """Append an epoch's mean loss over its examples, from the losses of its steps, (steps,).

    last_batch: the size of the last batch, which may be smaller than the others.
    """
    steps = len(epoch_losses)
    sizes = torch.full_like(epoch_losses, batch_size)
    sizes[-1] = last_batch
    finite = int(epoch_losses.isfinite().cumprod(0).sum())  # steps before the first that is not
    epoch = len(history.loss)
    if finite:
        mean = (epoch_losses * sizes)[:finite].sum() / sizes[:finite].sum()
        history.loss.append(mean.item())
    if finite < steps:
        history.diverged_at = epoch * steps + finite + 1


def _validate(network: nn.Module, validation: LabelledImages, history: History) -> None:
    logits = predict(network, validation.images)
    history.validation_loss.append(F.cross_entropy(logits, validation.labels).item())
    history.validation_g_mean.append(g_mean(validation.labels, logits.argmax(1)))


def _postfix(loss: float, history: History) -> dict[str, str]:
    shown = {"loss": f"{loss:.3f}"}
    if history.validation_g_mean:
        shown["validation G-mean"] = f"{history.validation_g_mean[-1]:.3f}"
    return shown


def _cpu_capabilities() -> dict[str, bool | int | str]:
    """Return what the CPU can do; empty where PyTorch is too old to say."""
    return getattr(torch.cpu, "get_capabilities", dict)()
