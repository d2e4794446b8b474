"""fit(): the one training loop, and what may follow it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from imblearn.metrics import geometric_mean_score
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from common import attacks, augment, balance, losses, optimizers
from common.dataset import Part
from common.models import Network, pixels, predict
from common.recipes import Recipe

BAR_STEPS = 100  # steps between two looks at the loss, each of which waits for the device


class DivergedError(Exception):
    """The loss stopped being finite: one line that says at which step and learning rate."""


@dataclass
class History:
    """Per epoch: mean training loss, and on the validation part, where there is one, the
    mean loss and the G-mean. best_epoch: whose weights were kept (from 1), with patience."""

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_g_mean: list[float] = field(default_factory=list)
    best_epoch: int | None = None


def make_deterministic() -> None:
    """Only algorithms that give the same bits each time, on CUDA too (slower there)."""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def first_draw(examples: Part, recipe: Recipe, classes: int, seed: int) -> list[int]:
    """How many examples of each class the first epoch of `fit` draws."""
    order = balance.epoch_order(examples.labels, recipe, 0, classes, _generator(seed))
    return torch.bincount(examples.labels[order], minlength=classes).tolist()


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
    # channels_last: convolution and pooling are faster so, on CPUs too.
    network.to(device, memory_format=torch.channels_last)
    images = examples.images.to(device, memory_format=torch.channels_last)
    labels = examples.labels.to(device)
    n, batch_size, classes = len(labels), recipe.batch_size, network.last.out_features
    steps = -(-n // batch_size)
    counts = torch.bincount(labels, minlength=classes)
    weights = losses.class_weights(recipe, counts)
    flat, gradients = optimizers.flattened(network)
    optimize = optimizers.make(recipe, flat, gradients)
    average = None
    if recipe.ema:
        average = AveragedModel(
            network, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema), use_buffers=True
        )
    history, best = History(), {}
    # The order has a generator of its own, so that networks with and without dropout, or
    # on different devices, see the same batches.
    order_of, pixels_of = _generator(seed), _generator(seed, device)
    mix_of, attack_of = np.random.default_rng(seed), _generator(seed)
    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        tqdm(total=recipe.epochs * steps, desc=name, unit="step", disable=None) as bar,
    ):
        torch.manual_seed(seed)
        for epoch in range(recipe.epochs):
            _train_mode(network)
            epoch_losses = torch.empty(steps, device=device)
            order = balance.epoch_order(examples.labels, recipe, epoch, classes, order_of)
            prior = balance.class_shares(counts.cpu(), recipe, epoch).float().to(device)
            loss_of = losses.make(recipe, counts, prior)
            in_use = weights if epoch >= recipe.reweight_from * recipe.epochs else None
            for step, batch in enumerate(order.to(device).split(batch_size)):
                y = labels[batch]
                x = augment.augment(pixels(images[batch]), recipe, pixels_of)
                if recipe.adversarial:
                    # Against the network as it predicts: dropout off, BatchNorm's running
                    # averages, which only the step below updates.
                    x = attacks.pgd(
                        network,
                        x,
                        y,
                        epsilon=recipe.adversarial / 255,
                        steps=recipe.adversarial_steps,
                        stop=False,
                        generator=attack_of,
                    )
                if recipe.mix != "none":
                    x, partners, shares = augment.mix(x, y, recipe, mix_of)
                with torch.autocast(
                    device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"
                ):
                    logits = network(x)
                if recipe.mix == "none":
                    loss = losses.weighted_mean(loss_of(logits.float(), y), y, in_use)
                else:
                    loss = losses.mixed(loss_of, logits.float(), y, partners, shares, in_use)
                gradients.zero_()
                loss.backward()
                optimize(optimizers.learning_rate(recipe, epoch * steps + step, steps))
                if average is not None:
                    average.update_parameters(network)
                epoch_losses[step] = loss.detach()
                bar.update()
                if step % BAR_STEPS == 0 and not bar.disable:
                    recent = epoch_losses[max(0, step - BAR_STEPS) : step + 1].mean().item()
                    bar.set_postfix(_postfix(recent, history), refresh=False)
            finite = epoch_losses.isfinite()
            if not finite.all():
                step = epoch * steps + int(finite.logical_not().nonzero()[0]) + 1
                raise DivergedError(
                    f"the loss is not finite at step {step};"
                    f" take a --learning-rate below {recipe.learning_rate:g}"
                )
            # Every example counts once: a last, smaller batch with its own size.
            sizes = torch.full((steps,), batch_size, device=device)
            sizes[-1] = n - (steps - 1) * batch_size
            history.loss.append(float((epoch_losses * sizes).sum() / n))
            if len(validation.labels):
                current = average.module if average else network
                _validate(current, validation, history)
                if recipe.patience:
                    scores = history.validation_g_mean
                    if epoch == 0 or scores[-1] > scores[history.best_epoch - 1]:
                        history.best_epoch = epoch + 1
                        best = {k: v.clone() for k, v in current.state_dict().items()}
                    elif epoch + 1 - history.best_epoch >= recipe.patience:
                        break
            bar.set_postfix(_postfix(history.loss[-1], history), refresh=False)
    if best:
        network.load_state_dict(best)
    elif average is not None:
        network.load_state_dict(average.module.state_dict())
    optimizers.unflatten(network)
    network.eval()
    return history


def after_training(
    network: Network, examples: Part, validation: Part, recipe: Recipe, *, seed: int,
    device: torch.device, name: str,
) -> dict[str, list[float]]:  # fmt: skip
    """Change the trained classifier in place, as recipe.post_hoc says.

    Returns the arguments that the network has to be rebuilt with, beside those it had.

    - logit-adjustment (Menon et al. 2021): -tau log prior is added to the logits.
    - tau-normalisation (Kang et al. 2020): class weights w become w / |w|^tau, without bias.
    - crt (Kang et al. 2020): the last layer starts anew and is trained alone, on balanced
      draws with plain cross-entropy, for crt_epochs.
    """
    if recipe.post_hoc == "logit-adjustment":
        counts = torch.bincount(examples.labels, minlength=network.last.out_features)
        prior = balance.class_shares(counts, recipe, recipe.epochs - 1)
        network.offset = losses.prior_offset(recipe, prior).float().to(device)
        return {"logit_offset": network.offset.tolist()}
    if recipe.post_hoc == "tau-normalisation":
        with torch.no_grad():
            norms = network.last.weight.norm(dim=1, keepdim=True)
            network.last.weight.div_(norms**recipe.tau)
            if network.last.bias is not None:
                network.last.bias.zero_()
    if recipe.post_hoc == "crt":
        network.requires_grad_(False)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            network.last.reset_parameters()
        network.last.requires_grad_(True)
        balanced = replace(
            recipe,
            epochs=recipe.crt_epochs,
            sampler="balanced",
            sampler_weights=None,
            loss="cross-entropy",
            class_weights="none",
            ema=0.0,
            patience=0,
        )
        fit(
            network,
            examples,
            validation,
            balanced,
            seed=seed,
            device=device,
            name=f"{name} crt",
        )
        network.requires_grad_(True)
    return {}


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


def _postfix(loss: float, history: History) -> dict[str, str]:
    shown = {"loss": f"{loss:.3f}"}
    if history.validation_g_mean:
        shown["validation G-mean"] = f"{history.validation_g_mean[-1]:.3f}"
    return shown
