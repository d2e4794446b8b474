"""Runs: recipes with seeds, trained side by side, each kept as soon as it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import torch
from tqdm import tqdm

from common import balance, metrics, models, results, training
from common.dataset import Split
from common.options import InputError
from common.recipes import Recipe

CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Run:
    """One recipe with one seed. Its files are models/FILE.pt and models/FILE.json."""

    name: str
    recipe: Recipe
    seed: int

    @property
    def file(self) -> str:
        """The recipe's name; with the seed, but for seed 0."""
        return self.name if self.seed == 0 else f"{self.name}-seed{self.seed}"


def train(
    run: Run, split: Split, device: str, threads: int, deterministic: bool
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Train one run. Returns its result and its checkpoint's content, both to be saved.

    A run whose loss stops being finite has a result that says so, and no checkpoint.
    """
    start = time.perf_counter()
    torch.set_num_threads(threads)
    if deterministic:
        training.make_deterministic()
    recipe, classes = run.recipe, len(split.classes)
    examples = balance.examples(split.train, split.test, recipe, split.classes, run.seed)
    arguments = recipe.network_arguments(classes)
    network = models.build(recipe.network, arguments, run.seed)
    job = {"seed": run.seed, "device": torch.device(device), "name": run.file}
    result = {
        "recipe": asdict(recipe),
        "examples": examples.counts(classes),
        "drawn": training.first_draw(examples, recipe, classes, run.seed),
        "trained_on_test": recipe.train_on_test,
    }
    try:
        history = training.fit(network, examples, split.validation, recipe, **job)
        arguments |= training.after_training(network, examples, split.validation, recipe, **job)
    except training.DivergedError as error:
        return result | {"diverged": str(error), "seconds": time.perf_counter() - start}, None
    logits = models.predict(network, split.test.images)
    report = metrics.report(split.test.labels, logits.argmax(1), split.classes)
    checkpoint = {
        "network": network.cpu(),
        "architecture": recipe.network,
        "arguments": arguments,
        "classes": list(split.classes),
        "recipe": asdict(recipe),
        "seed": run.seed,
        "data": results.data_record(split),
        "trained_on_test": recipe.train_on_test,
        "versions": results.versions(),
    }
    result |= {
        "diverged": None,
        "history": asdict(history),
        "report": report.as_dict(),
        "seconds": time.perf_counter() - start,
    }
    return result, checkpoint


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

    A run's files in `folder` are written before it is yielded. A run that has them already,
    from the same recipe, seed, images, device and versions, is not trained again unless
    `fresh`. Raises InputError where the cluster can't be reached.
    """
    how = {"device": device, "threads": threads, "deterministic": deterministic}
    missing = []
    for run in runs:
        result = None if fresh else _kept(run, split, folder, how)
        if result is None:
            missing.append(run)
        else:
            yield run, result
    for run, (result, checkpoint) in _trained(missing, split, jobs, cluster, how):
        file = folder / f"{run.file}.pt"
        if checkpoint is None:
            file.unlink(missing_ok=True)  # of an earlier run, which its result would belie
        else:
            models.save_checkpoint(file, **checkpoint)
        results.save_result(file.with_suffix(".json"), split, seed=run.seed, **how | result)
        yield run, result


def _kept(run: Run, split: Split, folder: Path, how: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a run that ended before, if it is this very run."""
    file = folder / f"{run.file}.json"
    try:
        result = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    wanted = {
        "recipe": asdict(run.recipe),
        "seed": run.seed,
        "data": results.data_record(split),
        "versions": results.versions(),
        **how,
    }
    # Through JSON and back, where a tuple becomes a list.
    same = all(
        result.get(key) == value for key, value in json.loads(json.dumps(wanted)).items()
    )
    has_files = file.with_suffix(".pt").exists() or result.get("diverged")
    return result if same and has_files else None


def _trained(
    runs: Sequence[Run], split: Split, jobs: int, cluster: str | None, how: dict[str, Any]
) -> Iterator[tuple[Run, tuple[dict[str, Any], dict[str, Any] | None]]]:
    if not runs:
        return
    if cluster is None and jobs == 1:  # here, where its bar can be seen
        yield from (_job(run, split, how) for run in runs)
        return

    with _backend(cluster), tqdm(total=len(runs), desc="Runs", disable=None) as bar:
        parallel = joblib.Parallel(jobs, return_as="generator_unordered", batch_size=1)
        for ended in parallel(joblib.delayed(_job)(run, split, how) for run in runs):
            bar.update()
            yield ended


def _job(run: Run, split: Split, how: dict[str, Any]) -> tuple[Run, Any]:
    return run, train(run, split, **how)


@contextmanager
def _backend(address: str | None) -> Iterator[None]:
    """Where joblib sends its jobs: processes here, or the dask scheduler at `address`."""
    if address is None:
        yield
        return
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--cluster: needs dask; pip install distributed") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise InputError(f"--cluster {address}: no dask scheduler answers ({error})") from None
    with client, joblib.parallel_config("dask"):
        yield
