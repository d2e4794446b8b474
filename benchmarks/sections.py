"""What `benchmarks/run.py` measures: each section a function that yields tables.

What is compared runs in turn, A B A B, in one process. A table has times in units of its first
row's median.
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
from joblib.externals.loky import get_reusable_executor
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks import reference
from common import balance, dataset, duplicates, experiment, kernels, models, training
from common.dataset import Part, Split
from common.options import DEFAULT_CLASSES, ROOT
from common.recipes import ORIGINAL, REPORT_A, RESNET, Recipe
from lr_sweep import RATES

CPU = torch.device("cpu")
EPOCH = replace(ORIGINAL, epochs=1)
# Without cutout, of which torchvision has another kind, and in the loop's precision.
RESNET_EPOCH = replace(RESNET, epochs=1, augment=("flip", "crop"), precision="float32")
RESNET_STEPS, PROFILE_STEPS = 10, 200
SWEEP_EPOCHS = 4  # of 20
SEARCHED = 3000  # images of CIFAR-10's test part in three classes
SHORTER = 10  # report A's runs have a tenth of their epochs here
# What an operator belongs to, by what stands in the name of the outermost one around it.
GROUPS = {
    "all layers but the last": ("hidden", "conv", "pool"),
    "the last layer": ("linear", "addmm", "matmul", "aten::sum"),
    "gathering the batch": ("aten::index", "aten::to", "aten::div_", "aten::split"),
    "optimiser": ("aten::add", "::sub_", "accumulategrad"),
    "other operators: dropout, scaling, loss": ("",),
}
# Memory of a command, from a process that is itself small: a large one that starts another
# has its own memory counted as the other's.
PEAK = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""
Table = dict[str, Any]  # title, rows (each from column to text), values (what they come from)
Sides = dict[str, Callable[[], object]]  # what is compared, by name


@dataclass(frozen=True)
class Setting:
    """source: as `--data` takes it. growth: how many times the images, and how many runs.
    quick: on a handful of images, to see that all works."""

    source: str
    split: Split
    repeats: int
    growth: tuple[int, ...]
    quick: bool


def setting(quick: bool) -> Setting:
    source = os.environ.get("CIFAR10_DIR") or "synthetic"
    split = dataset.load(source, dry_run=quick)
    return Setting(source, split, 1 if quick else 3, (1, 2) if quick else (1, 2, 4), quick)


def step(s: Setting) -> Iterator[Table]:
    yield from _against_the_loop(s, EPOCH, s.split.train, "An epoch at batch 4")


def resnet(s: Setting) -> Iterator[Table]:
    part = _first(s.split.train, RESNET_STEPS * RESNET_EPOCH.batch_size)
    yield from _against_the_loop(s, RESNET_EPOCH, part, "ResNet9 at batch 128")


def runs(s: Setting) -> Iterator[Table]:
    recipes = [replace(r, epochs=r.epochs // SHORTER) for r in REPORT_A.values()]

    def one_after_another() -> None:
        for recipe in recipes:
            part = balance.examples(s.split.train, s.split.test, recipe, s.split.classes, 0)
            _loop(part, recipe)

    sides = {
        "train_all, processes included": lambda: _train_all(s, recipes),
        "loop, one after another": one_after_another,
    }
    with _cores(2):
        _loop(_first(s.split.train, 8), EPOCH)  # for the first step's imports
        seconds = alternate(sides, s.repeats)
    yield compared(f"Report A's seven runs, 1/{SHORTER} of their epochs, two cores", seconds)


def sweep(s: Setting) -> Iterator[Table]:
    recipes = [replace(ORIGINAL, epochs=SWEEP_EPOCHS, learning_rate=rate) for rate in RATES]
    losses: dict[str, list[float]] = {}

    def one_after_another() -> None:
        losses["alone"] = [_fit(s.split.train, recipe) for recipe in recipes]

    def together() -> None:
        losses["together"] = _train_all(s, recipes)

    sides = {"fit(), one after another": one_after_another, "together": together}
    with _cores(2):
        seconds = alternate(sides, s.repeats)
    # Beyond a few times the loss of a guess it is chaos, where rounding decides.
    pairs = [p for p in zip(*losses.values(), strict=True) if max(p) < 5]
    apart = max(abs(a - b) / a for a, b in pairs)
    table = compared(
        f"lr_sweep.py's {len(RATES)} rates, {SWEEP_EPOCHS} epochs, two cores"
        f" (losses {apart:.0e} apart)",
        seconds,
    )
    table["values"] = {"seconds": table["values"], "losses": losses}
    yield table


def images(s: Setting) -> Iterator[Table]:
    train = s.split.train
    parts = [Part(*(torch.cat([t] * n) for t in train)) for n in s.growth]
    sides = {f"{len(part.labels):,} images": partial(_fit, part, EPOCH) for part in parts}
    with _cores(1):
        _fit(_first(train, 8), EPOCH)
        yield compared("fit(), an epoch at batch 4, one core", alternate(sides, s.repeats))


def recipes(s: Setting) -> Iterator[Table]:
    recipe = replace(ORIGINAL, epochs=2)
    # Other momenta, so that they aren't trained as one.
    several = [replace(recipe, momentum=0.9 - i / 100) for i in range(max(s.growth))]
    sides = {f"runs: {n}": partial(_train_all, s, several[:n]) for n in s.growth}
    with _cores(2):
        seconds = alternate(sides, s.repeats)
    yield compared("train_all, 2 epochs of each, processes included, two cores", seconds)


def profiled(s: Setting) -> Iterator[Table]:
    part = _first(s.split.train, PROFILE_STEPS * EPOCH.batch_size)
    with _cores(1):
        _fit(part, EPOCH)
        usual = alternate({"": partial(_fit, part, EPOCH)}, s.repeats)[""]
        with _marked(), profile(activities=[ProfilerActivity.CPU]) as record:
            [whole] = alternate({"": partial(_fit, part, EPOCH)}, 1)[""]
    seconds = dict.fromkeys(GROUPS, 0.0)
    for event in record.events():
        outermost = event
        while outermost.cpu_parent is not None:
            outermost = outermost.cpu_parent
        name = outermost.name.lower()
        group = next(g for g, words in GROUPS.items() if any(word in name for word in words))
        seconds[group] += event.self_cpu_time_total / 1e6
    seconds["between operators: Python"] = whole - sum(seconds.values())
    yield {
        "title": f"Where a step at batch 4 goes (profiling: {whole / median(usual):.1f} times)",
        "rows": [{"what": k, "share": f"{t / whole:.0%}"} for k, t in seconds.items()],
        "values": seconds | {"profiled": whole, "usual": usual},
    }


def absolute(s: Setting) -> Iterator[Table]:
    sides = {"load the prepared images": partial(dataset.load, s.source, dry_run=s.quick)}
    train, test = s.split.train.images, s.split.test.images
    others = torch.cat([test] * -(-SEARCHED // len(test)))[:SEARCHED]
    name = f"near duplicates, {len(train):,} against {len(others):,} images"
    sides[name] = partial(duplicates.between, train, others)
    for script in sorted(ROOT.glob("*.py")):
        sides[f"{script.name} --help"] = partial(_python, script.name, "--help")
        sides[f"import {script.stem}"] = partial(_python, "-c", f"import {script.stem}")
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
    yield {
        "title": "Absolute: this machine's seconds and megabytes",
        "rows": [*rows, memory],
        "values": seconds | {"peak bytes": peak},
    }


SECTIONS = {
    "step": step,
    "resnet": resnet,
    "runs": runs,
    "sweep": sweep,
    "images": images,
    "recipes": recipes,
    "profile": profiled,
    "absolute": absolute,
}


def alternate(sides: Sides, repeats: int) -> dict[str, list[float]]:
    """Seconds that each side takes, in turn, `repeats` times."""
    seconds = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(title: str, seconds: dict[str, list[float]]) -> Table:
    """Each side's seconds over the first side's.

    time: the median, and spread: the least and greatest, over the first side's median. in
    turn: the least and greatest of what it took over what the first side took beside it.
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


def _against_the_loop(s: Setting, recipe: Recipe, part: Part, title: str) -> Iterator[Table]:
    """fit() and the reference, on one core with the images of `part`; and on CUDA, where there
    is any, with all train images, as in ten steps its graph's capture would be the most."""
    faster = replace(recipe, precision="auto")

    def sides(part: Part, device: torch.device) -> Sides:
        found = {
            "fit()": lambda: _fit(part, recipe, device),
            "loop, 0 workers": lambda: _loop(part, recipe, device),
            "loop, 2 workers": lambda: _loop(part, recipe, device, workers=2),
        }
        if recipe.network == "resnet9" and training.precision(faster, device) == "bfloat16":
            found["fit(), in bfloat16"] = lambda: _fit(part, faster, device)
        return found

    with _cores(1):
        alternate(sides(_first(part, 8), CPU), 1)  # for the first step's imports
        named = f"{title}, {len(part.labels):,} images, one core"
        yield compared(named, alternate(sides(part, CPU), s.repeats))
    if torch.cuda.is_available():
        cuda = torch.device("cuda")
        part = s.split.train
        alternate(sides(_first(part, 8), cuda), 1)
        named = f"{title}, {len(part.labels):,} images, {torch.cuda.get_device_name()}"
        yield compared(named, alternate(sides(part, cuda), s.repeats))


def _fit(part: Part, recipe: Recipe, device: torch.device = CPU) -> float:
    """The first epoch's loss; of one that diverges, as far as it was finite."""
    alone = {"seeds": [0], "device": device}
    (history,) = training.fit_together(
        [_network(recipe)], [part], _first(part, 0), [recipe], **alone
    )
    return history.loss[0]


def _loop(part: Part, recipe: Recipe, device: torch.device = CPU, workers: int = 0) -> None:
    network = reference.plain(_network(recipe))
    reference.train(network, reference.loader(part, recipe, workers), recipe, device)


def _network(recipe: Recipe) -> models.Network:
    return models.build(recipe.network, recipe.network_arguments(len(DEFAULT_CLASSES)), 0)


def _train_all(s: Setting, recipes: Sequence[Recipe]) -> list[float]:
    """As train.py does on two cores, from the start of its processes to the last checkpoint.

    Returns the first epoch's loss of each recipe.
    """
    get_reusable_executor().shutdown()  # joblib keeps the last one's
    runs = [experiment.Run(f"run{i}", recipe, 0) for i, recipe in enumerate(recipes)]
    with tempfile.TemporaryDirectory() as folder:
        how = {"device": "cpu", "jobs": min(2, len(runs)), "threads": 1}
        ended = dict(experiment.train_all(runs, s.split, Path(folder), **how))
    return [ended[run]["history"]["loss"][0] for run in runs]


def _first(part: Part, n: int) -> Part:
    return Part(part.images[:n], part.labels[:n])


def _python(*arguments: str) -> str:
    """What Python prints, run in the project's folder."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


@contextmanager
def _marked() -> Iterator[None]:
    """Let the profiler see the compiled functions, which are no operators of PyTorch."""
    library = kernels.library()
    functions = {name: getattr(library, name) for name in kernels.FUNCTIONS if library}

    def marked(name: str, *arguments: Any) -> None:
        with record_function(name):
            functions[name](*arguments)

    try:
        for name in functions:
            setattr(library, name, partial(marked, name))
        yield
    finally:
        for name, function in functions.items():
            setattr(library, name, function)


@contextmanager
def _cores(n: int) -> Iterator[None]:
    """One thread, and where the system can do it n cores for this process and its own.

    At batch 4 a second thread has next to nothing to do, and waits for it at full speed.
    """
    threads, cores = torch.get_num_threads(), None
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, sorted(cores)[:n])
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if cores is not None:
            os.sched_setaffinity(0, cores)
