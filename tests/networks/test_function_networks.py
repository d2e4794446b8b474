"""Networks of a function of the user's: their last layer, their errors, their checkpoints."""

from __future__ import annotations

import hashlib
import sys

import pytest
import torch
from conftest import is_one_line
from torch import nn

from common.errors import InputError
from common.networks import pretrained
from common.networks.build import build, torch_seed
from common.networks.checkpoint import load_checkpoint, load_checkpoints, save_checkpoint
from common.networks.heads import Head

SOURCE = '''
from pathlib import Path
import torch
from torch import nn

Path("imported").touch()
torch.rand(1)  # the import may draw, but only once
number = 3


def linear(classes):
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 5), nn.ReLU(),
                         nn.Linear(5, classes))


def convolution(classes):
    return nn.Sequential(nn.Conv2d(3, classes, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Twice(nn.Module):
    """Its last layer is used twice, so that its features are not all that it gets."""

    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(3 * 32 * 32, classes)

    def forward(self, x):
        return self.layer((x + self.layer(x.flatten(1)).sum()).flatten(1))


class Tied(Twice):
    """Needs more of its last layer than its output."""

    def forward(self, x):
        return self.layer(x.flatten(1) + self.layer.weight.sum(0))


class Buffer(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layers = linear(classes)
        self.register_buffer("scale", torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return self.layers(x)


def thousand(classes):
    return linear(1000)


def tuples(classes):
    network = linear(classes)
    network.forward = lambda x: (nn.Sequential.forward(network, x), x)
    return network


def fails(classes):
    raise KeyError("first line\\nsecond line")


def text(classes):
    return "network"


def no_weights(classes):
    return nn.Sequential(nn.Flatten(), nn.AdaptiveAvgPool1d(classes))
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The current folder, with the module nets, which was not imported yet."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("import no_such_library\n")
    (tmp_path / "wrong.py").write_text("def wrong(:\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("nets", "broken", "wrong"):
        sys.modules.pop(name, None)


X = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_last_linear_layer_becomes_the_head_with_its_weights(module):
    build("nets:linear", {"classes": 3})  # the first import draws a random number
    before, path = torch.get_rng_state(), list(sys.path)
    ours = build("nets:linear", {"classes": 3}, seed=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert sys.path == path
    with torch_seed(7):
        theirs = sys.modules["nets"].linear(3)
    assert isinstance(ours.head, Head)
    assert (ours.head.in_features, ours.head.out_features) == (5, 3)
    assert torch.equal(ours.head.weight, theirs[4].weight)
    assert torch.equal(ours(X), theirs(X))
    assert torch.equal(ours.head(ours.features(X)), ours(X))
    assert ours.features(X).shape == (4, 5)
    assert all(module.training for module in ours.modules())


def test_the_first_import_does_not_change_the_weights(module):
    weights = [build("nets:linear", {"classes": 3}, seed=7).head.weight for _ in range(2)]
    assert torch.equal(*weights)


def test_the_head_of_a_function_takes_the_arguments_of_a_head(module):
    arguments = {"classes": 3, "classifier": "cosine", "flip_average": True}
    network = build("nets:linear", arguments, seed=7).eval()
    features = network.network.features(torch.cat((X, X.flip(-1))))
    cosines = nn.functional.normalize(features) @ nn.functional.normalize(network.head.weight).T
    assert torch.allclose(network(X), 30 * cosines.view(2, 4, 3).mean(0), atol=1e-4)


@pytest.mark.parametrize("name", ["convolution", "Twice", "Tied"])
def test_a_network_without_such_a_layer_is_used_as_it_is(module, name):
    ours = build(f"nets:{name}", {"classes": 3}, seed=7)
    with torch_seed(7):
        theirs = getattr(sys.modules["nets"], name)(3)
    assert ours.head is None
    assert torch.equal(ours(X), theirs(X))
    network = f"--network nets:{name}: its network does not end in a linear layer"
    with pytest.raises(InputError, match=f"^{network}.*leave --classifier cosine out$"):
        build(f"nets:{name}", {"classes": 3, "classifier": "cosine"})
    with pytest.raises(InputError, match=f"^{network}.*leave --post-hoc crt out$"):
        pretrained.prepare(f"nets:{name}", False, None, 3, 32, "--post-hoc crt")


@pytest.mark.parametrize(
    ("network", "words"),
    [
        ("nowhere:linear", "there is no module nowhere in the current folder or among"),
        ("nets.below:linear", "there is no module nets.below in the current folder"),
        ("broken:x", "importing broken fails (ModuleNotFoundError: No module named 'no_such_l"),
        ("wrong:x", "importing wrong fails (SyntaxError: "),
        ("nets:nothing", "nets has no function nothing; correct the name"),
        ("nets:number", "nets has no function number"),
        ("nets:fails", "fails(3) fails (KeyError: 'first line"),
        ("nets:text", "it returns a str; return a torch.nn.Module"),
        ("nets:no_weights", "has no weights"),
        ("nets:thousand", "of 2 images its network makes (2, 1000), not logits of the shape"),
        ("nets:tuples", "of 2 images its network makes tuple, not logits"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_function_is_said_in_one_line(module, network, words):
    with pytest.raises(InputError) as refused:
        build(network, {"classes": 3})
    assert is_one_line(f"{refused.value}\n", f"--network {network}: ", words)


def test_a_size_that_the_network_does_not_take_is_refused(module):
    with pytest.raises(InputError) as refused:
        pretrained.prepare("nets:linear", False, None, 3, 48)
    words = "--network nets:linear: its network takes no 48x48 images", "other --image-size"
    assert is_one_line(f"{refused.value}\n", *words)
    assert build("nets:convolution", {"classes": 3, "image_size": 48})(X).shape == (4, 3)


def test_weights_of_a_type_that_a_checkpoint_does_not_hold_are_refused(module):
    with pytest.raises(InputError, match=r"nets:Buffer: backbone\.scale has the type .*64, wh"):
        pretrained.prepare("nets:Buffer", False, None, 3, 32)


def test_the_source_is_among_what_the_weights_depend_on(module):
    facts = pretrained.prepare("nets:linear", False, None, 3, 32, "--frozen")
    digest = hashlib.sha256((module / "nets.py").read_bytes()).hexdigest()
    assert facts == {"network_sha256": digest}


def test_a_checkpoint_imports_no_function_by_itself(module):
    network = build("nets:linear", {"classes": 2}, seed=3).eval()
    plain, paths = build("simple-cnn", {"classes": 2}), [module / "own.pt", module / "plain.pt"]
    facts = {"classes": ["a", "b"], "recipe": None, "seed": 3, "data": None}
    facts["trained_on_test"] = False
    save_checkpoint(paths[0], network, "nets:linear", {"classes": 2}, **facts)
    save_checkpoint(paths[1], plain, "simple-cnn", {"classes": 2}, **facts)
    del sys.modules["nets"]
    (module / "imported").unlink()
    for given in (None, "nets:convolution"):
        with pytest.raises(InputError) as refused:
            load_checkpoint(paths[0], network=given)
        words = "own.pt: its network is made by nets:linear", "give --network nets:linear"
        assert is_one_line(f"{refused.value}\n", *words)
        assert not (module / "imported").exists()
    loaded = load_checkpoints(paths, network="nets:linear")
    assert torch.equal(loaded["own"].network(X), network(X))
    assert torch.equal(loaded["plain"].network(X), plain.eval()(X))
    with pytest.raises(
        InputError, match="--network nets:linear: no checkpoint's network is ma"
    ):
        load_checkpoints(paths[1:], network="nets:linear")
