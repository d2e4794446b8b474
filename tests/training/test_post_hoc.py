"""Changes to a trained classifier, against the formulas of their papers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import EMPTY, random_part

from common.networks.build import build
from common.networks.prediction import predict
from common.training import post_hoc
from common.training.fit import fit
from common.training.recipe import Recipe

CPU = torch.device("cpu")
TRAIN = random_part((6, 4, 3))
RECIPE = Recipe(epochs=3, learning_rate=0.05)


def fitted(recipe=RECIPE):
    network = build(recipe.network, recipe.network_arguments(3), 0)
    fit(network, TRAIN, EMPTY, recipe, seed=0, device=CPU)
    return network


def after(recipe):
    network = fitted()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    arguments = post_hoc.apply(network, TRAIN, EMPTY, recipe, seed=0, device=CPU, name="x")
    return network, before, arguments


def test_post_hoc_logit_adjustment_subtracts_the_log_prior():
    plain = fitted()
    network, _, arguments = after(replace(RECIPE, post_hoc="logit-adjustment", tau=1.5))
    prior = torch.tensor([6, 4, 3]) / 13
    expected = predict(plain, TRAIN.images) - 1.5 * prior.log()
    assert torch.allclose(predict(network, TRAIN.images), expected, atol=1e-5)
    rebuilt = build("simple-cnn", {"classes": 3, **arguments})
    rebuilt.load_state_dict(network.state_dict())
    assert torch.allclose(predict(rebuilt, TRAIN.images), expected, atol=1e-5)


def test_tau_normalisation_divides_by_the_norms():
    network, before, _ = after(replace(RECIPE, post_hoc="tau-normalisation", tau=0.5))
    for k in range(3):
        w = before["fc3.weight"][k]
        assert torch.allclose(network.fc3.weight[k], w / (w**2).sum() ** 0.25)
    assert not network.fc3.bias.any()
    assert torch.equal(network.fc2.weight, before["fc2.weight"])


@pytest.mark.parametrize("network", ["simple-cnn", "resnet9"])
def test_crt_trains_the_head_alone(network):
    recipe = replace(RECIPE, post_hoc="crt", crt_epochs=2, network=network)
    trained = fitted(recipe)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    post_hoc.apply(trained, TRAIN, EMPTY, recipe, seed=0, device=CPU, name="x")
    head = "fc3" if network == "simple-cnn" else "head"
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name]) != name.startswith(head), name
    assert all(p.requires_grad for p in trained.parameters())
