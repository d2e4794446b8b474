"""The networks against the reports' description and hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_part

from common.networks.build import build
from common.networks.prediction import predict, to_pixel_space

IMAGES = random_part((3, 2, 2)).images
X = to_pixel_space(IMAGES)


def test_simple_cnn_is_the_reports_network():
    network = build("simple-cnn", {"classes": 3}).eval()
    w = network.state_dict()
    x = (X - 0.5) / 0.5
    for layer in ("conv1", "conv2"):
        x = F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"]).clamp(min=0)
        n, channels, height, width = x.shape
        x = x.reshape(n, channels, height // 2, 2, width // 2, 2).amax((3, 5))
    x = x.reshape(len(X), -1)
    for layer in ("fc1", "fc2", "fc3"):
        x = x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]
        x = x.clamp(min=0) if layer != "fc3" else x
    assert torch.allclose(network(X), x, atol=1e-5)
    assert {name: tuple(v.shape) for name, v in w.items() if "weight" in name} == {
        "conv1.weight": (16, 3, 5, 5),
        "conv2.weight": (16, 16, 5, 5),
        "fc1.weight": (120, 400),
        "fc2.weight": (84, 120),
        "fc3.weight": (3, 84),
    }


def test_simple_cnn_drops_half_of_both_hidden_layers():
    network, inputs = build("simple-cnn", {"classes": 3}).train(), []
    for layer in (network.fc2, network.fc3):
        layer.register_forward_hook(lambda _, x, __: inputs.append(x[0]))
    with torch.no_grad():
        for layer in (network.fc1, network.fc2):  # without dropout, every hidden value is 1
            layer.weight.zero_()
            layer.bias.fill_(1)
        network(torch.rand(500, 3, 32, 32))
    for hidden, size in zip(inputs, (120, 84), strict=True):
        assert hidden.shape == (500, size)
        assert hidden.unique().tolist() == [0, 2]  # the scale makes up for dropped values
        assert (hidden == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(network.eval()(X), network(X))


@pytest.mark.parametrize(("width", "weights"), [(16, 412_048), (64, 6_569_536)])
def test_resnet9_has_the_known_size(width, weights):
    network = build("resnet9", {"classes": 3, "width": width})
    assert sum(p.numel() for p in network.parameters()) == weights
    assert network(X).shape == (7, 3)


@pytest.mark.parametrize("early_pool", [False, True])
def test_resnet9_pools_early_or_late(early_pool):
    network = build("resnet9", {"classes": 3, "width": 4, "early_pool": early_pool}).eval()
    names = [type(m).__name__ for m in network.layers.modules() if not list(m.children())]
    late = ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    expected = ["Conv2d", "MaxPool2d", "BatchNorm2d", "ReLU"] if early_pool else late
    assert names[3:7] == expected
    assert names.count("MaxPool2d") == 3
    # With running averages, pooling and a normalisation with positive factors change places.
    other = build("resnet9", {"classes": 3, "width": 4, "early_pool": not early_pool}).eval()
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        theirs.data.copy_(ours)
    torch.testing.assert_close(network(X), other(X))


@pytest.mark.parametrize("size", [16, 33, 224])
def test_simple_cnn_takes_its_first_linear_layer_from_the_size(size):
    network = build("simple-cnn", {"classes": 3, "image_size": size}).eval()
    x = torch.rand(2, 3, size, size)
    convolved = F.max_pool2d(network.conv2(F.max_pool2d(network.conv1(x).relu(), 2)).relu(), 2)
    assert network.fc1.in_features == convolved[0].numel()
    assert network.features(x).shape == (2, 84)
    assert torch.equal(network.head(network.features(x)), network(x))


@pytest.mark.parametrize("size", [16, 32, 50, 224])
def test_resnet9_pools_globally_at_any_size(size):
    network = build("resnet9", {"classes": 3, "width": 2}).eval()
    x = torch.rand(2, 3, size, size)
    layers = network.layers(2 * x - 1)
    assert layers.shape == (2, 16, size // 8, size // 8)
    assert torch.equal(network.features(x), 0.125 * layers.amax((2, 3)))
    assert torch.equal(network.head(network.features(x)), network(x))


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a, b, c = (build("simple-cnn", {"classes": 3}, s).fc1.weight for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.random.get_rng_state())


def test_predict_evaluates_and_restores_the_mode():
    network = build("simple-cnn", {"classes": 3}).train()
    logits = predict(network, IMAGES, batch_size=2)
    assert torch.equal(logits, predict(network, X, batch_size=2))
    assert network.training
    assert torch.allclose(logits, network.eval()(X), atol=1e-6)


def test_pixel_space_is_the_unit_interval():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert np.allclose(to_pixel_space(images), [0, 0.2, 1])
    assert images.tolist() == [0, 51, 255]


@pytest.mark.parametrize("architecture", ["simple-cnn", "resnet9"])
def test_flip_average_is_the_mean_over_both_mirror_images(architecture):
    plain = build(architecture, {"classes": 3}).eval()
    average = build(architecture, {"classes": 3, "flip_average": True}).eval()
    expected = (plain(X) + plain(X.flip(-1))) / 2
    assert torch.allclose(average(X), expected, atol=1e-6)
    assert not torch.allclose(average(X), plain(X), atol=1e-6)


@pytest.mark.parametrize("architecture", ["simple-cnn", "resnet9"])
def test_a_cosine_classifier_gives_thirty_times_the_cosine(architecture):
    network = build(architecture, {"classes": 3, "classifier": "cosine"}).eval()
    seen = []
    network.head.register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[0]))
    logits = network(X)
    features, weights = seen[0].detach().numpy(), network.head.weight.detach().numpy()
    for i, f in enumerate(features):
        for k, w in enumerate(weights):
            cosine = (f @ w) / (np.sqrt(f @ f) * np.sqrt(w @ w))
            assert logits[i, k].item() == pytest.approx(30 * cosine, abs=1e-3)


def test_the_logit_offset_is_added_to_the_logits():
    plain = build("simple-cnn", {"classes": 3}).eval()
    moved = build("simple-cnn", {"classes": 3, "logit_offset": [1.0, 0.0, -2.0]}).eval()
    assert torch.allclose(moved(X), plain(X) + torch.tensor([1.0, 0.0, -2.0]), atol=1e-6)
