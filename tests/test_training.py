from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY, random_part

from common import dataset, kernels, models, training
from common.recipes import Recipe

CPU = torch.device("cpu")
TRAIN = random_part((6, 4, 3))  # 13 images: the last batch of 4 holds one
RECIPE = Recipe(epochs=3, learning_rate=0.05)


def fitted(recipe=RECIPE, seed=0, train=TRAIN, validation=EMPTY, dropout=0.5):
    arguments = recipe.network_arguments(3)
    if recipe.network == "simple-cnn":
        arguments["dropout"] = dropout
    network = models.build(recipe.network, arguments, seed)
    history = training.fit(network, train, validation, recipe, seed=seed, device=CPU)
    return network, history


def plain_loop(recipe, seed):
    """The reports' loop: momentum written out, one image list per batch."""
    network = models.build("simple-cnn", {"classes": 3, "dropout": 0.0}, seed).train()
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
def test_each_option_changes_what_is_trained(change):
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
def test_each_option_of_an_option_changes_what_is_trained(base, change):
    recipe = replace(RECIPE, **base)
    changed = replace(recipe, **change)
    assert not torch.equal(fitted(recipe)[0].fc1.weight, fitted(changed)[0].fc1.weight)


@pytest.mark.parametrize(
    ("capabilities", "precision"), [({}, "float32"), ({"amx_bf16": True}, "bfloat16")]
)
def test_precision_auto_is_bfloat16_only_where_the_cpu_has_it(
    capabilities, precision, monkeypatch
):
    monkeypatch.setattr(training, "_cpu_capabilities", lambda: capabilities)
    weights = {
        name: fitted(replace(RECIPE, precision=name))[0].fc1.weight
        for name in ("auto", "float32", "bfloat16")
    }
    assert torch.equal(weights["auto"], weights[precision])
    assert not torch.equal(weights["float32"], weights["bfloat16"])


def test_first_draw_is_what_the_first_epoch_draws(monkeypatch):
    recipe = replace(RECIPE, sampler="balanced", epochs=1)
    seen = []
    mean = training.losses.weighted_mean
    monkeypatch.setattr(
        training.losses,
        "weighted_mean",
        lambda x, y, w: seen.append(y.flatten()) or mean(x, y, w),
    )
    fitted(recipe, seed=3)
    drawn = torch.bincount(torch.cat(seen), minlength=3).tolist()
    assert drawn == training.first_draw(TRAIN, recipe, 3, seed=3)


def test_deferred_weights_begin_when_they_should():
    early = {"epochs": 2, "class_weights": "inverse", "reweight_from": 0.5}
    losses = fitted(replace(RECIPE, **early))[1].loss
    plain = fitted(replace(RECIPE, epochs=2))[1].loss
    assert losses[0] == plain[0]
    assert losses[1] != plain[1]


@pytest.mark.parametrize("network", ["simple-cnn", "resnet9"])
def test_averages_are_those_of_a_slow_average(network):
    recipe = replace(RECIPE, network=network, width=4 if network == "resnet9" else None)
    twin = models.build(network, recipe.network_arguments(3), 0)
    twin.to(memory_format=torch.channels_last)
    steps = training.train_steps(
        twin, [TRAIN], recipe, lambda step: [RECIPE.learning_rate], seeds=[0], device=CPU
    )
    decay, average = 0.6, {}
    for _ in range(4 * recipe.epochs):
        next(steps)
        for name, value in twin.state_dict().items():  # BatchNorm's statistics too
            # It starts at the first step's.
            average[name] = decay * average.get(name, value) + (1 - decay) * value
    found = fitted(replace(recipe, ema=decay))[0].state_dict()
    for name, value in found.items():
        if "num_batches" not in name:
            assert torch.allclose(value, average[name], atol=1e-5), name


def test_patience_keeps_the_best_epoch(monkeypatch):
    scores = iter([0.1, 0.5, 0.4, 0.5, 0.3, 0.9])
    monkeypatch.setattr(training, "geometric_mean_score", lambda *_: next(scores))
    recipe = replace(RECIPE, epochs=6, patience=3)
    network, history = fitted(recipe, validation=TRAIN)
    assert history.best_epoch == 2
    assert history.validation_g_mean == [0.1, 0.5, 0.4, 0.5, 0.3]
    two = fitted(replace(RECIPE, epochs=2))[0]
    assert torch.equal(network.fc1.weight, two.fc1.weight)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"classifier": "cosine", "loss": "ldam"},
        {"mix": "cutmix", "augment": ("flip", "crop")},
        {"schedule": "cosine", "optimizer": "adamw", "sampler": "balanced"},
        {"class_weights": "inverse", "weight_decay": 0.01, "momentum": 0.5, "nesterov": True},
    ],
)
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("seeds", [(4, 4, 4), (0, 1, 2)])
def test_networks_trained_together_end_as_each_alone(monkeypatch, change, compiled, seeds):
    if not compiled:
        monkeypatch.setattr(kernels, "library", lambda: None)
    recipe = replace(RECIPE, epochs=2, learning_rate=0.001, **change)
    recipes = [replace(recipe, learning_rate=rate) for rate in (1e-10, 0.001, 0.01)]
    arguments, same = recipe.network_arguments(3), len(set(seeds)) == 1
    parts = [TRAIN if same else random_part((6, 4, 3), seed) for seed in seeds]
    networks = [models.build("simple-cnn", arguments, seed) for seed in seeds]
    validation = random_part((3, 3, 3))
    histories = training.fit_together(
        networks, parts, validation, recipes, seeds=seeds, device=CPU
    )
    for k, seed in enumerate(seeds):
        alone = models.build("simple-cnn", arguments, seed)
        expected = training.fit(alone, parts[k], validation, recipes[k], seed=seed, device=CPU)
        assert histories[k].loss == pytest.approx(expected.loss, abs=1e-5)
        assert histories[k].validation_loss == pytest.approx(expected.validation_loss, abs=1e-4)
        assert len(histories[k].validation_g_mean) == recipe.epochs
        for name, value in alone.state_dict().items():
            assert torch.allclose(networks[k].state_dict()[name], value, atol=1e-4), name


def test_a_network_that_diverges_leaves_the_others_alone():
    rates = (1e30, 0.01, 1e30)
    recipes = [replace(RECIPE, learning_rate=rate) for rate in rates]
    networks = [models.build("simple-cnn", {"classes": 3}) for _ in rates]
    histories = training.fit_together(
        networks, [TRAIN] * 3, EMPTY, recipes, seeds=[0] * 3, device=CPU
    )
    alone = models.build("simple-cnn", {"classes": 3})
    expected = training.fit(alone, TRAIN, EMPTY, recipes[1], seed=0, device=CPU)
    assert histories[1].loss == pytest.approx(expected.loss, abs=1e-5)
    assert histories[1].diverged_at is None
    first = F.cross_entropy(*first_batch(models.build("simple-cnn", {"classes": 3})))
    for k in (0, 2):
        assert histories[k].diverged_at == 2  # the first step's loss is before any change
        assert histories[k].loss == pytest.approx([first.item()], rel=1)


def first_batch(network):
    """Logits and labels of the first batch of seed 0, without dropout."""
    order = torch.randperm(13, generator=torch.Generator().manual_seed(0))[:4]
    return network.eval()(TRAIN.images[order] / 255), TRAIN.labels[order]


def test_denormal_numbers_count_as_0_in_training_alone(monkeypatch):
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor can't count them as 0")

    def least():
        return (torch.ones(1, dtype=torch.int32).view(torch.float32) * 1).item()

    seen = []
    monkeypatch.setattr(training, "geometric_mean_score", lambda *_: seen.append(least()) or 1)
    fitted(validation=TRAIN)
    assert seen == [0] * RECIPE.epochs
    assert 0 < least() < 1e-44
    torch.set_flush_denormal(True)
    try:
        fitted()
        assert least() == 0
    finally:
        torch.set_flush_denormal(False)


def test_after_training_dropout_draws_from_pytorchs_generator_again():
    network, x = fitted()[0].train(), torch.rand(2, 3, 32, 32)
    with torch.random.fork_rng():
        drawn = [network(x) for _ in range(2) if torch.manual_seed(0)]
    assert torch.equal(*drawn)


def test_validation_is_measured_and_never_trained_on():
    validation = random_part((3, 3, 3), seed=1)
    network, history = fitted(validation=validation)
    assert torch.equal(network.fc1.weight, fitted()[0].fc1.weight)
    logits = models.predict(network, validation.images)
    assert history.validation_loss[-1] == pytest.approx(
        F.cross_entropy(logits, validation.labels).item()
    )
    recalls = [(logits.argmax(1)[validation.labels == k] == k).float().mean() for k in range(3)]
    g_mean = float(torch.tensor(recalls).prod() ** (1 / 3))
    assert history.validation_g_mean[-1] == pytest.approx(g_mean, abs=1e-6)
    assert len(history.validation_loss) == RECIPE.epochs
    assert not network.training


def test_a_loss_that_is_not_finite_names_step_and_rate():
    with pytest.raises(training.DivergedError, match=r"step \d+; take .* below 1e\+10"):
        fitted(replace(RECIPE, learning_rate=1e10))


def test_synthetic_images_are_as_hard_as_they_should_be():
    """One epoch of the reports' recipe calls everything a car; ten balanced ones do not."""
    split = dataset.load("synthetic")
    recipe = Recipe()
    network, _ = fitted(replace(recipe, epochs=1), train=split.train)
    assert set(models.predict(network, split.test.images).argmax(1).tolist()) == {0}

    shares = torch.ones(3) / torch.tensor(split.train.counts(3))
    weights = shares[split.train.labels]
    drawn = torch.multinomial(
        weights, 5625, replacement=True, generator=torch.Generator().manual_seed(0)
    )
    balanced = dataset.Part(split.train.images[drawn], split.train.labels[drawn])
    network, _ = fitted(recipe, train=balanced)
    found = models.predict(network, split.test.images).argmax(1) == split.test.labels
    recalls = [found[split.test.labels == k].float().mean().item() for k in range(3)]
    assert min(recalls) > 0.45, recalls
