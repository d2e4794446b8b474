"""The training loop against the reports' loop and against slow, obvious computations."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY, check_seed, random_part

from common.dataset.load import load
from common.dataset.split import LabelledImages
from common.dataset.stored_images import StoredImages, gather
from common.errors import DivergedError
from common.metrics.report import report
from common.networks.build import build, torch_seed
from common.networks.heads import Head
from common.networks.prediction import predict
from common.training import fit as fit_module
from common.training.fit import (
    first_draw,
    fit,
    make_deterministic,
    require_finite,
    train_steps,
)
from common.training.optimization import make_optimizer
from common.training.progress import Generators, History, TrainingState
from common.training.recipe import Recipe
from common.training.recipes import RECIPES

CPU = torch.device("cpu")
TRAIN = random_part((6, 4, 3))  # 13 images: the last batch of 4 holds one
MORE = random_part((24, 12, 12))
RECIPE = Recipe(epochs=3, learning_rate=0.05)


def fitted(recipe=RECIPE, seed=0, train=TRAIN, validation=EMPTY, **arguments):
    network = build(recipe.network, recipe.network_arguments(3) | arguments, seed)
    history = fit(network, train, validation, recipe, seed=seed, device=CPU)
    return network, history


def small(name, **changes):
    """Return a named recipe with small batches, two epochs and a narrow network."""
    width = 4 if RECIPES[name].network == "resnet9" else None
    return replace(RECIPES[name], batch_size=8, epochs=2, width=width, **changes)


def trained_weights(recipe=RECIPE, seed=0):
    return fitted(recipe, seed)[0].fc1.weight


@pytest.mark.parametrize("seed", [0, 1])
def test_fit_equals_the_loop_of_the_reports(seed):
    network, history = fitted(seed=seed, dropout=0.0)
    twin = build("simple-cnn", {"classes": 3, "dropout": 0.0}, seed).train()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(seed)
    epoch_losses = []
    for _ in range(3):
        epoch_losses.append(0.0)
        for batch in torch.randperm(13, generator=generator).split(4):
            optimizer.zero_grad()
            loss = F.cross_entropy(twin(TRAIN.images[batch] / 255), TRAIN.labels[batch])
            loss.backward()
            optimizer.step()
            epoch_losses[-1] += loss.item() * len(batch) / 13
    assert history.loss == pytest.approx(epoch_losses, rel=1e-4)
    for name, value in network.state_dict().items():
        assert torch.allclose(value, twin.state_dict()[name], atol=1e-5), name


def test_training_depends_only_on_the_seed():
    check_seed(lambda seed: trained_weights(seed=seed))


@pytest.mark.parametrize("name", ["baseline", "best", "robust"])
def test_deterministic_training_repeats_every_bit(name):
    make_deterministic()
    try:
        a, b, c = (fitted(small(name), seed, MORE)[0].parameters() for seed in (0, 0, 1))
    finally:
        torch.use_deterministic_algorithms(False)
    for one, same, other in zip(a, b, c, strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        *(({}, change) for change in (
            {"classifier": "cosine"}, {"epochs": 2}, {"batch_size": 3}, {"optimizer": "adamw"},
            {"learning_rate": 0.04}, {"momentum": 0.5}, {"nesterov": True},
            {"weight_decay": 0.01}, {"schedule": "step", "step_epochs": 1},
            {"schedule": "cosine"}, {"schedule": "one-cycle"}, {"ema": 0.5},
            {"precision": "bfloat16"}, {"sampler": "balanced"}, {"sampler": "square-root"},
            {"sampler": "progressive"}, {"sampler": "rotation"},
            {"sampler": "weighted", "sampler_weights": (1.0, 2.0, 9.0)},
            {"augment": ("flip",)}, {"augment": ("crop",)}, {"augment": ("cutout",)},
            {"augment": ("colour",)}, {"mix": "mixup"}, {"mix": "cutmix"}, {"loss": "focal"},
            {"loss": "balanced-softmax"}, {"loss": "logit-adjusted", "tau": 2.0},
            {"label_smoothing": 0.1}, {"class_weights": "inverse"},
            {"class_weights": "effective-number"}, {"sam": 0.1}, {"max_norm": 0.3},
            {"loss": "vs"}, {"loss": "label-aware-smoothing"},
        )),
        ({"loss": "ldam", "classifier": "cosine"}, {"margin": 0.1}),
        ({"loss": "ldam", "classifier": "cosine"}, {"loss": "cross-entropy"}),
        ({"loss": "focal"}, {"focal_gamma": 1.0}),
        ({"loss": "logit-adjusted"}, {"tau": 0.5}),
        ({"loss": "vs"}, {"tau": 0.5}),
        ({"loss": "vs"}, {"vs_gamma": 0.3}),
        ({"loss": "label-aware-smoothing"}, {"smoothing_head": 0.1}),
        ({"loss": "label-aware-smoothing"}, {"smoothing_tail": 0.1}),
        ({}, {"adversarial": 8.0, "adversarial_steps": 1}),
        ({"adversarial": 8.0, "adversarial_steps": 1}, {"adversarial_steps": 2}),
        ({"adversarial": 8.0, "adversarial_steps": 1}, {"trades": 6.0}),
        ({"sam": 0.1}, {"sam": 0.2}),
        ({"sam": 0.1}, {"sam_from": 0.5}),
        ({"sam": 0.1}, {"sam_class_weighted": True}),
        ({"class_weights": "effective-number"}, {"beta": 0.9}),
        ({"class_weights": "inverse"}, {"reweight_from": 0.5}),
        ({"schedule": "step", "step_epochs": 1}, {"step_epochs": 2}),
        ({"schedule": "step", "step_epochs": 1}, {"step_factor": 0.5}),
        ({"schedule": "one-cycle"}, {"warm_up": 0.6}),
        ({"mix": "mixup"}, {"mix_share": 1.0}),
        ({"mix": "mixup"}, {"mix_alpha": 0.2}),
        ({"ema": 0.5}, {"ema": 0.9}),
    ],
)  # fmt: skip
def test_each_option_changes_the_weights(base, change):
    recipe = replace(RECIPE, **base)
    assert not torch.equal(trained_weights(recipe), trained_weights(replace(recipe, **change)))


@pytest.mark.parametrize(
    ("capabilities", "processor", "precision"),
    [
        ({}, "AMD EPYC", "float32"),
        ({"amx_bf16": True}, "Intel(R) Xeon(R) Processor", "bfloat16"),
        ({"avx512_bf16": True}, "AMD EPYC", "bfloat16"),
        ({"avx512_bf16": True}, "Intel(R) Xeon(R) Processor", "float32"),
    ],
)
def test_precision_auto_is_bfloat16_only_where_that_is_faster(
    capabilities, processor, precision, monkeypatch
):
    monkeypatch.setattr(fit_module, "_cpu_capabilities", lambda: capabilities)
    monkeypatch.setattr(fit_module, "processor", lambda: processor)
    weights = {
        name: trained_weights(replace(RECIPE, precision=name))
        for name in ("auto", "float32", "bfloat16")
    }
    assert torch.equal(weights["auto"], weights[precision])
    assert not torch.equal(weights["float32"], weights["bfloat16"])


def test_first_draw_counts_the_labels_of_the_first_epoch(monkeypatch):
    recipe = replace(RECIPE, sampler="balanced", epochs=1)
    labels, batch_loss = [], fit_module.losses.batch_loss

    def recorded(loss, weights, logits, y):
        labels.append(y)
        return batch_loss(loss, weights, logits, y)

    monkeypatch.setattr(fit_module.losses, "batch_loss", recorded)
    fitted(recipe, seed=3)
    drawn = torch.bincount(torch.cat(labels), minlength=3).tolist()
    assert drawn == first_draw(TRAIN, recipe, 3, seed=3)


def test_deferred_weights_begin_at_their_epoch():
    recipe = replace(RECIPE, epochs=2)
    plain = fitted(recipe)[1].loss
    losses = fitted(replace(recipe, class_weights="inverse", reweight_from=0.5))[1].loss
    assert losses[0] == plain[0]
    assert losses[1] != plain[1]
    # With few epochs they have the last one.
    late = fitted(replace(recipe, class_weights="inverse", reweight_from=0.9))[1].loss
    assert late == losses


@pytest.mark.parametrize("network", ["simple-cnn", "resnet9"])
def test_averaged_weights_equal_a_slow_average(network):
    recipe = replace(RECIPE, network=network, width=4 if network == "resnet9" else None)
    twin = build(network, recipe.network_arguments(3), 0)
    twin.to(memory_format=torch.channels_last)
    decay, average = 0.6, {}
    with torch_seed(0):
        optimizer = make_optimizer(recipe, twin)
        state = TrainingState(twin, optimizer, None, Generators(0, CPU))
        steps = train_steps(TRAIN, recipe, state, device=CPU)
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
    monkeypatch.setattr(fit_module, "g_mean", lambda *_: next(scores))
    recipe = replace(RECIPE, epochs=6, patience=3)
    network, history = fitted(recipe, validation=TRAIN)
    assert history.best_epoch == 2
    assert history.validation_g_mean == [0.1, 0.5, 0.4, 0.5, 0.3]
    assert torch.equal(network.fc1.weight, trained_weights(replace(RECIPE, epochs=2)))


def test_denormal_numbers_count_as_0_during_training_alone(monkeypatch):
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor can't treat denormal numbers as 0")

    def score(*_):
        seen.append((torch.tensor(1e-40) * 1).item())
        return 1

    seen = []
    monkeypatch.setattr(fit_module, "g_mean", score)
    fitted(validation=TRAIN)
    assert seen == [0] * RECIPE.epochs
    assert (torch.tensor(1e-40) * 1).item() > 0
    torch.set_flush_denormal(True)
    try:
        fitted()
        assert (torch.tensor(1e-40) * 1).item() == 0  # the caller's setting is restored
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_validation_is_measured_and_never_trained_on(ema):
    validation = random_part((3, 3, 3), seed=1)
    recipe = replace(RECIPE, ema=ema)  # with an average, the average is validated
    network, history = fitted(recipe, validation=validation)
    assert torch.equal(network.fc1.weight, trained_weights(recipe))
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


def test_a_validation_loss_that_is_not_finite_is_divergence():
    # The only step of each epoch: its own loss is finite, that of the new weights is not.
    recipe = replace(RECIPE, learning_rate=1e30, batch_size=64)
    _, history = fitted(recipe, validation=TRAIN, dropout=0.0)
    assert history.diverged_at == 1
    assert len(history.loss) == 1
    assert history.validation_loss == history.validation_g_mean == []
    with pytest.raises(DivergedError, match="step 1"):
        require_finite(history, recipe)


def test_the_mean_of_large_losses_is_finite():
    history = History()
    fit_module._record_epoch(history, torch.full((3,), 3e38), 64, 64)
    assert history.loss == [pytest.approx(3e38)]
    assert not history.diverged_at


class SmoothNetwork(torch.nn.Module):
    """Convolution, BatchNorm and tanh: with ReLU or max pooling a last bit can change a lot."""

    def __init__(self):
        super().__init__()
        with torch_seed(0):
            self.convolution = torch.nn.Conv2d(3, 4, 5, stride=4)
            self.norm = torch.nn.BatchNorm2d(4)
            self.head = Head(16, 3)

    def forward(self, x):
        x = self.norm(self.convolution(x)).tanh()
        return self.head(F.adaptive_avg_pool2d(x, 2).flatten(1))


INVERSE = torch.tensor([1 / 6, 1 / 4, 1 / 3])  # of the class counts of TRAIN


def slow_sam(recipe):
    """Train by the formulas of SAM and MaxNorm; return network and losses.

    The perturbed weights are those of a copy, whose BatchNorm statistics are thrown away.
    """
    network = SmoothNetwork().train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum,
        nesterov=recipe.nesterov, weight_decay=recipe.weight_decay,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    losses = []
    for epoch in range(recipe.epochs):
        losses.append(0.0)
        reweighted = recipe.class_weights == "inverse" and epoch >= recipe.reweight_from * 3
        weight = INVERSE if reweighted else None
        for batch in torch.randperm(13, generator=generator).split(recipe.batch_size):

            def loss_of(net, weight=weight, batch=batch):
                with torch.autocast("cpu", torch.bfloat16, recipe.precision == "bfloat16"):
                    logits = net(TRAIN.images[batch] / 255)
                return F.cross_entropy(logits.float(), TRAIN.labels[batch], weight=weight)

            twin = copy.deepcopy(network)
            if recipe.sam and epoch >= recipe.sam_from * recipe.epochs:
                ascent = loss_of(twin, INVERSE if recipe.sam_class_weighted else weight)
                gradient = torch.autograd.grad(ascent, list(twin.parameters()))
                norm = sum((g**2).sum() for g in gradient) ** 0.5
                with torch.no_grad():
                    for p, g in zip(twin.parameters(), gradient, strict=True):
                        p += recipe.sam * g / norm
            gradient = torch.autograd.grad(loss_of(twin), list(twin.parameters()))
            losses[-1] += loss_of(network).item() * len(batch) / 13
            for p, g in zip(network.parameters(), gradient, strict=True):
                p.grad = g
            optimizer.step()
            if recipe.max_norm:
                with torch.no_grad():
                    for row in network.head.weight:
                        row *= min(1.0, recipe.max_norm / float((row**2).sum() ** 0.5))
    return network, losses


@pytest.mark.parametrize(
    "change",
    [
        {"sam": 0.2},
        {"sam": 0.2, "sam_from": 0.5},  # 1.5 of 3 epochs: the last one
        {"sam": 0.2, "sam_class_weighted": True},
        {"sam": 0.2, "class_weights": "inverse", "reweight_from": 0.3},
        {"sam": 0.2, "class_weights": "inverse", "reweight_from": 0.3,
         "sam_class_weighted": True},
        {"max_norm": 0.4},
        {"sam": 0.2, "max_norm": 0.4},
        {"sam": 0.2, "nesterov": True, "weight_decay": 0.01},
        {"sam": 0.2, "precision": "bfloat16"},
    ],
    ids=str,
)  # fmt: skip
def test_sam_and_max_norm_equal_a_slow_loop(change):
    recipe = replace(RECIPE, **change)
    network = SmoothNetwork()
    history = fit(network, TRAIN, EMPTY, recipe, seed=0, device=CPU)
    slow, losses = slow_sam(recipe)
    tolerance = 1e-3 if recipe.precision == "bfloat16" else 1e-5
    assert history.loss == pytest.approx(losses, rel=tolerance)
    for name, value in slow.state_dict().items():
        assert torch.allclose(network.state_dict()[name], value, atol=tolerance), name


@pytest.mark.parametrize("name", ["original", "best", "robust"])
def test_before_its_epoch_sam_changes_no_bit(name):
    recipe = small(name)
    later = replace(recipe, sam=0.2, sam_from=0.9, sam_class_weighted=True)  # the last epoch
    (_, history), (_, other) = (fitted(each, train=MORE) for each in (recipe, later))
    assert len(history.loss) == 2
    assert other.loss[0] == history.loss[0]
    assert other.loss[1] != history.loss[1]


def test_no_class_vector_is_longer_than_the_largest_norm():
    recipe = replace(RECIPE, optimizer="adamw", max_norm=0.25, sam=0.1, mix="mixup", ema=0.5)
    network = build("simple-cnn", {"classes": 3})
    assert network.head.weight.norm(dim=1).max() > 0.25
    optimizer = make_optimizer(recipe, network)
    state = TrainingState(network, optimizer, None, Generators(0, CPU))
    steps = train_steps(TRAIN, recipe, state, device=CPU)
    for _ in range(6):
        next(steps)
        assert network.head.weight.norm(dim=1).max() <= 0.25 + 1e-6
    averaged = fitted(recipe)[0].head.weight
    assert averaged.norm(dim=1).max() <= 0.25 + 1e-6


@pytest.mark.parametrize(
    "recipe",
    [RECIPE, small("best", ema=0.9), small("mixup", patience=1), small("robust"),
     small("weighted-sampler", precision="bfloat16")],
    ids=["plain", "best", "mixup", "robust", "weighted"],
)  # fmt: skip
def test_images_in_a_file_are_trained_on_a_batch_at_a_time(tmp_path, monkeypatch, recipe):
    validation = random_part((3, 3, 3), seed=1)
    (network, history), (twin, same) = (
        fitted(recipe, train=train, validation=judge)
        for train, judge in ((MORE, validation), (stored(tmp_path, MORE), validation))
    )
    assert same == history
    for name, value in network.state_dict().items():
        assert torch.equal(twin.state_dict()[name], value), name
        assert twin.state_dict()[name].stride() == value.stride(), name
    most, get = [], StoredImages.__getitem__
    monkeypatch.setattr(
        StoredImages,
        "__getitem__",
        lambda images, key: (most.append(len(found := get(images, key))), found)[1],
    )
    _, again = fitted(
        recipe, train=stored(tmp_path, MORE), validation=stored(tmp_path, validation, "other")
    )
    assert again == history
    assert max(most) <= max(recipe.batch_size, len(validation.labels))


def stored(folder, part, name="images"):
    """Return the part with its images in a file, in another order."""
    order = torch.randperm(len(part.labels), generator=torch.Generator().manual_seed(7))
    images = gather([part.images[order].numpy()], len(order), 32, 0, folder / name)
    return LabelledImages(images.select(order.argsort()), part.labels)


def test_a_network_without_a_known_last_layer_is_trained():
    class OwnNetwork(torch.nn.Module):
        head = None

        def __init__(self):
            super().__init__()
            self.network = build("simple-cnn", {"classes": 3, "dropout": 0.0})

        def forward(self, x):
            return self.network(x)

    recipe = replace(RECIPE, loss="logit-adjusted", class_weights="inverse")
    own = OwnNetwork()
    fit(own, TRAIN, EMPTY, recipe, seed=0, device=CPU)
    network, _ = fitted(recipe, dropout=0.0)
    assert torch.equal(own.network.fc3.weight, network.fc3.weight)


def test_synthetic_images_are_hard_without_a_remedy_and_learnable_with_one():
    """One epoch of the reports' recipe calls everything a car; ten balanced ones do not."""
    split = load("synthetic")
    predictions = {}
    for recipe in (Recipe(epochs=1), Recipe(sampler="balanced")):
        network, _ = fitted(recipe, train=split.train)
        predictions[recipe.sampler] = predict(network, split.test.images).argmax(1)
    assert set(predictions["shuffle"].tolist()) == {0}
    assert min(report(split.test.labels, predictions["balanced"], split.classes).recall) > 0.45
