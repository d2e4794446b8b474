"""torchvision's networks beside torchvision itself: logits, last layers, sizes, checkpoints."""

from __future__ import annotations

import pytest
import torch
from conftest import is_one_line
from torch import nn
from torchvision import models

from common.errors import InputError
from common.networks import pretrained, torchvision_networks
from common.networks.build import build
from common.networks.checkpoint import load_checkpoint, save_checkpoint

SMALL = "torchvision:mobilenet_v3_small"
# The names of the last layers, from torchvision's source.
LAST_LAYERS = {
    "mobilenet_v3_small": "classifier.3",
    "resnet18": "fc",
    "efficientnet_b0": "classifier.1",
    "regnet_y_400mf": "fc",  # computes its widths with tensors
    "googlenet": "fc",  # has auxiliary classifiers
}
# What torchvision sets when it loads GoogLeNet's published weights without auxiliary outputs.
GOOGLENET = {"aux_logits": False, "transform_input": True, "init_weights": True}
X = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def prepare(architecture, size, **options):
    return pretrained.prepare(architecture, False, None, 3, size, **options)


@pytest.mark.parametrize("name", LAST_LAYERS)
def test_the_logits_are_torchvisions(name):
    ours = build(f"torchvision:{name}", {"classes": 3}, seed=1).eval()
    assert ours.last_layer == LAST_LAYERS[name]
    options = GOOGLENET if name == "googlenet" else {}
    theirs = models.get_model(name, num_classes=3, **options).eval()
    generator = torch.Generator().manual_seed(0)
    for weight in ours.parameters():
        if weight.dim() > 1:  # so that differences between images do not vanish on the way
            nn.init.kaiming_normal_(weight, generator=generator)
    state = ours.backbone.state_dict()
    state |= {f"{LAST_LAYERS[name]}.{key}": w for key, w in ours.head.state_dict().items()}
    theirs.load_state_dict(state)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)  # of ImageNet
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        logits = ours(X)
        difference = (logits - theirs((X - mean) / std)).abs().max()
        assert difference < 0.05 * logits.std(0).min()
        assert torch.equal(ours.head(ours.features(X)), ours(X))
        assert ours.train()(X).shape == (3, 3)  # without auxiliary outputs


def test_the_normalisation_is_that_of_the_weights():
    """Of torchvision's networks efficientnet_v2_l alone has another one, 0.5 and 0.5."""
    transforms = models.get_model_weights("efficientnet_v2_l").DEFAULT.transforms()
    normalise = torchvision_networks.Normalise(transforms.mean, transforms.std)
    assert torch.allclose(normalise(X), 2 * X - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("torchvision:mobilenet_v3_smal", "torchvision has none; try torchvision:mobilenet_v3"),
        ("torchvision:zzz", "torchvision has none; try torchvision:resnet18"),
        ("torchvision:squeezenet1_0", "does not end in a linear layer; take another"),
        ("torchvision:vgg11", "515 MB, are more than a checkpoint holds"),
        ("torchvision:regnet_y_128gf", "MB, are more than a checkpoint holds"),
    ],
)  # fmt: skip
def test_a_network_that_can_not_be_used_is_named(name, words):
    with pytest.raises(InputError, match=f"^--network {name}: ") as refused:
        prepare(name, 64)
    assert is_one_line(f"{refused.value}\n", words)


def test_a_network_that_is_too_large_is_not_made_to_find_that_out(monkeypatch):
    seen = []
    monkeypatch.setattr(pretrained, "require_storable", lambda made, _: seen.append(made))
    assert prepare(SMALL, 32) == {}
    assert {weight.device.type for weight in seen[0].parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "size", "remedy"),
    [
        ("vit_b_32", 64, "give --image-size 224"),
        ("inception_v3", 32, "give --image-size 80"),
        ("densenet121", 16, "give --image-size 32"),
    ],
)
def test_a_size_that_a_network_does_not_take_is_refused_with_one_that_it_takes(
    name, size, remedy
):
    with pytest.raises(InputError) as refused:
        prepare(f"torchvision:{name}", size)
    start = f"--image-size {size}: torchvision:{name} takes no images of {size}x{size} pixels"
    assert is_one_line(f"{refused.value}\n", start, remedy)


@pytest.mark.parametrize("size", [16, 224])
def test_the_smallest_and_the_largest_size_are_taken(size):
    assert prepare(SMALL, size) == {}


def test_the_last_layer_takes_the_arguments_of_a_head():
    arguments = {"classes": 3, "classifier": "cosine", "logit_offset": [1.0, 0.0, -2.0]}
    network = build(SMALL, arguments | {"flip_average": True}, seed=2).eval()
    with torch.no_grad():
        features = network.network.features(torch.cat((X, X.flip(-1))))
        weight = nn.functional.normalize(network.head.weight)
        logits = 30 * nn.functional.normalize(features) @ weight.T
        expected = logits.view(2, 3, 3).mean(0) + torch.tensor([1.0, 0.0, -2.0])
        assert torch.allclose(network(X), expected, atol=1e-4)


def test_the_weights_depend_on_the_seed_alone():
    torchvision_networks._last_layer.cache_clear()
    before = torch.get_rng_state()
    states = [build(SMALL, {"classes": 3}, seed).state_dict() for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["head.weight"], states[2]["head.weight"])
    name = "backbone.features.0.0.weight"
    assert not torch.equal(states[0][name], states[2][name])


def test_a_batch_of_one_small_image_can_be_trained_on():
    """Of 32x32 pixels ResNet18 leaves one, of whose channels one image has no variance."""
    network = build("torchvision:resnet18", {"classes": 3}).train()
    one, two = torch.rand(1, 3, 32, 32), torch.rand(2, 3, 32, 32)
    statistics = network.backbone.layer4[1].bn2.running_mean
    network(one).sum().backward()
    assert network.backbone.conv1.weight.grad.abs().sum() > 0
    assert (statistics == 0).all()
    assert all(module.training for module in network.modules())
    network(two)
    assert (statistics != 0).all()


def test_a_checkpoint_is_rebuilt_without_a_download(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a download")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    arguments = {"classes": 3, "classifier": "cosine"}
    network, path = build(SMALL, arguments, seed=3).eval(), tmp_path / "small.pt"
    facts = {"classes": list("abc"), "recipe": None, "seed": 3, "data": None}
    facts |= {"trained_on_test": False, "image_size": 64}
    save_checkpoint(path, network, SMALL, arguments, **facts)
    loaded = load_checkpoint(path)
    assert (loaded.image_size, loaded.record(path)["image_size"]) == (64, 64)
    with torch.no_grad():
        assert torch.equal(loaded.network(X), network(X))
