"""The stages of the results page: which files belong to each, and what its figures show."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from common.reporting import page_tables
from common.reporting.page_tables import Record, Table


class Stage(NamedTuple):
    """A stage of the project.

    anchor: its place in the page. command: what makes its results. sections: the title of a
    section by the beginning of its files' names, the longest of which counts. figures: what
    kind of picture a figure is and what it shows, by the end of its file's name; "" stands for
    any other end. tables: makes the tables of a record.
    """

    anchor: str
    title: str
    sentence: str
    command: str
    sections: dict[str, tuple[str, str]]
    figures: dict[str, tuple[str, str]]
    tables: Callable[[Record], list[Table]]


CONFUSION = ("Matrix", "Confusion matrix: true classes in rows, predictions in columns.")
STAGES = (
    Stage(
        "data", "The data",
        "What the images are, how many there are of each class, and what is wrong with them.",
        "python inspect_data.py",
        {"inspect_data": ("The images: {}", "The images")},
        {
            "counts": ("Bar chart", "Images of each class, in each part of the data."),
            "shares": ("Pie charts", "The share of each class, in each part of the data."),
            "samples": ("Pictures", "The first train images of each class."),
            "order": ("Chart", "The classes of the train images, in their order."),
            "statistics": ("Chart", "Brightness and contrast of each train image."),
            "outliers": ("Pictures", "The train images of the most unusual brightness or"
                         " contrast."),
            "duplicates": ("Pictures", "Pairs of images that are equal, or nearly."),
            "joint": ("Matrix", "Given and true labels, as the label audit estimates them."),
            "suspects": ("Pictures", "Train images whose label may be wrong."),
        },
        page_tables.data_tables,
    ),
    Stage(
        "evaluation", "Evaluation",
        "How each network does on the test images, class by class. The fewer images a class"
        " has, the wider are its intervals.",
        "python evaluate.py",
        {"evaluate": ("Network {}", "Networks compared")},
        {
            "confusion": CONFUSION,
            "confusions": ("Matrices", "Confusion matrices of all networks, side by side."),
            "calibration": ("Chart", "Calibration: how often the network is right, by the"
                            " probability that it gives."),
            "precision_recall": ("Chart", "Precision and recall of each class, at every"
                                 " threshold."),
            "errors": ("Pictures", "The most confident errors, by true class."),
        },
        page_tables.evaluation_tables,
    ),
    Stage(
        "recipes", "Recipes compared",
        "Remedies against imbalance, each trained by itself and all compared on the same test"
        " images.",
        "python train.py",
        {
            "train_comparison": ("Comparison: {}", "Comparison"),
            "race": ("Race: {}", "Race"),
            "train": ("Training of {}", "Training"),
        },
        {
            "loss": ("Chart", "Training loss by epoch."),
            "counts": ("Bar chart", "Training examples of each class, and those of one epoch."),
            "confusion": CONFUSION,
            "": ("Chart", "A dot and a 95% interval for each recipe, the best at the top."),
        },
        page_tables.recipe_tables,
    ),
    Stage(
        "learning-rates", "Learning rates",
        "One recipe trained at several learning rates, which are judged on validation images.",
        "python lr_sweep.py",
        {"lr_sweep": ("Learning rates of {}", "Learning rates")},
        {
            "loss": ("Chart", "Training loss by epoch, at all learning rates."),
            "each": ("Charts", "Training loss by epoch, each learning rate by itself."),
            "validation": ("Chart", "Loss and G-mean on the validation images, by learning"
                           " rate."),
            "": ("Chart", "Training loss while the learning rate grows from step to step."),
        },
        page_tables.learning_rate_tables,
    ),
    Stage(
        "attacks", "Attacks",
        "How little noise changes a network's answer. Epsilon is the most that a value of a"
        " pixel may change, in 1/255 of its range; in L2 it is the length of the whole noise.",
        "python adversarial.py",
        {"adversarial": ("Attacks on {}", "Attacks")},
        {
            "epsilon": ("Chart", "Accuracy and balanced accuracy by attack and epsilon."),
            "radius": ("Chart", "The recall that is left of each class, by epsilon."),
            "networks": ("Chart", "The networks under PGD, by epsilon."),
            "transfer": ("Matrix", "Images made on one network and tried on another."),
            "tradeoff": ("Chart", "Share of images fooled, and the noise that it takes, by the"
                         " weight of the noise."),
            "fgsm": ("Pictures", "FGSM: the image, the noise and the result."),
            "noise": ("Pictures", "Noise that was optimised for each image."),
            "universal": ("Pictures", "One noise for all images."),
        },
        page_tables.attack_tables,
    ),
)  # fmt: skip
