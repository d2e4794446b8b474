"""Runs: recipes with seeds, trained side by side, each saved as soon as it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import torch
from tqdm import tqdm

from common import files
from common.dataset.split import Split
from common.errors import DivergedError
from common.metrics.report import report
from common.networks.build import build
from common.networks.checkpoint import save_checkpoint
from common.networks.prediction import predict
from common.training import post_hoc
from common.training.cluster import train_on_cluster
from common.training.fit import (
    first_draw,
    fit,
    make_deterministic,
    precision,
    require_finite,
)
from common.training.recipe import Recipe
from common.training.resampling import make_examples


@dataclass(frozen=True)
class Run:
    """One recipe with one seed. Its files are models/FILE.pt and models/FILE.json."""

    name: str
    recipe: Recipe
    seed: int

    @property
    def file(self) -> str:
        """The recipe's name, and the seed unless it is 0."""
        return self.name if self.seed == 0 else f"{self.name}-seed{self.seed}"


def train_run(
    run: Run, split: Split, device: str, threads: int, deterministic: bool
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Train one run, and return its result and the arguments of `save_checkpoint`.

    The result of a run whose loss stops being finite says so under "diverged"; such a run has
    no checkpoint.
    """
    start = time.perf_counter()
    recipe, classes, where = run.recipe, len(split.classes), torch.device(device)
    # With the small batches of SimpleCNN two threads wait for each other longer than they work.
    torch.set_num_threads(1 if recipe.network == "simple-cnn" else threads)
    if deterministic:
        make_deterministic()
    examples = make_examples(split.train, split.test, recipe, split.classes, run.seed)
    arguments = recipe.network_arguments(classes)
    network = build(recipe.network, arguments, run.seed)
    arguments_of_fit = {"seed": run.seed, "device": where, "name": run.file}
    history = fit(network, examples, split.validation, recipe, **arguments_of_fit)
    result = {
        "recipe": asdict(recipe),
        "examples": examples.counts(classes),
        "drawn": first_draw(examples, recipe, classes, run.seed),
        "trained_on_test": recipe.train_on_test,
        "precision": precision(recipe, where),
        "history": asdict(history),
        "diverged": None,
    }
    try:
        require_finite(history, recipe)
        arguments |= post_hoc.apply(
            network, examples, split.validation, recipe, **arguments_of_fit
        )
    except DivergedError as error:
        seconds = time.perf_counter() - start
        return result | {"diverged": str(error), "seconds": seconds}, None
    for name, part in (("validation", split.validation), ("report", split.test)):
        if len(part.labels):
            predictions = predict(network, part.images).argmax(1)
            result[name] = report(part.labels, predictions, split.classes).as_dict()
    checkpoint = {
        "network": network.cpu(),
        "architecture": recipe.network,
        "arguments": arguments,
        "classes": list(split.classes),
        "recipe": asdict(recipe),
        "seed": run.seed,
        "data": split.record(),
        "trained_on_test": recipe.train_on_test,
        "versions": files.versions(),
    }
    return result | {"seconds": time.perf_counter() - start}, checkpoint


def train_all(
    runs: Sequence[Run],
    split: Split,
    folder: Path,
    *,
    device: str,
    jobs: int,
    threads: int,
    cluster: str | None = None,
    fresh: bool = False,
    deterministic: bool = False,
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Train the runs, `jobs` at a time or on a dask cluster; yield each result as it ends.

    The files of a run are written to `folder` before it is yielded. A run with files of the
    same recipe, seed, images, device and versions is not trained again, unless `fresh`. Raises
    InputError if the cluster can't be reached.
    """
    settings = {"device": device, "threads": threads, "deterministic": deterministic}
    missing = []
    for run in runs:
        result = None if fresh else _load_finished_run(run, split, folder, settings)
        if result is None:
            missing.append(run)
        else:
            yield run, result
    if jobs > 1:  # the longest first, so that no process ends up with a long one alone
        missing.sort(key=_relative_length, reverse=True)
    for run, (result, checkpoint) in _train_missing(missing, split, jobs, cluster, settings):
        path = folder / f"{run.file}.pt"
        if checkpoint is None:
            # Remove the checkpoint of an earlier run: the new result would contradict it.
            path.unlink(missing_ok=True)
        else:
            save_checkpoint(path, **checkpoint)
        files.save_result(
            path.with_suffix(".json"), data=split.record(), seed=run.seed, **settings | result
        )
        yield run, result


def _load_finished_run(
    run: Run, split: Split, folder: Path, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the saved result of this very run, None if it has none."""
    path = folder / f"{run.file}.json"
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    wanted = {"seed": run.seed, "data": split.record(), "versions": files.versions()} | settings
    wanted = json.loads(json.dumps(wanted))  # tuples become lists, as in the file
    same = run.recipe.equals_saved(result.get("recipe")) and all(
        result.get(key) == value for key, value in wanted.items()
    )
    has_files = path.with_suffix(".pt").exists() or result.get("diverged")
    return result if same and has_files else None


def _train_missing(
    runs: Sequence[Run], split: Split, jobs: int, cluster: str | None, settings: dict[str, Any]
) -> Iterator[tuple[Run, tuple[dict[str, Any], dict[str, Any] | None]]]:
    if not runs:
        return
    if cluster is not None:
        yield from train_on_cluster(cluster, runs, split, settings)
        return
    if jobs == 1:  # in this process, where the bar of `fit` is visible
        for run in runs:
            yield _train_job(run, split, settings)
        return
    with tqdm(total=len(runs), desc="Runs", disable=None) as bar:
        parallel = joblib.Parallel(jobs, return_as="generator_unordered", batch_size=1)
        for trained in parallel(joblib.delayed(_train_job)(r, split, settings) for r in runs):
            bar.update()
            yield trained


def _train_job(
    run: Run, split: Split, settings: dict[str, Any]
) -> tuple[Run, tuple[dict[str, Any], dict[str, Any] | None]]:
    return run, train_run(run, split, **settings)


def _relative_length(run: Run) -> int:
    """Return about how long a run takes, in epochs over the train images."""
    oversampling = ("smote", "borderline-smote", "adasyn", "random-over")
    factor = 3 if run.recipe.resample in oversampling else 1
    return run.recipe.epochs * (1 + run.recipe.copies) * factor
