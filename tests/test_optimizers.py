"""The optimisers and schedules against torch.optim's own."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from common import models, optimizers
from common.recipes import Recipe

STEPS = 12


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
def test_steps_equal_torch_optim(change):
    recipe = replace(Recipe(), **change)
    start = torch.linspace(-1, 1, 20)
    ours, gradients = start.clone()[None], torch.zeros(1, 20)
    theirs = nn.Parameter(start.clone())
    if recipe.optimizer == "adamw":
        reference = torch.optim.AdamW([theirs], weight_decay=recipe.weight_decay)
    else:
        reference = torch.optim.SGD(
            [theirs], momentum=recipe.momentum, nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )  # fmt: skip
    optimize = optimizers.make(recipe, ours, gradients)
    for step in range(STEPS):
        rate = 0.1 / (step + 1)
        gradients.copy_((ours * (step + 1)).sin())
        theirs.grad = (theirs.detach() * (step + 1)).sin()
        reference.param_groups[0]["lr"] = rate
        reference.step()
        optimize([rate])
        assert torch.allclose(ours[0], theirs, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "reference"),
    [
        ({"schedule": "constant"}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
        (
            {"schedule": "step", "step_epochs": 2, "step_factor": 0.3},
            lambda o: lr_scheduler.StepLR(o, 6, 0.3),
        ),
        ({"schedule": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS)),
        (
            {"schedule": "one-cycle", "warm_up": 0.3},
            lambda o: lr_scheduler.OneCycleLR(o, 0.1, STEPS, pct_start=0.3),
        ),
        (
            {"schedule": "one-cycle", "warm_up": 0.5},
            lambda o: lr_scheduler.OneCycleLR(o, 0.1, STEPS, pct_start=0.5),
        ),
    ],
)
def test_schedules_equal_torch_optim(change, reference):
    recipe = replace(Recipe(), epochs=4, learning_rate=0.1, **change)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = reference(optimizer)
    for step in range(STEPS):
        expected = optimizer.param_groups[0]["lr"]
        assert optimizers.learning_rate(recipe, step, 3) == pytest.approx(expected)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("warm_up", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("epochs", [1, 4])
def test_one_cycle_has_a_rate_at_every_step_of_a_short_run(warm_up, epochs):
    recipe = Recipe(schedule="one-cycle", epochs=epochs, learning_rate=0.1, warm_up=warm_up)
    rates = [optimizers.learning_rate(recipe, step, 1) for step in range(epochs)]
    assert all(math.isfinite(rate) and 0 < rate <= 0.1 for rate in rates)
    assert max(rates) == pytest.approx(0.1)


def test_flattened_parameters_are_one_vector_and_stay_the_networks_own():
    network = models.build("simple-cnn", {"classes": 3})
    network.to(memory_format=torch.channels_last)
    network.fc1.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    trained = [p for p in network.parameters() if p.requires_grad]
    weights, gradients = optimizers.flattened(trained)
    assert weights.numel() == gradients.numel() == sum(p.numel() for p in trained) == 18051
    assert all(torch.equal(p, before[name]) for name, p in network.named_parameters())
    network(torch.rand(2, 3, 32, 32)).sum().backward()
    assert network.fc1.weight.grad is None
    assert gradients.abs().sum() == pytest.approx(
        float(sum(p.grad.abs().sum() for p in trained)), rel=1e-5
    )
    weights.add_(1)
    assert torch.equal(network.fc3.bias, before["fc3.bias"] + 1)
    assert torch.equal(network.conv2.weight, before["conv2.weight"] + 1)
    assert torch.equal(network.fc1.weight, before["fc1.weight"])
    optimizers.unflatten(network)
    weights.zero_()
    assert torch.equal(network.conv1.weight, before["conv1.weight"] + 1)
    assert all(p.grad is None and p.is_contiguous() for p in network.parameters())
