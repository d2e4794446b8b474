"""Names of variants, and the recipes that start from published weights."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import InputError
from common.training.recipes import LINEAR_PROBE, RECIPES, select, variant_name


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "linear-probe"),
        (
            {"network": "torchvision:resnet18", "pretrained": False, "weights": "/home/a/w.pt"},
            "linear-probe+network=resnet18+pretrained=False+weights=w.pt",
        ),
        (
            {"network": "my.nets:wide", "pretrained": False, "weights": "my weights/w*?.pt"},
            "linear-probe+network=wide+pretrained=False+weights=w--.pt",
        ),
        ({"weight_decay": 1e-05, "augment": ()}, "linear-probe+weight-decay=1e-05+augment="),
    ],
)
def test_a_variant_has_a_name_that_a_file_can_have(changes, name):
    assert variant_name("linear-probe", replace(LINEAR_PROBE, **changes)) == name


def test_a_remedy_of_the_race_is_told_from_a_recipe():
    with pytest.raises(InputError, match=r"train\.py resnet9 --loss vs --tau"):
        select(["vs"], {})
    assert select(["mixup"], {})  # also a recipe, of the reports' network


def test_the_linear_probe_trains_a_balanced_head_on_published_features():
    (recipe,) = select(["linear-probe"], {}).values()
    assert recipe == RECIPES["linear-probe"]
    assert recipe.frozen
    assert recipe.pretrained
    assert recipe.flip_average
    assert recipe.augment == ("flip",)
    assert recipe.loss == "logit-adjusted"
    (changed,) = select(["linear-probe"], {"loss": "focal", "resample": "smote"}).values()
    assert changed == replace(recipe, loss="focal", resample="smote")
