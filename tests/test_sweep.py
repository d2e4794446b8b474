from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY, is_one_line, random_part
from matplotlib.figure import Figure

from common import models, sweep, sweep_figures, training
from common.recipes import Recipe

CPU = torch.device("cpu")
TRAIN = random_part((12, 8, 6))


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
    assert sweep.verdict(1.1, history, lowest=0.2) == expected


def test_the_best_rate_has_the_best_g_mean_and_of_equals_the_lower_loss():
    def result(g_mean, loss, diverged=None):
        history = {"validation_loss": [9.0, loss]}
        return {"validation": {"g_mean": g_mean}, "history": history, "diverged": diverged}

    rates = {0.1: result(0.5, 0.4), 0.2: result(0.7, 0.5), 0.3: result(0.7, 0.3)}
    assert sweep.best_rate(rates) == 0.3
    assert sweep.best_rate({0.1: {"diverged": "x"}, 0.2: result(0.0, 1.0)}) == 0.2
    assert sweep.best_rate({0.1: {"diverged": "x"}}) is None


@pytest.mark.parametrize(
    ("change", "weights"),
    [
        ({}, [1, 1, 1]),
        ({"class_weights": "inverse"}, [26 / 12, 26 / 8, 26 / 6]),
        ({"class_weights": "inverse", "reweight_from": 0.5}, [1, 1, 1]),
    ],
)
def test_the_loss_before_training_is_that_of_a_slow_loop(change, weights):
    network = models.build("simple-cnn", {"classes": 3, "dropout": 0.0})
    total = counted = 0.0
    with torch.no_grad():
        for image, label in zip(TRAIN.images, TRAIN.labels.tolist(), strict=True):
            p = network(image[None] / 255).softmax(1)[0, label].item()
            total -= weights[label] * math.log(p)
            counted += weights[label]
    found = start(network, batch_size=26, **change)
    assert found == pytest.approx(total / counted, rel=1e-5)


def test_the_loss_before_training_is_of_what_is_drawn():
    network = models.build("simple-cnn", {"classes": 3, "dropout": 0.0})
    drawn = torch.multinomial(
        (1 / torch.tensor([12.0, 8, 6]))[TRAIN.labels].double(), 26, replacement=True,
        generator=torch.Generator().manual_seed(5),
    )  # fmt: skip
    logits = models.predict(network, TRAIN.images)
    expected = F.cross_entropy(logits[drawn], TRAIN.labels[drawn]).item()
    assert start(network, batch_size=26, sampler="balanced") == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(
    "change", [{}, {"mix": "cutmix"}, {"weight_decay": 0.1, "augment": ("colour",)}]
)
def test_the_loss_before_training_is_what_a_rate_near_0_keeps(change):
    """With dropout, mixing and augmentation, which the epochs' losses have too."""
    network = models.build("simple-cnn", {"classes": 3})
    before = network.fc1.weight.clone()
    found = start(network, batch_size=13, **change)
    assert torch.equal(network.fc1.weight, before)
    recipe = Recipe(batch_size=13, learning_rate=1e-12, epochs=1, **change)
    history = training.fit(network, TRAIN, EMPTY, recipe, seed=5, device=CPU)
    assert found == pytest.approx(history.loss[0], rel=1e-5)


def start(network, **change):
    return sweep.start_loss(network, TRAIN, Recipe(**change), seed=5, device=CPU)


def ranged(network=None, examples=TRAIN, lowest=1e-4, highest=1.0, **change):
    return sweep.range_test(
        network or models.build("simple-cnn", {"classes": 3}),
        examples,
        replace(Recipe(batch_size=1), **change),
        lowest=lowest,
        highest=highest,
        seed=0,
        device=CPU,
    )


def test_the_range_test_leaves_the_network_as_it_is():
    network = models.build("simple-cnn", {"classes": 3})
    before = {name: value.clone() for name, value in network.state_dict().items()}
    test = ranged(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert ranged(network).losses == test.losses


def test_its_rates_grow_by_a_constant_factor_whatever_the_schedule(monkeypatch):
    asked = []

    def steps(network, examples, recipe, rates, **_):
        for step in range(26):
            asked.append(rates(step))
            yield torch.tensor([1.0])

    monkeypatch.setattr(training, "train_steps", steps)
    test = ranged(schedule="one-cycle")
    assert test.rates == pytest.approx(np.geomspace(1e-4, 1.0, 26).tolist())
    assert asked == [[rate] for rate in test.rates]
    assert test.edge is None


@pytest.mark.parametrize("centre", [1e-3, 1e-2])
def test_suggestion_and_edge_of_a_known_curve(monkeypatch, centre):
    noise = np.random.default_rng(0)

    def steps(network, examples, recipe, rates, **_):
        step = 0
        while True:
            (rate,) = rates(step)
            fall = 1 / (1 + math.exp(-4 * math.log(rate / centre)))
            explodes = rate / 0.3 if rate > 0.3 else 0.0
            yield torch.tensor([1.1 - 0.8 * fall + explodes**2 + noise.normal() * 0.02])
            step += 1

    monkeypatch.setattr(training, "train_steps", steps)
    test = ranged(examples=random_part((400, 300, 300)), highest=10.0)
    assert test.suggestion == pytest.approx(centre, rel=0.25)
    assert 0.3 < test.edge < 1.0
    assert test.rates[-1] <= test.edge


def test_a_loss_that_is_not_finite_ends_the_range_test():
    test = ranged(lowest=1e-3, highest=1e12, batch_size=2)
    assert test.edge is not None
    assert len(test.losses) < 13
    with pytest.raises(training.DivergedError, match="lower range"):
        ranged(lowest=1e30, highest=1e31)


def test_a_sweep_shows_every_rate_and_is_not_trained_twice(in_process, tmp_path):
    out = tmp_path / "out"
    shared = ["--dry-run", "--output-dir", out, "--jobs", "1", "--epochs", "1"]
    text = in_process(
        "lr_sweep.py", *shared, "--learning-rates", "0.01", "1e30", "1e-10"
    ).stdout
    table = text[text.index("    rate ") :].splitlines()
    lines = table[1:4]
    assert [line.split()[0] for line in lines] == ["1e-10", "0.01", "1e+30"]
    assert lines[0].endswith("too small, hardly moved")
    assert "diverges at step 2" in lines[2]
    assert all(len(line) <= 80 for line in text.splitlines() if "saved" not in line)
    saved = json.loads((out / "figures/lr_sweep_original.json").read_text())
    assert [entry["rate"] for entry in saved["rates"]] == [1e-10, 0.01, 1e30]
    assert saved["best_rate"] in (1e-10, 0.01)
    assert all("report" not in entry["verdict"] for entry in saved["rates"])
    for name in ("loss", "each", "validation"):
        assert (out / f"figures/lr_sweep_original_{name}.png").stat().st_size > 10_000
    times = {p.name: p.stat().st_mtime_ns for p in (out / "models").iterdir()}
    assert "original-lr0.01.pt" in times
    in_process("lr_sweep.py", *shared, "--learning-rates", "0.01", "1e30", "1e-10")
    assert times == {p.name: p.stat().st_mtime_ns for p in (out / "models").iterdir()}
    ranged = in_process("lr_sweep.py", *shared, "--range-test").stdout
    assert f"by validation G-mean: {saved['best_rate']:g} (" in ranged
    assert (out / "figures/lr_sweep_original_range_test.png").stat().st_size > 10_000
    other = in_process("lr_sweep.py", "sampler", *shared, "--range-test").stdout
    assert "first run: python lr_sweep.py sampler" in other


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning-rates", "0"], ["'0'", "above 0"]),
        (["--learning-rates", "-1"], ["--learning-rates"]),
        (["--learning-rates", "nan"], ["'nan'", "above 0"]),
        (["--learning-rates", "inf"], ["'inf'", "above 0"]),
        (["--learning-rates", "fast"], ["'fast'", "above 0"]),
        (["--learning-rates"], ["--learning-rates", "expected at least one"]),
        (["--learning-rates", "0.1", "1e-1"], ["0.1", "twice"]),
        (["--validation", "0"], ["--validation 0"]),
        (["origina"], ["origina", "original"]),
    ],
)
def test_bad_input_is_one_line(in_process, arguments, words):
    ended = in_process("lr_sweep.py", "--dry-run", *arguments)
    assert ended.returncode == 2
    assert is_one_line(ended.stderr, *words)


def test_a_diverged_curve_ends_in_a_cross_and_an_arrow_marks_what_is_off_the_scale():
    axes = Figure().subplots()
    assert sweep_figures._curve(axes, 0, [1.0, 0.5, 99.0, 0.7], True, 1.0, "C0", "0.5")
    curve, arrows, cross = axes.lines
    assert curve.get_xdata().tolist() == [0, 1, 2, 3]
    assert curve.get_ydata().tolist() == [1.0, 0.5, sweep_figures.HEIGHT, 0.7]
    assert (arrows.get_marker(), arrows.get_xdata().tolist()) == ("^", [2])
    assert cross.get_marker() == "x"
    assert cross.get_xydata().tolist() == [[3, 0.7]]
    axes = Figure().subplots()
    assert not sweep_figures._curve(axes, 1, [1.0, 0.5], False, 1.0, "C0", "0.005")
    assert [line.get_marker() for line in axes.lines if len(line.get_xdata())] == ["o"]
