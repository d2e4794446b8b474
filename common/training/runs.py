"""Runs: recipes with seeds, trained side by side, each saved as soon as it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import files
from common.dataset.split import Split
from common.errors import DivergedError
from common.metrics.report import report
from common.networks.build import build
from common.networks.checkpoint import load_checkpoint, save_checkpoint
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
from common.training.progress import StateFile
from common.training.recipe import Recipe
from common.training.resampling import make_examples
from common.training.workers import call_in_processes


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
    run: Run,
    split: Split,
    state_files: Sequence[StateFile] = (),
    *,
    device: str,
    threads: int,
    deterministic: bool,
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Train one run, and return its result and the arguments of `save_checkpoint`.

    The result of a run whose loss stops being finite says so under "diverged"; such a run has
    no checkpoint. state_files: that of the training and that of crt, or none.
    """
    start = time.perf_counter()

    def seconds() -> float:
        return time.perf_counter() - start + sum(file.seconds for file in state_files)

    recipe, classes, where = run.recipe, len(split.classes), torch.device(device)
    # With the small batches of SimpleCNN two threads wait for each other longer than they work.
    torch.set_num_threads(1 if recipe.network == "simple-cnn" else threads)
    if deterministic:
        make_deterministic()
    examples = make_examples(split.train, split.test, recipe, split.classes, run.seed)
    arguments = recipe.network_arguments(classes)
    network = build(recipe.network, arguments, run.seed)
    arguments_of_fit = {"seed": run.seed, "device": where, "name": run.file}
    fit_state, crt_state = state_files or (None, None)
    history = fit(
        network, examples, split.validation, recipe, state_file=fit_state, **arguments_of_fit
    )
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
            network,
            examples,
            split.validation,
            recipe,
            state_file=crt_state,
            **arguments_of_fit,
        )
    except DivergedError as error:
        return result | {"diverged": str(error), "seconds": seconds()}, None
    for name, part in (("validation", split.validation), ("report", split.test)):
        if len(part.labels):
            predictions = predict(network, part.images).argmax(1)
            result[name] = report(part.labels, predictions, split.classes).as_dict()
            if part is split.test:
                result["test_predictions"] = _as_text(predictions)
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
    return result | {"seconds": seconds()}, checkpoint


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
    same recipe, seed, images, device and versions is not trained again, unless `fresh`; a run
    that was killed goes on from its last saved state, except on a cluster. Raises InputError if
    the cluster can't be reached.
    """
    settings = {"device": device, "threads": threads, "deterministic": deterministic}
    missing = []
    for run in runs:
        if fresh:
            _remove_state(run, folder)
        result = None if fresh else _load_finished_run(run, split, folder, settings)
        if result is None:
            missing.append(run)
        else:
            _remove_state(run, folder)  # of a run that was killed between the two
            yield run, result
    if jobs > 1:  # the longest first, so that no process ends up with a long one alone
        missing.sort(key=_relative_length, reverse=True)
    trained = _train_missing(missing, split, folder, jobs, cluster, settings)
    for run, (result, checkpoint) in trained:
        path = folder / f"{run.file}.pt"
        # The result is written last: with a checkpoint of another hash, or none, it counts for
        # nothing, so that a run killed between the two is trained again.
        if checkpoint is None:
            path.unlink(missing_ok=True)
            digest = None
        else:
            digest = save_checkpoint(path, **checkpoint)
        files.save_result(
            path.with_suffix(".json"),
            data=split.record(),
            seed=run.seed,
            checkpoint_sha256=digest,
            **settings | result,
        )
        _remove_state(run, folder)
        yield run, result


def measured(result: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured of a run, without what only a saved result says beside it."""
    names = (
        "recipe", "examples", "drawn", "trained_on_test", "precision", "history", "diverged",
        "validation", "report", "seconds",
    )  # fmt: skip
    return {name: result[name] for name in names if name in result}


def _load_finished_run(
    run: Run, split: Split, folder: Path, settings: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the saved result of this very run, None if it has none."""
    path = folder / f"{run.file}.json"
    result = files.load_result(path)
    if result is None or not run.recipe.equals_saved(result.get("recipe")):
        return None
    wanted = _circumstances(run, split, settings)
    same = {key: result.get(key) for key in wanted} == wanted
    whole = files.sha256(path.with_suffix(".pt")) == result.get("checkpoint_sha256")
    if not (same and whole):
        return None
    if result["diverged"] is None and "test_predictions" not in result:
        # An earlier version saved the run.
        network = load_checkpoint(path.with_suffix(".pt"), settings["device"]).network
        result["test_predictions"] = _as_text(predict(network, split.test.images).argmax(1))
    return result


def _as_text(predictions: torch.Tensor) -> str:
    """Return predictions (N,) as one line of a result file, which gives a list N lines."""
    return " ".join(map(str, predictions.tolist()))


def _circumstances(run: Run, split: Split, settings: dict[str, Any]) -> dict[str, Any]:
    """Return all that a run's weights depend on beside its recipe, as a JSON file has it."""
    facts = {"seed": run.seed, "data": split.record(), "versions": files.versions()}
    return json.loads(json.dumps(facts | settings))  # tuples become lists


def _state_files(
    run: Run, split: Split, folder: Path, settings: dict[str, Any]
) -> list[StateFile]:
    # Other code might read another state, or go on to other weights.
    circumstances = [_circumstances(run, split, settings), files.code_digest()]
    identity = json.dumps([asdict(run.recipe), *circumstances])
    return [StateFile(path, identity) for path in _state_paths(run, folder)]


def _state_paths(run: Run, folder: Path) -> list[Path]:
    return [folder / f"{run.file}{stage}.state" for stage in ("", ".crt")]


def _remove_state(run: Run, folder: Path) -> None:
    for path in _state_paths(run, folder):
        path.unlink(missing_ok=True)


def _train_missing(
    runs: Sequence[Run],
    split: Split,
    folder: Path,
    jobs: int,
    cluster: str | None,
    settings: dict[str, Any],
) -> Iterator[tuple[Run, tuple[dict[str, Any], dict[str, Any] | None]]]:
    """Train the runs here, in worker processes or on a cluster; yield each as it ends."""
    if not runs:
        return
    if cluster is not None:
        yield from train_on_cluster(cluster, runs, split, settings)
        return
    train = partial(train_run, **settings)
    calls = [(run, split, _state_files(run, split, folder, settings)) for run in runs]
    if jobs == 1:  # in this process, where the bar of `fit` is visible
        for run, call in zip(runs, calls, strict=True):
            yield run, train(*call)
        return
    with tqdm(total=len(runs), desc="Runs", disable=None) as bar:
        for i, trained in call_in_processes(train, calls, jobs):
            bar.update()
            yield runs[i], trained


def _relative_length(run: Run) -> int:
    """Return about how long a run takes, in epochs over the train images."""
    oversampling = ("smote", "borderline-smote", "adasyn", "random-over")
    factor = 3 if run.recipe.resample in oversampling else 1
    return run.recipe.epochs * (1 + run.recipe.copies) * factor
