"""How robust a network is to optimised noise and to universal noise."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from common.attacks.gradients import logits_of
from common.attacks.optimised_noise import minimise, optimise
from common.attacks.robustness import next_class, noise_norms, sample_per_class, to_attack
from common.attacks.universal_noise import universal
from common.dataset.split import LabelledImages
from common.metrics.intervals import proportion_interval
from common.metrics.report import report

ROUNDS = 6  # of the bisection that finds C for each image
TRADEOFF = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # values of C, each used for all images


def measure_optimised_noise(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor, targets: torch.Tensor, *,
    c: float | None, norm: str, steps: int, seed: int,
) -> Iterator[tuple[str, dict[str, Any]]]:  # fmt: skip
    """Yield a name and measurements of report A's noise, for two starts and for several C.

    x: float32 (N, 3, S, S) in [0, 1]. labels, targets: (N,). c: for both starts; None: found
    for each image by bisection. norm: "l1" or "l2". The measurements: fooled, the number of
    images classified as their target, out of `images`, and the interval of that share; medians
    of the norms of their noise; c; network evaluations per image; seconds.
    """
    rows = {f"{start} start": (start, c) for start in ("zeros", "gaussian")}
    rows |= {f"C = {value:g}": ("zeros", value) for value in TRADEOFF}
    shared = {"targets": targets, "norm": norm}
    for name, (start, value) in tqdm(rows.items(), "Noise", leave=False, disable=None):
        begin = time.perf_counter()
        shared |= {"start": start, "generator": torch.Generator().manual_seed(seed)}
        if value is None:
            noisy = minimise(network, x, labels, steps=steps, rounds=ROUNDS, **shared)
            evaluations = ROUNDS * steps + 1
        else:
            noisy = optimise(network, x, labels, c=value, steps=2 * steps, **shared)
            evaluations = 2 * steps
        fooled = (logits_of(network, noisy).argmax(1) == targets).cpu()
        medians = {
            norm_name: float(values[fooled].median()) if fooled.any() else None
            for norm_name, values in noise_norms(noisy - x).items()
        }
        row = {
            "fooled": int(fooled.sum()),
            "images": len(x),
            "interval": proportion_interval(int(fooled.sum()), len(x)),
            "medians": medians,
            "c": value,
            "evaluations": evaluations,
            "seconds": time.perf_counter() - begin,
        }
        yield name, row


def measure_universal_noise(
    network: nn.Module, train: LabelledImages, test: LabelledImages, classes: Sequence[str], *,
    epsilon: float, steps: int, per_class: int | str, seed: int,
) -> Iterator[tuple[str, torch.Tensor | None, dict[str, Any]]]:  # fmt: skip
    """Yield a name, a universal noise and its measurements, starting without noise (None).

    The noises, (1, 3, S, S), are report B's, bounded and unbounded, and a bounded one learned
    from equal shares of the classes. Each noise is learned on train, and measured on test and
    on a sample of train, at most per_class images of each class, or "all": its measurements
    are, for each part, a Report and the share of predictions that the noise changes. train: in
    memory or in a file; test: float32 in [0, 1], on the network's device. epsilon: the bound,
    in [0, 1].
    """
    targets = next_class(train.labels, len(classes))
    chosen = sample_per_class(train.labels, per_class, seed)
    measured_on = {
        "train": to_attack(train.select(chosen), test.labels.device),
        "test": test,
    }
    clean = {}
    for name, arguments in (
        ("no noise", None),
        ("label + 1", {"epsilon": epsilon, "targets": targets}),
        ("balanced", {"epsilon": epsilon, "balanced": True}),
        ("unbounded", {"epsilon": 1.0, "targets": targets}),
    ):
        noise = None
        if arguments is not None:
            generator = torch.Generator().manual_seed(seed)
            noise = universal(network, *train, steps=steps, generator=generator, **arguments)
        measured = {}
        for part_name, part in measured_on.items():
            x = part.images if noise is None else (part.images + noise).clamp(0, 1)
            predictions = logits_of(network, x).argmax(1)
            before = clean.setdefault(part_name, predictions)
            measured[part_name] = {
                "report": report(part.labels.cpu(), predictions.cpu(), classes),
                "fooling_rate": float((predictions != before).float().mean()),
            }
        yield name, noise, measured
