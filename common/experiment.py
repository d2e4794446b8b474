"""Runs: recipes with seeds, trained side by side, each kept as soon as it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch
from tqdm import tqdm

from common import balance, metrics, models, post_hoc, results, training
from common.dataset import Part, Split
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


Outcome = tuple[dict[str, Any], dict[str, Any] | None]


def train(
    runs: Sequence[Run], split: Split, device: str, threads: int, deterministic: bool
) -> list[Outcome]:
    """Train runs that differ in seed and learning rate; several only where
    `training.can_train_together`. Returns each one's result and its checkpoint's content.

    Both are to be saved. A run whose loss stops being finite has a result that says so, and no
    checkpoint. Runs with equally many examples are trained as one; "seconds" is an equal part.
    """
    start = time.perf_counter()
    # At a small network's batches two threads wait for each other longer than they work.
    torch.set_num_threads(1 if runs[0].recipe.network == "simple-cnn" else threads)
    if deterministic:
        training.make_deterministic()
    recipe, classes, on = runs[0].recipe, len(split.classes), torch.device(device)
    by_seed = {
        seed: balance.examples(split.train, split.test, recipe, split.classes, seed)
        for seed in {run.seed for run in runs}
    }
    counts = [part.counts(classes) for part in by_seed.values()]
    if any(c != counts[0] for c in counts):  # ADASYN makes a number that depends on the seed
        return [train([run], split, device, threads, deterministic)[0] for run in runs]
    networks = [
        models.build(recipe.network, recipe.network_arguments(classes), run.seed)
        for run in runs
    ]
    examples = [by_seed[run.seed] for run in runs]
    histories = training.fit_together(
        networks,
        examples,
        split.validation,
        [run.recipe for run in runs],
        seeds=[run.seed for run in runs],
        device=on,
        name=", ".join(run.file for run in runs),
    )
    ended = zip(runs, networks, examples, histories, strict=True)
    outcomes = [_outcome(*one, split, on) for one in ended]
    seconds = (time.perf_counter() - start) / len(runs)
    return [(result | {"seconds": seconds}, content) for result, content in outcomes]


def _outcome(
    run: Run, network: models.Network, examples: Part, history: training.History, split: Split,
    device: torch.device,
) -> Outcome:  # fmt: skip
    """What follows the training of a run: its post-hoc step, and its test."""
    recipe, classes = run.recipe, len(split.classes)
    result = {
        "recipe": asdict(recipe),
        "examples": examples.counts(classes),
        "drawn": training.first_draw(examples, recipe, classes, run.seed),
        "trained_on_test": recipe.train_on_test,
        "precision": training.precision(recipe, device),
        "history": asdict(history),
    }
    try:
        training.check(history, recipe)
        arguments = recipe.network_arguments(classes) | post_hoc.apply(
            network, examples, split.validation, recipe,
            seed=run.seed, device=device, name=run.file,
        )  # fmt: skip
    except training.DivergedError as error:
        return result | {"diverged": str(error)}, None
    for name, part in (("validation", split.validation), ("report", split.test)):
        if len(part.labels):
            predicted = models.predict(network, part.images).argmax(1)
            result[name] = metrics.report(part.labels, predicted, split.classes).as_dict()
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
    return result | {"diverged": None}, checkpoint


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
    # Runs that are trained as one take less time, but not less than if some had no work.
    size = 1 if cluster else -(-len(runs) // jobs)
    groups = _groups(missing, size, torch.device(device))
    if jobs > 1:  # the longest first, so that none is left to one process at the end
        groups.sort(key=_length, reverse=True)
    for run, (result, checkpoint) in _trained(groups, split, jobs, cluster, how):
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
    groups: Sequence[Sequence[Run]], split: Split, jobs: int, cluster: str | None,
    how: dict[str, Any],
) -> Iterator[tuple[Run, Outcome]]:  # fmt: skip
    if not groups:
        return
    if cluster is None and jobs == 1:  # here, where its bar can be seen
        for group in groups:
            yield from _job(group, split, how)
        return

    total = sum(map(len, groups))
    with _backend(cluster), tqdm(total=total, desc="Runs", disable=None) as bar:
        parallel = joblib.Parallel(jobs, return_as="generator_unordered", batch_size=1)
        for ended in parallel(joblib.delayed(_job)(group, split, how) for group in groups):
            bar.update(len(ended))
            yield from ended


def _job(group: Sequence[Run], split: Split, how: dict[str, Any]) -> list[tuple[Run, Outcome]]:
    return list(zip(group, train(group, split, **how), strict=True))


def _length(group: Sequence[Run]) -> int:
    """About how long a group takes, in epochs of the train images."""
    recipe = group[0].recipe
    larger = (
        3 if recipe.resample in ("smote", "borderline-smote", "adasyn", "random-over") else 1
    )
    return recipe.epochs * (1 + recipe.copies) * larger * len(group)


def _groups(runs: Sequence[Run], size: int, device: torch.device) -> list[list[Run]]:
    """The runs of each recipe, at whatever learning rate, in groups of at most `size`.

    Runs that can't be trained as one are by themselves, so that each is kept when it ends.
    """
    groups: list[list[Run]] = []
    for run in runs:
        last = groups[-1] if groups else []
        rate = run.recipe.learning_rate
        if (
            0 < len(last) < size
            and replace(last[0].recipe, learning_rate=rate) == run.recipe
            and training.can_train_together(run.recipe, device)
        ):
            last.append(run)
        else:
            groups.append([run])
    return groups


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
