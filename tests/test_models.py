from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import random_part

from common import models
from common.options import InputError

IMAGES = random_part((3, 2, 2)).images


def facts(**changes):
    known = {"classes": ["a", "b"], "recipe": None, "seed": 3, "data": None}
    return known | {"trained_on_test": True} | changes


def test_simple_cnn_is_the_reports_network():
    network = models.build("simple-cnn", {"classes": 3}).eval()
    w = network.state_dict()
    x = (models.pixels(IMAGES) - 0.5) / 0.5
    for layer in ("conv1", "conv2"):
        x = F.conv2d(x, w[f"{layer}.weight"], w[f"{layer}.bias"]).clamp(min=0)
        n, channels, height, width = x.shape
        x = x.reshape(n, channels, height // 2, 2, width // 2, 2).amax((3, 5))
    x = x.reshape(len(x), -1)
    for layer in ("fc1", "fc2", "fc3"):
        x = x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]
        x = x.clamp(min=0) if layer != "fc3" else x
    assert torch.allclose(network(models.pixels(IMAGES)), x, atol=1e-5)
    assert {name: tuple(v.shape) for name, v in w.items() if "weight" in name} == {
        "conv1.weight": (16, 3, 5, 5),
        "conv2.weight": (16, 16, 5, 5),
        "fc1.weight": (120, 400),
        "fc2.weight": (84, 120),
        "fc3.weight": (3, 84),
    }


def test_simple_cnn_drops_half_of_both_hidden_layers():
    network, x = models.build("simple-cnn", {"classes": 3}).train(), torch.rand(200, 3, 32, 32)
    kept = network.kept(x)
    assert kept.shape == (200, 120 + 84)
    assert kept.unique().tolist() == [0, 2]  # what is kept makes up for what is dropped
    assert (kept == 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not torch.equal(network(x), network(x))
    assert network.eval().kept(x) is None
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize(("width", "weights"), [(16, 412_048), (64, 6_569_536)])
def test_resnet9_has_the_known_size(width, weights):
    network = models.build("resnet9", {"classes": 3, "width": width})
    assert sum(p.numel() for p in network.parameters()) == weights
    assert network(models.pixels(IMAGES)).shape == (7, 3)


def test_weights_come_from_the_seed_alone():
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    a, b, c = (models.build("simple-cnn", {"classes": 3}, s).fc1.weight for s in (0, 0, 1))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(before, torch.random.get_rng_state())


def test_predict_is_in_evaluation_mode_and_leaves_the_mode_alone():
    network = models.build("simple-cnn", {"classes": 3}).train()
    logits = models.predict(network, IMAGES, batch_size=2)
    assert torch.equal(logits, models.predict(network, models.pixels(IMAGES)[:], batch_size=2))
    assert network.training
    assert torch.allclose(logits, network.eval()(models.pixels(IMAGES)), atol=1e-6)


@pytest.mark.parametrize("arguments", [{"classes": 2}, {"classes": 2, "width": 4}])
def test_a_checkpoint_brings_everything_back(tmp_path, arguments):
    architecture = "resnet9" if "width" in arguments else "simple-cnn"
    network = models.build(architecture, arguments, seed=5)
    path = tmp_path / "deep" / "one.pt"
    models.save_checkpoint(path, network, architecture, arguments, **facts())
    loaded = models.load_checkpoint(path)
    assert torch.equal(models.predict(loaded.network, IMAGES), models.predict(network, IMAGES))
    assert not loaded.network.training
    assert (loaded.classes, loaded.seed, loaded.trained_on_test) == (("a", "b"), 3, True)
    assert [file.name for file in path.parent.iterdir()] == ["one.pt"]


def test_equal_weights_make_equal_files(tmp_path):
    for name in ("one.pt", "two.pt"):
        network = models.build("simple-cnn", {"classes": 2})
        models.save_checkpoint(
            tmp_path / name, network, "simple-cnn", {"classes": 2}, **facts()
        )
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_a_bare_course_checkpoint_is_a_simple_cnn(tmp_path):
    network = models.build("simple-cnn", {"classes": 3}, seed=9)
    path = tmp_path / "pre_trained.ckpt"
    torch.save({"model_state_dict": network.state_dict()}, path)
    loaded = models.load_checkpoint(path)
    assert loaded.classes == ("car", "truck", "cat")
    assert torch.equal(models.predict(loaded.network, IMAGES), models.predict(network, IMAGES))


class Harmful:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize(
    "content",
    [
        None,
        b"not a checkpoint",
        b"",
        pickle.dumps(Harmful(), protocol=2),
        {"model_state_dict": {"fc3.bias": torch.zeros(3)}},
        {"weights": {}},
        [1, 2],
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, capsys, content):
    path = tmp_path / "odd.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=r"odd\.pt") as caught:
        models.load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "never" not in capsys.readouterr().out


def test_pixels_are_in_unit_range():
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert np.allclose(models.pixels(images), [0, 0.2, 1])
    assert images.tolist() == [0, 51, 255]


@pytest.mark.parametrize("architecture", ["simple-cnn", "resnet9"])
def test_flip_average_is_the_mean_of_both_ways_round(architecture):
    plain = models.build(architecture, {"classes": 3}).eval()
    average = models.build(architecture, {"classes": 3, "flip_average": True}).eval()
    x = models.pixels(IMAGES)
    expected = (plain(x) + plain(x.flip(-1))) / 2
    assert torch.allclose(average(x), expected, atol=1e-6)
    assert not torch.allclose(average(x), plain(x), atol=1e-6)


@pytest.mark.parametrize("architecture", ["simple-cnn", "resnet9"])
def test_a_cosine_classifier_gives_thirty_times_the_cosine(architecture):
    network = models.build(architecture, {"classes": 3, "classifier": "cosine"}).eval()
    seen = []
    network.last.register_forward_hook(lambda _m, inputs, _y: seen.append(inputs[0]))
    logits = network(models.pixels(IMAGES))
    features, weights = seen[0].detach().numpy(), network.last.weight.detach().numpy()
    for i, f in enumerate(features):
        for k, w in enumerate(weights):
            cosine = (f @ w) / (np.sqrt(f @ f) * np.sqrt(w @ w))
            assert logits[i, k].item() == pytest.approx(30 * cosine, abs=1e-3)


def test_an_offset_is_added_to_the_logits():
    plain = models.build("simple-cnn", {"classes": 3}).eval()
    moved = models.build("simple-cnn", {"classes": 3, "logit_offset": [1.0, 0.0, -2.0]}).eval()
    x = models.pixels(IMAGES)
    assert torch.allclose(moved(x), plain(x) + torch.tensor([1.0, 0.0, -2.0]), atol=1e-6)
