"""Changes to a trained classifier, against the formulas of their papers."""

from dataclasses import replace

import pytest
import torch
from conftest import EMPTY, random_part

from common.networks.build import build
from common.networks.prediction import predict
from common.training import post_hoc
from common.training.fit import fit
from common.training.recipe import Recipe

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
