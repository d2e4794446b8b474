"""Pretrained weights: downloaded from a local server, from a file, and refused."""

from __future__ import annotations

import hashlib
import http.server
import socket
import threading
from functools import partial

import pytest
import torch
from conftest import is_one_line
from torchvision import models

from common.errors import InputError
from common.networks import pretrained
from common.networks.build import build
from common.networks.pretrained import load_weights

SMALL = "torchvision:mobilenet_v3_small"
PUBLISHED = models.MobileNet_V3_Small_Weights.DEFAULT


@pytest.fixture(scope="module")
def state():
    """A state_dict as torchvision publishes it, of random weights."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return models.mobilenet_v3_small().state_dict()


@pytest.fixture
def server(tmp_path, monkeypatch, state):
    """Publish the weights on a local server; the requests that it got."""
    folder, requests = tmp_path / "served", []
    folder.mkdir()
    torch.save(state, folder / "weights.pth")
    digest = hashlib.sha256((folder / "weights.pth").read_bytes()).hexdigest()
    name = f"small-{digest[:8]}.pth"
    (folder / "weights.pth").rename(folder / name)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            requests.append(self.path)

    served = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Handler, directory=folder)
    )
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{served.server_port}/{name}"
    monkeypatch.setattr(PUBLISHED.value, "url", address)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    yield folder / name, requests
    served.shutdown()
    thread.join()
    served.server_close()


def has_backbone_of(network, state):
    ours = network.backbone.state_dict()
    return all(torch.equal(value, state[name]) for name, value in ours.items()) and ours


@pytest.mark.parametrize("flip_average", [False, True])
def test_published_weights_are_downloaded_once_and_loaded(server, state, flip_average, capfd):
    path, requests = server
    facts = pretrained.prepare(SMALL, True, None, 3, 32)
    assert facts == {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    network = build(SMALL, {"classes": 3, "flip_average": flip_average}, seed=1)
    before = network.head.weight.clone()
    load_weights(network, SMALL, None)
    assert has_backbone_of(network.network if flip_average else network, state)
    assert torch.equal(network.head.weight, before)
    assert requests == [f"/{path.name}"]
    assert "%" not in capfd.readouterr().err  # no bar, which is for terminals


def test_no_connection_of_a_download_waits_for_ever(tmp_path, monkeypatch):
    seen = []

    def refuse(*_, **__):
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=r"can't be downloaded from .*TimeoutError: timed out"):
        load_weights(build(SMALL, {"classes": 3}), SMALL, None)
    assert seen == [30.0]
    assert socket.getdefaulttimeout() is None


def test_a_download_with_the_wrong_hash_is_refused(server, tmp_path):
    path, _ = server
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError) as refused:
        pretrained.prepare(SMALL, True, None, 3, 32)
    words = "--pretrained: ", str(PUBLISHED), PUBLISHED.url, "invalid hash", "--weights FILE"
    assert is_one_line(f"{refused.value}\n", *words)
    assert not list((tmp_path / "cache").rglob("*.pth"))


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "no-such-scheme:"])
def test_offline_the_weights_the_address_the_cause_and_a_file_are_named(
    tmp_path, monkeypatch, address
):
    monkeypatch.setattr(PUBLISHED.value, "url", f"{address}/small-00112233.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError) as refused:
        pretrained.prepare(SMALL, True, None, 3, 32)
    words = (
        str(PUBLISHED),
        f"{address}/small-00112233.pth (URLError: ",
        "with --no-pretrained --weights FILE",
    )
    assert is_one_line(f"{refused.value}\n", "--pretrained: ", *words)


@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda content: content])
def test_a_damaged_download_that_is_there_is_named(server, tmp_path, state, damage):
    """A file that is there is not downloaded again, and torchvision does not check it."""
    path, _ = server
    kept = tmp_path / "cache/hub/checkpoints" / path.name
    kept.parent.mkdir(parents=True)
    torch.save(state | {"classifier.3.bias": torch.ones(1000)}, kept)
    kept.write_bytes(damage(kept.read_bytes()))
    with pytest.raises(
        InputError, match=r"^--pretrained: .*is damaged .*; remove it"
    ) as refused:
        pretrained.prepare(SMALL, True, None, 3, 32)
    assert is_one_line(f"{refused.value}\n", kept)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3},
                                  lambda s: {"model": s}])  # fmt: skip
def test_weights_of_a_file_are_loaded_but_for_the_last_layer(tmp_path, state, wrap):
    path = tmp_path / "weights.pth"
    torch.save(wrap(state), path)
    facts = pretrained.prepare(SMALL, False, str(path), 3, 32)
    assert facts == {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    network = build(SMALL, {"classes": 3, "classifier": "cosine"}, seed=1)
    load_weights(network, SMALL, str(path))
    assert has_backbone_of(network, state)


class Harmful:
    def __reduce__(self):
        return open, ("executed", "w")


FIRST = "features.0.0.weight"
WRONG = {
    "a weight less": ("not the weights of .*: features.0.0.weight is missing",
                      lambda s: {k: v for k, v in s.items() if k != FIRST}),
    "a weight more": ("not the weights of .*, which has no more; give those of the same",
                      lambda s: s | {"more": torch.zeros(1)}),
    "another shape": (r"features.0.0.weight has the shape \(8, 3, 3, 3\), not \(16, 3, 3, 3\)",
                      lambda s: s | {FIRST: s[FIRST][:8]}),
    "another network": ("not the weights of", lambda _: models.resnet18().state_dict()),
    "NaN": ("features.0.0.weight is not finite", lambda s: s | {FIRST: s[FIRST] * torch.nan}),
    "no weights": ("holds no weights by name", lambda _: {"epoch": 3}),
    "a list": ("holds no weights by name", lambda s: list(s.values())),
    "empty": ("holds no weights by name", lambda _: {}),
    "an object": ("reads no weights from it", lambda _: Harmful()),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_file_of_other_weights_is_refused_in_one_line(tmp_path, monkeypatch, state, name):
    monkeypatch.chdir(tmp_path)
    words, change = WRONG[name]
    torch.save(change(dict(state)), "weights.pth")
    with pytest.raises(InputError, match=rf"^--weights weights\.pth: .*{words}") as refused:
        pretrained.prepare(SMALL, False, "weights.pth", 3, 32)
    assert is_one_line(f"{refused.value}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(
    ("path", "words"),
    [("missing.pth", "can't be read"), (".", "not a regular file"), ("~nouser/x", "can't be"),
     ("text.pth", "PyTorch reads no weights from it")],
)  # fmt: skip
def test_a_file_that_can_not_be_read_is_named(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.pth").write_text("no weights\n")
    with pytest.raises(InputError) as refused:
        pretrained.prepare(SMALL, False, path, 3, 32)
    assert is_one_line(f"{refused.value}\n", f"--weights {path}: ", words)


def test_names_of_earlier_versions_and_auxiliary_classifiers_are_left_behind(tmp_path):
    """DenseNet's published weights have norm.1 for norm1, GoogLeNet's two more classifiers."""
    path = tmp_path / "weights.pth"
    dense = models.densenet121(num_classes=2).state_dict()
    old = {
        name.replace("norm1.", "norm.1.").replace("conv2.", "conv.2."): value
        for name, value in dense.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    google = models.googlenet(num_classes=2, init_weights=False).state_dict()
    assert "aux1.fc1.weight" in google
    for name, published, saved in (("densenet121", dense, old), ("googlenet", google, google)):
        torch.save(saved, path)
        network = build(f"torchvision:{name}", {"classes": 3})
        load_weights(network, f"torchvision:{name}", str(path))
        assert has_backbone_of(network, published)


def test_a_network_of_a_function_starts_from_a_file_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one_layer.py").write_text(
        "from torch import nn\n\ndef make(classes):\n"
        "    layers = nn.Conv2d(3, 2, 8, 8), nn.Flatten(), nn.Linear(32, classes)\n"
        "    return nn.Sequential(*layers)\n"
    )
    weight = torch.rand(2, 3, 8, 8)
    saved = {"0.weight": weight, "0.bias": torch.ones(2), "2.weight": torch.ones(1000, 32)}
    torch.save(saved, "weights.pth")
    network = build("one_layer:make", {"classes": 3})
    load_weights(network, "one_layer:make", "weights.pth")
    assert torch.equal(network.backbone[0].weight, weight)


def test_networks_of_this_project_need_no_preparation():
    assert pretrained.prepare("simple-cnn", False, None, 3, 32) == {}
