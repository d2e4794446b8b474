"""Auto-PGD: projected gradient descent that adapts the step size of each image."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from common.attacks.ball import project, random_start
from common.attacks.gradients import (
    check_arguments,
    fools,
    logits_of,
    norms,
    objective_gradient,
)

# The constants of the paper, and of the authors' code (github.com/fra31/auto-attack).
FIRST_PERIOD, SHORTENING, SHORTEST_PERIOD = 22, 3, 6  # percent of the steps
STEP_WEIGHT = 0.75  # of a new step; the rest is the weight of the change before it
RISES = 0.75  # share of a period's steps; where no more raise the objective, steps are halved


def apgd(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, *, epsilon: float,
    targets: torch.Tensor | None = None, norm: str = "linf", loss: str = "cross-entropy",
    steps: int = 100, restarts: int = 1, generator: torch.Generator | None = None,
) -> torch.Tensor:  # fmt: skip
    """Return the images of Auto-PGD (Croce and Hein 2020) within epsilon.

    norm: "linf" or "l2", of the ball of radius epsilon around each image. loss: "cross-entropy"
    or "margin", see `objective`. targets: the classes (N,) of the objective (APGD-T); as in
    AutoAttack, an image then fools the network when it is misclassified as any class, the
    target or another. restarts: number of random starting points in the ball. An image that
    fools the network, from the beginning or after a step, is left unchanged from then on; every
    other image is returned at its highest objective over all steps. Each starting point takes
    steps + 1 network evaluations.
    """
    check_arguments(labels, targets, epsilon, most=1.0 if norm == "linf" else torch.inf)
    if epsilon == 0:
        return x
    generator = generator or torch.Generator().manual_seed(0)
    periods = checkpoints(steps)
    best, highest = x.clone(), torch.full((len(x),), -torch.inf, device=x.device)
    active = (logits_of(network, x).argmax(1) == labels).nonzero()[:, 0]
    for _ in range(restarts):
        if len(active) == 0:
            break
        t = None if targets is None else targets[active]
        state = _start(active, x[active], labels[active], t, epsilon, norm, generator)
        for step in range(steps + 1):
            logits, state.g, state.objective = objective_gradient(
                network, state.images, state.labels, state.targets,
                need_gradient=step < steps, loss=loss,
            )  # fmt: skip
            fooled = fools(logits, state.labels, None)
            if fooled.any():
                best[state.positions[fooled]] = state.images[fooled]
                state = _select(state, ~fooled)
            _keep_highest(state)
            if step == steps or len(state.positions) == 0:
                break
            if step in periods:
                _adapt_step_size(state, periods[step])
            _step(state, epsilon, norm, weight=STEP_WEIGHT if step else 1)
        active = state.positions
        improved = state.highest > highest[active]
        best[active[improved]] = state.best[improved]
        highest[active] = state.highest.maximum(highest[active])
    return best


def checkpoints(steps: int) -> dict[int, int]:
    """Return the steps after which step sizes may be halved, each with the period before it.

    A period is the number of steps since the checkpoint before. Periods are rounded down as in
    the authors' code, but to at least one step.
    """
    percents = FIRST_PERIOD, SHORTENING, SHORTEST_PERIOD
    period, shortening, shortest = (max(p * steps // 100, 1) for p in percents)
    step, periods = period, {}
    while step <= steps:
        periods[step] = period
        period = max(period - shortening, shortest)
        step += period
    return periods


def _start(
    positions: torch.Tensor, x: torch.Tensor, labels: torch.Tensor,
    targets: torch.Tensor | None, epsilon: float, norm: str, generator: torch.Generator,
) -> SimpleNamespace:  # fmt: skip
    """Return the state at a random start: tensors with a row for each image still attacked."""
    images = (x + random_start(x, epsilon, norm, generator)).clamp(0, 1)
    infinity = torch.full((len(x),), torch.inf, device=x.device)
    return SimpleNamespace(
        positions=positions,  # in the whole batch
        x=x, labels=labels, targets=targets,
        images=images, g=None, objective=None,
        last_images=images, last_objective=infinity,  # a start is not a rise
        best=images, best_g=torch.zeros_like(x), highest=-infinity,
        step_size=torch.full((len(x), 1, 1, 1), 2 * epsilon, device=x.device),
        rises=torch.zeros_like(infinity),  # since the last checkpoint
        # At the last checkpoint: the highest objective, and whether the step size was halved.
        checked=-infinity, halved=torch.zeros_like(labels, dtype=torch.bool),
    )  # fmt: skip


def _select(state: SimpleNamespace, rows: torch.Tensor) -> SimpleNamespace:
    """Return the state of the images in rows (N,) alone."""
    return SimpleNamespace(
        **{name: None if v is None else v[rows] for name, v in vars(state).items()}
    )


def _keep_highest(state: SimpleNamespace) -> None:
    """Keep the images of the highest objective, and count the rises."""
    improved = state.objective > state.highest
    rows = improved.view(-1, 1, 1, 1)
    state.highest = torch.where(improved, state.objective, state.highest)
    state.best = torch.where(rows, state.images, state.best)
    if state.g is not None:
        state.best_g = torch.where(rows, state.g, state.best_g)
    state.rises += state.objective > state.last_objective
    state.last_objective = state.objective


def _adapt_step_size(state: SimpleNamespace, period: int) -> None:
    """Halve the step sizes of images that made little progress in the last `period` steps.

    Either few of the steps raised the objective, or the step size was not halved at the last
    checkpoint and the highest objective is still the same. These images go on from the image
    of the highest objective.
    """
    same = ~state.halved & (state.highest <= state.checked)
    state.halved = (state.rises <= RISES * period) | same
    rows = state.halved.view(-1, 1, 1, 1)
    state.step_size = torch.where(rows, state.step_size / 2, state.step_size)
    state.images = torch.where(rows, state.best, state.images)
    state.g = torch.where(rows, state.best_g, state.g)
    state.checked, state.rises = state.highest, torch.zeros_like(state.rises)


def _step(state: SimpleNamespace, epsilon: float, norm: str, weight: float) -> None:
    """Take a step of the gradient's direction, mixed with the change before it."""
    x, images = state.x, state.images
    direction = state.g.sign() if norm == "linf" else state.g / norms(state.g, 2)
    for_gradient = _to_ball(images + state.step_size * direction, x, epsilon, norm) - images
    change = weight * for_gradient + (1 - weight) * (images - state.last_images)
    state.last_images, state.images = images, _to_ball(images + change, x, epsilon, norm)


def _to_ball(images: torch.Tensor, x: torch.Tensor, epsilon: float, norm: str) -> torch.Tensor:
    """Return images projected onto the ball around x, then clamped to [0, 1]."""
    return (x + project(images - x, epsilon, norm)).clamp(0, 1)
