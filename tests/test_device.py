"""Training and attacks on a device that is not the CPU: the same numbers, and no waiting.

There is no GPU where these tests run. `pretend` stands in for one.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import random_part

from common import (
    attacks,
    capture,
    experiment,
    losses,
    models,
    noise,
    robustness,
    sweep,
    training,
)
from common.dataset import Part, Split
from common.recipes import RECIPES

pretend = pytest.importorskip(
    "pretend", reason="needs a PyTorch with devices in Python", exc_type=ImportError
)
CPU, THERE = torch.device("cpu"), pretend.DEVICE
CLASSES = ("car", "truck", "cat")
TRAIN = random_part((24, 12, 12))
# What `torch.use_deterministic_algorithms` refuses on CUDA, by its documentation: the
# gradients, but for the last row.
NOT_DETERMINISTIC = {
    *("adaptive_max_pool2d_backward", "_adaptive_avg_pool2d_backward", "avg_pool3d_backward"),
    *("fractional_max_pool2d_backward", "max_pool3d_with_indices_backward", "max_unpool2d"),
    *("upsample_bilinear2d_backward", "upsample_bicubic2d_backward", "_ctc_loss_backward"),
    *("grid_sampler_2d_backward", "nll_loss2d_backward", "_embedding_bag_backward"),
    *("cumsum", "histc", "kthvalue", "median", "put_"),
}


@pytest.fixture(autouse=True)
def _generators(monkeypatch):
    kinds = {CPU: torch.Generator, THERE: pretend.Generator}
    monkeypatch.setattr(
        training, "_generator", lambda seed, device=CPU: kinds[device]().manual_seed(seed)
    )
    monkeypatch.setattr(training, "precision", lambda recipe, device: "float32")


def small(recipe, **changes):
    width = 4 if recipe.network == "resnet9" else recipe.width
    return replace(recipe, batch_size=8, width=width, **changes)


def network(recipe, device):
    made = models.build(recipe.network, recipe.network_arguments(3), 0)
    return made.to(device, memory_format=torch.channels_last)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_there_as_on_the_cpu(name):
    recipe = small(RECIPES[name], epochs=2)

    def curve(device):
        steps = training.train_steps(
            network(recipe, device),
            [TRAIN],
            recipe,
            lambda step: [0.01],
            seeds=[0],
            device=device,
        )
        first = next(steps)
        pretend.waits.clear()  # what is set up may wait; steps do not
        return [first, *(next(steps) for _ in range(3))]

    expected = [float(loss) for loss in curve(CPU)]
    with pretend.Machine():
        found = curve(THERE)
        waits = list(pretend.waits)
        assert {loss.device for loss in found} == {THERE}
        assert [float(loss) for loss in found] == pytest.approx(expected, rel=1e-4)
    assert not pretend.ran & NOT_DETERMINISTIC
    assert waits == []


@pytest.mark.parametrize("changes", [{"ema": 0.0}, {"ema": 0.9}, {"ema": 0.0, "patience": 3}])
def test_a_run_of_more_steps_does_not_wait_more_often(changes):
    recipe = small(RECIPES["best"], epochs=2, **changes)
    waits = []
    for batch_size in (16, 4):
        with pretend.Machine():
            training.fit(
                network(recipe, CPU), TRAIN, TRAIN, replace(recipe, batch_size=batch_size),
                seed=0, device=THERE,
            )  # fmt: skip
            waits.append(len(pretend.waits))
    assert waits[0] == waits[1] > 0


def graphs(monkeypatch):
    """The device has CUDA's graphs; the list has one of those made for each capture."""
    made = []
    monkeypatch.setattr(capture, "DEVICES", (THERE.type,))
    monkeypatch.setattr(capture, "cuda", pretend.cuda)
    monkeypatch.setattr(
        pretend.cuda, "CUDAGraph", lambda: made.append(pretend.CUDAGraph()) or made[-1]
    )
    return made


CAPTURED = {
    "baseline": (RECIPES["baseline"], 1),
    "augmented": (RECIPES["tuned"], 1),
    "resnet9": (RECIPES["resnet9-logit-adjusted"], 1),
    "momentum of Nesterov, decay": (
        replace(RECIPES["original"], nesterov=True, weight_decay=0.01),
        1,
    ),
    # A graph reads the weights and the prior that it was captured with.
    "other weights from the second epoch on": (
        replace(RECIPES["ldam-drw"], reweight_from=0.5),
        2,
    ),
    "other draws in each epoch": (
        replace(RECIPES["progressive-sampler"], loss="logit-adjusted"),
        2,
    ),
    "mixup": (replace(RECIPES["mixup"], mix_share=0.7), 1),
    "best": (RECIPES["best"], 1),
    "attacked": (RECIPES["robust"], 1),
    "adamw": (replace(RECIPES["original"], optimizer="adamw", weight_decay=0.01), 1),
}


@pytest.mark.parametrize(("recipe", "captures"), CAPTURED.values(), ids=CAPTURED)
def test_captured_steps_train_as_the_plain_ones(monkeypatch, capsys, recipe, captures):
    recipe = small(recipe, epochs=2)
    part = random_part((26, 12, 12))  # six whole batches and one of two images

    def trained(device):
        net = network(recipe, device)
        steps = training.train_steps(
            net, [part], recipe, lambda step: [0.01 / (1 + step)], seeds=[0], device=device
        )
        found = [next(steps).item() for _ in range(14)]
        return found, [t.cpu() for t in [*net.parameters(), *net.buffers()]]

    expected, weights = trained(CPU)
    made, constants, make = graphs(monkeypatch), [], losses.make
    monkeypatch.setattr(losses, "make", lambda *args: constants.append(args) or make(*args))
    with pretend.Machine():
        found, captured = trained(THERE)
    assert len(made) == captures
    assert all(graph.recorded for graph in made)
    assert "can't be captured" not in capsys.readouterr().err
    # What a graph reads stays: new constants of the loss need a new graph.
    assert len(constants) == max(1, captures)
    assert found == pytest.approx(expected, rel=1e-3)
    for ours, theirs in zip(captured, weights, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@NEEDS_CUDA
@pytest.mark.parametrize("name", ["baseline", "tuned", "best-cuda", "robust"])
def test_captured_steps_train_as_the_plain_ones_on_cuda(monkeypatch, name):
    monkeypatch.undo()  # generators of its own
    cuda, recipe = torch.device("cuda"), small(RECIPES[name], epochs=2, precision="float32")
    part, found = random_part((26, 12, 12)), []
    for devices in (capture.DEVICES, ()):
        monkeypatch.setattr(capture, "DEVICES", devices)
        steps = training.train_steps(
            *(network(recipe, cuda), [part], recipe, lambda step: [0.01 / (1 + step)]),
            seeds=[0],
            device=cuda,
        )
        found.append([next(steps).item() for _ in range(14)])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_CUDA)])
@pytest.mark.parametrize("name", ["baseline", "best", "robust"])
def test_deterministic_training_repeats_every_bit(monkeypatch, name, device):
    monkeypatch.undo()  # generators of its own
    recipe, found = small(RECIPES[name], epochs=2), []
    training.make_deterministic()
    try:
        for _ in range(2):
            net = network(recipe, CPU)
            training.fit(net, TRAIN, TRAIN, recipe, seed=0, device=torch.device(device))
            found.append([p.cpu() for p in net.parameters()])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_step_that_cannot_be_captured_runs_as_it_is(monkeypatch, capsys):
    graphs(monkeypatch)
    generator, total = pretend.Generator().manual_seed(0), torch.zeros(1)

    def step(x):
        drawn = torch.rand(2, generator=generator, device=THERE)
        total.add_((x * drawn).sum().item())  # waits
        return total

    with pretend.Machine():
        run = capture.captured(step, [generator])
        for _ in range(6):
            run(torch.ones(2, device=THERE))
    expected = torch.rand(12, generator=torch.Generator().manual_seed(0)).sum()
    assert total.item() == pytest.approx(expected.item())
    (line,) = capsys.readouterr().err.splitlines()
    assert "can't be captured" in line
    assert "a capture can't wait" in line  # the cause, not that the capture failed


@pytest.mark.parametrize(
    "changes",
    [
        {"ema": 0.9},
        {"patience": 2},
        {"post_hoc": "logit-adjustment"},
        {"post_hoc": "tau-normalisation"},
        {"post_hoc": "crt", "crt_epochs": 1},
        {"optimizer": "adamw", "nesterov": False, "flip_average": True},
    ],
)
def test_a_whole_run_gives_the_same_network(monkeypatch, changes):
    graphs(monkeypatch)
    recipe = small(RECIPES["resnet9"], epochs=2, **changes)
    validation, test = random_part((8, 8, 8), 1), random_part((6, 6, 6), 2)
    split = Split(TRAIN, validation, test, CLASSES, "random images", "0-0", 0)
    run = experiment.Run("resnet9", recipe, 0)
    ((expected, kept),) = experiment.train([run], split, "cpu", 1, False)
    with pretend.Machine():
        ((result, content),) = experiment.train([run], split, str(THERE), 1, False)
    assert result["history"]["loss"] == pytest.approx(expected["history"]["loss"], rel=1e-3)
    assert all(not isinstance(p, pretend.There) for p in content["network"].parameters())
    x = split.test.images
    ours, theirs = (models.predict(c["network"], x) for c in (content, kept))
    assert torch.allclose(ours, theirs, atol=0.02 * theirs.abs().max().item())


def test_a_range_test_runs_there(monkeypatch):
    graphs(monkeypatch)
    recipe = small(RECIPES["baseline"])
    how = {"lowest": 1e-4, "highest": 0.1, "seed": 0}
    expected = sweep.range_test(network(recipe, CPU), TRAIN, recipe, device=CPU, **how)
    with pretend.Machine():
        found = sweep.range_test(network(recipe, CPU), TRAIN, recipe, device=THERE, **how)
    assert found.losses == pytest.approx(expected.losses, rel=1e-4)


def test_the_loss_before_training_is_the_mean_there_too(monkeypatch):
    made = graphs(monkeypatch)
    recipe = small(RECIPES["baseline"])
    start = sweep.start_loss(network(recipe, CPU), TRAIN, recipe, seed=0, device=CPU)
    with pretend.Machine():
        found = sweep.start_loss(network(recipe, CPU), TRAIN, recipe, seed=0, device=THERE)
    assert len(made) == 1
    assert found == pytest.approx(start, rel=1e-5)


ATTACKS = {
    "fgsm": lambda net, x, y, aims: attacks.fgsm(net, x, y, epsilon=0.02, targets=aims),
    "pgd": lambda net, x, y, aims: attacks.pgd(
        net, x, y, epsilon=0.02, targets=aims, steps=2, restarts=2
    ),
    "pgd in l2": lambda net, x, y, aims: attacks.pgd(
        net, x, y, epsilon=0.5, targets=aims, steps=2, norm="l2", momentum=1.0
    ),
    "optimise": lambda net, x, y, aims: noise.optimise(
        net, x, y, targets=aims, c=0.01, steps=3, start="gaussian"
    ),
    "minimise": lambda net, x, y, aims: noise.minimise(
        net, x, y, targets=aims, steps=2, rounds=2
    ),
    "universal": lambda net, x, y, aims: noise.universal(
        net, x, y, epsilon=0.05, targets=aims, balanced=True, steps=2, batch_size=4
    ),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_attacks_give_the_same_images(attack):
    def moved(device):
        x, y = robustness.to_attack(TRAIN, device)
        return attack(network(RECIPES["baseline"], device), x, y, (y + 1) % 3)

    expected = moved(CPU)
    with pretend.Machine():
        found = moved(THERE)
        assert found.device == THERE
        found = found.cpu()
    # Where a gradient is all but 0, rounding decides its sign.
    assert ((found - expected).abs() > 1e-4).float().mean() < 1e-3


def test_what_attacks_do_is_measured_there():
    def measured(device):
        net = network(RECIPES["baseline"], device)
        part = robustness.to_attack(TRAIN, device)
        aims = robustness.targets(None, part.labels, CLASSES)
        found = [
            sweep.as_dict()["outcomes"]
            for sweep in robustness.sweeps(
                net,
                *part,
                CLASSES,
                epsilons=[0, 8],
                l2_epsilons=[0.5],
                steps=2,
                restarts=1,
                seed=0,
            )
        ]
        at = robustness.sample(net, part, aims, 3, 0)
        chosen = part.images[at], part.labels[at], aims[at]
        rows = robustness.noises(net, *chosen, c=None, norm="l1", steps=2, seed=0)
        noises = [row["fooled"] for _, row in rows]
        train = Part(*(values.to(device) for values in TRAIN))
        rows = robustness.universals(net, train, part, CLASSES, epsilon=0.05, steps=2, seed=0)
        return found, at.tolist(), noises, [row["test"]["fooling_rate"] for *_, row in rows]

    expected = measured(CPU)
    with pretend.Machine():
        found = measured(THERE)
    assert found[1:] == expected[1:]
    for ours, theirs in zip(found[0], expected[0], strict=True):
        for strength, outcome in theirs.items():
            assert ours[strength]["flipped"] == outcome["flipped"]
            assert ours[strength]["norms"] == pytest.approx(outcome["norms"], rel=1e-3)


def test_the_pretended_device_minds_where_tensors_lie():
    here = torch.ones(3)
    with pretend.Machine():
        there = here.to(THERE)
        with pytest.raises(RuntimeError, match="on pretend and on the CPU"):
            here + there
        with pytest.raises(RuntimeError, match="on pretend and on the CPU"):
            here[there.long()]
        assert len(pretend.waits) == 1  # what is copied there
        assert (there * 2).sum().item() == 6
        assert there[there > 0].cpu().tolist() == [1, 1, 1]
    assert len(pretend.waits) == 4
