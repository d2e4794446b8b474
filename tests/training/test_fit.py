"""The training loop against the reports' loop and against slow, obvious computations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY, random_part

from common.dataset.load import load
from common.dataset.split import LabelledImages
from common.errors import DivergedError
from common.networks.build import build, torch_seed
from common.networks.prediction import predict
from common.training import fit as fit_module
from common.training.fit import first_draw, fit, make_deterministic, require_finite, train_steps
from common.training.optimization import make_optimizer
from common.training.recipe import Recipe
from common.training.recipes import RECIPES

CPU = torch.device("cpu")
TRAIN = random_part((6, 4, 3))  # 13 images: the last batch of 4 holds one
RECIPE = Recipe(epochs=3, learning_rate=0.05)


def fitted(recipe=RECIPE, seed=0, train=TRAIN, validation=EMPTY, dropout=0.5):
    arguments = recipe.network_arguments(3)
    if recipe.network == "simple-cnn":
        arguments["dropout"] = dropout
    network = build(recipe.network, arguments, seed)
    history = fit(network, train, validation, recipe, seed=seed, device=CPU)
    return network, history


def plain_loop(recipe, seed):
    """Train as the reports do, with momentum written out."""
    network = build("simple-cnn", {"classes": 3, "dropout": 0.0}, seed).train()
    velocity = [torch.zeros_like(p) for p in network.parameters()]
    generator = torch.Generator().manual_seed(seed)
    epoch_losses = []
    for _ in range(recipe.epochs):
        order = torch.randperm(len(TRAIN.labels), generator=generator).tolist()
        total = 0.0
        for start in range(0, len(order), recipe.batch_size):
            batch = order[start : start + recipe.batch_size]
            x = torch.stack([TRAIN.images[i] / 255 for i in batch])
            y = torch.tensor([int(TRAIN.labels[i]) for i in batch])
            loss = F.cross_entropy(network(x), y)
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for p, v, g in zip(network.parameters(), velocity, gradients, strict=True):
                    v.mul_(recipe.momentum).add_(g)
                    p.sub_(recipe.learning_rate * v)
            total += loss.item() * len(batch)
        epoch_losses.append(total / len(order))
    return network, epoch_losses


@pytest.mark.parametrize("seed", [0, 1])
def test_fit_equals_a_plain_loop(seed):
    network, history = fitted(seed=seed, dropout=0.0)
    reference, losses = plain_loop(RECIPE, seed)
    assert history.loss == pytest.approx(losses, rel=1e-4)
    for name, value in network.state_dict().items():
        assert torch.allclose(value, reference.state_dict()[name], atol=1e-5), name


def test_one_seed_gives_identical_weights_and_another_does_not():
    a, b, c = (fitted(seed=seed)[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not any(torch.equal(a[name], c[name]) for name in a)


@pytest.mark.parametrize("name", ["baseline", "best", "robust"])
def test_deterministic_training_repeats_every_bit(name):
    width = 4 if RECIPES[name].network == "resnet9" else None
    recipe = replace(RECIPES[name], batch_size=8, width=width, epochs=2)
    make_deterministic()
    try:
        a, b = (fitted(recipe, train=random_part((24, 12, 12)))[0] for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_the_global_random_state_plays_no_part():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a = fitted()[0].fc1.weight
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert torch.equal(a, fitted()[0].fc1.weight)


@pytest.mark.parametrize(
    "change",
    [
        {"classifier": "cosine"},
        {"epochs": 2},
        {"batch_size": 3},
        {"optimizer": "adamw"},
        {"learning_rate": 0.04},
        {"momentum": 0.5},
        {"nesterov": True},
        {"weight_decay": 0.01},
        {"schedule": "step", "step_epochs": 1},
        {"schedule": "cosine"},
        {"schedule": "one-cycle"},
        {"ema": 0.5},
        {"precision": "bfloat16"},
        {"sampler": "balanced"},
        {"sampler": "square-root"},
        {"sampler": "progressive"},
        {"sampler": "rotation"},
        {"sampler": "weighted", "sampler_weights": (1.0, 2.0, 9.0)},
        {"augment": ("flip",)},
        {"augment": ("crop",)},
        {"augment": ("cutout",)},
        {"augment": ("colour",)},
        {"mix": "mixup"},
        {"mix": "cutmix"},
        {"loss": "focal"},
        {"loss": "balanced-softmax"},
        {"loss": "logit-adjusted", "tau": 2.0},
        {"label_smoothing": 0.1},
        {"class_weights": "inverse"},
        {"class_weights": "effective-number"},
    ],
)
def test_each_option_changes_the_weights(change):
    plain = fitted()[0].fc1.weight
    assert not torch.equal(plain, fitted(replace(RECIPE, **change))[0].fc1.weight)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({"loss": "ldam", "classifier": "cosine"}, {"margin": 0.1}),
        ({"loss": "ldam", "classifier": "cosine"}, {"loss": "cross-entropy"}),
        ({"loss": "focal"}, {"focal_gamma": 1.0}),
        ({"loss": "logit-adjusted"}, {"tau": 0.5}),
        ({"class_weights": "effective-number"}, {"beta": 0.9}),
        ({"class_weights": "inverse"}, {"reweight_from": 0.5}),
        ({"schedule": "step", "step_epochs": 1}, {"step_epochs": 2}),
        ({"schedule": "step", "step_epochs": 1}, {"step_factor": 0.5}),
        ({"schedule": "one-cycle"}, {"warm_up": 0.6}),
        ({"mix": "mixup"}, {"mix_share": 1.0}),
        ({"mix": "mixup"}, {"mix_alpha": 0.2}),
        ({"ema": 0.5}, {"ema": 0.9}),
    ],
)
def test_each_parameter_of_an_option_changes_the_weights(base, change):
    recipe = replace(RECIPE, **base)
    changed = replace(recipe, **change)
    assert not torch.equal(fitted(recipe)[0].fc1.weight, fitted(changed)[0].fc1.weight)


@pytest.mark.parametrize(
    ("capabilities", "precision"), [({}, "float32"), ({"amx_bf16": True}, "bfloat16")]
)
def test_precision_auto_is_bfloat16_only_where_the_cpu_has_it(
    capabilities, precision, monkeypatch
):
    monkeypatch.setattr(fit_module, "_cpu_capabilities", lambda: capabilities)
    weights = {
        name: fitted(replace(RECIPE, precision=name))[0].fc1.weight
        for name in ("auto", "float32", "bfloat16")
    }
    assert torch.equal(weights["auto"], weights[precision])
    assert not torch.equal(weights["float32"], weights["bfloat16"])


def test_first_draw_counts_the_labels_of_the_first_epoch(monkeypatch):
    recipe = replace(RECIPE, sampler="balanced", epochs=1)
    labels, batch_loss = [], fit_module.losses.batch_loss
    monkeypatch.setattr(
        fit_module.losses,
        "batch_loss",
        lambda loss, weights, logits, y: (
            labels.append(y) or batch_loss(loss, weights, logits, y)
        ),
    )
    fitted(recipe, seed=3)
    drawn = torch.bincount(torch.cat(labels), minlength=3).tolist()
    assert drawn == first_draw(TRAIN, recipe, 3, seed=3)


def test_deferred_weights_begin_at_their_epoch():
    deferred = {"epochs": 2, "class_weights": "inverse", "reweight_from": 0.5}
    losses = fitted(replace(RECIPE, **deferred))[1].loss
    plain = fitted(replace(RECIPE, epochs=2))[1].loss
    assert losses[0] == plain[0]
    assert losses[1] != plain[1]


@pytest.mark.parametrize("network", ["simple-cnn", "resnet9"])
def test_averaged_weights_equal_a_slow_average(network):
    recipe = replace(RECIPE, network=network, width=4 if network == "resnet9" else None)
    twin = build(network, recipe.network_arguments(3), 0)
    twin.to(memory_format=torch.channels_last)
    decay, average = 0.6, {}
    with torch_seed(0):
        optimizer = make_optimizer(recipe, twin)
        steps = train_steps(twin, TRAIN, recipe, optimizer, seed=0, device=CPU)
        for _ in range(4 * recipe.epochs):
            next(steps)
            for name, value in twin.state_dict().items():  # BatchNorm's statistics too
                # The average starts with the weights after the first step.
                average[name] = decay * average.get(name, value) + (1 - decay) * value
    found = fitted(replace(recipe, ema=decay))[0].state_dict()
    for name, value in found.items():
        if "num_batches" not in name:
            assert torch.allclose(value, average[name], atol=1e-5), name


def test_patience_keeps_the_best_epoch(monkeypatch):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    monkeypatch.setattr(fit_module, "geometric_mean_score", lambda *_: next(scores))
    recipe = replace(RECIPE, epochs=6, patience=3)
    network, history = fitted(recipe, validation=TRAIN)
    assert history.best_epoch == 2
    assert history.validation_g_mean == [0.1, 0.5, 0.4, 0.5, 0.3]
    two = fitted(replace(RECIPE, epochs=2))[0]
    assert torch.equal(network.fc1.weight, two.fc1.weight)


def test_denormal_numbers_count_as_0_during_training_alone(monkeypatch):
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor can't treat denormal numbers as 0")

    def smallest_denormal():
        return (torch.ones(1, dtype=torch.int32).view(torch.float32) * 1).item()

    seen = []
    monkeypatch.setattr(
        fit_module, "geometric_mean_score", lambda *_: seen.append(smallest_denormal()) or 1
    )
    fitted(validation=TRAIN)
    assert seen == [0] * RECIPE.epochs
    assert 0 < smallest_denormal() < 1e-44


def test_validation_is_measured_and_never_trained_on():
    validation = random_part((3, 3, 3), seed=1)
    network, history = fitted(validation=validation)
    assert torch.equal(network.fc1.weight, fitted()[0].fc1.weight)
    logits = predict(network, validation.images)
    assert history.validation_loss[-1] == pytest.approx(
        F.cross_entropy(logits, validation.labels).item()
    )
    recalls = [(logits.argmax(1)[validation.labels == k] == k).float().mean() for k in range(3)]
    g_mean = float(torch.tensor(recalls).prod() ** (1 / 3))
    assert history.validation_g_mean[-1] == pytest.approx(g_mean, abs=1e-6)
    assert len(history.validation_loss) == RECIPE.epochs
    assert not network.training
    assert all(p.grad is None for p in network.parameters())


def test_a_loss_that_is_not_finite_names_step_and_rate():
    recipe = replace(RECIPE, learning_rate=1e30)
    _, history = fitted(recipe, dropout=0.0)
    assert history.diverged_at == 2  # the first step's loss is that of the initial weights
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))[:4]
    logits = build("simple-cnn", {"classes": 3}).eval()(TRAIN.images[order] / 255)
    first = F.cross_entropy(logits, TRAIN.labels[order])
    assert history.loss == pytest.approx([first.item()], rel=1e-5)
    with pytest.raises(DivergedError, match=r"step 2; take .* below 1e\+30"):
        require_finite(history, recipe)


class TwoPasses(torch.optim.SGD):
    """An optimiser that evaluates its closure twice per step, as SAM does."""

    def step(self, closure):
        losses = [closure(), closure()]
        super().step()
        return losses[0]


def test_an_optimiser_with_two_passes_needs_no_change_of_the_loop():
    plain = build("simple-cnn", {"classes": 3, "dropout": 0.0})
    twin = build("simple-cnn", {"classes": 3, "dropout": 0.0})
    curves = []
    for network, kind in ((plain, torch.optim.SGD), (twin, TwoPasses)):
        optimizer = kind(network.parameters(), lr=0.05)
        steps = train_steps(network, TRAIN, RECIPE, optimizer, seed=0, device=CPU)
        curves.append([next(steps).item() for _ in range(8)])
    assert curves[0] == pytest.approx(curves[1])  # without dropout both passes are the same


def test_synthetic_images_are_hard_without_a_remedy_and_learnable_with_one():
    """One epoch of the reports' recipe calls everything a car; ten balanced ones do not."""
    split = load("synthetic")
    recipe = Recipe()
    network, _ = fitted(replace(recipe, epochs=1), train=split.train)
    assert set(predict(network, split.test.images).argmax(1).tolist()) == {0}

    shares = torch.ones(3) / torch.tensor(split.train.counts(3))
    weights = shares[split.train.labels]
    drawn = torch.multinomial(
        weights, 5625, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    balanced = LabelledImages(split.train.images[drawn], split.train.labels[drawn])
    network, _ = fitted(recipe, train=balanced)
    found = predict(network, split.test.images).argmax(1) == split.test.labels
    recalls = [found[split.test.labels == k].float().mean().item() for k in range(3)]
    assert min(recalls) > 0.45, recalls
