"""Checkpoints: complete, equal to the byte, and refused when they are not checkpoints."""

from __future__ import annotations

import hashlib
import logging
import pickle

import pytest
import torch
from conftest import random_part

from common.errors import InputError
from common.files import ROOT
from common.networks import checkpoint
from common.networks.build import build
from common.networks.checkpoint import (
    load_checkpoint,
    load_checkpoints,
    require_match,
    save_checkpoint,
)
from common.networks.prediction import predict

IMAGES = random_part((3, 2, 2)).images


def facts(**changes):
    known = {"classes": ["a", "b"], "recipe": None, "seed": 3, "data": None}
    return known | {"trained_on_test": True} | changes


@pytest.mark.parametrize(
    "arguments",
    [{"classes": 2}, {"classes": 2, "width": 4}, {"classes": 2, "flip_average": True}],
)
def test_a_loaded_checkpoint_equals_the_saved_one(tmp_path, arguments):
    architecture = "resnet9" if "width" in arguments else "simple-cnn"
    network = build(architecture, arguments, seed=5)
    path = tmp_path / "deep" / "one.pt"
    save_checkpoint(path, network, architecture, arguments, **facts())
    loaded = load_checkpoint(path)
    assert torch.equal(predict(loaded.network, IMAGES), predict(network, IMAGES))
    assert not loaded.network.training
    assert (loaded.classes, loaded.seed, loaded.trained_on_test) == (("a", "b"), 3, True)
    assert [file.name for file in path.parent.iterdir()] == ["one.pt"]


def test_equal_weights_make_equal_files(tmp_path):
    for name in ("one.pt", "two.pt"):
        network = build("simple-cnn", {"classes": 2})
        path = tmp_path / name
        digest = save_checkpoint(path, network, "simple-cnn", {"classes": 2}, **facts())
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()


def test_a_bare_course_checkpoint_is_a_simple_cnn(tmp_path):
    network = build("simple-cnn", {"classes": 3}, seed=9)
    path = tmp_path / "pre_trained.ckpt"
    torch.save({"model_state_dict": network.state_dict()}, path)
    loaded = load_checkpoint(path)
    assert loaded.classes == ("car", "truck", "cat")
    assert torch.equal(predict(loaded.network, IMAGES), predict(network, IMAGES))


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
def test_a_file_that_is_no_checkpoint_is_refused_by_name(tmp_path, capsys, content):
    path = tmp_path / "odd.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=r"odd\.pt") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert "never" not in capsys.readouterr().out


@pytest.mark.parametrize("flip_average", [False, True])
def test_weights_of_an_earlier_version_are_renamed_and_logged(tmp_path, caplog, flip_average):
    """Before November 2026 ResNet9's last layer was `last`, and averages had no wrapper."""
    arguments = {"classes": 2, "width": 4, "flip_average": flip_average}
    network, path = build("resnet9", arguments, seed=5), tmp_path / "old.pt"
    save_checkpoint(path, network, "resnet9", arguments, **facts())
    content = torch.load(path, weights_only=True)
    content["weights"] = {
        name.removeprefix("network.").replace("head.", "last."): value
        for name, value in content["weights"].items()
    }
    torch.save(content, path)
    with caplog.at_level(logging.INFO):
        loaded = load_checkpoint(path).network
    assert torch.equal(predict(loaded, IMAGES), predict(network, IMAGES))
    assert "old.pt: weights of an earlier version renamed" in caplog.text


def test_checkpoints_have_the_names_of_their_files(tmp_path):
    paths = [tmp_path / folder / "one.pt" for folder in ("a", "b", "c")]
    for path in paths:
        network = build("simple-cnn", {"classes": 2})
        save_checkpoint(path, network, "simple-cnn", {"classes": 2}, **facts())
    checkpoints = load_checkpoints(paths)
    assert list(checkpoints) == ["one", "one+", "one++"]
    require_match(paths, checkpoints, ["a", "b"], 32)
    for classes in (["b", "a"], ["a", "b", "c"], ["a", "c"]):
        with pytest.raises(
            InputError, match=r"a/one\.pt: its classes are a, b, not .*; name a checkpoint that"
        ):
            require_match(paths, checkpoints, classes, 32)
    with pytest.raises(InputError, match=r"a/one\.pt: .* 32x32 pixels, .* --image-size 32$"):
        require_match(paths, checkpoints, ["a", "b"], 64)


@pytest.mark.parametrize("name", ["baseline", "best", "robust"])
def test_the_repositorys_checkpoints_load(name):
    saved = load_checkpoint(ROOT / "models" / f"{name}.pt")
    assert saved.classes == ("car", "truck", "cat")
    assert saved.data["fingerprint"]
    assert saved.image_size == 32
    weights = torch.load(ROOT / "models" / f"{name}.pt", weights_only=True)["weights"]
    loaded = saved.network.state_dict()
    assert sorted(key.replace("last.", "head.") for key in weights) == sorted(loaded)
    assert all(
        torch.equal(loaded[key.replace("last.", "head.")], weights[key]) for key in weights
    )


@pytest.mark.parametrize(
    ("name", "limit", "words"),
    [
        (
            "MAX_BYTES",
            1_100_000,
            r"10 tensors of 0 MB, are more than a checkpoint holds \(2000 of",
        ),
        (
            "MOST_TENSORS",
            9,
            r"10 tensors of 0 MB, are more than a checkpoint holds \(9 of 430 MB",
        ),
    ],
)
def test_a_network_that_no_checkpoint_holds_is_refused(monkeypatch, name, limit, words):
    network = build("simple-cnn", {"classes": 3})  # 264,684 bytes in ten tensors
    checkpoint.require_storable(network, "mine:network")
    monkeypatch.setattr(checkpoint, name, limit)
    with pytest.raises(InputError, match=f"^--network mine:network: its weights, {words}"):
        checkpoint.require_storable(network, "mine:network")


@pytest.mark.parametrize("size", [16, 64])
def test_a_checkpoint_of_another_image_size_is_rebuilt(tmp_path, size):
    arguments = {"classes": 2, "image_size": size}
    network, path = build("simple-cnn", arguments, seed=5).eval(), tmp_path / "one.pt"
    save_checkpoint(path, network, "simple-cnn", arguments, **facts(image_size=size))
    loaded, x = load_checkpoint(path), torch.rand(2, 3, size, size)
    assert torch.equal(loaded.network(x), network(x))
    assert loaded.image_size == loaded.record(path)["image_size"] == size


def test_the_random_state_is_not_changed(tmp_path):
    save_checkpoint(
        tmp_path / "one.pt",
        build("simple-cnn", {"classes": 2}),
        "simple-cnn",
        {"classes": 2},
        **facts(),
    )
    before = torch.get_rng_state()
    load_checkpoint(tmp_path / "one.pt")
    assert torch.equal(torch.get_rng_state(), before)


def test_the_network_is_loaded_to_the_device(tmp_path):
    path = tmp_path / "one.pt"
    network = build("simple-cnn", {"classes": 2})
    save_checkpoint(path, network, "simple-cnn", {"classes": 2}, **facts())
    weights = load_checkpoint(path, "meta").network.parameters()
    assert {weight.device.type for weight in weights} == {"meta"}
