"""What `benchmarks/run.py` measures: each section is a function that returns a table.

The sides of a comparison run in turn, A B A B, in one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks import reference
from common.attacks.fgsm import fgsm_per_epsilon
from common.attacks.gradients import logits_of
from common.attacks.robustness import correctly_classified, to_attack
from common.dataset import DEFAULT_CLASSES, duplicates
from common.dataset.load import load
from common.dataset.split import LabelledImages, Split
from common.files import ROOT
from common.networks.build import build
from common.networks.checkpoint import load_checkpoint
from common.training.fit import fit, precision
from common.training.recipe import Recipe
from common.training.recipes import ORIGINAL, REPORT_A, RESNET
from common.training.resampling import make_examples
from common.training.runs import Run, train_all
from lr_sweep import EPOCHS, RATES

CPU = torch.device("cpu")
EPOCH = replace(ORIGINAL, epochs=1)
# Without cutout, of which torchvision has another kind, and in the precision of the loop.
RESNET_EPOCH = replace(RESNET, epochs=1, augment=("flip", "crop"), precision="float32")
RESNET_STEPS, PROFILED_STEPS = 10, 200
SEARCHED = 3000  # images: the test part of CIFAR-10 in three classes
FGSM_EPSILONS = [e / 255 for e in (0, 1, 2, 4, 8, 16, 32)]
# The group of an operator, by what stands in the name of the outermost operator around it.
GROUPS = {
    "layers": ("conv", "pool", "relu", "threshold", "linear", "addmm", "dropout", "mm"),
    "loss": ("cross_entropy", "nll", "logsoftmax", "mean"),
    "selecting the batch": ("aten::index", "aten::to", "aten::div_", "aten::movedim"),
    "optimiser": ("optimizer", "accumulategrad"),
    "other operators": ("",),
}
SCRIPTS = ("inspect_data.py", "evaluate.py", "train.py", "lr_sweep.py", "adversarial.py")
# Memory of a command, measured from a small process: the memory of a large parent would be
# counted as the command's.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
Table = dict[str, Any]  # title; rows, each from column to text; values, the measured seconds
Sides = dict[str, Callable[[], object]]  # what is compared, by name


@dataclass(frozen=True)
class Setting:
    """What the sections share.

    source: as `--data` takes it. growth: factors of the number of images and of runs. quick: a
    handful of images, to see that everything works.
    """

    source: str
    split: Split
    repeats: int
    growth: tuple[int, ...]
    quick: bool


def make_setting(quick: bool) -> Setting:
    source = os.environ.get("CIFAR10_DIR") or "synthetic"
    split = load(source, dry_run=quick)
    return Setting(source, split, 1 if quick else 3, (1, 2) if quick else (1, 2, 4), quick)


def step(s: Setting) -> Table:
    return _against_the_loop(s, EPOCH, s.split.train, "An epoch at batch 4")


def resnet(s: Setting) -> Table:
    part = _first(s.split.train, RESNET_STEPS * RESNET_EPOCH.batch_size)
    return _against_the_loop(s, RESNET_EPOCH, part, "ResNet9 at batch 128")


def runs(s: Setting) -> Table:
    recipes = [replace(r, epochs=1) if s.quick else r for r in REPORT_A.values()]

    def one_after_another() -> None:
        for recipe in recipes:
            examples = make_examples(s.split.train, s.split.test, recipe, s.split.classes, 0)
            _loop(examples, recipe)

    sides = {
        "train_all, processes included": lambda: _train_all(s, recipes, jobs=2),
        "loop, one after another": one_after_another,
    }
    with _cores(2):
        _loop(_first(s.split.train, 8), EPOCH)  # the first step imports modules
        seconds = alternate(sides, 1)  # all epochs: once is long enough
    return compared("Report A's seven runs, two cores", seconds)


def sweep(s: Setting) -> Table:
    epochs = 2 if s.quick else EPOCHS
    recipes = [replace(ORIGINAL, epochs=epochs, learning_rate=rate) for rate in RATES]
    sides = {
        "one after another": lambda: _train_all(s, recipes, jobs=1),
        "two at a time, processes included": lambda: _train_all(s, recipes, jobs=2),
    }
    with _cores(2):
        seconds = alternate(sides, 1)  # all epochs: once is long enough
    return compared(f"lr_sweep.py's {len(RATES)} rates, {epochs} epochs, two cores", seconds)


def fgsm_accuracies(network: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Return the share of x that is right at each epsilon; all of x is right without attack."""
    return [
        1.0 if a is x else (logits_of(network, a).argmax(1) == labels).float().mean().item()
        for a in fgsm_per_epsilon(network, x, labels, epsilons=FGSM_EPSILONS)
    ]


def fgsm_accuracies_as_reported(
    network: nn.Module, x: torch.Tensor, labels: torch.Tensor
) -> list[float]:
    """Return the same by the reports' loop: one image, one epsilon, one backward pass."""
    network.eval()
    accuracies = []
    for epsilon in FGSM_EPSILONS:
        correct = 0
        for i in range(len(x)):
            image, label = x[i : i + 1].clone().requires_grad_(), labels[i : i + 1]
            loss = F.nll_loss(F.log_softmax(network(image), 1), label)
            network.zero_grad()
            loss.backward()
            adversarial = torch.clamp(image + epsilon * image.grad.sign(), 0, 1)
            correct += (network(adversarial).argmax(1) == label).item()
        accuracies.append(correct / len(x))
    return accuracies


def fgsm(s: Setting) -> Table:
    network = load_checkpoint(ROOT / "models" / "baseline.pt").network
    test = to_attack(s.split.test, CPU)
    x, y = (values[correctly_classified(network, *test)] for values in test)
    sides = {
        "in batches, one gradient": lambda: fgsm_accuracies(network, x, y),
        "one by one": lambda: fgsm_accuracies_as_reported(network, x, y),
    }
    with _cores(2, threads=2):
        fgsm_accuracies_as_reported(network, x[:2], y[:2])
        seconds = alternate(sides, s.repeats)
    return compared(
        f"FGSM at {len(FGSM_EPSILONS)} epsilons, {len(x)} images, SimpleCNN, two cores", seconds
    )


def images(s: Setting) -> Table:
    train = s.split.train
    parts = [LabelledImages(*(torch.cat([t] * n) for t in train)) for n in s.growth]
    sides = {f"{len(part.labels):,} images": partial(_fit, part, EPOCH) for part in parts}
    with _cores(1):
        _fit(_first(train, 8), EPOCH)
        return compared("fit(), an epoch at batch 4, one core", alternate(sides, s.repeats))


def recipes(s: Setting) -> Table:
    several = [replace(ORIGINAL, epochs=2)] * max(s.growth)
    sides = {f"runs: {n}": partial(_train_all, s, several[:n], jobs=2) for n in s.growth}
    with _cores(2):
        seconds = alternate(sides, s.repeats)
    return compared("train_all, 2 epochs of each run, processes included, two cores", seconds)


def profiled(s: Setting) -> Table:
    part = _first(s.split.train, PROFILED_STEPS * EPOCH.batch_size)
    with _cores(1):
        _fit(part, EPOCH)
        usual = alternate({"": partial(_fit, part, EPOCH)}, s.repeats)[""]
        with profile(activities=[ProfilerActivity.CPU]) as record:
            [whole] = alternate({"": partial(_fit, part, EPOCH)}, 1)[""]
    seconds = dict.fromkeys(GROUPS, 0.0)
    for event in record.events():
        outermost = event
        while (
            parent := outermost.cpu_parent
        ) is not None and "step" not in parent.name.lower():
            outermost = parent
        name = outermost.name.lower()
        group = next(g for g, words in GROUPS.items() if any(word in name for word in words))
        seconds[group] += event.self_cpu_time_total / 1e6
    seconds["between operators: Python"] = whole - sum(seconds.values())
    slowdown = whole / median(usual)
    return {
        "title": f"Where a step at batch 4 spends its time (profiling: {slowdown:.1f} times)",
        "rows": [{"what": k, "share": f"{t / whole:.0%}"} for k, t in seconds.items()],
        "values": seconds | {"profiled": whole, "usual": usual},
    }


def absolute(s: Setting) -> Table:
    train, test = s.split.train.images, s.split.test.images
    others = torch.cat([test] * -(-SEARCHED // len(test)))[:SEARCHED]
    search = f"near duplicates, {len(train):,} against {len(others):,} images"
    sides = {
        "load the prepared images": partial(load, s.source, dry_run=s.quick),
        search: partial(duplicates.between, train, others),
    } | {f"{name} --help": partial(_python, name, "--help") for name in SCRIPTS}
    seconds = alternate(sides, s.repeats)
    with tempfile.TemporaryDirectory() as folder:
        command = ["train.py", "final", "--data", s.source, "--output-dir", folder]
        command += ["--dry-run"] if s.quick else ["--epochs", "1"]
        peak = int(_python("-c", PEAK, sys.executable, *command))
    peak *= 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    rows = [
        {"what": name, "median": f"{median(times):.2f} s", "spread": _spread(times)}
        for name, times in seconds.items()
    ]
    memory = {"what": "memory, train.py final", "median": f"{peak / 1e6:.0f} MB", "spread": ""}
    return {
        "title": "Absolute: this machine's seconds and megabytes",
        "rows": [*rows, memory],
        "values": seconds | {"peak bytes": peak},
    }


def scripts(s: Setting) -> Table:
    """Time each script with its defaults, once, as a user runs it on two cores."""
    seconds = {}
    with _cores(2), tempfile.TemporaryDirectory() as folder:
        for name in SCRIPTS:
            command = [name, "--data", s.source, "--output-dir", folder]
            run = partial(_python, *command, *(["--dry-run"] if s.quick else []))
            [seconds[name]] = alternate({name: run}, 1)[name]
    seconds["all five"] = sum(seconds.values())
    return {
        "title": "Absolute: the scripts with their defaults, once, two cores",
        "rows": [{"what": name, "time": f"{t:.0f} s"} for name, t in seconds.items()],
        "values": seconds,
    }


SECTIONS = {
    "step": step,
    "resnet": resnet,
    "runs": runs,
    "sweep": sweep,
    "fgsm": fgsm,
    "images": images,
    "recipes": recipes,
    "profile": profiled,
    "absolute": absolute,
    "scripts": scripts,
}


def alternate(sides: Sides, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each side, which run in turn, `repeats` times."""
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(title: str, seconds: dict[str, list[float]]) -> Table:
    """Return each side's seconds relative to the first side's.

    time: the median, and spread: the least and greatest, over the first side's median. in
    turn: the least and greatest ratio to the first side within one repeat.
    """
    first = next(iter(seconds.values()))
    rows = [
        {
            "what": name,
            "time": f"{median(times) / median(first):.2f}",
            "spread": _spread([t / median(first) for t in times]),
            "in turn": _spread([b / a for a, b in zip(first, times, strict=True)]),
        }
        for name, times in seconds.items()
    ]
    return {"title": title, "rows": rows, "values": seconds}


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _against_the_loop(s: Setting, recipe: Recipe, part: LabelledImages, title: str) -> Table:
    sides = {
        "fit()": lambda: _fit(part, recipe),
        "loop, 0 workers": lambda: _loop(part, recipe),
        "loop, 2 workers": lambda: _loop(part, recipe, workers=2),
    }
    faster = replace(recipe, precision="auto")
    if recipe.network == "resnet9" and precision(faster, CPU) == "bfloat16":
        sides["fit(), in bfloat16"] = lambda: _fit(part, faster)
    with _cores(1):
        _fit(_first(part, 8), recipe)  # the first step imports modules
        _loop(_first(part, 8), recipe)
        seconds = alternate(sides, s.repeats)
    return compared(f"{title}, {len(part.labels):,} images, one core", seconds)


def _fit(part: LabelledImages, recipe: Recipe) -> None:
    network = build(recipe.network, recipe.network_arguments(len(DEFAULT_CLASSES)))
    fit(network, part, _first(part, 0), recipe, seed=0, device=CPU)


def _loop(part: LabelledImages, recipe: Recipe, workers: int = 0) -> None:
    network = reference.plain_network(recipe, len(DEFAULT_CLASSES))
    reference.train(network, reference.loader(part, recipe, workers), recipe, CPU)


def _train_all(s: Setting, recipes: Sequence[Recipe], jobs: int) -> None:
    """Train as train.py does, from the start of its processes to the last checkpoint."""
    runs = [Run(f"run{i}", recipe, 0) for i, recipe in enumerate(recipes)]
    jobs = min(jobs, len(runs))
    with tempfile.TemporaryDirectory() as folder:
        for _ in train_all(runs, s.split, Path(folder), device="cpu", jobs=jobs, threads=1):
            pass


def _first(part: LabelledImages, n: int) -> LabelledImages:
    return LabelledImages(part.images[:n], part.labels[:n])


def _python(*arguments: str) -> str:
    """Return what Python prints, run in the project's folder."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@contextmanager
def _cores(n: int, threads: int = 1) -> Iterator[None]:
    """Use so many threads, and if the system allows it n cores, also for child processes.

    One thread by default: at batch 4 a second one has almost nothing to do, and waits for work
    at full speed.
    """
    before, cores = torch.get_num_threads(), None
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(cores)[:n])
    try:
        yield
    finally:
        torch.set_num_threads(before)
        if cores is not None:
            os.sched_setaffinity(0, cores)
