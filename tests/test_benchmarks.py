from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import is_one_line

from benchmarks import reference, sections
from common import balance, dataset, models, training
from common.recipes import ORIGINAL, RESNET, Recipe

CPU = torch.device("cpu")
EPOCH = replace(ORIGINAL, epochs=1)


@pytest.fixture
def images(tmp_path):
    return dataset.load("synthetic", train_counts=[400, 60, 40], cache=tmp_path).train


def both_curves(monkeypatch, part, recipe: Recipe, **arguments) -> tuple[list, list]:
    """The loss of each step of one epoch, by fit() and by the reference loop.

    From the same weights and in the same order. fit() returns an epoch's mean, in which steps
    that are wrong in opposite ways don't show; so each step's loss is taken on its way.
    """
    network = models.build(recipe.network, recipe.network_arguments(3) | arguments, seed=0)
    plain = reference.plain(network)
    generator = torch.Generator().manual_seed(0)
    order = balance.epoch_order(part.labels, recipe, 0, 3, generator).tolist()
    curve = []
    weighted_mean = training.losses.weighted_mean

    def recorded(*arguments):
        loss = weighted_mean(*arguments)
        curve.append(loss.item())
        return loss

    monkeypatch.setattr(training.losses, "weighted_mean", recorded)
    empty = dataset.Part(part.images[:0], part.labels[:0])
    training.fit(network, part, empty, recipe, seed=0, device=CPU)
    batches = reference.loader(part, recipe, order=order)
    return curve, reference.train(plain, batches, recipe, CPU)


def test_500_steps_are_those_of_the_plain_loop(monkeypatch, images):
    part = dataset.Part(*(torch.cat([t] * 4) for t in images))
    # Without dropout, whose random numbers needn't be the same ones.
    ours, plain = both_curves(monkeypatch, part, EPOCH, dropout=0.0)
    assert len(ours) == 500
    assert ours == pytest.approx(plain, rel=1e-3)
    assert sum(ours[-50:]) < 0.8 * sum(ours[:50])  # it learns


@pytest.mark.parametrize(
    ("recipe", "arguments"),
    [
        (replace(EPOCH, class_weights="inverse"), {"dropout": 0.0}),
        (replace(EPOCH, learning_rate=0.01, batch_size=25), {"dropout": 0.0}),
        # At its own rate an untrained ResNet9 makes 1e-7 into 1e-2 in five steps.
        (replace(RESNET, epochs=1, augment=(), batch_size=50, learning_rate=0.002), {}),
    ],
    ids=["weights", "larger batches", "resnet9"],
)
def test_other_recipes_are_those_of_the_plain_loop(monkeypatch, images, recipe, arguments):
    ours, plain = both_curves(monkeypatch, images, recipe, **arguments)
    assert len(ours) == 500 // recipe.batch_size
    assert ours == pytest.approx(plain, rel=1e-3)


def test_the_plain_network_takes_the_weights_of_simple_cnn():
    network = models.build("simple-cnn", {"classes": 3}).eval()
    plain = reference.plain(network).eval()
    plain.load_state_dict(network.state_dict())
    x = torch.rand(2, 3, 32, 32)
    assert torch.allclose(network(x), plain(models.to_unit_range(x)), atol=1e-6)
    assert all(type(module).__module__.startswith("torch.nn.") for module in plain)


def test_loader_draws_balanced_classes_and_transforms(images):
    recipe = replace(EPOCH, sampler="balanced", batch_size=500)
    [(x, labels)] = reference.loader(images, recipe)
    assert torch.bincount(labels).min() > 120
    assert -1 <= x.min() < -0.5
    assert 0.5 < x.max() <= 1
    [(x, _)] = reference.loader(
        images, replace(recipe, augment=("flip", "crop")), order=[0] * 500
    )
    assert len(x.flatten(1).unique(dim=0)) > 100  # of 2 * 9 * 9


def test_ratios_are_of_medians_and_of_what_ran_in_turn():
    rows = sections.compared("", {"ours": [2.0, 1.0, 4.0], "loop": [4.0, 8.0, 6.0]})["rows"]
    assert rows[0] == {
        "what": "ours",
        "time": "1.00",
        "spread": "0.50 to 2.00",
        "in turn": "1.00 to 1.00",
    }
    assert list(rows[1].values()) == ["loop", "3.00", "2.00 to 4.00", "1.50 to 8.00"]


def test_sides_take_turns():
    turns = []
    sides = {name: lambda name=name: turns.append(name) for name in "ab"}
    seconds = sections.alternate(sides, 2)
    assert turns == ["a", "b", "a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_sections_write_json_and_markdown(script, tmp_path):
    names = ["step", "resnet", "images", "profile"]  # those without processes of their own
    done = script("benchmarks/run.py", *names, "--quick", "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    markdown = (tmp_path / "out/results.md").read_text()
    assert markdown.strip() in done.stdout
    result = json.loads((tmp_path / "out/results.json").read_text())
    assert list(result["sections"]) == names
    for tables in result["sections"].values():
        for table in tables:
            assert f"## {table['title']}" in markdown
            assert all(f"| {row['what']} " in markdown for row in table["rows"])
    [profile] = result["sections"]["profile"]
    shares = [int(row["share"].rstrip("%")) for row in profile["rows"]]
    assert 95 <= sum(shares) <= 105
    assert shares[0] > 5  # all layers but the last


def test_an_unknown_section_is_one_line(script):
    done = script("benchmarks/run.py", "steps", "--quick")
    assert done.returncode == 2
    assert is_one_line(done.stderr, "steps", "step, resnet")
