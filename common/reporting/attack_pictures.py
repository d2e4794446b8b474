"""The figures of adversarial.py: which images, attacks and titles they show."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.attacks.fgsm import fgsm_per_epsilon
from common.attacks.gradients import logits_of
from common.attacks.noise_robustness import ROUNDS
from common.attacks.optimised_noise import minimise, optimise
from common.attacks.robustness import correctly_classified, noise_norms
from common.attacks.transfer import Transfer
from common.dataset.split import LabelledImages
from common.reporting.attack_figures import (
    accuracy_curves,
    noise_picture,
    noise_tradeoff,
    picture_grid,
    recall_curves,
    transfer_matrix,
)
from common.reporting.figures import spread
from common.reporting.network_attacks import NetworkAttacks
from common.reporting.tables import NAME_WIDTH, shorten
from common.reporting.training_tables import MARK_LEGEND, TRAINED_ON_TEST, marked_names

MOST_ROWS = 8  # classes in a figure of pictures
MOST_TWICE = 5  # classes with two pictures each in one row
KINDS = ("epsilon", "radius", "networks", "transfer", "tradeoff", "fgsm", "noise", "universal")
Cell = tuple[torch.Tensor, str]  # a picture (3, S, S) and its title


@dataclass(frozen=True)
class Subject:
    """The network that the figures are of, and its test images as `to_attack` returns them."""

    name: str
    network: nn.Module
    test: LabelledImages
    classes: Sequence[str]
    source: str

    def predictions(self, x: torch.Tensor) -> list[str]:
        """Return the predicted class of each image with its probability: "cat 98%"."""
        probabilities, labels = logits_of(self.network, x).softmax(1).max(1)
        return [
            f"{shorten(self.classes[k], 15)} {p:.0%}"
            for k, p in zip(labels, probabilities, strict=True)
        ]

    @cached_property
    def _is_right(self) -> torch.Tensor:
        return correctly_classified(self.network, *self.test)

    def correct_positions(self, k: int, n: int) -> list[int]:
        """Return the positions of the first n images of class k that the network gets right."""
        return (self._is_right & (self.test.labels == k)).nonzero().flatten().tolist()[:n]


def fgsm_rows(subject: Subject, epsilons: Sequence[float]) -> dict[str, list[Cell]]:
    """Return an image of each class, and what FGSM makes of it at up to three epsilons.

    Of more than MOST_ROWS classes, so many from the first to the last.
    """
    shown = sorted(e for e in epsilons if e > 0)[::-2][:3][::-1]
    rows = {}
    for k in spread(len(subject.classes), MOST_ROWS):
        at = subject.correct_positions(k, 1)
        if not at:
            continue
        x, labels = subject.test.images[at], subject.test.labels[at]
        row = [(x[0], f"original\n{subject.predictions(x)[0]}")]
        adversarial = fgsm_per_epsilon(
            subject.network, x, labels, epsilons=[e / 255 for e in shown]
        )
        for e, images in zip(shown, adversarial, strict=True):
            factor = 128 / e
            noise = noise_picture((images - x)[0], factor)
            row.append((noise, f"noise x {factor:g}\nepsilon {e:g}/255"))
            row.append((images[0], f"adversarial\n{subject.predictions(images)[0]}"))
        rows[subject.classes[k]] = row
    return rows


def noise_rows(
    subject: Subject,
    pairs: Sequence[tuple[int, int]],
    *,
    c: float | None,
    norm: str,
    steps: int,
) -> dict[str, list[Cell]]:
    """Return two images of each pair's true class, with noise optimised for its target."""
    rows = {}
    for k, target in pairs:
        at = subject.correct_positions(k, 2)
        if not at:
            continue
        x, labels = subject.test.images[at], subject.test.labels[at]
        given = (subject.network, x, labels)
        shared = {"targets": torch.full_like(labels, target), "norm": norm}
        if c is None:
            noisy = minimise(*given, steps=steps, rounds=ROUNDS, **shared)
        else:
            noisy = optimise(*given, c=c, steps=2 * steps, **shared)
        sizes = noise_norms(noisy - x)["L1"]
        before, after = subject.predictions(x), subject.predictions(noisy)
        row = []
        for i in range(len(x)):
            noise = noise_picture((noisy - x)[i], 1, grey=True)
            row += [(x[i], f"original\n{before[i]}"), (noise, f"noise\nL1 {sizes[i]:.1f}")]
            row.append((noisy[i], f"adversarial\n{after[i]}"))
        rows[f"{subject.classes[k]} to {subject.classes[target]}"] = row
    return rows


def universal_rows(
    subject: Subject, learned: dict[str, torch.Tensor | None], epsilon: float
) -> dict[str, list[Cell]]:
    """Return each noise, and the first two test images of each class with it.

    Of more than MOST_TWICE classes one image of each, at most of MOST_ROWS.
    """
    images, labels = subject.test
    n = 2 if len(subject.classes) <= MOST_TWICE else 1
    shown = spread(len(subject.classes), MOST_ROWS)
    at = torch.cat([(labels == k).nonzero().flatten()[:n] for k in shown])
    x, true = images[at], [shorten(subject.classes[k], 12) for k in labels[at]]
    rows = {}
    for name, noise in learned.items():
        factor = 0.5 if name == "unbounded" else 128 / max(epsilon, 1)
        if noise is None:
            noise, factor = torch.zeros_like(x[:1]), 1.0
        noisy = (x + noise).clamp(0, 1)
        titles = [
            f"{label} called\n{prediction}"
            for label, prediction in zip(true, subject.predictions(noisy), strict=True)
        ]
        noise_cell = (noise_picture(noise[0], factor), f"the noise\nx {factor:g}")
        rows[name] = [noise_cell, *zip(noisy, titles, strict=True)]
    return rows


def save_figures(
    prefix: str,
    subject: Subject,
    attacks: dict[str, NetworkAttacks],
    transferred: dict[str, dict[str, Transfer]],
    noises: dict[str, dict[str, Any]],
    learned: dict[str, torch.Tensor | None],
    *,
    pairs: Sequence[tuple[int, int]],
    c: float | None,
    norm: str,
    steps: int,
    epsilon: float,
    epsilons: Sequence[float],
    transfer_epsilon: float,
    on_test: Collection[str],
) -> list[Path]:
    """Save all figures of adversarial.py as PREFIX_*.png, and return their paths.

    Those of an earlier run that this one does not make are removed. attacks: by network.
    transferred, noises, learned: from `transfer`, `measure_optimised_noise` and
    `measure_universal_noise`. pairs to steps: of the optimised noise. epsilon (of the universal
    noise), epsilons, transfer_epsilon: in 1/255. on_test: the names of the networks that were
    trained on the test images.
    """
    classes = subject.classes
    name = f"{subject.name} {TRAINED_ON_TEST}" if subject.name in on_test else subject.name
    shown = dict(zip(attacks, marked_names(list(attacks), on_test, NAME_WIDTH), strict=True))
    caption = f"{subject.source}; n = {len(subject.test.labels):,} test images"
    of_all = "\n".join([caption, *([MARK_LEGEND] if on_test else [])])
    chosen = f"; {MOST_ROWS} of {len(classes)} classes" if len(classes) > MOST_ROWS else ""
    paths = {kind: Path(f"{prefix}_{kind}.png") for kind in KINDS}
    of_subject = {
        attack: curve
        for attack, curve in attacks[subject.name].curves.items()
        if curve.unit == "1/255" and not curve.targeted
    }
    saved = [
        accuracy_curves(paths["epsilon"], of_subject, epsilons, f"{name} under attack", caption)
    ]
    radii = {
        shown[network]: 255 * measured.strengths["linf"].radii.cpu()
        for network, measured in attacks.items()
    }
    title = "The smallest noise that fools, in L-infinity"
    labels = subject.test.labels.cpu()
    saved.append(recall_curves(paths["radius"], radii, labels, classes, title, of_all))
    if len(attacks) > 1:
        under_pgd = {shown[each]: measured.curves["PGD"] for each, measured in attacks.items()}
        title = "Networks under PGD"
        saved.append(accuracy_curves(paths["networks"], under_pgd, epsilons, title, of_all))
        title = (
            "MI-FGSM's images made on one network, tried on another, epsilon"
            f" {transfer_epsilon:g}/255"
        )
        table = {
            shown[made_on]: {shown[each]: found for each, found in row.items()}
            for made_on, row in transferred.items()
        }
        saved.append(transfer_matrix(paths["transfer"], table, title, of_all))
    if c is None:
        row = noises["zeros start"]
        tradeoff = {r["c"]: r for key, r in noises.items() if key.startswith("C = ")}
        about = (
            f"{subject.source}; n = {row['images']:,} test images; medians: of the images"
            " predicted as their target"
        )
        title = f"{name}: what C does to the optimised noise"
        least = row["medians"][norm.upper()]
        saved.append(
            noise_tradeoff(paths["tradeoff"], tradeoff, least, norm.upper(), title, about)
        )
    wanted_rows = {
        "fgsm": [classes[k] for k in spread(len(classes), MOST_ROWS)],
        "noise": [f"{classes[k]} to {classes[target]}" for k, target in pairs],
    }
    for kind, rows, title, about in (
        ("fgsm", fgsm_rows(subject, epsilons), "FGSM",
         f"the first image of each class that the network gets right{chosen}"),
        ("noise", noise_rows(subject, pairs, c=c, norm=norm, steps=steps),
         "noise optimised to fool",
         "the first images that the network gets right; noise in grey: mean of its colours"),
        ("universal", universal_rows(subject, learned, epsilon),
         f"one noise for all images, epsilon {epsilon:g}/255",
         f"the first images of each class; row names: what the noise was learned for{chosen}"),
    ):  # fmt: skip
        missing = [row for row in wanted_rows.get(kind, ()) if row not in rows]
        if missing:
            about += f"; none to show of: {', '.join(map(shorten, missing))}"
        if rows:
            saved.append(
                picture_grid(paths[kind], rows, f"{name}: {title}", f"{caption}\n{about}")
            )
    for path in set(paths.values()) - set(saved):
        path.unlink(missing_ok=True)
    return saved
