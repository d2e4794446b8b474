"""The figures of stage 5: which images, attacks and titles; `attack_figures.py` draws them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common import attack_figures, robustness
from common.attacks import fgsm_sweep, logits_of
from common.dataset import Part
from common.noise import minimise, optimise

Cell = tuple[torch.Tensor, str]  # a picture (3, 32, 32) and its title


def said(network: nn.Module, x: torch.Tensor, classes: Sequence[str]) -> list[str]:
    """What the network calls each image, and how sure it is: "cat 98%"."""
    shares, called = logits_of(network, x).softmax(1).max(1)
    return [f"{classes[k]} {share:.0%}" for k, share in zip(called, shares, strict=True)]


def places(right: torch.Tensor, labels: torch.Tensor, k: int, n: int) -> list[int]:
    """The first n places of images of class k that are right."""
    return (right & (labels == k)).nonzero().flatten().tolist()[:n]


def fgsm_rows(
    network: nn.Module, test: Part, classes: Sequence[str], epsilons: Sequence[float]
) -> dict[str, list[Cell]]:
    """An image of each class and what FGSM makes of it at up to three epsilons (1/255)."""
    shown = sorted(e for e in epsilons if e > 0)[::-2][:3][::-1]
    right = robustness.correct(network, *test)
    rows = {}
    for k, name in enumerate(classes):
        at = places(right, test.labels, k, 1)
        if not at:  # not one image of this class is right
            continue
        x, labels = test.images[at], test.labels[at]
        rows[name] = [(x[0], f"original\n{said(network, x, classes)[0]}")]
        attacked = fgsm_sweep(network, x, labels, epsilons=[e / 255 for e in shown])
        for e, images in zip(shown, attacked, strict=True):
            factor = 128 / e
            noise = attack_figures.noise_picture((images - x)[0], factor)
            rows[name].append((noise, f"noise x {factor:g}\nepsilon {e:g}/255"))
            rows[name].append((images[0], f"adversarial\n{said(network, images, classes)[0]}"))
    return rows


def noise_rows(
    network: nn.Module,
    test: Part,
    classes: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    *,
    c: float | None,
    norm: str,
    steps: int,
    each: int = 2,
) -> dict[str, list[Cell]]:
    """For each pair of true class and target: `each` images with their optimised noise."""
    right = robustness.correct(network, *test)
    rows = {}
    for k, target in pairs:
        at = places(right, test.labels, k, each)
        if not at:
            continue
        x, labels = test.images[at], test.labels[at]
        shared = {"targets": torch.full_like(labels, target), "norm": norm}
        if c is None:
            noisy = minimise(
                network, x, labels, steps=steps, rounds=robustness.ROUNDS, **shared
            )
        else:
            noisy = optimise(network, x, labels, c=c, steps=2 * steps, **shared)
        sizes = robustness.noise_norms(noisy - x)["L1"]
        before, after = (said(network, images, classes) for images in (x, noisy))
        row = []
        for i in range(len(x)):
            noise = attack_figures.noise_picture((noisy - x)[i], 1, grey=True)
            row += [(x[i], f"original\n{before[i]}"), (noise, f"noise\nL1 {sizes[i]:.1f}")]
            row.append((noisy[i], f"adversarial\n{after[i]}"))
        rows[f"{classes[k]} to {classes[target]}"] = row
    return rows


def universal_rows(
    network: nn.Module,
    test: Part,
    classes: Sequence[str],
    learned: dict[str, torch.Tensor | None],
    epsilon: float,
    each: int = 2,
) -> dict[str, list[Cell]]:
    """Each noise, and the first `each` test images of each class with it."""
    of_class = [(test.labels == k).nonzero().flatten() for k in range(len(classes))]
    at = torch.cat([places[:each] for places in of_class])
    x, true = test.images[at], [classes[k] for k in test.labels[at]]
    rows = {}
    for name, noise in learned.items():
        if noise is None:
            noise, factor = torch.zeros_like(x[:1]), 1.0
        else:
            factor = 0.5 if name == "unbounded" else 128 / max(epsilon, 1)
        images = (x + noise).clamp(0, 1)
        row = [(attack_figures.noise_picture(noise[0], factor), f"the noise\nx {factor:g}")]
        called = said(network, images, classes)
        titles = [f"{is_a} called\n{words}" for is_a, words in zip(true, called, strict=True)]
        rows[name] = row + list(zip(images, titles, strict=True))
    return rows


def adversarial(
    prefix: str,
    network: nn.Module,
    test: Part,
    classes: Sequence[str],
    source: str,
    name: str,
    sweeps: dict[str, dict[str, robustness.Sweep]],
    noises: dict[str, dict[str, Any]],
    learned: dict[str, torch.Tensor | None],
    *,
    pairs: Sequence[tuple[int, int]],
    c: float | None,
    norm: str,
    steps: int,
    epsilon: float,
    epsilons: Sequence[float],
) -> list[Path]:
    """Save all figures of stage 5 as PREFIX_*.png and return their paths.

    sweeps: of each network, by attack; the first one's name is `name`. noises and learned: see
    `robustness.noises` and `robustness.universals`. epsilon, epsilons: in 1/255.
    """
    about = f"{source}; n = {len(test.labels):,} test images"
    saved = []

    def curves(file: str, found: dict[str, robustness.Sweep], title: str) -> None:
        reports = {key: [o.report for o in s.outcomes.values()] for key, s in found.items()}
        path = Path(f"{prefix}_{file}.png")
        saved.append(attack_figures.accuracy_curves(path, reports, epsilons, title, about))

    own = {key: sweeps[name][key] for key in ("FGSM", "PGD", "MI-FGSM")}
    curves("epsilon", own, f"{name} under attack")
    if len(sweeps) > 1:
        curves("networks", {key: s["PGD"] for key, s in sweeps.items()}, "Networks under PGD")

    images = noises["zeros start"]["images"]
    tradeoff = {row["c"]: row for key, row in noises.items() if key.startswith("C = ")}
    key = norm.upper()
    if c is None:
        path = Path(f"{prefix}_tradeoff.png")
        few = (
            f"{source}; n = {images:,} test images; medians: of the images called their target"
        )
        title = f"{name}: what C does to the optimised noise"
        least = noises["zeros start"]["medians"][key]
        saved.append(attack_figures.noise_tradeoff(path, tradeoff, least, key, title, few))
    wanted = {
        "fgsm": list(classes),
        "noise": [f"{classes[k]} to {classes[target]}" for k, target in pairs],
    }
    for file, rows, title, caption in (
        ("fgsm", fgsm_rows(network, test, classes, epsilons),
         f"{name}: FGSM", "the first image of each class that the network gets right"),
        ("noise", noise_rows(network, test, classes, pairs, c=c, norm=norm, steps=steps),
         f"{name}: noise optimised to fool",
         "the first images that the network gets right; noise in grey: mean of its colours"),
        ("universal", universal_rows(network, test, classes, learned, epsilon),
         f"{name}: one noise for all images, epsilon {epsilon:g}/255",
         "the first images of each class; row names: what the noise was learned for"),
    ):  # fmt: skip
        if rows:
            missing = [row for row in wanted.get(file, ()) if row not in rows]
            if missing:
                caption += f"; none to show of: {', '.join(missing)}"
            path = Path(f"{prefix}_{file}.png")
            saved.append(attack_figures.picture_grid(path, rows, title, f"{about}\n{caption}"))
    return saved
