"""Advice from the numbers of a data set: recipes, test images that are missing, and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from common.dataset.split import LabelledImages, Split
from common.files import processor
from common.metrics.intervals import proportion_interval
from common.networks.build import build, torch_seed
from common.training.fit import flush_denormals, train_steps
from common.training.optimization import make_optimizer
from common.training.progress import Generators, TrainingState
from common.training.recipes import BEST, RECIPES

RECALL = 0.8  # assumed, of every class
WIDEST = 0.2  # interval of a recall that still says something
BALANCED, MILD = 1.5, 3.0  # imbalance ratios up to which no remedy, or a mild one, is needed
SMALL_CLASS = 100  # train images, from which a network can learn a class's features
PRETRAINED_SIZE = 64  # pixels, from which features learned on 224x224 pixels are of use
SMALL_SET = 2000  # train images in all
NEIGHBOURS = RECIPES["smote"].neighbours
RAREST = 50  # images of each class that random-under must leave
MOST_SUITED, MOST_UNSUITED = 4, 2  # recipes to name
MEASURED_SECONDS = 2.0
# Of a batch that is timed: a whole one of up to 64x64 pixels, fewer images of larger ones,
# whose time grows with their number and whose activations would take gigabytes.
MEASURED_PIXELS = BEST.batch_size * 64 * 64


class Facts(NamedTuple):
    """What the rules look at.

    ratio: images of the largest by those of the smallest train class. small: classes with
    fewer than SMALL_CLASS train images. size: of an image's side in pixels.
    """

    classes: int
    images: int
    ratio: float
    largest: str
    smallest: str
    fewest: int
    small: int
    size: int


class Rule(NamedTuple):
    """A recipe, when the rule applies, and the reason: a template of the fields of Facts.

    In the template `few` is SMALL_CLASS, and `neighbours` is NEIGHBOURS.
    """

    recipe: str
    applies: Callable[[Facts], bool]
    reason: str


# In the order of the advice; of the rules for one recipe the first that applies counts.
SUITED = (
    Rule(
        "linear-probe",
        lambda facts: facts.small > 0 and facts.size >= PRETRAINED_SIZE,
        "{small} of {classes} classes have fewer than {few} train images, too few to learn"
        " features from; it takes features learned on ImageNet and trains the last layer alone"
        " (downloads its weights once)",
    ),
    Rule(
        "linear-probe",
        lambda facts: facts.images < SMALL_SET and facts.size >= PRETRAINED_SIZE,
        "{images:,} train images are few to learn features from; it takes features learned on"
        " ImageNet and trains the last layer alone (downloads its weights once)",
    ),
    Rule(
        "resnet9",
        lambda facts: facts.ratio <= BALANCED,
        "the classes are nearly balanced ({ratio:.1f} : 1), which needs no remedy",
    ),
    Rule(
        "resnet9-logit-adjusted",
        lambda facts: BALANCED < facts.ratio <= MILD,
        "a mild imbalance ({ratio:.1f} : 1) is corrected by the loss alone",
    ),
    Rule(
        "best",
        lambda facts: facts.ratio > MILD,
        "its square-root sampler and logit-adjusted loss are made for an imbalance such as"
        " {ratio:.1f} : 1",
    ),
    Rule(
        "linear-probe",
        lambda facts: facts.small > 0 or facts.images < SMALL_SET,
        "{images:,} train images, {small} of {classes} classes with fewer than {few}, are few"
        " to learn features from; but those learned on ImageNet need larger images than"
        " {size} x {size}: add --image-size 128",
    ),
    Rule(
        "sampler",
        lambda facts: facts.ratio > MILD,
        "balanced draws show {smallest} as often as {largest}: the simplest remedy, to compare"
        " with",
    ),
    Rule(
        "original",
        lambda facts: True,
        "no remedy and the reports' small network: what the others must be better than",
    ),
)
UNSUITED = (
    Rule(
        "smote",
        lambda facts: facts.fewest <= NEIGHBOURS and facts.ratio > BALANCED,
        "draws between an image and its {neighbours} nearest neighbours; {smallest} has"
        " {fewest} images",
    ),
    Rule(
        "smote",
        lambda facts: facts.size > 32 and facts.ratio > BALANCED,
        "the mean of two photographs of {size} x {size} pixels is no photograph, and all new"
        " images lie in memory",
    ),
    Rule(
        "random-under",
        lambda facts: facts.fewest < RAREST and facts.ratio > BALANCED,
        "would leave {fewest} images of each class, as many as {smallest} has",
    ),
)


@dataclass(frozen=True)
class Advice:
    """What is printed at the end of stage 1.

    facts: of the train images. suited, unsuited: (recipe, reason). too_few: (class, test
    images, width of the interval of its recall) of each class with a width above WIDEST.
    enough: the fewest test images of a class whose interval is narrow enough. best: the time
    that the recipe takes, see `time_of_best`.
    """

    facts: Facts
    suited: list[tuple[str, str]]
    unsuited: list[tuple[str, str]]
    too_few: list[tuple[str, int, float]]
    enough: int
    best: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return the numbers, for a result file."""
        rows = [
            dict(zip(("class", "images", "width"), row, strict=True)) for row in self.too_few
        ]
        numbers = {"facts": self.facts._asdict(), "too_few_test_images": rows}
        return asdict(self) | numbers | {"recall": RECALL, "widest": WIDEST}


def advise(split: Split, device: torch.device, seconds: float = MEASURED_SECONDS) -> Advice:
    """Return the advice for a split. seconds: about how long training steps are measured."""
    facts = facts_of(split)
    test = zip(split.classes, split.test.counts(len(split.classes)), strict=True)
    rows = [(name, n, recall_width(n)) for name, n in test]
    return Advice(
        facts=facts,
        suited=apply(SUITED, facts)[:MOST_SUITED],
        unsuited=apply(UNSUITED, facts)[:MOST_UNSUITED],
        too_few=[row for row in rows if row[2] > WIDEST],
        enough=enough_images(),
        best=time_of_best(split, device, seconds),
    )


def facts_of(split: Split) -> Facts:
    """Return the facts of the train images of a split, each class of which has some."""
    counts = split.train.counts(len(split.classes))
    largest, smallest = (counts.index(pick(counts)) for pick in (max, min))
    return Facts(
        classes=len(counts),
        images=sum(counts),
        ratio=counts[largest] / counts[smallest],
        largest=split.classes[largest],
        smallest=split.classes[smallest],
        fewest=counts[smallest],
        small=sum(n < SMALL_CLASS for n in counts),
        size=split.image_size,
    )


def apply(rules: Sequence[Rule], facts: Facts) -> list[tuple[str, str]]:
    """Return (recipe, reason) of the rules that apply, in their order, each recipe once."""
    values = facts._asdict() | {"few": SMALL_CLASS, "neighbours": NEIGHBOURS}
    found: dict[str, str] = {}
    for rule in rules:
        if rule.recipe not in found and rule.applies(facts):
            found[rule.recipe] = rule.reason.format(**values)
    return list(found.items())


def recall_width(images: int) -> float:
    """Return the width of the 95% interval of a recall of RECALL on so many images.

    >>> round(recall_width(23), 3), recall_width(0)
    (0.316, 1.0)
    """
    low, high = proportion_interval(RECALL * images, images)
    return high - low


def enough_images() -> int:
    """Return the fewest images of a class on which the interval is not wider than WIDEST."""
    images = 1
    while recall_width(images) > WIDEST:
        images += 1
    return images


def time_of_best(split: Split, device: torch.device, seconds: float) -> dict[str, Any]:
    """Return how long the recipe `best` takes on these train images and this machine.

    Training steps are measured for about so many seconds, at least one of them; the first,
    which also allocates, is not counted. The time of a step is taken to grow with its images.
    The global random state stays as it was.
    """
    recipe, n, classes = BEST, len(split.train.labels), len(split.classes)
    batch = min(recipe.batch_size, max(1, MEASURED_PIXELS // split.image_size**2))
    # Every class is there, whose share the loss needs; which images are does not matter.
    size = batch * -(-max(classes, 2 * batch) // batch)
    images = split.train.images[[i % n for i in range(size)]]
    examples = LabelledImages(images, torch.arange(size) % classes)
    measured = replace(recipe, batch_size=batch)
    network = build(recipe.network, recipe.network_arguments(classes, split.image_size))
    network.to(device, memory_format=torch.channels_last)
    optimizer = make_optimizer(measured, network)
    # Without a scheduler, which would end after the steps of a whole training.
    state = TrainingState(network, optimizer, None, Generators(0, device))
    steps = 0
    with torch_seed(0, device), flush_denormals():
        training = train_steps(examples, measured, state, device=device)
        next(training).item()  # waits for the device
        start = time.perf_counter()
        while steps == 0 or time.perf_counter() - start < seconds:
            next(training).item()
            steps += 1
        per_image = (time.perf_counter() - start) / (steps * batch)
    return {
        "seconds": per_image * n * recipe.epochs,
        "epochs": recipe.epochs,
        "steps_per_epoch": -(-n // recipe.batch_size),
        "seconds_per_image": per_image,
        "measured_steps": steps,
        "measured_batch": batch,
        "processor": processor(str(device)),
        "threads": torch.get_num_threads(),
    }
