"""What the learning rate does: the verdicts of a sweep, and the range test."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from tqdm import tqdm

from common.dataset.split import LabelledImages, Split
from common.errors import DivergedError, InputError
from common.files import load_result
from common.networks.build import torch_seed
from common.training.fit import flush_denormals, train_steps
from common.training.optimization import make_optimizer
from common.training.progress import Generators, TrainingState
from common.training.recipe import Recipe
from common.training.recipe_record import equals_saved
from common.training.runs import describes

UNMOVED = 0.02  # a change of the loss, as a share of the loss before training
SLOW = 1.5  # times the lowest final loss
SMOOTHING = 1 / 30  # standard deviation of the range test's filter, as a share of its steps
DIVERGED = 2.0  # times the lowest running mean of the loss


def start_loss(
    network: nn.Module,
    examples: LabelledImages,
    recipe: Recipe,
    *,
    seed: int,
    device: torch.device,
) -> float:
    """Return the mean loss of one epoch at learning rate 0.

    With the draws, dropout, mixing and augmentation of training, it is comparable with the
    losses of the epochs. `network` stays as it is.
    """
    n = len(examples.labels)
    sizes = [len(batch) for batch in torch.arange(n).split(recipe.batch_size)]
    still = replace(recipe, learning_rate=0.0)
    with torch_seed(seed, device), flush_denormals():
        losses = _train_copy(network, examples, still, 1.0, seed=seed, device=device)
        return sum(size * loss.item() for size, loss in zip(sizes, losses, strict=False)) / n


def verdict(start: float, history: dict[str, Any], lowest: float) -> str:
    """Return in words what a learning rate did, from its training loss per epoch.

    start: the loss before training. history: as `History` has it. lowest: the lowest final
    loss of all rates of the sweep. The first rule that holds:

    - diverges at step N: the loss of that step is not finite.
    - too small, hardly moved: the loss of every epoch is within 2% of start.
    - unstable: the loss of an epoch is more than 2% above start, or the rises from epoch to
      epoch add up to more than half of the falls.
    - slow: the final loss is more than 1.5 times the lowest.
    - converges: none of these.
    """
    if history["diverged_at"]:
        return f"diverges at step {history['diverged_at']:,}"
    curve = np.array(history["loss"])
    if (abs(curve - start) <= UNMOVED * start).all():
        return "too small, hardly moved"
    changes = np.diff(curve)
    rises, falls = changes.clip(min=0).sum(), -changes.clip(max=0).sum()
    if curve.max() > (1 + UNMOVED) * start or rises > falls / 2:
        return "unstable"
    return "slow" if curve[-1] > SLOW * lowest else "converges"


def judge(start: float, result_by_rate: dict[float, dict[str, Any]]) -> dict[float, str]:
    """Return the `verdict` of each learning rate of a sweep."""
    results = result_by_rate.values()
    last = [result["history"]["loss"][-1] for result in results if not result["diverged"]]
    lowest = min(last, default=start)
    return {
        rate: verdict(start, result["history"], lowest)
        for rate, result in result_by_rate.items()
    }


def validation_loss(result: dict[str, Any]) -> float:
    """Return the validation loss of a run after its last epoch, or the one that it kept."""
    kept = result["history"]["best_epoch"]  # from 1
    return result["history"]["validation_loss"][kept - 1 if kept else -1]


def best_rate(result_by_rate: dict[float, dict[str, Any]]) -> float | None:
    """Return the rate with the best validation G-mean, and of equals the lowest loss."""
    scores = {
        rate: (result["validation"]["g_mean"], -validation_loss(result))
        for rate, result in result_by_rate.items()
        if not result["diverged"]
    }
    return max(scores, key=scores.get, default=None)


def saved_best_rate(path: Path, split: Split, recipe: Recipe) -> float | None:
    """Return the best rate of the sweep saved at `path`.

    None unless the sweep was of this recipe on these images, with any rates and epochs.
    """
    saved = load_result(path)
    if saved is None:
        return None
    any_of = {"learning_rate": recipe.learning_rate, "epochs": recipe.epochs}
    swept = saved.get("recipe")
    same = isinstance(swept, dict) and equals_saved(recipe, swept | any_of)
    same_data = describes(saved.get("data"), split)
    best = saved.get("best_rate")
    return best if same and same_data and isinstance(best, int | float) else None


@dataclass(frozen=True)
class RangeTest:
    """Learning rate, loss and smoothed loss of each step of a range test.

    suggestion: the rate at which the smoothed loss falls fastest. edge: the rate at which it
    diverged, None if it never did.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    edge: float | None


def range_test(
    network: nn.Module,
    examples: LabelledImages,
    recipe: Recipe,
    *,
    lowest: float,
    highest: float,
    seed: int,
    device: torch.device,
) -> RangeTest:
    """Run the learning-rate range test (Smith 2017): one epoch at exponentially growing rates.

    The recipe's schedule is not used, and `network` stays as it is. The test ends when the
    loss is not finite, or its running mean is twice the lowest one. Raises InputError if the
    examples make fewer than three steps, DivergedError if fewer remain to judge by.
    """
    steps = -(-len(examples.labels) // recipe.batch_size)
    if steps < 3:
        raise InputError(
            f"--range-test: {len(examples.labels)} examples are too few for three steps of"
            f" {recipe.batch_size}; take a smaller --batch-size"
        )
    growth = (highest / lowest) ** (1 / (steps - 1))
    rates = [lowest * growth**step for step in range(steps)]
    recipe = replace(recipe, learning_rate=lowest)
    training = _train_copy(network, examples, recipe, growth, seed=seed, device=device)
    bar = tqdm(total=steps, desc="Range test", unit="step", disable=None)
    losses: list[float] = []
    sigma = max(1.0, SMOOTHING * steps)
    running = best = edge = None
    with torch_seed(seed, device), flush_denormals(), bar:
        for step, step_loss in zip(range(steps), training, strict=False):
            loss = step_loss.item()
            bar.update()
            if not math.isfinite(loss):
                edge = rates[step]
                break
            losses.append(loss)
            running = loss if running is None else running + (loss - running) / (2 * sigma)
            if step < 2 * sigma:  # too few steps for a mean
                continue
            best = running if best is None else min(best, running)
            if running > DIVERGED * best:
                edge = rates[step]
                break
    if len(losses) < 3:
        raise DivergedError(
            f"the loss is not finite at step {len(losses) + 1} of the range test;"
            f" take a lower range than {lowest:g} to {highest:g}"
        )
    smoothed = gaussian_filter1d(losses, sigma, mode="nearest")
    slope = gaussian_filter1d(losses, sigma, order=1, mode="nearest")
    return RangeTest(
        rates=rates[: len(losses)],
        losses=losses,
        smoothed=smoothed.tolist(),
        suggestion=rates[int(np.argmin(slope))],
        edge=edge,
    )


def _train_copy(
    network: nn.Module,
    examples: LabelledImages,
    recipe: Recipe,
    growth: float,
    *,
    seed: int,
    device: torch.device,
) -> Iterator[torch.Tensor]:
    """Yield the losses of training a copy of the network, its rate times `growth` each step."""
    trained = copy.deepcopy(network).to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(recipe, trained)
    scheduler = ExponentialLR(optimizer, growth)
    state = TrainingState(trained, optimizer, scheduler, Generators(seed, device))
    return train_steps(examples, recipe, state, device=device)
