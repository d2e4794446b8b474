"""Recipes: how a network is trained, as data. `RECIPES` names those of the reports and ours."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from common.options import InputError, number, positive, rate, share, whole_number


def option(default: Any, kind: Any, text: str, *choices: str, **extra: Any) -> Any:
    """A Recipe field that is also a command-line option, with its type and help."""
    if choices:
        extra["choices"] = choices
    elif kind is not bool:
        extra.setdefault("metavar", "N")
    return field(default=default, metadata={"type": kind, "help": text, **extra})


def at_least_0(text: str) -> float:
    return number(text, "a number of at least 0", lambda value: 0 <= value < float("inf"))


def up_to_1(text: str) -> float:
    return number(text, "a share from 0 to 1", lambda value: 0 <= value <= 1)


@dataclass(frozen=True)
class Recipe:
    """One way to train. The defaults are the reports' own; every field is an option."""

    # The network
    network: str = option(
        "simple-cnn", str, "network of common/models.py", "simple-cnn", "resnet9"
    )
    width: int | None = option(None, positive, "channels of resnet9's first layer; None is 16")
    classifier: str = option(
        "linear", str, "last layer; cosine: normalised, scale 30", "linear", "cosine"
    )
    flip_average: bool = option(
        False, bool, "average the logits of an image and its mirror image when testing"
    )

    # The steps
    epochs: int = option(10, positive, "passes over the examples")
    batch_size: int = option(4, positive, "examples per step")
    optimizer: str = option("sgd", str, "which optimizer", "sgd", "adamw")
    learning_rate: float = option(
        0.001, rate, "its learning rate; the greatest, with a schedule"
    )
    momentum: float = option(0.9, share, "of sgd")
    nesterov: bool = option(False, bool, "Nesterov's momentum in sgd")
    weight_decay: float = option(0.0, at_least_0, "L2 penalty of sgd, decoupled in adamw")
    schedule: str = option(
        "constant", str, "of the learning rate", "constant", "step", "cosine", "one-cycle"
    )
    step_epochs: int = option(10, positive, "epochs between two steps of schedule step")
    step_factor: float = option(0.1, rate, "what each of its steps multiplies the rate by")
    warm_up: float = option(0.3, up_to_1, "share of one-cycle in which the rate rises")
    ema: float = option(0.0, share, "decay of the weights' exponential moving average; 0: none")
    patience: int = option(
        0,
        whole_number,
        "stop after so many epochs without a better validation G-mean; 0: don't",
    )
    precision: str = option(
        "float32", str, "bfloat16: mixed precision in forward passes; auto: where it is faster",
        "auto", "float32", "bfloat16",
    )  # fmt: skip

    # What an epoch sees
    copies: int = option(0, whole_number, "transformed copies of each image, made beforehand")
    resample: str = option(
        "none", str, "new training set by imbalanced-learn",
        "none", "smote", "borderline-smote", "adasyn", "random-over", "random-under",
    )  # fmt: skip
    neighbours: int = option(
        5, positive, "nearest neighbours of smote, borderline-smote, adasyn"
    )
    train_on_test: bool = option(False, bool, "add the test images: no held-out test is left")
    sampler: str = option(
        "shuffle", str, "which examples an epoch draws",
        "shuffle", "balanced", "square-root", "progressive", "rotation", "weighted",
    )  # fmt: skip
    sampler_weights: tuple[float, ...] | None = option(
        None, rate, "class weights of sampler weighted, in label order", nargs="+"
    )
    augment: tuple[str, ...] = option(
        (), str, "of each image, at each step", "flip", "crop", "cutout", "colour", nargs="*"
    )
    mix: str = option("none", str, "mix pairs of images and labels", "none", "mixup", "cutmix")
    mix_share: float = option(0.5, up_to_1, "share of the steps that mix")
    mix_alpha: float = option(1.0, rate, "both parameters of the mixing weight's beta")

    adversarial: float = option(
        0.0, at_least_0, "train on PGD's images within this many 1/255 of each image; 0: don't"
    )
    adversarial_steps: int = option(3, positive, "PGD steps of adversarial")

    # What the loss weighs
    loss: str = option(
        "cross-entropy", str, "loss function",
        "cross-entropy", "focal", "ldam", "balanced-softmax", "logit-adjusted",
    )  # fmt: skip
    focal_gamma: float = option(2.0, at_least_0, "focusing parameter of focal")
    margin: float = option(0.5, rate, "greatest margin of ldam")
    tau: float = option(1.0, at_least_0, "strength of logit-adjusted and of post-hoc")
    label_smoothing: float = option(0.0, share, "share of each label spread over all classes")
    class_weights: str = option(
        "none", str, "weights of the loss", "none", "inverse", "effective-number"
    )
    beta: float = option(0.9999, share, "of effective-number")
    reweight_from: float = option(
        0.0, share, "share of the epochs before class weights begin (deferred re-weighting)"
    )

    # After training
    post_hoc: str = option(
        "none", str, "change the trained classifier",
        "none", "logit-adjustment", "tau-normalisation", "crt",
    )  # fmt: skip
    crt_epochs: int = option(5, positive, "epochs of crt, retraining the classifier balanced")

    def __post_init__(self) -> None:
        for wrong, remedy in (
            (
                self.width is not None and self.network != "resnet9",
                f"--width {self.width}: only --network resnet9 has a width",
            ),
            (
                self.loss == "ldam" and self.classifier != "cosine",
                "--loss ldam: its margins need normalised logits; add --classifier cosine",
            ),
            (
                self.optimizer == "adamw" and self.nesterov,
                "--nesterov: only --optimizer sgd has it",
            ),
            (
                self.loss == "focal" and self.label_smoothing > 0,
                "--label-smoothing: --loss focal can't use it; leave it out",
            ),
            (
                (self.sampler == "weighted") != (self.sampler_weights is not None),
                "--sampler weighted and --sampler-weights go together; give both or neither",
            ),
            (
                self.adversarial > 255,
                f"--adversarial {self.adversarial:g}: it counts 1/255; give 255 or less",
            ),
            (
                self.adversarial > 0 and self.mix != "none",
                f"--adversarial: mixed images have two labels; leave --mix {self.mix} out",
            ),
        ):
            if wrong:
                raise InputError(remedy)

    def network_arguments(self, classes: int) -> dict[str, Any]:
        """What the network is built with."""
        arguments = {
            "classes": classes,
            "classifier": self.classifier,
            "flip_average": self.flip_average,
        }
        return arguments if self.width is None else arguments | {"width": self.width}


ORIGINAL = Recipe()
SMOTE = replace(ORIGINAL, resample="smote")
TRANSFORMS = ("flip", "crop", "colour")
# A modern small network's usual training, without any remedy against imbalance.
RESNET = Recipe(
    network="resnet9",
    epochs=30,
    batch_size=128,
    learning_rate=0.2,
    nesterov=True,
    weight_decay=5e-4,
    schedule="one-cycle",
    precision="auto",
    augment=("flip", "crop", "cutout"),
)

# Report A's experiments, in its order: what `train.py` runs by itself.
REPORT_A = {
    "original": ORIGINAL,
    "augmentation": replace(ORIGINAL, copies=1),
    "sampler": replace(ORIGINAL, sampler="balanced"),
    "weights": replace(ORIGINAL, class_weights="inverse"),
    "augmentation+sampler": replace(ORIGINAL, copies=1, sampler="balanced"),
    "smote": SMOTE,
    "final": replace(SMOTE, epochs=20),
}
WEIGHTED = replace(ORIGINAL, sampler="weighted", sampler_weights=(1.0, 10.0, 20.0))
REPORT_B = {
    "naive-100": replace(ORIGINAL, epochs=100),
    "weight-decay": replace(ORIGINAL, weight_decay=5e-4),
    "strict-sampler": replace(ORIGINAL, sampler="rotation"),
    "weighted-sampler": WEIGHTED,
    "transforms": replace(ORIGINAL, augment=TRANSFORMS),
    "step-lr": replace(ORIGINAL, schedule="step", step_epochs=5),
    "tuned": replace(
        WEIGHTED,
        epochs=30,
        weight_decay=5e-4,
        augment=TRANSFORMS,
        schedule="step",
        step_epochs=20,
    ),
}
# One remedy of the field at a time, on the reports' own network and training.
FIELD = {
    "square-root-sampler": replace(ORIGINAL, sampler="square-root"),
    "progressive-sampler": replace(ORIGINAL, sampler="progressive"),
    "effective-number": replace(ORIGINAL, class_weights="effective-number"),
    "deferred-weights": replace(ORIGINAL, class_weights="effective-number", reweight_from=0.8),
    "focal": replace(ORIGINAL, loss="focal"),
    "ldam": replace(ORIGINAL, loss="ldam", classifier="cosine"),
    "ldam-drw": replace(
        ORIGINAL,
        loss="ldam",
        classifier="cosine",
        class_weights="effective-number",
        reweight_from=0.8,
    ),
    "balanced-softmax": replace(ORIGINAL, loss="balanced-softmax"),
    "logit-adjusted": replace(ORIGINAL, loss="logit-adjusted"),
    "post-hoc": replace(ORIGINAL, post_hoc="logit-adjustment"),
    # tau has the best validation G-mean, mean of five seeds, of 0 to 6 (README).
    "tau-normalisation": replace(ORIGINAL, post_hoc="tau-normalisation", tau=3.0),
    "crt": replace(ORIGINAL, post_hoc="crt"),
    "borderline-smote": replace(ORIGINAL, resample="borderline-smote"),
    "adasyn": replace(ORIGINAL, resample="adasyn"),
    "random-over": replace(ORIGINAL, resample="random-over"),
    "random-under": replace(ORIGINAL, resample="random-under"),
    "mixup": replace(ORIGINAL, mix="mixup", loss="balanced-softmax"),
    "cutmix": replace(ORIGINAL, mix="cutmix", loss="balanced-softmax"),
}
# The recipe that won on validation images (README): neither plain draws, which leave trucks
# and cats too few steps, nor balanced ones, which over-fit them; the loss corrects the rest.
BEST = replace(
    RESNET,
    epochs=55,
    warm_up=0.2,
    sampler="square-root",
    loss="logit-adjusted",
    augment=("flip", "crop", "cutout", "colour"),
    mix="cutmix",
    ema=0.995,
)
# Madry et al. 2018: every step trains on the images that PGD makes of its batch.
ROBUST = replace(
    RESNET,
    epochs=15,
    precision="float32",
    loss="logit-adjusted",
    adversarial=4.0,
    adversarial_steps=2,
)
RECIPES = {
    "baseline": replace(ORIGINAL, epochs=1),
    **REPORT_A,
    "final-all-data": replace(SMOTE, epochs=20, train_on_test=True),
    **REPORT_B,
    **FIELD,
    "resnet9": RESNET,
    "resnet9-logit-adjusted": replace(RESNET, loss="logit-adjusted"),
    "best": BEST,
    "robust": ROBUST,
    "best-cuda": replace(BEST, width=64, epochs=100),
}


def add_options(parser: argparse.ArgumentParser, without: str | None = None) -> None:
    """One option for each field of Recipe but `without`; a recipe's own value stands where none
    is given."""
    group = parser.add_argument_group("recipe (default of each: the recipe's own value)")
    for each in fields(Recipe):
        if each.name == without:
            parser.set_defaults(**{without: None})
            continue
        metadata = dict(each.metadata)
        default = " ".join(each.default) if isinstance(each.default, tuple) else each.default
        text = f"{metadata.pop('help')} (original: {default if default != '' else 'none'})"
        if metadata["type"] is bool:
            metadata = {"action": argparse.BooleanOptionalAction}
        group.add_argument(
            f"--{each.name.replace('_', '-')}", help=text, default=None, **metadata
        )


def differences(recipe: Recipe) -> str:
    """What sets a recipe apart from `original`, as command-line options.

    >>> differences(RECIPES["final"])
    '--epochs 20 --resample smote'
    """
    words = []
    for each in fields(Recipe):
        value = getattr(recipe, each.name)
        if value == each.default:
            continue
        option_name = each.name.replace("_", "-")
        if value is True:
            words.append(f"--{option_name}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words.append(" ".join([f"--{option_name}", *(f"{v}" for v in values)]))
    return " ".join(words)


def title(name: str, recipe: Recipe) -> str:
    """The name of a recipe, with what sets it apart from the recipe of that name.

    It names files, so that a trial doesn't replace the recipe's own.

    >>> title("smote", replace(RECIPES["smote"], epochs=20))
    'smote+epochs=20'
    """
    words = [name]
    for each in fields(Recipe):
        value = getattr(recipe, each.name)
        if value != getattr(RECIPES[name], each.name):
            values = value if isinstance(value, tuple) else (value,)
            words.append(f"{each.name.replace('_', '-')}={','.join(map(str, values))}")
    return "+".join(words)


def named(names: Sequence[str], args: argparse.Namespace) -> dict[str, Recipe]:
    """The recipes of these names, with the options that were given in place of their values.

    A dry run takes two epochs at most. Raises InputError for an unknown name, offering the
    nearest, and for options that don't go together.
    """
    given = {each.name: getattr(args, each.name) for each in fields(Recipe)}
    changes = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    chosen = {}
    for name in names:
        if name not in RECIPES:
            near = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.3) or ["--list"]
            raise InputError(f"recipe {name!r}: there is none; try {', '.join(near)}")
        recipe = replace(RECIPES[name], **changes)
        if args.dry_run:
            recipe = replace(recipe, epochs=min(recipe.epochs, 2))
        chosen[name] = recipe
    return chosen
