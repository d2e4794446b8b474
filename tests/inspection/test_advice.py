"""The advice of stage 1: recipes, test images that are missing, how long `best` takes."""

import itertools
from dataclasses import replace

import pytest
import torch
from conftest import EMPTY, random_part
from scipy.stats import beta

from common.dataset.split import LabelledImages, Split
from common.inspection import advice
from common.inspection.advice import Facts
from common.training.recipes import BEST, RECIPES

CPU = torch.device("cpu")
BALANCED = Facts(3, 15000, 1.2, "car", "cat", 4900, 0, 32)
IMBALANCED = Facts(3, 5625, 23.6, "car", "cat", 210, 0, 32)


def split_of(train, test, size=32):
    """Return a split with random images of these numbers, size x size pixels."""
    train, test = (
        LabelledImages(
            part.images.repeat_interleave(size // 32, 2).repeat_interleave(size // 32, 3),
            part.labels,
        )
        for part in (random_part(train), random_part(test))
    )
    classes = tuple(f"class {k}" for k in range(int(train.labels.max()) + 1))
    return Split(train, EMPTY, test, classes, "a source", "a-b", 0)


def test_every_recipe_of_the_rules_exists():
    assert {rule.recipe for rule in advice.SUITED + advice.UNSUITED} <= RECIPES.keys()


@pytest.mark.parametrize(
    ("facts", "names"),
    [
        (BALANCED, ["resnet9", "original"]),
        (BALANCED._replace(ratio=2.0), ["resnet9-logit-adjusted", "original"]),
        (IMBALANCED, ["best", "sampler", "original"]),
        (IMBALANCED._replace(images=1900), ["best", "linear-probe", "sampler", "original"]),
        (IMBALANCED._replace(small=1), ["best", "linear-probe", "sampler", "original"]),
        (IMBALANCED._replace(small=1, size=64),
         ["linear-probe", "best", "sampler", "original"]),
        (BALANCED._replace(images=1900, size=64), ["linear-probe", "resnet9", "original"]),
    ],
)  # fmt: skip
def test_recipes_suit_the_measured_numbers(facts, names):
    assert [name for name, _ in advice.apply(advice.SUITED, facts)] == names


@pytest.mark.parametrize(
    ("facts", "found"),
    [
        (IMBALANCED, {}),
        (BALANCED._replace(fewest=4, size=64), {}),
        (IMBALANCED._replace(size=64), {"smote": "64 x 64 pixels"}),
        (IMBALANCED._replace(fewest=49), {"random-under": "49 images of each class"}),
        (IMBALANCED._replace(fewest=5, size=64),
         {"smote": "cat has 5 images", "random-under": "5 images of each class"}),
        (IMBALANCED._replace(fewest=6, size=64),
         {"smote": "64 x 64 pixels", "random-under": "6 images of each class"}),
    ],
)  # fmt: skip
def test_recipes_that_do_not_suit_have_the_reason_that_holds(facts, found):
    reasons = dict(advice.apply(advice.UNSUITED, facts))
    assert list(reasons) == list(found)
    assert all(words in reasons[name] for name, words in found.items())


def test_reasons_state_the_numbers():
    reasons = dict(advice.apply(advice.SUITED, IMBALANCED._replace(small=2, size=64)))
    assert "23.6 : 1" in reasons["best"]
    assert "cat as often as car" in reasons["sampler"]
    assert "2 of 3 classes" in reasons["linear-probe"]


def test_the_facts_are_those_of_the_train_images():
    split = split_of((7, 130, 20), (5, 5, 5), size=64)
    assert advice.facts_of(split) == Facts(3, 157, 130 / 7, "class 1", "class 0", 7, 2, 64)


def test_the_width_of_a_recalls_interval_is_that_of_jeffreys_posterior():
    for images in (1, 7, 23, 551):
        low, high = beta(0.8 * images + 0.5, 0.2 * images + 0.5).ppf([0.025, 0.975])
        assert advice.recall_width(images) == pytest.approx(high - low)
    assert advice.recall_width(0) == 1


def test_classes_with_too_few_test_images_are_listed(monkeypatch):
    monkeypatch.setattr(advice, "time_of_best", lambda *_: {})
    enough = advice.enough_images()
    assert advice.recall_width(enough) <= 0.2 < advice.recall_width(enough - 1)
    advised = advice.advise(split_of((3, 3, 3), (enough, enough - 1, 3)), CPU)
    assert [(name, n) for name, n, _ in advised.too_few] == [
        ("class 1", enough - 1),
        ("class 2", 3),
    ]
    assert advised.record()["too_few_test_images"][1] == {
        "class": "class 2", "images": 3, "width": advice.recall_width(3),
    }  # fmt: skip


def test_the_time_of_best_is_that_of_its_steps(monkeypatch):
    split = split_of((200, 50, 40), (1, 1, 1))
    clock = iter([100.0, 101.0, 103.0, 106.0, 106.0])  # three steps in six seconds
    monkeypatch.setattr(advice.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(advice, "BEST", replace(BEST, width=2, epochs=7))
    state = torch.get_rng_state()
    measured = advice.time_of_best(split, CPU, 5.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert measured["measured_steps"] == 3
    assert measured["measured_batch"] == 128
    assert measured["steps_per_epoch"] == 3  # of 290 images
    assert measured["seconds"] == pytest.approx(6 / (3 * 128) * 290 * 7)


def test_a_fast_machine_measures_more_steps_than_a_training_has(monkeypatch):
    def train_steps(examples, recipe, state, device):
        while True:
            if state.scheduler is not None:
                state.scheduler.step()
            yield torch.zeros(())

    monkeypatch.setattr(advice, "train_steps", train_steps)
    clock = itertools.count(0, 0.001)
    monkeypatch.setattr(advice.time, "perf_counter", lambda: next(clock))
    measured = advice.time_of_best(split_of((20, 5, 4), (1, 1, 1)), CPU, 2.0)
    assert measured["measured_steps"] > 1000 > BEST.epochs * measured["steps_per_epoch"]


def test_large_images_are_measured_in_small_batches(monkeypatch):
    sizes = []

    def train_steps(examples, recipe, state, device):
        sizes.append((recipe.batch_size, tuple(examples.images.shape)))
        assert set(examples.labels.tolist()) == set(range(3))
        while True:
            yield torch.zeros(())

    monkeypatch.setattr(advice, "train_steps", train_steps)
    measured = advice.time_of_best(split_of((9, 2, 1), (1, 1, 1), size=224), CPU, 0.0)
    assert sizes == [(10, (20, 3, 224, 224))]
    assert measured["measured_steps"] == 1
