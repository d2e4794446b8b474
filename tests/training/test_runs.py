"""Runs: saved as they end, found again, trained side by side with the same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from common.dataset.load import load
from common.files import ROOT
from common.metrics.report import report
from common.networks.build import build
from common.networks.checkpoint import load_checkpoint
from common.networks.prediction import predict
from common.training import runs as runs_module
from common.training.recipe import Recipe
from common.training.recipes import RECIPES
from common.training.runs import Run, train_all

TINY = Recipe(epochs=1, batch_size=20)


@pytest.fixture
def split(tmp_path):
    return load("synthetic", dry_run=True, validation=0.2, cache=tmp_path / "cache")


@pytest.fixture
def train(split, tmp_path):
    """Train runs in tmp_path/models; return {file: result} in the order in which they end."""

    def train(*runs, **settings):
        usual = {"device": "cpu", "jobs": 1, "threads": 1}
        pairs = train_all(runs, split, tmp_path / "models", **(usual | settings))
        return {run.file: result for run, result in pairs}

    return train


def run(name="tiny", seed=0, **changes):
    return Run(name, replace(TINY, **changes), seed)


@pytest.fixture
def trained(monkeypatch):
    """The files of the runs that are trained in this process."""
    files, train_run = [], runs_module.train_run
    monkeypatch.setattr(
        runs_module,
        "train_run",
        lambda run, *a, **k: files.append(run.file) or train_run(run, *a, **k),
    )
    return files


def test_a_run_leaves_checkpoint_and_result(train, tmp_path, split):
    results = train(run(), run(seed=1))
    assert list(results) == ["tiny", "tiny-seed1"]
    for name, seed in (("tiny", 0), ("tiny-seed1", 1)):
        checkpoint = load_checkpoint(tmp_path / f"models/{name}.pt")
        saved = json.loads((tmp_path / f"models/{name}.json").read_text())
        assert checkpoint.seed == saved["seed"] == seed
        assert saved["report"] == json.loads(json.dumps(results[name]["report"]))
        predicted = predict(checkpoint.network, split.test.images).argmax(1)
        accuracy = (predicted == split.test.labels).double().mean()
        assert saved["report"]["accuracy"] == pytest.approx(accuracy.item())


def test_a_finished_run_is_not_trained_again(train, trained):
    first = train(run(), run(seed=1))
    trained.clear()
    again = train(run(), run(seed=1), run("other"))
    assert trained == ["other"]
    assert again["tiny"]["report"] == json.loads(json.dumps(first["tiny"]["report"]))


def test_a_recipe_field_added_later_makes_no_run_a_stranger(train, trained, tmp_path):
    train(run())
    path = tmp_path / "models/tiny.json"
    saved = json.loads(path.read_text())
    del saved["recipe"]["flip_average"]  # as if the field had been added after this run
    path.write_text(json.dumps(saved))
    trained.clear()
    train(run())
    assert trained == []
    train(run(flip_average=True))
    assert trained == ["tiny"]


def test_side_by_side_the_longest_go_first_and_alone_the_order_is_kept(train, monkeypatch):
    runs = [run("short"), run("long", epochs=2), run("copies", copies=1)]
    runs += [run("smote", resample="smote")]
    assert list(train(*runs)) == ["short", "long", "copies", "smote"]
    started = []

    class SameProcess:
        """joblib.Parallel's interface without processes."""

        def __init__(self, *_, **__): ...

        def __call__(self, jobs):
            for function, arguments, _ in jobs:
                started.append(arguments[0].name)
                yield function(*arguments)

    monkeypatch.setattr(runs_module.joblib, "Parallel", SameProcess)
    train(*runs, jobs=2, fresh=True)
    assert started == ["smote", "long", "copies", "short"]


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": replace(TINY, momentum=0.5)},
        {"fresh": True},
        {"deterministic": True},
        {"threads": 2},
        {"lost": "tiny.pt"},
        {"damaged": "tiny.json"},
    ],
)
def test_a_run_that_differs_is_trained(train, trained, tmp_path, monkeypatch, change):
    train(run())
    trained.clear()
    if "lost" in change:
        (tmp_path / "models" / change.pop("lost")).unlink()
    if "damaged" in change:
        (tmp_path / "models" / change.pop("damaged")).write_text("{")
    monkeypatch.setattr(runs_module, "make_deterministic", lambda: None)
    threads = torch.get_num_threads()
    train(Run("tiny", change.pop("recipe", TINY), 0), **change)
    torch.set_num_threads(threads)
    assert trained == ["tiny"]


def test_jobs_in_processes_give_the_same_weights(train, tmp_path):
    runs = [run(), run(seed=1), run("other", learning_rate=0.01)]
    train(*runs)
    alone = {r.file: (tmp_path / f"models/{r.file}.pt").read_bytes() for r in runs}
    assert set(train(*runs, jobs=2, fresh=True)) == set(alone)
    for name, content in alone.items():
        assert (tmp_path / f"models/{name}.pt").read_bytes() == content


def test_a_diverged_run_says_so_and_the_others_go_on(train, tmp_path):
    train(run("wild"))
    results = train(run("wild", learning_rate=1e10), run())
    assert "not finite at step" in results["wild"]["diverged"]
    assert results["tiny"]["diverged"] is None
    assert not (tmp_path / "models/wild.pt").exists()
    saved = json.loads((tmp_path / "models/wild.json").read_text())
    assert saved["diverged"] == results["wild"]["diverged"]


def test_test_images_in_training_are_marked(train, tmp_path, split):
    results = train(run("all", train_on_test=True))
    assert sum(results["all"]["examples"]) == len(split.train.labels) + len(split.test.labels)
    assert load_checkpoint(tmp_path / "models/all.pt").trained_on_test
    assert results["all"]["trained_on_test"]


@pytest.mark.parametrize(
    "changes",
    [{"flip_average": True}, {"post_hoc": "logit-adjustment"}, {"classifier": "cosine"},
     {"post_hoc": "tau-normalisation"}, {"post_hoc": "crt"},
     {"network": "resnet9", "width": 4}],
)  # fmt: skip
def test_the_checkpoint_alone_predicts_what_was_reported(train, tmp_path, split, changes):
    results = train(run("special", **changes))
    checkpoint = load_checkpoint(tmp_path / "models/special.pt")
    predicted = predict(checkpoint.network, split.test.images).argmax(1)
    confusion = report(split.test.labels, predicted, split.classes).confusion
    assert confusion == results["special"]["report"]["confusion"]
    plain = build("simple-cnn", {"classes": 3})
    if "post_hoc" in changes or "flip_average" in changes:
        assert not torch.equal(
            predict(plain, split.test.images),
            predict(checkpoint.network, split.test.images),
        )


def test_a_killed_command_started_again_ends_with_the_same_weights(in_process, tmp_path):
    def command(folder):
        return [
            "train.py", "baseline", "sampler", "--dry-run", "--data", "synthetic",
            "--threads", "1", "--output-dir", tmp_path / folder,
        ]  # fmt: skip

    name, *arguments = command("killed")
    with subprocess.Popen(
        [sys.executable, "-u", ROOT / name, *arguments], stdout=subprocess.PIPE, text=True
    ) as process:
        for line in process.stdout:
            if line.startswith("saved") and "baseline.pt" in line:
                break
        process.send_signal(signal.SIGKILL)
    ended = (tmp_path / "killed/models/baseline.pt").stat()
    for folder in ("killed", "whole"):
        assert "== sampler, seed 0 ==" in in_process(*command(folder)).stdout
    for recipe in ("baseline", "sampler"):
        files = [tmp_path / f / "models" / f"{recipe}.pt" for f in ("killed", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
    again = (tmp_path / "killed/models/baseline.pt").stat()
    assert (again.st_mtime_ns, again.st_ino) == (ended.st_mtime_ns, ended.st_ino)


def test_every_named_recipe_trains(train, tmp_path):
    for name, recipe in RECIPES.items():
        small = replace(recipe, epochs=1, batch_size=25, crt_epochs=1)
        assert train(Run(name, small, 0))[name]["diverged"] is None
