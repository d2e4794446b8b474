"""Changes to a trained classifier, against the formulas of their papers."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from conftest import EMPTY, random_part

from common.networks.build import build, torch_seed
from common.networks.prediction import predict
from common.training import post_hoc
from common.training.fit import fit
from common.training.recipe import Recipe
from common.training.sampling import epoch_order

TRAIN = random_part((6, 4, 3))
RECIPE = Recipe(epochs=3, learning_rate=0.05)


def changed(**options):
    """Train a network, change its classifier; return it, its state before, and arguments."""
    recipe = replace(RECIPE, **options)
    network = build(recipe.network, recipe.network_arguments(3), 0)
    settings = {"seed": 0, "device": torch.device("cpu")}
    fit(network, TRAIN, EMPTY, recipe, **settings)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    arguments = post_hoc.apply(network, TRAIN, EMPTY, recipe, **settings, name="x")
    return network, before, arguments


@pytest.mark.parametrize(
    ("sampler", "last_draws"), [("shuffle", [6, 4, 3]), ("progressive", [1, 1, 1])]
)
def test_logit_adjustment_subtracts_the_log_prior_of_the_last_epoch(sampler, last_draws):
    network, before, arguments = changed(post_hoc="logit-adjustment", tau=1.5, sampler=sampler)
    plain, rebuilt = (build("simple-cnn", {"classes": 3, **a}) for a in ({}, arguments))
    plain.load_state_dict(before)
    rebuilt.load_state_dict(network.state_dict())
    prior = torch.tensor(last_draws) / sum(last_draws)
    expected = predict(plain, TRAIN.images) - 1.5 * prior.log()
    for adjusted in (network, rebuilt):
        assert torch.allclose(predict(adjusted, TRAIN.images), expected, atol=1e-5)


def test_tau_normalisation_divides_by_the_norms():
    network, before, _ = changed(post_hoc="tau-normalisation", tau=0.5)
    w = before["fc3.weight"]
    assert torch.allclose(network.fc3.weight, w / (w**2).sum(1, keepdim=True) ** 0.25)
    assert not network.fc3.bias.any()
    assert torch.equal(network.fc2.weight, before["fc2.weight"])


@pytest.mark.parametrize(("name", "head"), [("simple-cnn", "fc3"), ("resnet9", "head")])
def test_crt_trains_the_head_alone(name, head):
    network, before, _ = changed(post_hoc="crt", crt_epochs=2, network=name)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key]) != key.startswith(head), key
    assert all(p.requires_grad for p in network.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"mix": "mixup", "mix_share": 1.0},
        {"label_smoothing": 0.5},
        {"adversarial": 64.0},
        {"adversarial": 64.0, "trades": 6.0},
        {"sam": 0.5, "sam_class_weighted": True},
        {"loss": "balanced-softmax", "tau": 2.0},
        {"class_weights": "inverse"},
        {"sampler": "weighted", "sampler_weights": (1.0, 5.0, 9.0)},
    ],
    ids=" ".join,
)
def test_crt_is_plain_cross_entropy_on_balanced_draws_after_any_training(options):
    heads = []
    for recipe in (replace(RECIPE, post_hoc="crt"), replace(RECIPE, post_hoc="crt", **options)):
        network = build("simple-cnn", {"classes": 3}, 0)
        settings = {"seed": 0, "device": torch.device("cpu"), "name": "x"}
        post_hoc.apply(network, TRAIN, EMPTY, recipe, **settings)
        heads.append(network.head.weight)
    assert torch.equal(*heads)


@pytest.mark.parametrize("max_norm", [0.0, 0.3])
def test_crt_with_label_aware_smoothing_equals_a_loop(max_norm):
    """The smoothing is that of the class counts, the draws are balanced; MaxNorm stays."""
    recipe = replace(
        RECIPE, post_hoc="crt", crt_loss="label-aware-smoothing", crt_epochs=2, mix="mixup",
        smoothing_head=0.4, smoothing_tail=0.1, max_norm=max_norm,
    )  # fmt: skip
    network, twin = (build("simple-cnn", {"classes": 3, "dropout": 0.0}) for _ in range(2))
    settings = {"seed": 0, "device": torch.device("cpu"), "name": "x"}
    post_hoc.apply(network, TRAIN, EMPTY, recipe, **settings)
    with torch_seed(0):
        twin.head.reset_parameters()
    with torch.no_grad():
        features = twin.features(TRAIN.images / 255)
    # Of 6, 4 and 3 images: the second class is a third of the way, a sine of one half.
    smoothing = [0.4, 0.25, 0.1]
    optimizer = torch.optim.SGD(twin.head.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    balanced = replace(RECIPE, sampler="balanced")
    for epoch in range(2):
        order = epoch_order(TRAIN.labels, balanced, epoch, 3, generator)
        for batch in order.split(4):
            optimizer.zero_grad()
            losses = [
                F.cross_entropy(twin.head(features[i]), y, label_smoothing=smoothing[y])
                for i, y in ((i, TRAIN.labels[i]) for i in batch)
            ]
            (sum(losses) / len(losses)).backward()
            optimizer.step()
            if max_norm:
                with torch.no_grad():
                    for row in twin.head.weight:
                        row *= min(1.0, max_norm / float(row.norm()))
    assert torch.allclose(network.head.weight, twin.head.weight, atol=1e-5)
    assert torch.allclose(network.head.bias, twin.head.bias, atol=1e-5)
