"""Runs: recipes with seeds, trained side by side, each saved as soon as it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from common import files
from common.dataset.split import Split
from common.networks import new_arguments, pretrained
from common.networks.checkpoint import load_checkpoint, save_checkpoint
from common.networks.prediction import predict
from common.training.cluster import require_sendable, train_on_cluster
from common.training.log import TrainingLog, copy_log, remove_log
from common.training.progress import StateFile
from common.training.recipe import Recipe
from common.training.recipe_record import equals_saved
from common.training.resampling import check_examples
from common.training.run import Outcomes, Run, predictions_text, train_together, useful_threads
from common.training.setup_run import cache_features
from common.training.workers import call_in_processes


def check_recipes(
    recipes: Iterable[Recipe], split: Split, cluster: str | None = None
) -> dict[Recipe, dict[str, Any]]:
    """Check before any work that these recipes can be trained on these images.

    Pretrained weights that are not there yet are downloaded. Returns, for each recipe, what its
    weights depend on beside it: `new_arguments` of the network, which earlier versions built
    without them, and what `pretrained.prepare` returns, such as the SHA-256 of a file of
    weights. Raises InputError for images, weights, networks and clusters that can't be used.
    """
    facts = {}
    for recipe in recipes:
        check_examples(recipe, split.train, split.classes)
        if cluster is not None:
            require_sendable(recipe, split)
        weights = pretrained.prepare(
            recipe.network, recipe.pretrained, recipe.weights,
            len(split.classes), split.image_size, recipe.head_option(),
        )  # fmt: skip
        facts[recipe] = new_arguments(recipe.network) | weights
    return facts


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
    tensorboard: bool = False,
    cache: Path | None = None,
    results_only: bool = False,
) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Train the runs, `jobs` at a time or on a dask cluster; yield each result as it ends.

    Runs that differ only in what follows the training share it. The files of a run are written
    to `folder` before it is yielded, and its log, with event files if `tensorboard`, while it
    trains. A run with files of the same recipe, seed, images, weights, device, threads and
    versions is not trained again, unless `fresh`; a run that was killed goes on from its last
    saved state. On a cluster there are neither states nor logs. cache: the folder of the
    features of frozen networks, by default data/. results_only: no checkpoints are saved, and
    validation images judge a run only as it ends. Raises InputError as `check_recipes` does,
    and if the cluster can't be reached.
    """
    cache = cache or files.ROOT / "data"
    settings = {"device": device, "threads": threads, "deterministic": deterministic}
    facts = check_recipes({run.recipe: None for run in runs}, split, cluster)
    conditions = {
        recipe: settings | {"threads": useful_threads(recipe, threads)} | facts_of_recipe
        for recipe, facts_of_recipe in facts.items()
    }
    # What weights do not depend on is no condition of them.
    how = settings | {"judge_epochs": not results_only}
    missing = []
    for run in runs:
        if fresh:
            _remove_state(run, folder)
        result = None
        if not fresh:
            given = conditions[run.recipe]
            result = _load_finished_run(run, split, folder, given, not results_only)
        if result is None:
            missing.append(run)
        else:
            _remove_state(run, folder)  # of a run that was killed between the two
            yield run, result
    groups = by_training(missing)
    if jobs > 1:  # the longest first, so that no process ends up with a long one alone
        groups.sort(key=lambda group: _relative_length(group[0]), reverse=True)
    if cluster is not None:
        trained = train_on_cluster(cluster, groups, split, how) if groups else ()
        for run in missing:
            remove_log(_log_path(run, folder))  # of an earlier run
    else:
        states = {
            run: _state_files(run, split, folder, conditions[run.recipe]) for run in missing
        }
        files_of_runs = {"states": states, "tensorboard": tensorboard, "cache": cache}
        trained = _train_here(groups, split, folder, jobs, how, facts, **files_of_runs)
    for group, outcomes in trained:
        # The first run is saved last: as long as another one is missing the group keeps its
        # first run, with the state of the training that all of them share.
        for run, (result, checkpoint) in reversed(list(zip(group, outcomes, strict=True))):
            path = folder / f"{run.file}.pt"
            if run is not group[0] and cluster is None:
                copy_log(_log_path(group[0], folder), _log_path(run, folder))
            # The result is written last: with a checkpoint of another hash, or none, it counts
            # for nothing, so that a run killed between the two is trained again.
            if checkpoint is None or results_only:
                path.unlink(missing_ok=True)
                digest = None
            else:
                digest = save_checkpoint(path, **_interned(checkpoint))
            files.save_result(
                path.with_suffix(".json"),
                data=split.record(),
                seed=run.seed,
                checkpoint_sha256=digest,
                **conditions[run.recipe] | result,
            )
        for run in group:
            _remove_state(run, folder)
        for run, (result, _) in zip(group, outcomes, strict=True):
            yield run, result


def by_training(runs: Iterable[Run]) -> list[list[Run]]:
    """Return the runs, in their order, in groups that one training serves."""
    groups: dict[tuple[Recipe, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.recipe.training(), run.seed), []).append(run)
    return list(groups.values())


def _interned(value: Any) -> Any:
    """Return plain values with one object for equal texts.

    A file of pickled values depends on which of them are the same object, and those that come
    from another process are not the same as those of this one.
    """
    if isinstance(value, dict):
        return {_interned(key): _interned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_interned(each) for each in value]
    return sys.intern(value) if isinstance(value, str) else value


def measured(result: dict[str, Any]) -> dict[str, Any]:
    """Return what was measured of a run, without what only a saved result says beside it."""
    names = (
        "recipe", "examples", "drawn", "trained_on_test", "precision", "features", "history",
        "diverged", "validation", "report", "seconds",
    )  # fmt: skip
    return {name: result[name] for name in names if name in result}


def _load_finished_run(
    run: Run, split: Split, folder: Path, settings: dict[str, Any], with_network: bool
) -> dict[str, Any] | None:
    """Return the saved result of this very run, None if it has none.

    with_network: whether a result that was saved without its network counts for nothing.
    """
    path = folder / f"{run.file}.json"
    result = files.load_result(path)
    if result is None or not equals_saved(run.recipe, result.get("recipe")):
        return None
    wanted = _circumstances(run, split, settings)
    same_data = describes(result.get("data"), split)
    same = {key: result.get(key) for key in wanted} | {"data": wanted["data"]} == wanted
    digest = result.get("checkpoint_sha256")
    whole = files.sha256(path.with_suffix(".pt")) == digest
    if with_network and digest is None and result["diverged"] is None:
        return None
    if not (same_data and same and whole):
        return None
    lacks_predictions = len(split.test.labels) and "test_predictions" not in result
    if result["diverged"] is None and lacks_predictions:
        # An earlier version saved the run.
        network = load_checkpoint(path.with_suffix(".pt"), settings["device"]).network
        result["test_predictions"] = predictions_text(
            predict(network, split.test.images).argmax(1)
        )
    return result


def describes(saved: Any, split: Split) -> bool:
    """Return whether `saved`, the data of a result file, is the record of these images.

    A record of an earlier version names no image size; it was 32.
    """
    record = json.loads(json.dumps(split.record()))  # tuples become lists
    return isinstance(saved, dict) and {"image_size": 32} | saved == record


def _circumstances(run: Run, split: Split, settings: dict[str, Any]) -> dict[str, Any]:
    """Return all that a run's weights depend on beside its recipe, as a JSON file has it."""
    beside = {"seed": run.seed, "data": split.record(), "versions": files.versions()}
    return json.loads(json.dumps(beside | settings))  # tuples become lists


def _state_files(
    run: Run, split: Split, folder: Path, settings: dict[str, Any]
) -> list[StateFile]:
    # Other code might read another state, or go on to other weights.
    circumstances = [_circumstances(run, split, settings), files.code_digest()]
    identity = json.dumps([asdict(run.recipe), *circumstances])
    return [StateFile(path, identity) for path in _state_paths(run, folder)]


def _log_path(run: Run, folder: Path) -> Path:
    return folder / f"{run.file}.csv"


def _state_paths(run: Run, folder: Path) -> list[Path]:
    return [folder / f"{run.file}{stage}.state" for stage in ("", ".crt")]


def _remove_state(run: Run, folder: Path) -> None:
    for path in _state_paths(run, folder):
        path.unlink(missing_ok=True)


def _train_here(
    groups: Sequence[Sequence[Run]],
    split: Split,
    folder: Path,
    jobs: int,
    settings: dict[str, Any],
    facts: dict[Recipe, dict[str, Any]],
    *,
    states: dict[Run, list[StateFile]],
    tensorboard: bool,
    cache: Path,
) -> Iterator[tuple[Sequence[Run], Outcomes]]:
    """Train each group in this process or in worker processes; yield it as it ends."""
    if not groups:  # all are finished
        return
    train, calls = partial(train_together, **settings), []
    for group in groups:
        first = group[0]
        log = TrainingLog(_log_path(first, folder), tensorboard)
        # As many threads as the runs have together, in whichever process features are computed.
        how = {
            "threads": jobs * settings["threads"],
            "facts": facts[first.recipe],
            "cache": cache,
        }
        calls.append((group, split, [states[run] for run in group], log, how))
    if jobs == 1:  # in this process, where the bar of `fit` is visible
        for group, call in zip(groups, calls, strict=True):
            yield group, train(*call)
        return
    _share_features(calls, torch.device(settings["device"]))
    with tqdm(total=sum(map(len, groups)), desc="Runs", disable=None) as bar:
        for i, trained in call_in_processes(train, calls, jobs):
            bar.update(len(groups[i]))
            yield groups[i], trained


def _share_features(calls: Sequence[tuple[Any, ...]], device: torch.device) -> None:
    """Compute the features of frozen runs, so that no two processes compute the same ones.

    calls: arguments of `train_together`. Features that can't be cached are left to the
    processes.
    """
    for (run, *_), split, _, _, how in calls:
        if run.recipe.frozen and not cache_features(
            run.recipe, split, run.seed, device=device, **how
        ):
            for *_, how_of_run in calls:
                how_of_run["cache"] = None  # it can't be written, which was said once
            return


def _relative_length(run: Run) -> int:
    """Return about how long a run takes, in epochs over the train images."""
    if run.recipe.frozen:
        return 0
    oversampling = ("smote", "borderline-smote", "adasyn", "random-over")
    factor = 3 if run.recipe.resample in oversampling else 1
    return run.recipe.epochs * (1 + run.recipe.copies) * factor
