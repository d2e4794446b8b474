"""Verdicts on learning rates, the loss before training, and the range test."""

import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import EMPTY, random_part

from common.dataset.load import load
from common.errors import DivergedError, InputError
from common.files import save_result
from common.networks.build import build
from common.networks.prediction import predict
from common.training import learning_rates
from common.training.fit import fit
from common.training.learning_rates import (
    best_rate,
    range_test,
    saved_best_rate,
    start_loss,
    verdict,
)
from common.training.recipe import Recipe
from common.training.sampling import epoch_order

CPU = torch.device("cpu")
TRAIN = random_part((12, 8, 6))
INVERSE = {"class_weights": "inverse"}


@pytest.mark.parametrize(
    ("curve", "diverged_at", "expected"),
    [
        ([1.1, 1.1, 1.09], None, "too small, hardly moved"),
        ([1.0, 0.5, 0.2], None, "converges"),
        ([1.0, 0.5, 0.45, 0.5, 0.2], None, "converges"),  # rises 0.05, falls 0.85
        ([1.0, 0.9, 0.31], None, "slow"),  # more than 1.5 times 0.2
        ([1.0, 0.9, 0.29], None, "converges"),
        ([1.13, 0.5, 0.2], None, "unstable"),  # above the start
        ([1.12, 0.5, 0.2], None, "converges"),  # by less than 2%
        ([0.5, 0.3, 0.45, 0.4], None, "unstable"),  # rises 0.15, falls 0.25
        ([0.5, 0.3], 1234, "diverges at step 1,234"),
        ([], 1, "diverges at step 1"),
        ([0.3], None, "converges"),
    ],
)
def test_verdicts(curve, diverged_at, expected):
    history = {"loss": curve, "diverged_at": diverged_at}
    assert verdict(1.1, history, lowest=0.2) == expected


def test_best_rate_has_the_best_g_mean_and_among_equals_the_lowest_loss():
    def result(g_mean, loss, diverged=None, best_epoch=None):
        history = {"validation_loss": [9.0, loss], "best_epoch": best_epoch}
        return {"validation": {"g_mean": g_mean}, "history": history, "diverged": diverged}

    rates = {0.1: result(0.5, 0.4), 0.2: result(0.7, 0.5), 0.3: result(0.7, 0.3)}
    assert best_rate(rates) == 0.3
    assert best_rate({0.1: {"diverged": "x"}, 0.2: result(0.0, 1.0)}) == 0.2
    assert best_rate({0.1: {"diverged": "x"}}) is None
    kept = {0.1: result(0.5, 0.4), 0.2: result(0.5, 0.3, best_epoch=1)}
    assert best_rate(kept) == 0.1  # the network of the epoch before the last has a loss of 9


def untrained(**arguments):
    return build("simple-cnn", {"classes": 3, **arguments})


@pytest.mark.parametrize(
    ("change", "weights"),
    [
        ({}, [1, 1, 1]),
        (INVERSE, [26 / 12, 26 / 8, 26 / 6]),
        (INVERSE | {"reweight_from": 0.5}, [1, 1, 1]),
        ({"sampler": "balanced"}, [1, 1, 1]),
    ],
)
def test_start_loss_is_the_weighted_mean_of_the_drawn_examples(change, weights):
    network, recipe = untrained(dropout=0.0), Recipe(batch_size=26, **change)
    drawn = epoch_order(TRAIN.labels, recipe, 0, 3, torch.Generator().manual_seed(5))
    log_p = predict(network, TRAIN.images[drawn]).log_softmax(1)
    labels = TRAIN.labels[drawn]
    w = torch.tensor(weights)[labels]
    expected = -(w * log_p[range(26), labels]).sum() / w.sum()
    found = start_loss(network, TRAIN, recipe, seed=5, device=CPU)
    assert found == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    "change", [{}, {"mix": "cutmix"}, {"weight_decay": 0.1, "augment": ("colour",)}]
)
def test_start_loss_is_the_loss_of_an_epoch_at_a_rate_near_0(change):
    """Both have dropout, mixing and augmentation."""
    network = untrained()
    recipe = Recipe(batch_size=25, learning_rate=1e-12, epochs=1, **change)  # the last: 1
    before = network.fc1.weight.clone()
    found = start_loss(network, TRAIN, replace(recipe, learning_rate=0.1), seed=5, device=CPU)
    assert torch.equal(network.fc1.weight, before)
    history = fit(network, TRAIN, EMPTY, recipe, seed=5, device=CPU)
    assert found == pytest.approx(history.loss[0], rel=1e-5)


def run_range_test(network=None, examples=TRAIN, lowest=1e-4, highest=1.0, **change):
    network, recipe = network or untrained(), Recipe(**{"batch_size": 1} | change)
    limits = {"lowest": lowest, "highest": highest}
    return range_test(network, examples, recipe, **limits, seed=0, device=CPU)


@pytest.fixture
def fake_training(monkeypatch):
    """Let each step have the loss loss_at(rate); return the list of the rates used."""

    def replace_training(loss_at):
        rates = []

        def steps(examples, recipe, state, **_):
            while True:
                rates.append(state.optimizer.param_groups[0]["lr"])
                yield torch.tensor(loss_at(rates[-1]))
                state.optimizer.step()
                state.scheduler.step()

        monkeypatch.setattr(learning_rates, "train_steps", steps)
        return rates

    return replace_training


def test_the_range_test_leaves_the_network_as_it_is():
    network = untrained()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    test = run_range_test(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert run_range_test(network).losses == test.losses


def test_the_rates_grow_by_a_constant_factor_whatever_the_schedule(fake_training):
    used = fake_training(lambda rate: 1.0)
    test = run_range_test(schedule="one-cycle")
    assert test.rates == pytest.approx(np.geomspace(1e-4, 1.0, 26).tolist())
    assert used == pytest.approx(test.rates)
    assert test.edge is None


@pytest.mark.parametrize("centre", [1e-3, 1e-2])
def test_suggestion_and_edge_of_a_known_curve(fake_training, centre):
    noise = np.random.default_rng(0)

    def loss_at(rate):
        fall = 1 / (1 + math.exp(-4 * math.log(rate / centre)))
        explosion = rate / 0.3 if rate > 0.3 else 0.0
        return 1.1 - 0.8 * fall + explosion**2 + noise.normal() * 0.02

    fake_training(loss_at)
    test = run_range_test(examples=random_part((400, 300, 300)), highest=10.0)
    assert test.suggestion == pytest.approx(centre, rel=0.25)
    assert 0.3 < test.edge < 1.0
    assert test.rates[-1] <= test.edge


def test_a_loss_that_is_not_finite_ends_the_range_test():
    test = run_range_test(lowest=1e-3, highest=1e12, batch_size=2)
    assert test.edge is not None
    assert len(test.losses) < 13
    with pytest.raises(DivergedError, match="lower range"):
        run_range_test(lowest=1e30, highest=1e31)


def test_a_range_test_needs_three_steps():
    examples = random_part((9, 0, 0))
    with pytest.raises(InputError, match="9 examples are too few for three steps of 5"):
        run_range_test(examples=examples, batch_size=5)
    assert len(run_range_test(examples=examples, batch_size=4).losses) == 3


def test_only_a_rate_of_a_sweep_like_this_is_taken_over(tmp_path):
    split = load("synthetic", dry_run=True, cache=tmp_path / "cache")
    path, recipe = tmp_path / "sweep.json", Recipe(momentum=0.5)
    facts = {"data": split.record(), "seed": 0, "device": "cpu", "seconds": 1.0}
    swept = asdict(recipe) | {"learning_rate": 0.5, "epochs": 3}
    for saved, best in (
        ({"recipe": swept, "best_rate": 0.25}, 0.25),
        ({"recipe": swept, "best_rate": None}, None),
        ({"recipe": swept, "best_rate": "0.25"}, None),
        ({"recipe": swept | {"momentum": 0.9}, "best_rate": 0.25}, None),
        ({"recipe": [swept], "best_rate": 0.25}, None),
        ({"recipe": "momentum", "best_rate": 0.25}, None),
        ({"best_rate": 0.25}, None),
    ):
        save_result(path, **facts, **saved)
        assert saved_best_rate(path, split, recipe) == best
    save_result(path, **facts | {"data": {}}, recipe=swept, best_rate=0.25)
    assert saved_best_rate(path, split, recipe) is None
    path.write_text("[" * 100_000)
    assert saved_best_rate(path, split, recipe) is None
