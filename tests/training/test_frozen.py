"""Frozen recipes against the training of the whole network; features computed once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny_networks
import torch
from conftest import random_part
from torchvision import models

from common.dataset.split import LabelledImages, make_split
from common.dataset.stored_images import gather
from common.files import load_result
from common.metrics.report import report
from common.networks.build import build
from common.networks.checkpoint import load_checkpoint
from common.networks.prediction import predict
from common.training import frozen as frozen_module
from common.training.fit import fit
from common.training.frozen import compute_features
from common.training.recipe import Recipe
from common.training.resampling import with_copies
from common.training.run import train_together
from common.training.runs import Run, train_all
from common.training.setup_run import set_up

CPU = torch.device("cpu")
CLASSES = ("car", "truck", "cat")
FROZEN = Recipe(
    network="tiny_networks:small", frozen=True, epochs=3, batch_size=8, learning_rate=0.1
)
RESNET = replace(FROZEN, network="torchvision:resnet18", pretrained=True)


def make_test_split(seed=0, size=32, counts=(20, 8, 6)):
    """Return a split of random images with a validation part."""
    train, validation, test = (
        random_part(n, seed + i) for i, n in enumerate((counts, (5, 4, 3), (6, 4, 3)))
    )
    parts = [LabelledImages(p.images[..., :size, :size].contiguous(), p.labels)
             for p in (train, validation, test)]  # fmt: skip
    return replace(make_split(parts[0], parts[2], CLASSES, "random", 0), validation=parts[1])


SPLIT = make_test_split()


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory):
    """A file of weights of torchvision's resnet18, random but for sensible statistics."""
    torch.manual_seed(5)
    network = models.resnet18()
    network.train()(torch.rand(64, 3, 32, 32))  # moves BatchNorm's running statistics
    path = tmp_path_factory.mktemp("weights") / "resnet18.pt"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def computed(monkeypatch):
    """How many images' features were computed in this process, each time."""
    forward, counts = frozen_module._forward, []

    def counted(backbone, images, *rest):
        counts.append(len(images))
        return forward(backbone, images, *rest)

    monkeypatch.setattr(frozen_module, "_forward", counted)
    return counts


def features(cache, recipe=FROZEN, split=SPLIT, seed=0, network_seed=0, **others):
    arguments = recipe.network_arguments(3, split.image_size)
    network = build(recipe.network, arguments, network_seed)
    how = {"device": CPU, "threads": 1, "cache": cache} | others
    return compute_features(network, split, recipe, seed, **how)


def ready(cache, recipe, split=SPLIT, seed=0):
    return set_up(recipe, split, seed, device=CPU, threads=1, cache=cache)


def test_features_are_what_torchvisions_own_network_gives_its_last_layer(tmp_path, resnet_file):
    network = models.resnet18()
    network.load_state_dict(torch.load(resnet_file))
    network.fc = torch.nn.Identity()
    network.eval()
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]

    @torch.no_grad()
    def truth(images):
        return torch.cat([network((x[None] / 255 - mean) / std) for x in images])

    recipe = replace(
        RESNET, pretrained=False, weights=str(resnet_file), augment=("flip",), copies=1
    )
    found = ready(tmp_path, replace(recipe, flip_average=True))
    train = with_copies(SPLIT.train, 1, 0)
    expected = torch.cat([truth(train.images), truth(train.images.flip(-1))])
    torch.testing.assert_close(found.examples.images, expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.examples.labels, SPLIT.train.labels.repeat(4))
    for part, given in ((found.validation, SPLIT.validation), (found.test, SPLIT.test)):
        both = torch.stack([truth(given.images), truth(given.images.flip(-1))], 1)
        torch.testing.assert_close(part.images, both, atol=1e-4, rtol=1e-4)
    assert found.features["dimension"] == 512


@pytest.mark.parametrize(
    "changes",
    [{}, {"sampler": "balanced", "loss": "logit-adjusted", "ema": 0.9},
     {"optimizer": "adamw", "schedule": "one-cycle", "class_weights": "inverse"},
     {"flip_average": True, "classifier": "cosine", "loss": "ldam", "patience": 1}],
)  # fmt: skip
def test_the_head_is_trained_as_with_the_whole_network(tmp_path, resnet_file, changes):
    recipe = replace(
        RESNET, pretrained=False, weights=str(resnet_file), learning_rate=0.01, **changes
    )
    quick, slow = (ready(tmp_path, replace(recipe, frozen=on)) for on in (True, False))
    slow.network.requires_grad_(False)
    slow.network.head.requires_grad_(True)
    before = slow.network.head.weight.clone()
    histories = [
        fit(each.trained, each.examples, each.validation, each.recipe, seed=0, device=CPU)
        for each in (quick, slow)
    ]
    assert histories[0].loss == pytest.approx(histories[1].loss, rel=1e-3)
    assert histories[0].validation_loss == pytest.approx(histories[1].validation_loss, rel=1e-3)
    moved = (slow.network.head.weight - before).abs().max().item()
    same = {"atol": 0.01 * moved, "rtol": 0}
    torch.testing.assert_close(quick.network.head.weight, slow.network.head.weight, **same)
    # The whole network of the frozen recipe is what its head was trained as.
    logits = predict(quick.network, SPLIT.test.images)
    torch.testing.assert_close(predict(quick.trained, quick.test.images), logits, **same)


def test_features_are_computed_once(tmp_path, computed):
    first = features(tmp_path)
    assert computed == [34, 12, 13]
    again = features(tmp_path)
    assert computed == [34, 12, 13]
    assert again.record == first.record  # with the seconds of the computation
    assert torch.equal(again.train.images, first.train.images)
    assert features(tmp_path, replace(FROZEN, epochs=9, augment=("flip",))).cached
    assert computed[3:] == [34]  # of the mirror images


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({"network_seed": 1}, [34, 12, 13]),
        ({"facts": {"network_sha256": "other"}}, [34, 12, 13]),
        ({"threads": 2}, [34, 12, 13]),
        ({"split": make_test_split(seed=9)}, [34, 12, 13]),
        ({"split": replace(SPLIT, test=SPLIT.train)}, []),  # the same images
        ({"split": replace(SPLIT, train=SPLIT.train._replace(
            labels=SPLIT.train.labels.flip(0)))}, []),
        ({"split": make_test_split(size=24)}, [34, 12, 13]),
        ({"recipe": replace(FROZEN, copies=1)}, [68]),
        ({"seed": 1}, []),
        ({"recipe": replace(FROZEN, flip_average=True)}, [12, 13]),
        ({"recipe": replace(FROZEN, train_on_test=True)}, []),
    ],
)  # fmt: skip
def test_features_of_other_images_or_weights_are_computed(tmp_path, computed, changes, again):
    features(tmp_path)
    computed.clear()
    found = features(tmp_path, **changes)
    assert computed == again
    fresh = features(tmp_path / "other", **changes)
    for part, expected in zip(found[:4], fresh[:4], strict=True):
        assert torch.equal(part.images, expected.images)
        assert torch.equal(part.labels, expected.labels)


def test_images_in_a_file_have_the_same_features(tmp_path, computed):
    recipe = replace(
        FROZEN, augment=("flip",), flip_average=True, resample="smote", neighbours=3
    )
    images = gather([SPLIT.train.images.numpy()], 34, 32, 0, tmp_path / "images")
    in_file = replace(SPLIT, train=LabelledImages(images, SPLIT.train.labels))
    found, expected = (ready(tmp_path, recipe, split) for split in (in_file, SPLIT))
    assert torch.equal(found.examples.images, expected.examples.images)
    assert found.examples.counts(3) == [40, 40, 40]
    assert computed == [34, 34, 12, 12, 13, 13]  # none twice


def test_the_copies_depend_on_the_seed(tmp_path, computed):
    recipe = replace(FROZEN, copies=1)
    one, other = (features(tmp_path, recipe, seed=seed) for seed in (0, 1))
    assert computed == [68, 12, 13, 68]
    assert not torch.equal(one.train.images, other.train.images)


def test_a_damaged_cache_is_computed_again(tmp_path, computed):
    first = features(tmp_path)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(features(tmp_path).train.images, first.train.images)
    assert computed == [34, 12, 13] * 2


OPTIONS = [
    *({"sampler": name} for name in ("balanced", "square-root", "progressive", "rotation")),
    {"sampler": "weighted", "sampler_weights": (1.0, 2.0, 3.0)},
    *({"loss": name} for name in ("focal", "balanced-softmax", "logit-adjusted")),
    {"loss": "ldam", "classifier": "cosine"},
    *({"class_weights": name} for name in ("inverse", "effective-number")),
    {"mix": "mixup"}, {"label_smoothing": 0.1}, {"ema": 0.9}, {"patience": 1},
    {"optimizer": "adamw", "schedule": "cosine", "precision": "bfloat16"},
    *({"post_hoc": name} for name in ("logit-adjustment", "tau-normalisation", "crt")),
    *({"resample": name, "neighbours": 3} for name in
      ("smote", "borderline-smote", "adasyn", "random-over", "random-under")),
    {"copies": 1}, {"augment": ("flip",)}, {"augment": ("flip",), "copies": 1},
    {"flip_average": True}, {"train_on_test": True},
    {"augment": ("flip",), "flip_average": True, "train_on_test": True, "resample": "smote"},
]  # fmt: skip


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def trained(cache, **changes):
    settings = {"device": "cpu", "threads": 1, "deterministic": False}
    run = Run("frozen", replace(FROZEN, **changes), 0)
    how = {"threads": 1, "facts": {}, "cache": cache}
    return train_together([run], SPLIT, features=how, **settings)[0]


@pytest.mark.parametrize("changes", OPTIONS, ids=str)
def test_each_option_trains_a_frozen_network(shared_cache, changes):
    result, checkpoint = trained(shared_cache, **changes)
    plain_result, plain = trained(shared_cache)
    assert result["diverged"] is None
    assert result["history"] != plain_result["history"] or changes.keys() & {
        "post_hoc", "patience", "flip_average", "ema",
    }  # fmt: skip
    network = checkpoint["network"]
    for name, value in plain["network"].state_dict().items():
        if "head" not in name and "flip_average" not in changes:
            assert torch.equal(network.state_dict()[name], value), name
    predictions = predict(network, SPLIT.test.images).argmax(1).tolist()
    assert result["test_predictions"] == " ".join(map(str, predictions))
    factor = (1 + changes.get("copies", 0)) * (2 if "augment" in changes else 1)
    if "resample" not in changes and "train_on_test" not in changes:
        assert result["examples"] == [20 * factor, 8 * factor, 6 * factor]


def test_the_files_of_a_run(tmp_path, resnet_file):
    recipe = replace(
        RESNET,
        pretrained=False,
        weights=str(resnet_file),
        flip_average=True,
        post_hoc="logit-adjustment",
    )
    run = Run("probe", recipe, 0)
    settings = {"device": "cpu", "jobs": 1, "threads": 1, "cache": tmp_path / "cache"}
    ((_, result),) = train_all([run], SPLIT, tmp_path / "models", **settings)
    checkpoint = load_checkpoint(tmp_path / "models/probe.pt")
    predictions = predict(checkpoint.network, SPLIT.test.images).argmax(1)
    confusion = report(SPLIT.test.labels, predictions, CLASSES).confusion
    assert confusion == result["report"]["confusion"]
    weights = checkpoint.network.state_dict()
    for name, value in torch.load(resnet_file).items():
        if not name.startswith("fc."):
            assert torch.equal(weights[f"network.backbone.{name}"], value), name
    saved = load_result(tmp_path / "models/probe.json")
    assert saved["features"]["dimension"] == 512
    assert saved["features"]["seconds"] > 0
    assert saved["recipe"]["frozen"]


def test_features_are_computed_before_runs_go_to_workers(tmp_path, monkeypatch):
    def zeros(backbone, images, *_):
        return np.zeros((len(images), backbone.head.in_features), np.float32)

    monkeypatch.setattr(frozen_module, "_forward", zeros)  # in this process alone
    runs = [Run("frozen", FROZEN, seed) for seed in (0, 1)]
    settings = {"device": "cpu", "jobs": 2, "threads": 1, "cache": tmp_path / "cache"}
    list(train_all(runs, SPLIT, tmp_path / "models", **settings))
    for run in runs:  # with features of 0 the weights of the head have no gradient
        path = tmp_path / f"models/{run.file}.pt"
        network = load_checkpoint(path, network=FROZEN.network).network
        new = build(FROZEN.network, FROZEN.network_arguments(3, 32), run.seed)
        assert torch.equal(network.head.weight, new.head.weight)


def test_workers_and_one_process_train_the_same_frozen_weights(tmp_path, capfd):
    runs = [Run("frozen", FROZEN, seed) for seed in (0, 1)]
    (tmp_path / "file").touch()
    contents = []
    # In a file no cache can be written, and each worker computes the features.
    for jobs, threads, cache in ((1, 2, "cache"), (2, 1, "file")):
        settings = {"jobs": jobs, "threads": threads, "cache": tmp_path / cache, "fresh": True}
        list(train_all(runs, SPLIT, tmp_path / "models", device="cpu", **settings))
        paths = [tmp_path / f"models/{run.file}.pt" for run in runs]
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]
    assert capfd.readouterr().err.count("going on without a cache") == 1


def test_a_run_has_the_same_bytes_whether_its_features_were_cached(tmp_path):
    contents = []
    for _ in range(2):
        settings = {"jobs": 1, "threads": 1, "cache": tmp_path / "cache", "fresh": True}
        list(train_all([Run("a", FROZEN, 0)], SPLIT, tmp_path, device="cpu", **settings))
        contents.append((tmp_path / "a.pt").read_bytes())
    assert contents[0] == contents[1]


def test_the_backbone_stays_in_evaluation_mode(tmp_path):
    torch.manual_seed(0)
    network = tiny_networks.small(3)
    before = network[1].running_mean.clone()
    found = ready(tmp_path, FROZEN)
    fit(found.trained, found.examples, found.validation, found.recipe, seed=0, device=CPU)
    assert torch.equal(found.network.backbone[1].running_mean, before)
