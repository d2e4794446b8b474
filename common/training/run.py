"""One training: a network trained once, for one run or for several that share the training."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from common import files
from common.dataset.split import LabelledImages, Split
from common.errors import DivergedError
from common.metrics.report import report
from common.networks.prediction import predict
from common.training import post_hoc
from common.training.fit import (
    first_draw,
    fit,
    make_deterministic,
    precision,
    require_finite,
    require_finite_logits,
)
from common.training.log import TrainingLog
from common.training.progress import History, StateFile
from common.training.recipe import Recipe
from common.training.setup_run import Setup, set_up

# Of a run: its result, and the arguments of `save_checkpoint`, None if the run diverged.
Outcome = tuple[dict[str, Any], dict[str, Any] | None]
Outcomes = list[Outcome]


@dataclass(frozen=True)
class Run:
    """One recipe with one seed. Its files are models/FILE.pt, .json and .csv."""

    name: str
    recipe: Recipe
    seed: int

    @property
    def file(self) -> str:
        """The recipe's name, and the seed unless it is 0."""
        return self.name if self.seed == 0 else f"{self.name}-seed{self.seed}"


def train_together(
    runs: Sequence[Run],
    split: Split,
    state_files: Sequence[Sequence[StateFile]] = (),
    log: TrainingLog | None = None,
    features: dict[str, Any] | None = None,
    *,
    device: str,
    threads: int,
    deterministic: bool,
    judge_epochs: bool = True,
) -> Outcomes:
    """Train runs that share their training, and return each one's result and checkpoint.

    runs: of one seed and one `Recipe.training`. The network is trained once, and what each
    run's recipe does afterwards is done to a copy of it; the results are those of the runs
    alone. The seconds of the training are counted for the first. The checkpoint: the arguments
    of `save_checkpoint`. The result of a run whose loss stops being finite says so under
    "diverged"; such a run has no checkpoint. state_files: for each run that of the training, of
    which the first run's is used, and that of crt; or none. log: of the training; that of crt
    has none. features: threads, facts and cache for `set_up`. judge_epochs: whether the
    validation images judge the network as each epoch ends, or only as the run ends.
    """
    start = time.perf_counter()
    first, classes, where = runs[0], len(split.classes), torch.device(device)
    if deterministic:
        make_deterministic()
    how = features or {"threads": threads}
    ready = set_up(first.recipe, split, first.seed, device=where, **how)
    torch.set_num_threads(useful_threads(first.recipe, threads))
    judges = ready.validation if judge_epochs else ready.validation.select(torch.arange(0))
    states = state_files or [(None, None)] * len(runs)
    with closing(log) if log is not None else nullcontext():
        history = fit(
            ready.trained, ready.examples, judges, ready.recipe,
            seed=first.seed, device=where, name=first.file, state_file=states[0][0], log=log,
        )  # fmt: skip
    before = states[0][0].seconds if state_files else 0.0
    outcomes = []
    for run, (_, crt_state) in zip(runs, states, strict=True):
        network, trained = ready.network, ready.trained
        if run is not runs[-1]:
            network, trained = copy.deepcopy((network, trained))  # at once: they share layers
        # `set_up` takes the augmentation from a frozen recipe.
        recipe = replace(run.recipe, augment=ready.recipe.augment)
        own = ready._replace(network=network, trained=trained, recipe=recipe)
        result = {
            "recipe": asdict(run.recipe),
            "examples": ready.examples.counts(classes),
            "drawn": first_draw(ready.examples, run.recipe, classes, run.seed),
            "trained_on_test": run.recipe.train_on_test,
            "precision": precision(run.recipe, where),
            "processor": files.processor(device),  # of a cluster's worker, perhaps
            "history": asdict(history),
            "diverged": None,
            "trained_with": None if run is first else first.file,
        }
        more, checkpoint = _finish(run, own, judges, split, history, where, crt_state)
        seconds = time.perf_counter() - start + before + (crt_state.seconds if crt_state else 0)
        outcomes.append((result | more | {"seconds": seconds}, checkpoint))
        start, before = time.perf_counter(), 0.0
    return outcomes


def _finish(
    run: Run, ready: Setup, judges: LabelledImages, split: Split, history: History,
    device: torch.device, crt_state: StateFile | None,
) -> Outcome:  # fmt: skip
    """Apply what the run's recipe does after the training, and evaluate the network.

    Returns the part of the result that follows from this, and the checkpoint.
    """
    recipe = run.recipe
    result = {} if ready.features is None else {"features": dict(ready.features)}
    try:
        require_finite(history, recipe)
        more_arguments = post_hoc.apply(
            ready.trained, ready.examples, judges, ready.recipe,
            seed=run.seed, device=device, name=run.file, state_file=crt_state,
        )  # fmt: skip
        parts = {"validation": ready.validation, "report": ready.test}
        parts = {name: part for name, part in parts.items() if len(part.labels)}
        logits = {name: predict(ready.trained, part.images) for name, part in parts.items()}
        for each in logits.values():
            require_finite_logits(each, recipe)
    except DivergedError as error:
        return result | {"diverged": str(error)}, None
    for name, part in parts.items():
        predictions = logits[name].argmax(1)
        result[name] = report(part.labels, predictions, split.classes).as_dict()
        if name == "report":
            result["test_predictions"] = predictions_text(predictions)
    return result, {
        "network": ready.network.cpu(),
        "architecture": recipe.network,
        "arguments": ready.arguments | more_arguments,
        "classes": list(split.classes),
        "image_size": split.image_size,
        "recipe": asdict(recipe),
        "seed": run.seed,
        "data": split.record(),
        "trained_on_test": recipe.train_on_test,
        "versions": files.versions(),
    }


def useful_threads(recipe: Recipe, threads: int) -> int:
    """Return the threads that a run trains with: one with a small network.

    Two threads would wait for each other longer than they work.
    """
    return 1 if recipe.network == "simple-cnn" or recipe.frozen else threads


def predictions_text(predictions: torch.Tensor) -> str:
    """Return predictions (N,) as one line of a result file, which gives a list N lines."""
    return " ".join(map(str, predictions.tolist()))
