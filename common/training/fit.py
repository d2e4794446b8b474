"""The training loop: `fit` trains one network with one recipe."""

from __future__ import annotations

import copy
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from common.dataset.split import LabelledImages
from common.errors import DivergedError
from common.files import processor
from common.metrics.report import g_mean
from common.networks.build import torch_seed
from common.networks.prediction import predict, to_pixel_space
from common.training import augmentation, losses, mixing, sampling
from common.training.adversarial import adversarial_images, divergence, predict_under_attack
from common.training.log import Row, TrainingLog
from common.training.optimization import (
    limit_class_norms,
    make_optimizer,
    make_scheduler,
    sharpness_aware,
)
from common.training.progress import (
    Generators,
    History,
    StateFile,
    TrainingState,
    make_generator,
)
from common.training.recipe import Recipe
from common.training.trivial_augment import draw_operations

Objective = Callable[..., torch.Tensor]  # of logits and targets: a scalar
BAR_STEPS = 100  # steps between two readings of the loss, each of which waits for the device


def fit(
    network: nn.Module,
    examples: LabelledImages,
    validation: LabelledImages,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    name: str = "Training",
    state_file: StateFile | None = None,
    log: TrainingLog | None = None,
) -> History:
    """Train `network` in place on `device`, and leave it there in evaluation mode.

    Only parameters that require a gradient are trained. examples, validation: images in memory
    or in a file or, for a network that takes them, float features (N, D). seed: of order,
    dropout, augmentation and mixing; the global random state stays as it was. name: the label
    of the progress bar. state_file: where the state is saved from time to time; from a state
    that it holds the run goes on, to the same weights. log: gets a row as each epoch ends, and
    at the start those of the epochs that the state holds. If the loss stops being finite the
    training ends with that epoch; see `require_finite`.
    """
    start = time.monotonic()
    network.to(device, memory_format=torch.channels_last)  # faster convolutions, on CPUs too
    steps = -(-len(examples.labels) // recipe.batch_size)
    optimizer = make_optimizer(recipe, network)
    scheduler = make_scheduler(recipe, optimizer, steps)
    state = TrainingState(network, optimizer, scheduler, Generators(seed, device))
    with torch_seed(seed, device), flush_denormals():
        if state_file is not None:
            state_file.load(state)
            start -= state_file.seconds
        if log is not None:
            log.start(state.rows)
        epoch, step = len(state.history.loss), len(state.epoch_losses)
        training = train_steps(examples, recipe, state, device=device, start=(epoch, step))
        total, done = recipe.epochs * steps, epoch * steps + step
        with tqdm(desc=name, total=total, initial=done, unit="step", disable=None) as bar:
            for _ in range(epoch, recipe.epochs):
                while len(state.epoch_losses) < steps:
                    state.epoch_losses.append(next(training))
                    if recipe.ema:
                        state.average = update_ema(state.average, network, recipe.ema)
                    if state_file is not None:
                        state_file.save_if_due(state)
                    bar.update()
                    if len(state.epoch_losses) % BAR_STEPS == 1 and not bar.disable:
                        recent = torch.stack(state.epoch_losses[-BAR_STEPS:]).mean().item()
                        bar.set_postfix(_postfix(recent, state.history), refresh=False)
                last_batch = len(examples.labels) - (steps - 1) * recipe.batch_size
                goes_on = _end_epoch(state, validation, recipe, last_batch)
                state.rows.append(_row(state, time.monotonic() - start))
                if log is not None:
                    log.add(state.rows[-1])
                if not goes_on:
                    break
                bar.set_postfix(_postfix(state.history.loss[-1], state.history), refresh=False)
    if state.best_weights is not None:
        network.load_state_dict(state.best_weights)
    elif state.average is not None:
        network.load_state_dict(state.average.state_dict())
    network.zero_grad()
    network.eval()
    return state.history


def train_steps(
    examples: LabelledImages,
    recipe: Recipe,
    state: TrainingState,
    *,
    device: torch.device,
    start: tuple[int, int] = (0, 0),
) -> Iterator[torch.Tensor]:
    """Train the network of `state` without end, epoch after epoch; yield each step's loss.

    A loss is a scalar on `device`, and no step waits for the device. Dropout draws from
    PyTorch's global generator, everything else from the generators of `state`. start: the
    epoch and, within it, the step to begin with.
    """
    network, optimizer, generators = state.network, state.optimizer, state.generators
    in_memory = isinstance(examples.images, torch.Tensor)
    home = device if in_memory else torch.device("cpu")  # of the images, and of what selects
    labels = examples.labels.to(home)
    if in_memory:
        # With the channels last in memory, selecting a batch keeps the layout that is fastest.
        images = examples.images.to(device).movedim(1, -1).contiguous()  # (n, S, S, 3)
    n, size = len(labels), examples.images.shape[-1]
    classes = _class_count(network, examples.labels)
    counts = torch.bincount(examples.labels, minlength=classes)
    class_weights = losses.class_weights(recipe, counts)
    if class_weights is not None:
        class_weights = class_weights.to(device)
    autocast = nullcontext
    if precision(recipe, device) == "bfloat16":
        autocast = partial(torch.autocast, device.type, torch.bfloat16)

    def select(batch: torch.Tensor) -> torch.Tensor:
        """Return the uint8 images or float features at positions (N,), on `device`."""
        if in_memory:
            return images[batch].movedim(-1, 1)
        x = examples.images[batch]
        return x.to(device, memory_format=torch.channels_last)  # the layout as above

    def train_on_batch(
        objective: Objective, ascent: Objective | None, x: torch.Tensor, y: torch.Tensor,
        *mixed: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Take one step on images x (N, 3, S, S) with labels y (N,); return the loss, a scalar.

        objective: `losses.batch_loss` with the epoch's loss and class weights. ascent: the same
        for SAM's first pass; None for a step without SAM. mixed: the batch's rows of
        `mixing.draw_mixing`, if the recipe mixes.
        """
        targets = [y]
        if mixed:
            x, *partners = mixing.mix(x, y, *mixed)
            targets += partners
        if recipe.adversarial:
            with autocast():
                attacked = adversarial_images(network, x, y, recipe, generators.attack)
            x = torch.cat([x, attacked]) if recipe.trades else attacked

        def gradients_of(function: Objective) -> torch.Tensor:
            """Compute the gradients of `function`; return the objective, a scalar."""
            optimizer.zero_grad()
            with autocast():
                logits = network(x)
            logits, penalty = logits.float(), 0.0
            if recipe.trades:
                logits, of_attacked = logits.chunk(2)
                penalty = recipe.trades * divergence(logits, of_attacked)
            loss = objective(logits, *targets) + penalty
            differentiated = loss
            if function is not objective:
                differentiated = function(logits, *targets) + penalty
            differentiated.backward()
            return loss.detach()

        closure = partial(gradients_of, objective)
        if ascent is not None:
            first_pass = partial(gradients_of, ascent)
            closure = partial(sharpness_aware, network, recipe.sam, first_pass, closure)
        state.learning_rate = float(optimizer.param_groups[0]["lr"])
        loss = optimizer.step(closure)
        if recipe.max_norm:
            limit_class_norms(network.head, recipe.max_norm)
        if state.scheduler is not None:
            state.scheduler.step()
        return loss

    first_epoch, first_step = start
    for epoch in itertools.count(first_epoch):
        set_training_mode(network)
        generators.begin_epoch()
        prior = sampling.class_shares(counts, recipe, epoch).float().to(device)
        last = recipe.epochs - 1  # at which class weights and SAM begin at the latest
        reweighted = epoch >= min(recipe.reweight_from * recipe.epochs, last)
        epoch_class_weights = class_weights if reweighted else None
        per_example_loss = losses.make_loss(recipe, counts.to(device), prior)
        objective = partial(losses.batch_loss, per_example_loss, epoch_class_weights)
        ascent = None
        if recipe.sam and epoch >= min(recipe.sam_from * recipe.epochs, last):
            ascent = objective
            if recipe.sam_class_weighted:
                inverse = (1 / counts).to(device)  # a weighted mean is independent of a factor
                ascent = partial(losses.batch_loss, per_example_loss, inverse)
        order = sampling.epoch_order(examples.labels, recipe, epoch, classes, generators.order)
        operation_sizes = None
        if "trivial-augment" in recipe.augment:
            order, operation_sizes = draw_operations(order, recipe.batch_size, generators.order)
        drawn = [order.to(home)]
        if recipe.mix != "none":
            mixture = mixing.draw_mixing(n, size, recipe, generators.mixing)
            drawn += [each.to(device) for each in mixture]
        batches = zip(*(each.split(recipe.batch_size) for each in drawn), strict=True)
        skipped = first_step if epoch == first_epoch else 0
        for step, (batch, *mixed) in itertools.islice(enumerate(batches), skipped, None):
            x, y = to_pixel_space(select(batch)), labels[batch].to(device)
            sizes = operation_sizes and operation_sizes[step]
            x = augmentation.augment(x, recipe, generators.augmentation, sizes)
            yield train_on_batch(objective, ascent, x, y, *mixed)


def require_finite(history: History, recipe: Recipe, loss: str = "the loss") -> None:
    """Raise DivergedError if the loss stopped being finite. loss: what the message calls it."""
    if history.diverged_at:
        raise DivergedError(
            f"{loss} is not finite at step {history.diverged_at};"
            f" take a --learning-rate below {recipe.learning_rate:g}"
        )


def require_finite_logits(logits: torch.Tensor, recipe: Recipe) -> None:
    """Raise DivergedError unless logits are finite: those after the last step have no loss."""
    if not logits.isfinite().all():
        raise DivergedError(
            "the network's logits are not finite after the last step; take a --learning-rate"
            f" below {recipe.learning_rate:g}"
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

    bfloat16 is faster where the hardware multiplies matrices in it: on CPUs with AMX, and on
    AMD's with AVX512_BF16 (`best` on an EPYC with Zen 4 cores: 1.8 times as fast). An Intel
    Xeon with AVX-512 and without AMX was slower in bfloat16 than in float32.
    """
    if recipe.precision != "auto":
        return recipe.precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has = _cpu_capabilities() if device.type == "cpu" else {}
        fast = has.get("amx_bf16") or (has.get("avx512_bf16") and "AMD" in processor())
    return "bfloat16" if fast else "float32"


def first_draw(examples: LabelledImages, recipe: Recipe, classes: int, seed: int) -> list[int]:
    """Return how many examples of each class the first epoch of `fit` draws."""
    order = sampling.epoch_order(examples.labels, recipe, 0, classes, make_generator(seed))
    return torch.bincount(examples.labels[order], minlength=classes).tolist()


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


def _end_epoch(
    state: TrainingState, validation: LabelledImages, recipe: Recipe, last_batch: int
) -> bool:
    """Record the epoch and validate; return whether the training goes on.

    last_batch: the size of the epoch's last batch.
    """
    history = state.history
    steps = len(state.epoch_losses)
    _record_epoch(history, torch.stack(state.epoch_losses), recipe.batch_size, last_batch)
    state.epoch_losses = []
    if history.diverged_at:
        return False
    evaluated = state.network if state.average is None else state.average
    if len(validation.labels):
        _validate(evaluated, validation, recipe, history)
        if not math.isfinite(history.validation_loss[-1]):  # by the epoch's last step
            del history.validation_loss[-1], history.validation_g_mean[-1]
            history.diverged_at = len(history.loss) * steps
            return False
    if recipe.patience:
        epoch, scores = len(history.loss), history.validation_g_mean
        if epoch == 1 or scores[-1] > scores[history.best_epoch - 1]:
            history.best_epoch = epoch
            state.best_weights = copy.deepcopy(evaluated.state_dict())
        return epoch - history.best_epoch < recipe.patience
    return True


def _record_epoch(
    history: History, epoch_losses: torch.Tensor, batch_size: int, last_batch: int
) -> None:
    """Append an epoch's mean loss over its examples, from the losses of its steps, (steps,).

    last_batch: the size of the last batch, which may be smaller than the others.
    """
    steps = len(epoch_losses)
    epoch_losses = epoch_losses.cpu().double()  # whose sum may exceed float32
    sizes = torch.full_like(epoch_losses, batch_size)
    sizes[-1] = last_batch
    finite = int(epoch_losses.isfinite().cumprod(0).sum())  # steps before the first that is not
    epoch = len(history.loss)
    if finite:
        mean = (epoch_losses * sizes)[:finite].sum() / sizes[:finite].sum()
        history.loss.append(mean.item())
    if finite < steps:
        history.diverged_at = epoch * steps + finite + 1


def _validate(
    network: nn.Module, validation: LabelledImages, recipe: Recipe, history: History
) -> None:
    """Record loss and G-mean on the validation images, or on PGD's if PGD's are trained on."""
    if recipe.adversarial:
        logits = predict_under_attack(network, validation, recipe)
    else:
        logits = predict(network, validation.images)
    history.validation_loss.append(F.cross_entropy(logits, validation.labels).item())
    history.validation_g_mean.append(g_mean(validation.labels, logits.argmax(1)))


def _row(state: TrainingState, seconds: float) -> Row:
    """Return the log's row of the epoch that has just ended."""
    history = state.history
    diverged = history.diverged_at is not None
    measured = history.validation_loss and not diverged
    return {
        "epoch": len(state.rows) + 1,
        "learning_rate": state.learning_rate,
        "loss": math.nan if diverged else history.loss[-1],
        "validation_loss": history.validation_loss[-1] if measured else None,
        "validation_g_mean": history.validation_g_mean[-1] if measured else None,
        "seconds": round(seconds, 2),
    }


def _class_count(network: nn.Module, labels: torch.Tensor) -> int:
    """Return the number of classes; each has an example (`resampling.check_class_counts`)."""
    head = network.head  # None where a user's network does not end in a Linear layer
    return int(labels.max()) + 1 if head is None else head.out_features


def _postfix(loss: float, history: History) -> dict[str, str]:
    shown = {"loss": f"{loss:.3f}"}
    if history.validation_g_mean:
        shown["validation G-mean"] = f"{history.validation_g_mean[-1]:.3f}"
    return shown


def _cpu_capabilities() -> dict[str, bool | int | str]:
    """Return what the CPU can do; empty where PyTorch is too old to say."""
    return getattr(torch.cpu, "get_capabilities", dict)()
