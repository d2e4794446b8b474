"""What the learning rate does: a sweep's verdicts, and the range test."""

from __future__ import annotations

import copy
import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from tqdm import tqdm

from common import results, training
from common.dataset import Part, Split
from common.models import Network
from common.recipes import Recipe

HARDLY = 0.02  # of the loss before training: less than this is no movement
SLOW = 1.5  # times the lowest last loss
SMOOTHING = 1 / 30  # standard deviation of the range test's smoothing, as a share of its steps
DIVERGED = 2.0  # times the lowest smoothed loss


def start_loss(
    network: Network, examples: Part, recipe: Recipe, *, seed: int, device: torch.device
) -> float:
    """The mean loss of the first epoch's steps at rate 0: with its draws, dropout and mixing,
    as the epochs' losses have them. `network` stays as it is."""
    still = copy.deepcopy(network).to(device, memory_format=torch.channels_last)
    steps = -(-len(examples.labels) // recipe.batch_size)
    found = training.train_steps(
        still, [examples], recipe, lambda step: [0.0], seeds=[seed], device=device
    )
    # A copy of each, as on CUDA the next overwrites it.
    return torch.cat([loss.clone() for loss in itertools.islice(found, steps)]).mean().item()


def verdict(start: float, history: dict[str, Any], lowest: float) -> str:
    """In words, what a learning rate did, from its training loss per epoch.

    start: the loss before training. lowest: the lowest last loss of the sweep's rates. The
    first rule that holds:

    - diverges at step N: the loss of that step isn't finite.
    - too small, hardly moved: every epoch's loss is within 2% of start.
    - unstable: an epoch's loss is more than 2% above start, or the loss rose from epoch to
      epoch by more than half of what it fell.
    - slow: the last loss is more than 1.5 times the lowest.
    - converges: none of these.
    """
    if history["diverged_at"]:
        return f"diverges at step {history['diverged_at']:,}"
    curve = np.array(history["loss"])
    if (abs(curve - start) <= HARDLY * start).all():
        return "too small, hardly moved"
    changes = np.diff(curve)
    risen, fallen = changes.clip(min=0).sum(), -changes.clip(max=0).sum()
    if curve.max() > (1 + HARDLY) * start or risen > fallen / 2:
        return "unstable"
    return "slow" if curve[-1] > SLOW * lowest else "converges"


def best_rate(by_rate: dict[float, dict[str, Any]]) -> float | None:
    """The rate with the best validation G-mean; of equals, that with the lower loss."""
    scores = {
        rate: (result["validation"]["g_mean"], -result["history"]["validation_loss"][-1])
        for rate, result in by_rate.items()
        if not result["diverged"]
    }
    return max(scores, key=scores.get, default=None)


def best_of_sweep(path: Path, split: Split, recipe: dict[str, Any]) -> float | None:
    """The best rate of a learning-rate sweep kept at `path`, if it was of this recipe, at
    whatever rate and length, on these images."""
    try:
        kept = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    free = {"learning_rate": None, "epochs": None}
    wanted = json.loads(
        json.dumps({"data": results.data_record(split), "recipe": recipe | free})
    )
    same = {"data": kept.get("data"), "recipe": kept.get("recipe", {}) | free} == wanted
    return kept.get("best_rate") if same else None


@dataclass(frozen=True)
class RangeTest:
    """Per step: learning rate, loss and smoothed loss. suggestion: the rate at which the
    smoothed loss falls fastest. edge: the rate at which it diverged, None if it never did."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float
    edge: float | None


def range_test(
    network: Network,
    examples: Part,
    recipe: Recipe,
    *,
    lowest: float,
    highest: float,
    seed: int,
    device: torch.device,
) -> RangeTest:
    """The learning-rate range test (Smith 2017): one pass at exponentially growing rates.

    The recipe's schedule is left out, and `network` stays as it is. The test ends where the
    loss isn't finite or its running mean is twice the lowest one. Raises DivergedError where
    that leaves too little to judge by.
    """
    trained = copy.deepcopy(network).to(device, memory_format=torch.channels_last)
    steps = -(-len(examples.labels) // recipe.batch_size)
    growth = math.log(highest / lowest) / max(steps - 1, 1)
    rates = [lowest * math.exp(growth * step) for step in range(steps)]
    taken: list[float] = []
    sigma = max(1.0, SMOOTHING * steps)
    running = best = edge = None
    training_steps = training.train_steps(
        trained, [examples], recipe, lambda step: [rates[step]], seeds=[seed], device=device
    )
    with tqdm(total=steps, desc="Range test", unit="step", disable=None) as bar:
        for step, loss in zip(range(steps), training_steps, strict=False):
            value = loss.item()
            bar.update()
            if not math.isfinite(value):
                edge = rates[step]
                break
            taken.append(value)
            running = value if running is None else running + (value - running) / (2 * sigma)
            if step < 2 * sigma:  # a mean of too few steps
                continue
            best = running if best is None else min(best, running)
            if running > DIVERGED * best:
                edge = rates[step]
                break
    if len(taken) < 3:
        raise training.DivergedError(
            f"the loss is not finite at step {len(taken) + 1} of the range test;"
            f" take a lower range than {lowest:g} to {highest:g}"
        )
    smoothed = gaussian_filter1d(taken, sigma, mode="nearest")
    slope = gaussian_filter1d(taken, sigma, order=1, mode="nearest")
    return RangeTest(
        rates=rates[: len(taken)],
        losses=taken,
        smoothed=smoothed.tolist(),
        suggestion=rates[int(np.argmin(slope))],
        edge=edge,
    )
