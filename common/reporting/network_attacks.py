"""What all checkpoints of adversarial.py are attacked with, and the report on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from common.attacks import robustness
from common.attacks.ensemble import Budget
from common.attacks.robustness import AttackCurve
from common.attacks.strength import Strength, measure_strength
from common.attacks.table import Settings
from common.attacks.transfer import Transfer
from common.dataset.split import LabelledImages
from common.metrics.intervals import proportion_interval
from common.reporting.attack_tables import curve_text
from common.reporting.strength_tables import (
    MASKED,
    ensemble_text,
    smallest_noise_text,
    strength_record,
)


class NetworkAttacks(NamedTuple):
    """What was measured of one network.

    curves: of the table's attacks, by name. strengths: by norm, "linf" and "l2".
    """

    curves: dict[str, AttackCurve]
    strengths: dict[str, Strength]


def attack_network(
    network: nn.Module,
    test: LabelledImages,
    classes: Sequence[str],
    settings: Settings,
    budget: Budget,
    ensemble_epsilons: dict[str, Sequence[float]],
    show: Callable[[str], None],
) -> NetworkAttacks:
    """Attack a network with the table's attacks, the ensemble and the smallest noise.

    test: images as `to_attack` returns them. settings: of the table's attacks. budget,
    ensemble_epsilons: of the ensemble; the epsilons by norm, of "linf" in 1/255. show: is
    called with each table when it is ready.
    """
    curves, strengths = {}, {}
    for curve in robustness.attack_curves(network, *test, classes, settings):
        curves[curve.name] = curve
        show(curve_text(curve))
    for norm, epsilons in ensemble_epsilons.items():
        unit = 1 / 255 if norm == "linf" else 1
        strengths[norm] = measure_strength(
            network, *test, classes, norm=norm, budget=budget, seed=settings.seed,
            epsilons={f"{e:g}": e * unit for e in epsilons},
        )  # fmt: skip
        for epsilon in strengths[norm].results:
            show(ensemble_text(strengths[norm], epsilon, budget))
    if any(strength.masked() for strength in strengths.values()):
        show(MASKED)
    show(smallest_noise_text(list(strengths.values()), test.labels, classes))
    return NetworkAttacks(curves, strengths)


def attack_record(
    attacks: dict[str, NetworkAttacks],
    transferred: dict[str, dict[str, Transfer]],
    noises: dict[str, dict[str, Any]],
    universals: dict[str, dict[str, Any]],
    labels: torch.Tensor,
    classes: Sequence[str],
) -> dict[str, Any]:
    """Return every number of the tables, for a result file.

    attacks: by network. transferred: from `transfer`. labels (N,): of the test images.
    """
    return {
        "curves": {
            network: {name: curve.as_dict() for name, curve in measured.curves.items()}
            for network, measured in attacks.items()
        },
        "strength": {
            network: {
                norm: strength_record(strength, labels, classes)
                for norm, strength in measured.strengths.items()
            }
            for network, measured in attacks.items()
        },
        "transfer": {
            made_on: {
                tried_on: {
                    **t._asdict(),
                    "share": t.share(),
                    "interval": proportion_interval(*t) if t.images else None,
                }
                for tried_on, t in row.items()
            }
            for made_on, row in transferred.items()
        },
        "noise": noises,
        "universal": {
            name: {
                part: values | {"report": values["report"].as_dict()}
                for part, values in measured.items()
            }
            for name, measured in universals.items()
        },
    }
