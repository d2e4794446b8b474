"""The race: the settings of each remedy are chosen on validation images, then it is tested.

Three phases, each through `runs.train_all`. The grid trains each remedy at each of its points,
on a split that has no test images: first the remedies without a parameter of their own, which
choose the weight decay of the others, then these. The finals train each remedy at its chosen
point on all train images, with several seeds.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from common.dataset.load import hold_out
from common.dataset.split import Split
from common.errors import InputError
from common.training.recipe import Recipe, option_name
from common.training.recipes import RACE, RACE_RATES, RESNET, WEIGHT_DECAYS
from common.training.resampling import check_class_counts, make_examples
from common.training.runs import Run, train_all

HELD_OUT = 0.25  # share of the train images that the settings are chosen on
GRID_SEED = 0
PASSES = RESNET.epochs  # the budget of a run, in epochs over the train images

Ended = dict[str, list[tuple[Run, dict[str, Any]]]]  # by remedy: runs with their results


class Choice(NamedTuple):
    """The grid of one remedy.

    scores: the balanced accuracy on the validation images at each of `points`; None: diverged.
    point: the position of the chosen point, None if all diverged.
    """

    scores: tuple[float | None, ...]
    point: int | None


class Decay(NamedTuple):
    """The weight decay of the remedies with a parameter of their own.

    scores: of each of WEIGHT_DECAYS the mean balanced accuracy of the remedies without one.
    """

    value: float
    scores: tuple[float, ...]


def points(name: str) -> list[tuple[float, float]]:
    """Return the grid of a remedy: (learning rate, value of its own hyper-parameter) pairs."""
    return list(itertools.product(RACE_RATES, RACE[name].values))


def recipe_at(name: str, point: int, counts: Sequence[int], passes: int = PASSES) -> Recipe:
    """Return the recipe of a remedy at a point of its grid, within the budget of the race.

    counts, passes: see `within_budget`.
    """
    recipe, parameter, _ = RACE[name]
    rate, value = points(name)[point]
    recipe = replace(recipe, learning_rate=rate, **{parameter: value})
    return within_budget(recipe, counts, passes)


def within_budget(recipe: Recipe, counts: Sequence[int], passes: int = PASSES) -> Recipe:
    """Return the recipe with as many epochs as draw `passes` times the number of train images.

    counts: train images per class. An epoch draws each example once, and over- and
    under-sampling change the number of examples. The epochs of crt, on balanced draws, count
    too. The number of epochs is rounded, and at least 1. (Classes that borderline-smote leaves
    as they are make its draws fewer.)
    """
    images = sum(counts)
    over, under = max(counts) * len(counts), min(counts) * len(counts)
    examples = {"none": images, "random-under": under}.get(recipe.resample, over)
    if recipe.post_hoc == "crt":
        passes -= recipe.crt_epochs
    return replace(recipe, epochs=max(1, round(passes * images / examples)))


def selection_split(split: Split) -> Split:
    """Return the split to choose on: with HELD_OUT of the train images, without test images.

    Its fingerprint does not depend on the test images either: with others, the grid stays.
    Raises InputError if a class has too few images.
    """
    try:
        chosen = hold_out(split, HELD_OUT)
    except InputError:
        raise InputError(
            "race: chooses on a quarter of the train images, and a class has too few for that;"
            f" give at least {round(1 / HELD_OUT)} of each class, not all of them in one group"
        ) from None
    none = split.test.select(torch.arange(0))  # a slice would bring the images along
    fingerprint = f"{split.train_fingerprint}-{none.fingerprint()}"
    return replace(chosen, test=none, test_files=(), fingerprint=fingerprint)


def impossible(names: Sequence[str], selection: Split, split: Split) -> dict[str, str]:
    """Return those of the remedies that can't be applied to these images, with the reasons.

    They are resampling remedies: where a class has fewer images than neighbours, or no image
    of any smaller class is borderline.
    """
    reasons = {}
    for name in names:
        for each in (selection, split):
            counts = each.train.counts(len(each.classes))
            recipes = [recipe_at(name, point, counts) for point in range(len(points(name)))]
            try:
                for recipe in recipes:
                    check_class_counts(recipe, counts, each.classes)
                if recipe.resample == "borderline-smote":
                    make_examples(each.train, each.test, recipe, each.classes, GRID_SEED)
            except InputError as error:
                # What the message proposes instead is no part of the race.
                reasons[name] = str(error).partition(";")[0]
                break
    return reasons


def grid_runs(
    names: Sequence[str],
    selection: Split,
    passes: int = PASSES,
) -> dict[str, list[Run]]:
    """Return, for each of these remedies, the runs of its grid, one for each point.

    passes: see `within_budget`.
    """
    counts = selection.train.counts(len(selection.classes))
    return {
        name: [
            Run(
                f"{name}+learning-rate={rate:g}+{option_name(RACE[name].parameter)}={value:g}",
                recipe_at(name, i, counts, passes),
                GRID_SEED,
            )
            for i, (rate, value) in enumerate(points(name))
        ]
        for name in names
    }


def train(
    by_remedy: dict[str, list[Run]],
    images: Split,
    folder: Path,
    show: Callable[[int, int, Run, dict[str, Any]], None],
    settings: dict[str, Any],
) -> Ended:
    """Train the runs of a phase, and return each remedy's runs with their results.

    The results are saved, the networks are not: a phase has a hundred of them.
    show: is called as each run ends, with its number, the number of all runs, the run and its
    result. settings: of `train_all`.
    """
    runs = list(itertools.chain(*by_remedy.values()))
    result_by_run = {}
    for run, result in train_all(runs, images, folder, results_only=True, **settings):
        result_by_run[run] = result
        show(len(result_by_run), len(runs), run, result)
    return {
        name: [(run, result_by_run[run]) for run in runs] for name, runs in by_remedy.items()
    }


def train_grid(
    names: Sequence[str],
    selection: Split,
    folder: Path,
    show: Callable[[int, int, Run, dict[str, Any]], None],
    settings: dict[str, Any],
    passes: int = PASSES,
) -> tuple[Ended, Decay]:
    """Train the grid of these remedies; return each one's runs and the weight decay chosen.

    The remedies without a parameter of their own are trained first, since they choose the
    weight decay of the others. folder, show, settings: see `train`. passes: see
    `within_budget`.
    """
    first = [name for name in names if RACE[name].parameter == "weight_decay"]
    others = [name for name in names if name not in first]
    grid = train(grid_runs(first, selection, passes), selection, folder, show, settings)
    decay = choose_decay(grid)
    runs = {
        name: [
            replace(run, recipe=replace(run.recipe, weight_decay=decay.value)) for run in each
        ]
        for name, each in grid_runs(others, selection, passes).items()
    }
    grid |= train(runs, selection, folder, show, settings)
    return {name: grid[name] for name in names}, decay


def choose_decay(grid: Ended) -> Decay:
    """Return the weight decay for the remedies that have another parameter to choose.

    grid: of the remedies without one. Which of the weight decays is better depends on the
    images, and a remedy must not win because its own choice includes the better one. So the
    others take the one with the best mean balanced accuracy, over these remedies and the
    learning rates; a run that diverged counts as 0, and of equals the first is taken.
    """
    scores_by_decay: dict[float, list[float]] = {decay: [] for decay in WEIGHT_DECAYS}
    for ended in grid.values():
        for (run, _), score in zip(ended, choose(ended).scores, strict=True):
            scores_by_decay[run.recipe.weight_decay].append(score or 0.0)
    means = {decay: fmean(scores) for decay, scores in scores_by_decay.items()}
    return Decay(max(means, key=means.__getitem__), tuple(means.values()))


def choose(ended: Sequence[tuple[Run, dict[str, Any]]]) -> Choice:
    """Return the choice among the runs of a remedy's grid, with results, in their order.

    The best balanced accuracy on the validation images; of equals the first, which has the
    smaller learning rate. (The G-mean can't choose among points that all miss one class: it is
    0 for each of them.)
    """
    scores = tuple(
        None if result["diverged"] else result["validation"]["balanced_accuracy"]
        for _, result in ended
    )
    finite = [i for i, score in enumerate(scores) if score is not None]
    return Choice(scores, max(finite, key=lambda i: scores[i], default=None))


def final_runs(
    choices: dict[str, Choice],
    grid: Ended,
    split: Split,
    seeds: Sequence[int],
    passes: int = PASSES,
) -> dict[str, list[Run]]:
    """Return, for each remedy that has one, the runs of its chosen point, one for each seed."""
    counts = split.train.counts(len(split.classes))
    recipes = {
        name: within_budget(grid[name][choice.point][0].recipe, counts, passes)
        for name, choice in choices.items()
        if choice.point is not None
    }
    return {
        name: [Run(name, recipe, seed) for seed in seeds] for name, recipe in recipes.items()
    }
