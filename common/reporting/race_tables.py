"""What the race prints: its plan, a line for each run, results, choices, published figures."""

from __future__ import annotations

from dataclasses import replace
from textwrap import fill
from typing import Any, NamedTuple

from common.dataset import CIFAR10_CLASSES
from common.dataset.class_counts import imbalanced_counts
from common.dataset.draw import DISPLAY_NAMES
from common.dataset.split import Split
from common.metrics.comparison import Comparison
from common.reporting import training_tables as tables
from common.reporting.tables import WIDTH, markdown_table, text_table
from common.training.race import PASSES, Choice, Decay, points
from common.training.recipe import Recipe, option_name
from common.training.recipe_record import command_line
from common.training.recipes import RACE, RACE_RATES, RESNET, WEIGHT_DECAYS
from common.training.runs import Run

# The settings are chosen by it, and on equally many test images of each class it is the top-1
# accuracy, the number that the field publishes.
RANKED_BY = "balanced accuracy"
UNTRACED = "quoted"
# Top-1 accuracy in % on CIFAR-10-LT at ratio 100, the remedy of the race that is the same, and
# where the number was read: the README of the authors' code, or elsewhere without its source.
PUBLISHED = {
    "cross-entropy": (70.4, "none", UNTRACED),
    "mixup": (72.8, "mixup", "dvlab-research/MiSLAS"),
    "balanced softmax": (77.5, "balanced-softmax", UNTRACED),
    "LDAM-DRW": (77.7, "ldam-drw", UNTRACED),
    "cross-entropy, DRW, SAM": (80.6, None, "val-iisc/Saddle-LongTail"),
    "MiSLAS": (82.5, "mislas", "dvlab-research/MiSLAS"),
    "BALMS with AutoAugment": (84.9, None, UNTRACED),
    "ProCo": (85.9, None, UNTRACED),
}


def race_list() -> str:
    """Return the remedies of the race, each with its own options and the values to try."""
    rates = " and ".join(f"{rate:g}" for rate in RACE_RATES)
    plain = Recipe()
    shared = replace(RESNET, learning_rate=plain.learning_rate, weight_decay=plain.weight_decay)
    heading = (
        f"The race (train.py race): each remedy at learning rates {rates} and two values of its"
        f" own hyper-parameter, with {command_line(shared)}; a remedy that lists no"
        " --weight-decay takes the value that is better for those that do, on average"
    )
    lines = [_filled(heading)]
    for name, (recipe, parameter, values) in RACE.items():
        changes = command_line(recipe, RESNET).split()
        own = [f"--{option_name(parameter)}", " or ".join(f"{value:g}" for value in values)]
        lines.append(_filled(f"{name:24}{' '.join([*changes, *own])}", " " * 24))
    return "\n".join(lines)


def plan_text(
    runs: int,
    seeds: int,
    impossible: dict[str, str],
    split: Split,
    selection: Split,
    settings: dict[str, Any],
) -> str:
    """Return what the race will train.

    runs: of the grid. seeds: of each remedy's final runs. impossible: see `left_out`.
    settings: the arguments of `train_all`.
    """
    train, validation = len(selection.train.labels), len(selection.validation.labels)
    remedies = len(RACE) - len(impossible)
    sentences = [
        *left_out(impossible),
        f"The race: {runs} runs on {train:,} train images choose the settings of each remedy on"
        f" {validation:,} others, first of the remedies without a parameter of their own, then,"
        f" with the weight decay that suits those better, of the rest; then {seeds * remedies}"
        f" runs on all {len(split.train.labels):,}. {settings['jobs']} at a time, on"
        f" {settings['device']}.",
        "Of each run that ends: number, balanced accuracy (on the validation images, then on"
        " the test images), seconds, name. A run that differs from an earlier one only in what"
        " follows the training shares its training.",
    ]
    return "\n".join(map(_filled, sentences))


def _decay_text(decay: Decay) -> str:
    """Return between which weight decays remedies choose, and which one the rest take."""
    scores = " and ".join(
        f"{score:.3f} with {value:g}"
        for value, score in zip(WEIGHT_DECAYS, decay.scores, strict=True)
    )
    return (
        "The remedies without a parameter of their own choose between two weight decays. Their"
        f" mean balanced accuracy is {scores}, so all others take {decay.value:g}."
    )


def left_out(impossible: dict[str, str]) -> list[str]:
    """Return a sentence on each remedy that can't be applied, from `race.impossible`."""
    return [f"{name} is left out: {reason}." for name, reason in impossible.items()]


def run_line(number: int, runs: int, run: Run, result: dict[str, Any]) -> str:
    """Return one line on a run that has ended, the `number`-th of `runs`."""
    # A run of the grid has no test images, a run of the finals no validation images.
    report = result.get("report") or result.get("validation")
    score = f"{report['balanced_accuracy']:.3f}" if report else "diverged"
    seconds = f"{result['seconds']:.0f}"
    if "command" in result:  # only a result that was read from its file has one
        seconds = "before"
    elif result["trained_with"]:
        seconds = "shared"
    return f"{number:{len(str(runs))}}/{runs} {score:>8} {seconds:>6} {run.file}"


def choices_text(choices: dict[str, Choice], images: int) -> str:
    """Return the choices for an 80-column screen. images: the number of validation images."""
    headers = ["remedy", "own parameter: a, b", *_titles()]
    rows = []
    for name, choice in choices.items():
        parameter, values = _own(name)
        scores = [
            f"{_score(score)}{'<' if i == choice.point else ' '}"
            for i, score in enumerate(choice.scores)
        ]
        rows.append([name, f"{parameter} {', '.join(values)}", *scores])
    sentence = (
        f"Balanced accuracy on {images:,} validation images, one seed, by learning rate"
        f" ({', '.join(f'{rate:g}' for rate in RACE_RATES)}) and value (a, b); <: chosen; -:"
        " diverged."
    )
    return f"{text_table(headers, rows, 'll' + 'r' * len(_titles()))}\n\n{_filled(sentence)}"


def choices_markdown(choices: dict[str, Choice], images: int) -> str:
    """Return the choices as a Markdown table. images: the number of validation images."""
    headers = ["remedy", "learning rate", "own parameter", "value", "a, b", *_titles()]
    rows = []
    for name, choice in choices.items():
        parameter, values = _own(name)
        rate = value = "-"
        if choice.point is not None:
            rate, value = (f"{number:g}" for number in points(name)[choice.point])
        scores = [
            f"**{_score(score)}**" if i == choice.point else _score(score)
            for i, score in enumerate(choice.scores)
        ]
        rows.append([f"`{name}`", rate, parameter, value, ", ".join(values), *scores])
    sentence = (
        f"The last columns: balanced accuracy on {images:,} validation images, one seed, by"
        " learning rate and value (a, b) of the own parameter; in bold the chosen point; -:"
        " diverged."
    )
    return f"{markdown_table(headers, rows)}\n\n{sentence}"


def notes(race: Race) -> list[str]:
    """Return how the race was run, in sentences."""
    validation, train = len(race.selection.validation.labels), len(race.split.train.labels)
    return [
        f"The settings of each remedy were chosen on {validation:,} of the {train:,} train"
        " images, a stratified part: at each point of its grid one network (seed 0) was trained"
        " on the others, and the one with the best balanced accuracy won, of equals the first."
        " (The G-mean can't rank networks that miss a class: it is 0 for each of them.)"
        f" {_decay_text(race.decay)} The tau of vs is 1.25, which public code has for"
        " CIFAR-10-LT, and was not searched; balanced-softmax is logit-adjusted with tau 1."
        " Test images played no part. For the table each remedy was trained again, on all train"
        " images.",
        "Every run has the same budget, as nearly as whole epochs allow: it draws"
        f" {race.passes} times as many examples as there are train images. An epoch of"
        " over-sampled images is longer, so there are fewer of them, and of under-sampled ones"
        " there are more. The second stage of crt and mislas is part of the budget.",
    ]


def is_cifar10_lt(split: Split) -> bool:
    """Return whether the train images are those of CIFAR-10-LT at ratio 100, unchanged."""
    names = tuple(DISPLAY_NAMES.get(name, name) for name in CIFAR10_CLASSES)
    if split.classes != names or split.changes or split.source.startswith("synthetic"):
        return False
    return split.train.counts(len(names)) == imbalanced_counts("exp", 100, 5000, len(names))


def published_rows(comparison: Comparison) -> list[list[str]]:
    """Return method, published accuracy, ours where the race has the method, and the source.

    The published one is on equally many test images of each class: a balanced accuracy.
    """
    rows = []
    for method, (accuracy, name, source) in PUBLISHED.items():
        ours = ""
        if name in comparison.summaries:
            summary = comparison.summaries[name][RANKED_BY]
            low, high = (100 * end for end in summary.interval)
            ours = f"{100 * summary.mean:.1f} [{low:.1f}, {high:.1f}]"
        rows.append([method, f"{accuracy:.1f}", ours, source])
    return rows


PUBLISHED_HEADERS = ["top-1 accuracy in %", "published", "here", "source"]


def published_note(split: Split) -> str:
    """Return what differs between the published figures and ours, and where they are from."""
    jpeg = any(file.lower().endswith((".jpg", ".jpeg")) for file in split.train_files)
    images = "JPEG images" if jpeg else "lossless images"
    return (
        "Published: ResNet-32, 200 to 400 epochs, lossless images, 10,000 test images; here:"
        f" ResNet9 of width 16, {PASSES} epochs, {images}, {len(split.test.labels):,}"
        " test images; GLMC's 87.8 is of a network 16 times as large and not in the table."
        f" Source: the authors' code on GitHub, or {UNTRACED!r}: as later work quotes it, not"
        " traced to its source."
    )


class Race(NamedTuple):
    """What both texts tell.

    comparison: None if every remedy diverged. others: sentences on the remedies that are not
    compared. passes: the budget of a run.
    """

    comparison: Comparison | None
    choices: dict[str, Choice]
    decay: Decay
    others: list[str]
    split: Split
    selection: Split
    passes: int


def race_text(race: Race) -> str:
    """Return the results for an 80-column screen, the best remedy first."""
    comparison, split = race.comparison, race.split
    parts = [f"== The race: {len(split.test.labels):,} test images =="]
    if comparison is not None:
        best_first = tables.ranked(comparison, RANKED_BY)
        parts += [tables.compared_as_text(best_first, RANKED_BY)]
        parts += [tables.legend_text(comparison, RANKED_BY)]
    parts += map(_filled, race.others)
    images = len(race.selection.validation.labels)
    parts += ["== The choices ==", choices_text(race.choices, images)]
    if comparison is not None and is_cifar10_lt(split):
        table = text_table(PUBLISHED_HEADERS, published_rows(comparison), "lrll")
        parts += ["== Published figures ==", table, _filled(published_note(split))]
    return "\n\n".join([*parts, *map(_filled, notes(race))])


def race_markdown(race: Race) -> str:
    """Return the same as Markdown."""
    comparison, split = race.comparison, race.split
    parts = []
    if comparison is not None:
        parts.append(tables.compared_as_markdown(comparison, RANKED_BY).rstrip())
    parts += [*race.others, *notes(race)]
    parts.append(choices_markdown(race.choices, len(race.selection.validation.labels)))
    if comparison is not None and is_cifar10_lt(split):
        parts.append(markdown_table(PUBLISHED_HEADERS, published_rows(comparison)))
        parts.append(published_note(split))
    return "\n\n".join(parts) + "\n"


def _own(name: str) -> tuple[str, list[str]]:
    """Return the option and the values of a remedy's own hyper-parameter."""
    _, parameter, values = RACE[name]
    return option_name(parameter), [f"{value:g}" for value in values]


def _titles() -> list[str]:
    return [f"{rate:g} {letter}" for rate in RACE_RATES for letter in "ab"]


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def _filled(text: str, indent: str = "  ") -> str:
    return fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)
