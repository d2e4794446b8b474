"""fit(): the one training loop."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from imblearn.metrics import geometric_mean_score
from torch import nn
from tqdm import tqdm

from common import attacks, augment, balance, capture, losses, models, optimizers, processor
from common.dataset import Part
from common.models import Network, pixels, predict
from common.recipes import Recipe
from common.step import Step, fits

BAR_STEPS = 100  # steps between two looks at the loss, each of which waits for the device


class DivergedError(Exception):
    """The loss stopped being finite: one line that says at which step and learning rate."""


@dataclass
class History:
    """Per epoch: mean training loss, and on the validation part, where there is one, the
    mean loss and the G-mean. best_epoch: whose weights were kept (from 1), with patience.
    diverged_at: the step (from 1) whose loss was the first that is not finite; the last of
    `loss` is then the mean of that epoch's steps before it."""

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_g_mean: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    diverged_at: int | None = None


def make_deterministic() -> None:
    """Only algorithms that give the same bits each time, on CUDA too (slower there)."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def first_draw(examples: Part, recipe: Recipe, classes: int, seed: int) -> list[int]:
    """How many examples of each class the first epoch of `fit` draws."""
    order = balance.epoch_order(examples.labels, recipe, 0, classes, _generator(seed))
    return torch.bincount(examples.labels[order], minlength=classes).tolist()


def precision(recipe: Recipe, device: torch.device) -> str:
    """The precision of forward passes: what the recipe says, or what is faster on the device.

    bfloat16 is faster where it has hardware of its own: on a CPU AMX, nearly twice for a
    ResNet9. A CPU without it emulates bfloat16 and gets slower.
    """
    if recipe.precision != "auto":
        return recipe.precision
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and _cpu_capabilities().get("amx_bf16")
    return "bfloat16" if fast else "float32"


def fit(
    network: Network,
    examples: Part,
    validation: Part,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
    name: str = "Training",
) -> History:
    """Train `network` in place on `device`, and leave it there in evaluation mode.

    Only parameters that require a gradient are trained. seed decides order, dropout,
    augmentation and mixing; the global random state stays as it was. name stands before the
    bar. Raises DivergedError where the loss stops being finite.
    """
    (history,) = fit_together(
        [network], [examples], validation, [recipe], seeds=[seed], device=device, name=name
    )
    check(history, recipe)
    return history


def check(history: History, recipe: Recipe) -> None:
    """Raise DivergedError where the loss stopped being finite."""
    if history.diverged_at:
        raise DivergedError(
            f"the loss is not finite at step {history.diverged_at};"
            f" take a --learning-rate below {recipe.learning_rate:g}"
        )


def can_train_together(recipe: Recipe, device: torch.device) -> bool:
    """Whether `fit_together` takes more than one network of this recipe."""
    return (
        recipe.network == "simple-cnn"
        and device.type == "cpu"
        and precision(recipe, device) == "float32"
        and not recipe.ema
        and not recipe.patience
        and not recipe.adversarial
    )


@processor.without_denormals()
def fit_together(
    networks: Sequence[Network],
    examples: Sequence[Part],
    validation: Part,
    recipes: Sequence[Recipe],
    *,
    seeds: Sequence[int],
    device: torch.device,
    name: str = "Training",
) -> list[History]:
    """`fit` for several networks at once, each with its own examples, recipe and seed.

    The recipes differ in nothing but the learning rate, and the examples have equally many of
    each class. A network whose loss stops being finite goes on, for the others' sake, but its
    history ends there; the training ends early when that is true of all.
    """
    processor.reuse_memory()
    recipe, stack = recipes[0], len(networks)
    for one in networks:  # channels_last: convolution and pooling are faster so, on CPUs too
        one.to(device, memory_format=torch.channels_last)
    network = networks[0] if stack == 1 else models.stacked(networks)
    n = len(examples[0].labels)
    steps = -(-n // recipe.batch_size)
    histories = [History() for _ in networks]
    best, average = {}, None

    def rates(step: int) -> list[float]:
        return [optimizers.learning_rate(r, step, steps) for r in recipes]

    with tqdm(total=recipe.epochs * steps, desc=name, unit="step", disable=None) as bar:
        training = train_steps(network, examples, recipe, rates, seeds=seeds, device=device)
        for epoch in range(recipe.epochs):
            epoch_losses = torch.empty(steps, stack, device=device)
            for step in range(steps):
                epoch_losses[step] = next(training)
                if recipe.ema:
                    if average is None:  # it starts where the first step ends
                        average = copy.deepcopy(network)
                    else:
                        optimizers.follow(average, network, recipe.ema)
                bar.update()
                if step % BAR_STEPS == 0 and not bar.disable:
                    recent = epoch_losses[max(0, step - BAR_STEPS) : step + 1].mean().item()
                    bar.set_postfix(_postfix(recent, histories), refresh=False)
            going_on = _record(histories, epoch_losses, epoch, n, recipe)
            if not any(going_on):
                break
            if len(validation.labels):
                current = network if average is None else average
                for k, history in enumerate(histories):
                    if going_on[k]:
                        one = (
                            current if stack == 1 else models.copy_row(current, k, networks[k])
                        )
                        _validate(one, validation, history)
                if recipe.patience:
                    (history,) = histories
                    scores = history.validation_g_mean
                    if epoch == 0 or scores[-1] > scores[history.best_epoch - 1]:
                        history.best_epoch = epoch + 1
                        best = {k: v.clone() for k, v in current.state_dict().items()}
                    elif epoch + 1 - history.best_epoch >= recipe.patience:
                        break
            bar.set_postfix(_postfix(histories[0].loss[-1], histories), refresh=False)
    if isinstance(network, models.SimpleCNN):
        network.generators = None
    if best:
        network.load_state_dict(best)
    elif average is not None:
        network.load_state_dict(average.state_dict())
    for k, one in enumerate(networks):
        if stack > 1:
            models.copy_row(network, k, one)
        optimizers.unflatten(one)
        one.eval()
    return histories


def train_steps(
    network: Network,
    examples: Sequence[Part],
    recipe: Recipe,
    rates: Callable[[int], list[float]],
    *,
    seeds: Sequence[int],
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Train without end, epoch after epoch; yield the loss (K,) of each step.

    On CUDA the next step overwrites it.

    network: one on the device, or `models.stacked` from K, as many as there are examples and
    seeds. rates: each network's learning rate at a step, from 0.
    """
    # Networks that see the same share the batches, and the work of making them.
    same = len(set(seeds)) == 1 and all(part is examples[0] for part in examples)
    stack, parts = len(seeds), examples[:1] if same else examples
    # Each image with its channels last: convolution and pooling are faster so, on CPUs too.
    images = torch.cat([part.images for part in parts]).to(device).movedim(1, -1).contiguous()
    labels = torch.cat([part.labels for part in parts]).to(device)
    n, classes = len(parts[0].labels), network.last.out_features
    counts = torch.bincount(labels[:n], minlength=classes)
    weights = losses.class_weights(recipe, counts)
    trained = [p for p in network.parameters() if p.requires_grad]
    flat, gradients = optimizers.flattened(trained, stack)
    own_gradients = [p.grad for p in trained]  # views of `gradients`
    optimize = optimizers.make(recipe, flat, gradients)
    pixels_of = [_generator(seed, device) for seed in seeds[: len(parts)]]
    attack_of = _generator(seeds[0], device)
    changed = bool(recipe.augment) or recipe.mix != "none"
    drawn_from = [*pixels_of, attack_of]
    if isinstance(network, models.SimpleCNN):
        network.generators = [_generator(seed, device) for seed in seeds]
        drawn_from += network.generators
    compiled = None
    if fits(network) and precision(recipe, device) == "float32":
        compiled = Step(network, recipe.batch_size)
    autocast: AbstractContextManager = nullcontext()
    if precision(recipe, device) == "bfloat16":
        autocast = torch.autocast(device.type, torch.bfloat16)
    in_graph = device.type in capture.DEVICES

    def step(
        step_rates: optimizers.Rates, batch: torch.Tensor, y: torch.Tensor,
        *mixing: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """batch, y: places and labels of each network's images, (K or 1, N). mixing: nothing,
        or of each image what `augment.draw_mixing` drew."""
        x = pixels(images.index_select(0, batch.flatten()).movedim(-1, 1))
        if changed:
            drawn = zip(x.split(batch.shape[1]), y, pixels_of, *mixing, strict=True)
            x, *partners = _together([_changed(recipe, *one) for one in drawn])
        if recipe.adversarial:
            # Against the network as it predicts: dropout off, BatchNorm's running averages,
            # which only the step below updates.
            x = attacks.pgd(
                network,
                x,
                y[0],
                epsilon=recipe.adversarial / 255,
                steps=recipe.adversarial_steps,
                stop=False,
                generator=attack_of,
            )
        if len(parts) > 1:
            x = x.unflatten(0, batch.shape)
        if compiled:
            logits = compiled.logits(x)
        else:
            with autocast:
                logits = network(x).float()
        logits = logits.view(stack, -1, classes)
        if mixing:
            loss = losses.mixed(loss_of, logits, y, *partners, in_use)
        else:
            loss = losses.weighted_mean(losses.of_each(loss_of, logits, y), y, in_use)
        if compiled:
            compiled.backward(loss)
        else:
            torch._foreach_copy_(own_gradients, torch.autograd.grad(loss.sum(), trained))
        optimize(step_rates)
        return loss.detach()

    constants, run = None, step
    draws = balance.draws(parts, recipe, seeds[: len(parts)], classes)
    for epoch, (order, *mixing) in enumerate(draws):
        _train_mode(network)
        prior = balance.class_shares(counts.cpu(), recipe, epoch).float()
        in_use = weights if epoch >= recipe.reweight_from * recipe.epochs else None
        if constants != (prior.tolist(), in_use is None):
            constants = prior.tolist(), in_use is None
            loss_of = losses.make(recipe, counts, prior.to(device))
            if in_graph:  # which reads these, where they lie, as long as it is in use
                run = capture.captured(step, drawn_from)
        steps = -(-n // recipe.batch_size)
        epoch_rates = [rates(epoch * steps + k) for k in range(steps)]
        if in_graph:
            epoch_rates = torch.tensor(epoch_rates, device=device)
        order = order.to(device)
        by_example = order, labels[order], *(each.to(device) for each in mixing)
        by_step = [each.split(recipe.batch_size, 1) for each in by_example]
        for arguments in zip(epoch_rates, *by_step, strict=True):
            yield run(*arguments)


def _changed(
    recipe: Recipe, x: torch.Tensor, y: torch.Tensor, pixels_of: torch.Generator,
    *mixing: torch.Tensor,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """One network's batch, augmented, and if it is mixed as `augment.mix` returns it."""
    x = augment.augment(x, recipe, pixels_of)
    return augment.mix(x, y, *mixing) if mixing else (x,)


def _together(batches: list[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Images (K * N, ...), and what else there is, (K, N) each, of K networks' batches."""
    if len(batches) == 1:
        x, *others = batches[0]
        return x, *(each[None] for each in others)
    x, *others = zip(*batches, strict=True)
    return torch.cat(x), *(torch.stack(each) for each in others)


def _record(
    histories: Sequence[History], epoch_losses: torch.Tensor, epoch: int, n: int, recipe: Recipe
) -> list[bool]:
    """Put an epoch's losses (steps, K) into the histories; return which stay finite."""
    steps = len(epoch_losses)
    # Every example counts once: a last, smaller batch with its own size.
    sizes = torch.full((steps, 1), float(recipe.batch_size), device=epoch_losses.device)
    sizes[-1] = n - (steps - 1) * recipe.batch_size
    finite = epoch_losses.isfinite().cumprod(0).bool()  # up to the first that is not
    means = (epoch_losses * sizes).where(finite, 0).sum(0) / (sizes * finite).sum(0)
    ends = finite.sum(0).tolist()
    for history, mean, end in zip(histories, means.tolist(), ends, strict=True):
        if history.diverged_at:
            continue
        if end:
            history.loss.append(mean)
        if end < steps:
            history.diverged_at = epoch * steps + end + 1
    return [history.diverged_at is None for history in histories]


def _cpu_capabilities() -> dict[str, bool | int | str]:
    """What the CPU can do; empty where PyTorch is too old to say."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def _generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def _train_mode(network: nn.Module) -> None:
    """Training mode, but for layers that are not trained: their statistics stay as they are."""
    network.train()
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if own and not any(p.requires_grad for p in own):
            module.eval()


def _validate(network: nn.Module, validation: Part, history: History) -> None:
    logits = predict(network, validation.images)
    score = geometric_mean_score(validation.labels, logits.argmax(1))
    history.validation_loss.append(F.cross_entropy(logits, validation.labels).item())
    history.validation_g_mean.append(float(score))


def _postfix(loss: float, histories: Sequence[History]) -> dict[str, str]:
    shown = {"loss": f"{loss:.3f}"}
    scores = [h.validation_g_mean[-1] for h in histories if h.validation_g_mean]
    if scores:
        shown["validation G-mean"] = f"{max(scores):.3f}"
    return shown
