"""The named recipes: those of the two reports, one remedy of the field each, and our own."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from common.errors import InputError
from common.files import short_name
from common.training.recipe import Recipe, option_name

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
    "best-cuda": replace(BEST, width=64, epochs=100),
    "linear-probe": LINEAR_PROBE,
}


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
    most similar names, and for values that contradict each other.
    """
    chosen = {}
    for name in names:
        if name not in RECIPES:
            similar = difflib.get_close_matches(name, RECIPES, n=3, cutoff=0.3) or ["--list"]
            raise InputError(f"recipe {name!r}: there is none; try {', '.join(similar)}")
        recipe = replace(RECIPES[name], **changes)
        if most_epochs:
            recipe = replace(recipe, epochs=min(recipe.epochs, most_epochs))
        chosen[name] = recipe
    return chosen
