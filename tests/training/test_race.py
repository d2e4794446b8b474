"""The race: its grid, its budget, what the settings are chosen on, and how."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from conftest import random_part

from common.dataset.load import load
from common.dataset.split import LabelledImages, make_split
from common.errors import InputError
from common.training import race
from common.training.race import (
    Choice,
    Decay,
    choose,
    choose_decay,
    final_runs,
    grid_runs,
    impossible,
    points,
    recipe_at,
    selection_split,
    train,
    train_grid,
    within_budget,
)
from common.training.recipe import Recipe
from common.training.recipe_record import from_record
from common.training.recipes import RACE
from common.training.runs import Run

REPORTS = (4949, 466, 210)
CLASSES = ("car", "truck", "cat")
# Each remedy once.
REMEDIES = [
    "none", "weights-inverse", "effective-number", "deferred-weights", "balanced-sampler",
    "square-root-sampler", "progressive-sampler", "focal", "ldam", "ldam-drw",
    "balanced-softmax", "logit-adjusted", "vs", "post-hoc", "tau-normalisation", "crt", "smote",
    "borderline-smote", "random-over", "random-under", "mixup", "cutmix", "mislas",
]  # fmt: skip
SETTINGS = {"device": "cpu", "jobs": 1, "threads": 1}


def split_of(train, test=None, **others):
    """Return a split of these train images, in order of class, and 3 test images of each."""
    test = random_part((3, 3, 3), seed=1) if test is None else test
    return make_split(train, test, CLASSES, "a source", 0, **others)


def test_every_remedy_runs_once_with_as_many_points_on_the_same_network_and_schedule():
    assert list(RACE) == REMEDIES
    shared = ("network", "width", "batch_size", "schedule", "warm_up", "optimizer", "momentum",
              "nesterov", "augment", "precision", "ema", "flip_average")  # fmt: skip
    settings = set()
    for name in RACE:
        recipes = [recipe_at(name, i, REPORTS) for i in range(len(points(name)))]
        assert len(recipes) == len(set(recipes)) == 4, name
        assert sorted(recipe.learning_rate for recipe in recipes) == [0.1, 0.1, 0.3, 0.3]
        for recipe in recipes:
            assert from_record(asdict(recipe)) == recipe  # values that the options allow
            settings.add(tuple(getattr(recipe, field) for field in shared))
        own = RACE[name].parameter == "weight_decay"
        decays = {0.0005, 0.002} if own else {0.0005}  # until `train_grid` sets it
        assert {recipe.weight_decay for recipe in recipes} == decays
    assert len(settings) == 1
    # Each remedy is another one: no two are the same training.
    all_recipes = [recipe_at(name, 0, REPORTS) for name in RACE]
    assert len(set(all_recipes)) == len(all_recipes)


@pytest.mark.parametrize(
    ("changes", "counts", "epochs"),
    [
        ({}, REPORTS, 30),
        ({"sampler": "balanced"}, REPORTS, 30),
        # 30 x 5,625 draws = 168,750; over-sampled there are 3 x 4,949 = 14,847 examples.
        ({"resample": "smote"}, REPORTS, 11),
        ({"resample": "borderline-smote"}, REPORTS, 11),
        ({"resample": "random-over"}, REPORTS, 11),
        ({"resample": "random-under"}, REPORTS, 268),  # of 630: 267.9
        ({"post_hoc": "crt", "crt_epochs": 5}, REPORTS, 25),
        ({"post_hoc": "crt", "crt_epochs": 10}, REPORTS, 20),
        ({"post_hoc": "crt", "crt_epochs": 40}, REPORTS, 1),
        ({"crt_epochs": 10}, REPORTS, 30),
        ({"resample": "smote"}, (1000, 1), 15),  # 30 x 1,001 / 2,000
        ({"resample": "smote"}, (1000, *[1] * 99), 1),  # 0.3
    ],
)
def test_every_run_draws_as_many_examples(changes, counts, epochs):
    recipe = Recipe(**changes)
    assert within_budget(recipe, counts) == replace(recipe, epochs=epochs)


def test_the_budget_of_a_dry_run_is_smaller():
    assert within_budget(Recipe(resample="random-under"), (60, 20, 20), passes=2).epochs == 3
    assert recipe_at("none", 0, REPORTS, passes=2).epochs == 2


@pytest.mark.parametrize(
    ("scores", "point"),
    [
        ([0.5, 0.7, 0.6, 0.65], 1),
        ([0.5, 0.6, 0.7, 0.7], 2),  # of equals the first
        ([None, 0.2, None, 0.3], 3),
        ([0.2, None, None, None], 0),
        ([None] * 4, None),
    ],
)
def test_the_best_balanced_accuracy_on_validation_images_is_chosen(scores, point):
    def result(i, score):
        if score is None:
            return {"diverged": "the loss is not finite at step 3"}
        # The G-mean would choose otherwise.
        validation = {"balanced_accuracy": score, "g_mean": 1 - score}
        return {"diverged": None, "validation": validation}

    ended = [(Run(f"a+{i}", Recipe(), 0), result(i, score)) for i, score in enumerate(scores)]
    assert choose(ended) == Choice(tuple(scores), point)


def test_the_weight_decay_of_the_others_suits_those_without_a_parameter_better():
    """A remedy must not win because its own choice includes the better weight decay."""

    def grid(*scores_by_remedy):
        """Scores in the order of points: (0.1, 0.0005), (0.1, 0.002), (0.3, 0.0005), ..."""
        names = ("none", "random-over")
        runs = grid_runs(names, split_of(random_part((40, 20, 8))))
        return {
            name: [
                (run, {"diverged": score is None, "validation": {"balanced_accuracy": score}})
                for run, score in zip(runs[name], scores, strict=True)
            ]
            for name, scores in zip(names, scores_by_remedy, strict=True)
        }

    # none alone would choose the other one.
    chosen = choose_decay(grid((0.5, 0.6, 0.5, 0.5), (0.7, 0.6, 0.7, 0.6)))
    assert chosen == Decay(0.0005, pytest.approx((0.6, 0.575)))
    chosen = choose_decay(grid((None, 0.5, 0.5, 0.3), (0.5, 0.6, 0.8, 0.6)))
    assert chosen == Decay(0.002, pytest.approx((0.45, 0.5)))
    assert choose_decay(grid((0.5,) * 4, (0.5,) * 4)).value == 0.0005


def test_the_grid_trains_the_others_with_the_weight_decay_that_those_choose(
    tmp_path, monkeypatch
):
    selection = selection_split(split_of(random_part((40, 20, 16))))
    score_by_decay, trained = {0.0005: 0.1, 0.002: 0.2}, []

    def train_all(runs, *_, **__):
        trained.append([run.name.partition("+")[0] for run in runs][::4])
        for run in runs:
            score = score_by_decay[run.recipe.weight_decay]
            yield run, {"diverged": None, "validation": {"balanced_accuracy": score}}

    monkeypatch.setattr(race, "train_all", train_all)
    names = ["focal", "none", "crt", "random-over"]
    grid, decay = train_grid(names, selection, tmp_path, lambda *_: None, SETTINGS)
    assert trained == [["none", "random-over"], ["focal", "crt"]]
    assert list(grid) == names
    assert decay == Decay(0.002, pytest.approx((0.1, 0.2)))
    for name in ("focal", "crt"):
        assert {run.recipe.weight_decay for run, _ in grid[name]} == {0.002}
    assert [run.recipe.weight_decay for run, _ in grid["none"]] == [0.0005, 0.002] * 2


def test_the_settings_are_chosen_on_a_quarter_of_the_train_images_without_test_images():
    split = split_of(random_part((40, 20, 8)))
    selection = selection_split(split)
    assert selection.train.counts(3) == [30, 15, 6]
    assert selection.validation.counts(3) == [10, 5, 2]
    assert len(selection.test.labels) == len(selection.test.images) == 0
    assert selection.test.images.untyped_storage().nbytes() == 0  # not even out of sight
    parts = (selection.train, selection.validation)
    pixels = [{image.numpy().tobytes() for image in part.images} for part in parts]
    assert pixels[0] | pixels[1] == {image.numpy().tobytes() for image in split.train.images}
    assert not pixels[0] & pixels[1]
    # Other test images leave the grid as it is; other train images do not.
    others = split_of(split.train, random_part((5, 5, 5), seed=2))
    assert selection_split(others).record() == selection.record()
    others = split_of(random_part((40, 20, 8), seed=3))
    assert selection_split(others).record() != selection.record()


def test_images_that_belong_together_stay_on_one_side():
    part = random_part((40, 20, 8))
    groups = torch.arange(68) // 2  # pairs
    chosen = selection_split(split_of(part, train_groups=groups)).validation
    held_out = {image.numpy().tobytes() for image in chosen.images}
    sides = [image.numpy().tobytes() in held_out for image in part.images]
    assert sides[::2] == sides[1::2]
    assert sum(sides) == 17 - 1  # of 10, 5 and 2 images 5 is no number of pairs


@pytest.mark.parametrize(("counts", "grouped"), [((40, 20, 1), False), ((40, 20, 4), True)])
def test_too_few_images_to_choose_on_are_refused(counts, grouped):
    part = random_part(counts)
    # All images of the last class are in one group, each other image is in one of its own.
    groups = torch.where(part.labels == 2, 7, torch.arange(1000, 1000 + sum(counts)))
    split = split_of(part, train_groups=groups) if grouped else split_of(part)
    with pytest.raises(InputError, match=r"^race: .*at least 4 of each class"):
        selection_split(split)


def test_remedies_that_need_more_images_are_left_out():
    split = split_of(random_part((60, 40, 14)))  # 10 or 11 of the 14 are left to train on
    selection = selection_split(split)
    assert selection.train.counts(3)[2] in (10, 11)
    few = split_of(random_part((60, 40, 12)))
    found = impossible(REMEDIES, selection_split(few), few)
    assert list(found) == ["smote", "borderline-smote"]
    assert found["smote"].endswith(
        "too few images for 10 neighbours (training images of cat: 9)"
    )
    assert impossible(["none", "focal"], selection_split(few), few) == {}


def test_a_remedy_without_anything_to_resample_is_left_out():
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([60, 40, 32]))
    images = random_part((132,)).images // 8 + (90 * labels[:, None, None, None]).byte()
    split = split_of(LabelledImages(images, labels))  # classes that are far from each other
    found = impossible(REMEDIES, selection_split(split), split)
    assert list(found) == ["borderline-smote"]
    assert "is borderline" in found["borderline-smote"]


def test_the_final_runs_are_those_of_the_chosen_points_on_all_train_images():
    split = split_of(random_part((400, 40, 16)))
    choices = {
        "focal": Choice((0.1, 0.2, 0.3, 0.4), 2),
        "smote": Choice((0.1, 0.4, 0.3, 0.2), 1),
        "vs": Choice((None,) * 4, None),
    }
    grid = {
        name: [
            (replace(run, recipe=replace(run.recipe, weight_decay=0.002)), {}) for run in each
        ]
        for name, each in grid_runs(list(choices), selection_split(split)).items()
    }
    runs = final_runs(choices, grid, split, range(4, 6))
    assert {name: [run.file for run in of_remedy] for name, of_remedy in runs.items()} == {
        "focal": ["focal-seed4", "focal-seed5"],
        "smote": ["smote-seed4", "smote-seed5"],
    }
    focal, smote = (runs[name][0].recipe for name in ("focal", "smote"))
    assert (focal.loss, focal.learning_rate, focal.focal_gamma) == ("focal", 0.3, 1.0)
    assert (smote.resample, smote.learning_rate, smote.neighbours) == ("smote", 0.1, 10)
    assert focal.weight_decay == smote.weight_decay == 0.002  # of the grid
    assert (focal.epochs, smote.epochs) == (30, 11)  # 30 x 456 / 1,200 = 11.4


def test_every_remedy_trains_and_its_grid_sees_no_test_image(tmp_path):
    split = load("synthetic", dry_run=True, cache=tmp_path / "cache")
    selection = selection_split(split)
    names = list(RACE)
    assert impossible(names, selection, split) == {}
    runs = grid_runs(names, selection, passes=1)
    assert list(runs) == names
    assert {len(of_remedy) for of_remedy in runs.values()} == {4}
    assert len({run.file for of_remedy in runs.values() for run in of_remedy}) == 4 * len(runs)
    small = {"width": 4, "batch_size": 25, "crt_epochs": 1, "epochs": 1}
    first = {
        name: [replace(run, recipe=replace(run.recipe, **small)) for run in of_remedy[:1]]
        for name, of_remedy in runs.items()
    }
    shown = []
    ended = train(first, selection, tmp_path, lambda *each: shown.append(each), SETTINGS)
    assert {name: [run for run, _ in each] for name, each in ended.items()} == first
    assert [(number, of) for number, of, *_ in shown] == [(i + 1, 23) for i in range(23)]
    for ((run, result),) in ended.values():
        assert (23, run, result) in [each[1:] for each in shown]
        assert result["diverged"] is None
        assert "report" not in result
        assert "test_predictions" not in result
        assert sum(map(sum, result["validation"]["confusion"])) == 25, run.name
    again = train(first, selection, tmp_path, lambda *_: None, SETTINGS)
    for ((_, result),) in again.values():
        assert "command" in result  # read from its file
        assert "test_predictions" not in result
