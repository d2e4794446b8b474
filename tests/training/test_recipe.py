"""Recipes: contradictions, limits and names."""

import itertools
import json
import math
from dataclasses import asdict, replace

import pytest
import torch
from conftest import random_part

from common.dataset.split import make_split
from common.errors import InputError
from common.training import recipes
from common.training.recipe import FIELDS, NEEDS, Recipe
from common.training.recipe_record import from_record
from common.training.recipes import RECIPES
from common.training.run import Run, train_together

PART = random_part((6, 4, 3))
SPLIT = make_split(PART, PART, ("car", "truck", "cat"), "random", 0)


TORCHVISION = {"network": "torchvision:resnet18"}
FROZEN = TORCHVISION | {"frozen": True, "pretrained": True}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 8}, "--network resnet9"),
        ({"loss": "ldam"}, "--classifier cosine"),
        ({"optimizer": "adamw", "nesterov": True}, "--optimizer sgd"),
        ({"sampler": "weighted"}, "--sampler-weights"),
        ({"sampler_weights": (1.0, 2.0, 3.0)}, "--sampler weighted"),
        ({"loss": "focal", "label_smoothing": 0.1}, "--loss focal"),
        ({"loss": "label-aware-smoothing", "label_smoothing": 0.1}, "--loss label-aware-s"),
        ({"nesterov": True, "momentum": 0.0}, "--momentum above 0"),
        ({"sam_class_weighted": True}, "--sam above 0"),
        ({"sam": 0.1, "sam_class_weighted": True, "class_weights": "inverse"}, "both passes"),
        ({"max_norm": 1.0, "classifier": "cosine"}, "--max-norm: .* no length"),
        ({"crt_loss": "label-aware-smoothing"}, "only --post-hoc crt"),
        ({"adversarial": 4.0, "mix": "cutmix"}, "--mix cutmix"),
        ({"trades": 6.0}, "--trades: it needs an --adversarial above 0"),
        ({"loss": "logit-adjusted", "post_hoc": "logit-adjustment"}, "corrects .* twice"),
        ({"loss": "balanced-softmax", "post_hoc": "logit-adjustment"}, "corrects .* twice"),
        ({"loss": "vs", "post_hoc": "logit-adjustment"}, "--loss vs .* corrects .* twice"),
        ({"classifier": "cosine", "post_hoc": "tau-normalisation"}, "no length"),
        ({"network": "resnet18"}, "none of that name; give simple-cnn, .*torchvision:NAME or"),
        ({"network": ""}, "none of that name"),
        ({"network": "torchvision:"}, "none of that name"),
        ({"network": "a/b:c"}, "none of that name"),
        ({"pretrained": True}, "simple-cnn has no published weights; give --no-pre"),
        ({"network": "a:b", "pretrained": True}, "a:b has no published weights"),
        ({"weights": "file.pth"}, "simple-cnn takes no weights from a file"),
        (TORCHVISION | {"weights": ""}, "--weights: the value is empty"),
        (TORCHVISION | {"weights": "a", "pretrained": True}, "give --no-pretrained$"),
        ({"frozen": True}, "the features of simple-cnn are those of random weights"),
        (TORCHVISION | {"frozen": True}, "resnet18 are those of random weights"),
        (FROZEN | {"augment": ("flip", "crop", "colour")}, "leave --augment crop colour out"),
        (FROZEN | {"mix": "cutmix"}, "take --mix mixup"),
        (FROZEN | {"adversarial": 4.0}, "leave --adversarial out"),
        (FROZEN | {"width": 8}, "--network resnet9"),
    ],
)
def test_contradicting_options_are_named(options, words):
    with pytest.raises(InputError, match=words):
        Recipe(**options)


@pytest.mark.parametrize(
    "options",
    [
        FROZEN | {"augment": ("flip",), "mix": "mixup", "copies": 2, "ema": 0.9, "patience": 3},
        FROZEN | {"resample": "smote", "classifier": "cosine", "loss": "ldam"},
        TORCHVISION | {"frozen": True, "weights": "file.pth", "post_hoc": "crt"},
        {"network": "a.b:c", "frozen": True},
        {"network": "a.b:c", "weights": "file.pth"},
        {"sam": 0.1, "adversarial": 4.0, "optimizer": "adamw", "max_norm": 1.0},
        # Deferred weights: until they apply, only the first pass has weights.
        {
            "sam": 0.1,
            "sam_class_weighted": True,
            "class_weights": "inverse",
            "reweight_from": 0.8,
        },
    ],
)
def test_what_goes_together_is_a_recipe_and_its_record_too(options):
    recipe = Recipe(**options)
    assert from_record(json.loads(json.dumps(asdict(recipe)))) == recipe


def test_only_networks_that_depend_on_the_size_have_it_among_their_arguments():
    for network, depends in (
        ("simple-cnn", True), ("resnet9", False), ("torchvision:resnet18", False), ("a:b", True)
    ):  # fmt: skip
        recipe = Recipe(network=network, flip_average=True)
        usual = {"classes": 5, "classifier": "linear", "flip_average": True}
        if network == "resnet9":
            usual["early_pool"] = True  # of new networks
        assert recipe.network_arguments(5) == recipe.network_arguments(5, 32) == usual
        other = usual | {"image_size": 64} if depends else usual
        assert recipe.network_arguments(5, 64) == other


def test_the_option_that_needs_the_last_layer_is_named():
    found = [
        Recipe(network="a:b", **options).head_option()
        for options in (
            {}, {"frozen": True}, {"classifier": "cosine"}, {"max_norm": 1.0},
            {"post_hoc": "crt"},
        )
    ]  # fmt: skip
    assert found == [
        None, "--frozen", "--classifier cosine", "--max-norm", "--post-hoc crt"
    ]  # fmt: skip


# A number of a recipe, and the other options with which it has an effect. Left out are numbers
# whose upper limit only keeps the time or the memory in bounds.
EFFECTIVE = {
    "batch_size": [{}, {"mix": "cutmix"}, {"network": "resnet9"}, {"schedule": "one-cycle"}],
    "learning_rate": [
        {"weight_decay": 1e6}, {"optimizer": "adamw", "weight_decay": 1e6}, {"nesterov": True},
        {"schedule": "one-cycle"}, {"schedule": "cosine"}, {"ema": 0.9},
    ],
    "momentum": [{}],
    "weight_decay": [{}, {"optimizer": "adamw"}],
    "step_epochs": [{"schedule": "step"}],
    "step_factor": [{"schedule": "step", "step_epochs": 1}],
    "warm_up": [{"schedule": "one-cycle"}],
    "ema": [{}],
    "sam": [{}, {"network": "resnet9"}, {"optimizer": "adamw"}, {"mix": "mixup"}],
    "sam_from": [{"sam": 0.1}],
    "max_norm": [{}],
    "sampler_weights": [
        {"sampler": "weighted", "loss": "logit-adjusted", "tau": 10.0},
        {"sampler": "weighted", "post_hoc": "logit-adjustment", "tau": 10.0},
    ],
    "mix_share": [{"mix": "mixup"}],
    "mix_alpha": [{"mix": "mixup"}, {"mix": "cutmix"}],
    "adversarial": [{"adversarial_steps": 1}],
    "trades": [{"adversarial": 8.0, "adversarial_steps": 1}],
    "focal_gamma": [{"loss": "focal", "class_weights": "inverse"}],
    "margin": [{"loss": "ldam", "classifier": "cosine"}],
    "tau": [{"loss": "logit-adjusted"}, {"post_hoc": "tau-normalisation"}],
    "vs_gamma": [{"loss": "vs"}],
    "label_smoothing": [{"loss": "balanced-softmax"}],
    "smoothing_head": [{"loss": "label-aware-smoothing"}],
    "smoothing_tail": [{"loss": "label-aware-smoothing"}],
    "beta": [{"class_weights": "effective-number"}],
    "reweight_from": [{"class_weights": "inverse"}],
}  # fmt: skip


def trained(recipe):
    """Return the result and the checkpoint's arguments of a run of this recipe."""
    settings = {"device": "cpu", "threads": 1, "deterministic": False}
    return train_together([Run("x", recipe, 0)], SPLIT, **settings)[0]


@pytest.mark.parametrize("name", EFFECTIVE)
def test_a_number_at_its_limits_trains_or_diverges(name):
    """No number within its limits leaves the range of a float."""
    limits = FIELDS[name].metadata
    low = limits["least"] if "least" in limits else math.nextafter(limits["above"], 1)
    high = limits["most"] if "most" in limits else math.nextafter(limits["below"], 0)
    for value, others in itertools.product((low, high), EFFECTIVE[name]):
        given = (value, high, low) if name == "sampler_weights" else value
        recipe = Recipe(**{"epochs": 2, **others, name: given})
        result, checkpoint = trained(recipe)
        if not result["diverged"]:
            weights = checkpoint["network"].state_dict().values()
            assert all(weight.isfinite().all() for weight in weights), recipe
        else:
            assert (name, value) in (("learning_rate", 1e30), ("weight_decay", 1e6)), recipe


@pytest.mark.parametrize("name", NEEDS)
def test_a_field_without_what_it_needs_changes_no_bit(name):
    plain = Recipe(epochs=2, learning_rate=0.01, optimizer="adamw")
    default = getattr(plain, name)
    changed = replace(plain, **{name: 7 if isinstance(default, int) else 0.25})
    assert plain != changed
    assert changed.needs(name)
    assert plain.training() == changed.training()
    first, other = (trained(each)[1] for each in (plain, changed))
    for key, value in first["network"].state_dict().items():
        assert torch.equal(other["network"].state_dict()[key], value), key


def test_the_reports_recipes():
    """Batch 4, ten epochs (final: twenty), SGD 0.001, momentum 0.9, and one remedy each."""
    sgd = {"optimizer": "sgd", "learning_rate": 0.001, "momentum": 0.9}
    for name, recipe in recipes.REPORT_A.items():
        usual = sgd | {"network": "simple-cnn", "batch_size": 4}
        usual["epochs"] = 20 if name == "final" else 10
        assert asdict(recipe).items() >= usual.items(), name
    assert RECIPES["final-all-data"] == replace(RECIPES["final"], train_on_test=True)
    assert RECIPES["naive-100"].epochs == 100


def test_titles_name_the_changes_and_are_unique():
    changed = replace(RECIPES["tuned"], learning_rate=0.005, augment=("flip", "crop"))
    assert (
        recipes.variant_name("tuned", changed) == "tuned+learning-rate=0.005+augment=flip,crop"
    )
    assert recipes.variant_name("tuned", RECIPES["tuned"]) == "tuned"
    names = {recipes.variant_name("original", recipe) for recipe in RECIPES.values()}
    assert len(names) == len(set(RECIPES.values()))


def test_an_unknown_name_offers_the_most_similar():
    with pytest.raises(InputError, match=r"'smot': .*smote"):
        recipes.select(["smot"], {})
