"""Optimisers and schedules against the formulas written out."""

import math

import pytest
import torch
from torch import nn

from common.training.optimization import (
    limit_class_norms,
    make_optimizer,
    make_scheduler,
    sharpness_aware,
)
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


CURVATURES = torch.tensor([3.0, 1.0, 0.5, 2.0, 7.0])


class Bowl(nn.Module):
    """A loss whose gradient is known: the sum of c w^2 / 2, over two parameters."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.b = nn.Parameter(torch.tensor([0.5, 3.0, 1.0]))
        self.unused = nn.Parameter(torch.ones(2))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self):
        return (CURVATURES * torch.cat([self.a, self.b]) ** 2).sum() / 2


def gradients(optimizer, loss):
    """Return a function as `sharpness_aware` takes it."""

    def compute():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value.detach()

    return compute


@pytest.mark.parametrize(
    "change",
    [{"momentum": 0.0}, {}, {"weight_decay": 0.1}, {"nesterov": True, "weight_decay": 0.1},
     {"optimizer": "adamw", "weight_decay": 0.1}],
)  # fmt: skip
def test_sam_on_a_quadratic_loss_has_its_closed_form(change):
    """The gradient at w + rho g / |g| is c (w + rho c w / |c w|)."""
    recipe, bowl, state = Recipe(**change), Bowl(), {}
    optimizer = make_optimizer(recipe, bowl)
    formula = adamw_step if recipe.optimizer == "adamw" else sgd_step
    w = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0])
    for _ in range(6):
        optimizer.param_groups[0]["lr"] = 0.05
        compute = gradients(optimizer, bowl)
        loss = optimizer.step(lambda f=compute: sharpness_aware(bowl, 0.7, f, f))
        assert loss.item() == pytest.approx((CURVATURES * w**2).sum().item() / 2, rel=1e-5)
        g = CURVATURES * w
        worst = w + 0.7 * g / (g**2).sum().sqrt()
        w = formula(w, CURVATURES * worst, state, 0.05, recipe)
        assert torch.allclose(torch.cat([bowl.a, bowl.b]), w, atol=1e-5)
    assert torch.equal(bowl.unused, torch.ones(2))
    assert torch.equal(bowl.frozen, torch.ones(2))


def test_sam_climbs_one_loss_and_descends_another():
    bowl, seen = Bowl(), []
    optimizer = make_optimizer(Recipe(), bowl)
    before = [p.clone() for p in bowl.parameters()]

    def first_weight():
        seen.append(bowl.a.detach().clone())
        return 3 * bowl.a[0] + 0.0 * bowl.b.sum()

    def second_weight():
        seen.append(bowl.a.detach().clone())
        return 5 * bowl.a[1]

    ascent, descent = (gradients(optimizer, loss) for loss in (first_weight, second_weight))
    assert sharpness_aware(bowl, 0.25, ascent, descent).item() == 3.0
    assert [value.tolist() for value in seen] == [[1.0, -2.0], [1.25, -2.0]]
    assert bowl.a.grad.tolist() == [0.0, 5.0]
    for value, expected in zip(bowl.parameters(), before, strict=True):
        assert torch.equal(value, expected)


def test_sam_stays_where_the_gradient_is_0():
    bowl = Bowl()
    with torch.no_grad():
        bowl.a.zero_()
        bowl.b.zero_()
    compute = gradients(make_optimizer(Recipe(), bowl), bowl)
    sharpness_aware(bowl, 0.5, compute, compute)
    assert bowl.a.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("momentum", [0.1, None])  # None: the mean over all batches
def test_sam_updates_running_averages_once_a_step(momentum):
    x = torch.linspace(-1, 3, 24).view(8, 3).sin()
    networks = [
        nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=momentum, affine=False))
        for _ in range(2)
    ]
    network, twin = networks
    twin.load_state_dict(network.state_dict())
    seen = []

    def loss():
        y = network(x)
        seen.append(y.detach())
        return (y**3).mean()

    compute = gradients(make_optimizer(Recipe(), network), loss)
    sharpness_aware(network, 0.5, compute, compute)
    twin(x)  # one pass
    for name, value in network.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    # The second pass normalises its own batch, at other weights.
    assert not torch.allclose(seen[0], seen[1])
    assert torch.allclose(seen[1].mean(0), torch.zeros(4), atol=1e-5)


def test_longer_class_weights_are_scaled_to_the_largest_norm():
    head = nn.Linear(2, 4)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [0.0, -2.0]]))
        head.bias.fill_(9.0)
    limit_class_norms(head, 2.0)
    expected = torch.tensor([[1.2, 1.6], [0.3, 0.4], [0.0, 0.0], [0.0, -2.0]])
    assert torch.allclose(head.weight, expected)
    assert head.bias.tolist() == [9.0] * 4
    assert head.weight.requires_grad
