"""The named recipes: those of the two reports, one remedy of the field each, and our own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import InputError
from common.files import short_name
from common.training.recipe import Recipe, option_name
from common.training.recipe_record import command_line

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
# Cao et al. 2019.
LDAM = {"loss": "ldam", "classifier": "cosine"}
LDAM_DRW = LDAM | {"class_weights": "effective-number", "reweight_from": 0.8}
# One remedy of the field at a time, on the reports' own network and training.
FIELD = {
    "square-root-sampler": replace(ORIGINAL, sampler="square-root"),
    "progressive-sampler": replace(ORIGINAL, sampler="progressive"),
    "effective-number": replace(ORIGINAL, class_weights="effective-number"),
    "deferred-weights": replace(ORIGINAL, class_weights="effective-number", reweight_from=0.8),
    "focal": replace(ORIGINAL, loss="focal"),
    "ldam": replace(ORIGINAL, **LDAM),
    "ldam-drw": replace(ORIGINAL, **LDAM_DRW),
    "balanced-softmax": replace(ORIGINAL, loss="balanced-softmax"),
    "logit-adjusted": replace(ORIGINAL, loss="logit-adjusted"),
    "post-hoc": replace(ORIGINAL, post_hoc="logit-adjustment"),
    # Of 0 to 6 this tau had the best G-mean on validation images, mean of five seeds.
    "tau-normalisation": replace(ORIGINAL, post_hoc="tau-normalisation", tau=3.0),
    "crt": replace(ORIGINAL, post_hoc="crt"),
    "borderline-smote": replace(ORIGINAL, resample="borderline-smote"),
    "adasyn": replace(ORIGINAL, resample="adasyn"),
    "random-over": replace(ORIGINAL, resample="random-over"),
    "random-under": replace(ORIGINAL, resample="random-under"),
    "mixup": replace(ORIGINAL, mix="mixup", loss="balanced-softmax"),
    "cutmix": replace(ORIGINAL, mix="cutmix", loss="balanced-softmax"),
}
# The recipe that won in cross-validation on train images (benchmarks/best.md): neither plain
# draws, which leave trucks and cats too few steps, nor balanced ones, which over-fit them; the
# loss corrects the rest.
BEST = replace(
    RESNET,
    epochs=100,
    warm_up=0.2,
    sampler="square-root",
    loss="logit-adjusted",
    augment=("flip", "crop", "trivial-augment"),
    mix="cutmix",
    ema=0.995,
    flip_average=True,
)
# Madry et al. 2018: every step trains on adversarial images of its batch, here of one PGD step
# from a random start. benchmarks/best.md tells how these settings and tau of `robust` were
# chosen on train images.
ADVERSARIAL = replace(RESNET, epochs=60, adversarial=4.5, adversarial_steps=1, ema=0.995)
ROBUST = replace(ADVERSARIAL, loss="logit-adjusted", tau=1.5)
# Other losses against imbalance take its place here, VS loss with the tau of the race, and
# `robust-trades` adds the penalty of TRADES (Zhang et al. 2019) and takes a smaller tau: with
# that of `robust` it finds none of the attacked cars.
ROBUST_VARIANTS = {
    "robust-cross-entropy": ADVERSARIAL,
    "robust-weights": replace(ADVERSARIAL, class_weights="inverse"),
    "robust-focal": replace(ADVERSARIAL, loss="focal"),
    "robust-ldam-drw": replace(ADVERSARIAL, **LDAM_DRW),
    "robust-vs": replace(ADVERSARIAL, loss="vs", tau=1.25),
    "robust-trades": replace(ROBUST, trades=6.0, tau=1.0),
}
# A linear classifier on what a network has learnt from ImageNet: minutes on a CPU.
LINEAR_PROBE = Recipe(
    network="torchvision:mobilenet_v3_small",
    pretrained=True,
    frozen=True,
    flip_average=True,
    epochs=30,
    batch_size=128,
    optimizer="adamw",
    weight_decay=0.01,
    schedule="cosine",
    loss="logit-adjusted",
    augment=("flip",),
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
    **ROBUST_VARIANTS,
    "best-cuda": replace(BEST, width=64),
    "linear-probe": LINEAR_PROBE,
}


class Remedy(NamedTuple):
    """A remedy of the race: its recipe, and its own hyper-parameter with the values to try.

    parameter: a field of Recipe, the weight decay of a remedy that has none of its own.
    """

    recipe: Recipe
    parameter: str
    values: tuple[float, float]


WEIGHT_DECAYS = (5e-4, 2e-3)
WEIGHT_DECAY = ("weight_decay", WEIGHT_DECAYS)
EFFECTIVE_NUMBER = replace(RESNET, class_weights="effective-number")
# The race (`train.py race`): one network, each remedy of the field alone, at the same number of
# points: these learning rates times the values of its own hyper-parameter. A remedy that has
# one takes the weight decay that suits the remedies without one better, on average.
RACE_NAME = "race"  # in place of a recipe's name
RACE_RATES = (0.1, 0.3)
RACE = {
    "none": Remedy(RESNET, *WEIGHT_DECAY),
    "weights-inverse": Remedy(replace(RESNET, class_weights="inverse"), *WEIGHT_DECAY),
    "effective-number": Remedy(EFFECTIVE_NUMBER, "beta", (0.999, 0.9999)),
    "deferred-weights": Remedy(EFFECTIVE_NUMBER, "reweight_from", (0.6, 0.8)),
    "balanced-sampler": Remedy(replace(RESNET, sampler="balanced"), *WEIGHT_DECAY),
    "square-root-sampler": Remedy(replace(RESNET, sampler="square-root"), *WEIGHT_DECAY),
    "progressive-sampler": Remedy(replace(RESNET, sampler="progressive"), *WEIGHT_DECAY),
    "focal": Remedy(replace(RESNET, loss="focal"), "focal_gamma", (1.0, 2.0)),
    "ldam": Remedy(replace(RESNET, **LDAM), "margin", (0.3, 0.5)),
    "ldam-drw": Remedy(replace(RESNET, **LDAM_DRW), "margin", (0.3, 0.5)),
    "balanced-softmax": Remedy(replace(RESNET, loss="balanced-softmax"), *WEIGHT_DECAY),
    "logit-adjusted": Remedy(replace(RESNET, loss="logit-adjusted"), "tau", (0.75, 1.5)),
    # Public code trains VS loss on CIFAR-10-LT with tau 1.25 and gamma 0.15.
    "vs": Remedy(replace(RESNET, loss="vs", tau=1.25), "vs_gamma", (0.05, 0.15)),
    "post-hoc": Remedy(replace(RESNET, post_hoc="logit-adjustment"), "tau", (1.0, 1.5)),
    "tau-normalisation": Remedy(
        replace(RESNET, post_hoc="tau-normalisation"), "tau", (1.0, 2.0)
    ),
    "crt": Remedy(replace(RESNET, post_hoc="crt"), "crt_epochs", (5, 10)),
    "smote": Remedy(replace(RESNET, resample="smote"), "neighbours", (5, 10)),
    "borderline-smote": Remedy(
        replace(RESNET, resample="borderline-smote"), "neighbours", (5, 10)
    ),
    "random-over": Remedy(replace(RESNET, resample="random-over"), *WEIGHT_DECAY),
    "random-under": Remedy(replace(RESNET, resample="random-under"), *WEIGHT_DECAY),
    # Zhang et al. 2018 mix at every step.
    "mixup": Remedy(replace(RESNET, mix="mixup", mix_share=1.0), "mix_alpha", (0.2, 1.0)),
    "cutmix": Remedy(replace(RESNET, mix="cutmix"), "mix_share", (0.5, 1.0)),
    # Zhong et al. 2021: mixup with alpha 1, then a classifier with label-aware smoothing.
    "mislas": Remedy(
        replace(
            RESNET,
            mix="mixup",
            mix_share=1.0,
            post_hoc="crt",
            crt_loss="label-aware-smoothing",
        ),
        "smoothing_head",
        (0.2, 0.4),
    ),
}


def require_race_alone(
    names: Sequence[str], changes: dict[str, Any], validation: float
) -> None:
    """Raise InputError for what does not go with the race.

    names: given as recipes, the race's among them. changes: fields given as options.
    validation: the share to hold out.
    """
    others = [name for name in names if name != RACE_NAME]
    if others:
        raise InputError(
            f"race {others[0]}: the race has recipes of its own; run {others[0]} in a command"
            " by itself"
        )
    if changes:
        option = f"--{option_name(next(iter(changes)))}"
        raise InputError(
            f"{option}: the race sets the whole recipe of each remedy; leave {option} out, or"
            " name a recipe in place of race"
        )
    if validation:
        raise InputError(
            f"--validation {validation:g}: the race itself holds out a quarter of the train"
            " images; leave it out"
        )


def with_reference_first(
    recipes: dict[str, Recipe] | dict[str, Remedy], reference: str
) -> dict[str, Recipe] | dict[str, Remedy]:
    """Return recipes, or remedies, with the one first that the others are compared with.

    Raises InputError if it is none of them, or trains on the test images.
    """
    if reference not in recipes:
        names = ", ".join(recipes)
        raise InputError(f"--reference {reference}: not one of the recipes, {names}")
    chosen = recipes[reference]
    if isinstance(chosen, Recipe) and chosen.train_on_test:
        raise InputError(
            f"--reference {reference}: trains on the test images too; give another recipe"
        )
    return {reference: chosen} | recipes


def variant_name(name: str, recipe: Recipe) -> str:
    """Return the name of a recipe with what distinguishes it from the recipe of that name.

    Files have this name, so that a variant never replaces the named recipe's files. A name that
    is too long for a file is shortened, and a dash is in place of what a name can't have. Of a
    path and of a network's module only the last part is in the name.

    >>> variant_name("smote", replace(RECIPES["smote"], epochs=20))
    'smote+epochs=20'
    >>> variant_name("best", replace(RECIPES["best"], network="torchvision:resnet18"))
    'best+network=resnet18'
    """
    words = [name]
    for field_name, value in recipe.changes(RECIPES[name]).items():
        if field_name == "weights" and value is not None:
            value = Path(value).name
        if field_name == "network":
            value = value.rpartition(":")[2]
        values = value if isinstance(value, tuple) else (value,)
        words.append(f"{option_name(field_name)}={','.join(map(str, values))}")
    return short_name(re.sub(r"[^\w.,=+-]", "-", "+".join(words)))


def select(
    names: Sequence[str], changes: dict[str, Any], most_epochs: int | None = None
) -> dict[str, Recipe]:
    """Return the recipes of these names, with `changes` in place of their own values.

    most_epochs: an upper limit on the epochs. Raises InputError for an unknown name, with the
    most similar names, for values that contradict each other, and for one that does nothing to
    any of the recipes.
    """
    chosen = {}
    for name in names:
        if name in RACE and name not in RECIPES:
            words = command_line(RACE[name].recipe, RESNET)
            raise InputError(
                f"recipe {name!r}: a remedy of the race; for one run of it, train.py resnet9"
                f" {words}"
            )
        if name not in RECIPES:
            similar = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.3) or ["--list"]
            raise InputError(f"recipe {name!r}: there is none; try {', '.join(similar)}")
        recipe = replace(RECIPES[name], **changes)
        if most_epochs:
            recipe = replace(recipe, epochs=min(recipe.epochs, most_epochs))
        chosen[name] = recipe
    for field_name in changes:
        needed = [recipe.needs(field_name) for recipe in chosen.values()]
        if needed and all(needed):
            raise InputError(
                f"--{option_name(field_name)}: does nothing without {needed[0]}; leave it out,"
                " or add that"
            )
    return chosen
