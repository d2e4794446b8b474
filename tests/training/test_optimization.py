"""Optimisers and schedules against the formulas written out."""

import math

import pytest
import torch
from torch import nn

from common.training.optimization import make_optimizer, make_scheduler
from common.training.recipe import Recipe


class Weights(nn.Module):
    def __init__(self):
        super().__init__()
        self.trained = nn.Parameter(torch.linspace(-1, 1, 20))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)


def sgd_step(w, g, state, rate, recipe):
    g = g + recipe.weight_decay * w
    v = recipe.momentum * state.get("v", torch.zeros_like(w)) + g
    state["v"] = v
    return w - rate * (g + recipe.momentum * v if recipe.nesterov else v)


def adamw_step(w, g, state, rate, recipe):
    t = state["t"] = state.get("t", 0) + 1
    m = state["m"] = 0.9 * state.get("m", torch.zeros_like(w)) + 0.1 * g
    v = state["v"] = 0.999 * state.get("v", torch.zeros_like(w)) + 0.001 * g * g
    update = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return w - rate * recipe.weight_decay * w - rate * update


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"momentum": 0.0},
        {"weight_decay": 0.01},
        {"nesterov": True, "weight_decay": 0.01},
        {"optimizer": "adamw"},
        {"optimizer": "adamw", "weight_decay": 0.1},
    ],
)
def test_steps_follow_the_formula(change):
    recipe = Recipe(**change)
    network, state = Weights(), {}
    expected = network.trained.detach().clone()
    formula = adamw_step if recipe.optimizer == "adamw" else sgd_step
    optimizer = make_optimizer(recipe, network)
    for step in range(12):
        rate = 0.1 / (step + 1)
        optimizer.param_groups[0]["lr"] = rate
        network.trained.grad = (network.trained.detach() * (step + 1)).sin()
        gradient = (expected * (step + 1)).sin()
        optimizer.step()
        expected = formula(expected, gradient, state, rate, recipe)
        assert torch.allclose(network.trained, expected, atol=1e-6)
    assert torch.equal(network.frozen, torch.ones(3))


def rates_of(recipe, steps):
    """Return the rate of each training step, for a number of steps per epoch."""
    optimizer = make_optimizer(recipe, Weights())
    scheduler = make_scheduler(recipe, optimizer, steps)
    rates = []
    for _ in range(recipe.epochs * steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    assert optimizer.param_groups[0]["momentum"] == recipe.momentum
    return rates


def half_cosine(start, end, share):
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"schedule": "constant"}, [0.1] * 12),
        ({"schedule": "step", "step_epochs": 2, "step_factor": 0.3}, [0.1] * 6 + [0.03] * 6),
        ({"schedule": "cosine"}, [half_cosine(0.1, 0, step / 12) for step in range(12)]),
        (
            {"schedule": "one-cycle", "warm_up": 0.5},  # the peak is at step 5 of 0 to 11
            [half_cosine(0.1 / 25, 0.1, step / 5) for step in range(5)]
            + [half_cosine(0.1, 0.1 / 250_000, step / 6) for step in range(7)],
        ),
    ],
)
def test_schedules_follow_the_formula(change, expected):
    recipe = Recipe(epochs=4, learning_rate=0.1, **change)
    assert rates_of(recipe, steps=3) == pytest.approx(expected)


@pytest.mark.parametrize("warm_up", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("epochs", [1, 4])
def test_one_cycle_has_a_rate_at_every_step_of_a_short_run(warm_up, epochs):
    recipe = Recipe(schedule="one-cycle", epochs=epochs, learning_rate=0.1, warm_up=warm_up)
    rates = rates_of(recipe, steps=1)
    assert all(0 < rate <= 0.1 for rate in rates)
    assert max(rates) == pytest.approx(0.1)
    assert rates[-1] == pytest.approx(0.1 if epochs == 1 else 0.1 / 250_000)
