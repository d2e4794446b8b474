"""Runs: saved as they end, not trained again, and the same bytes in parallel."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import joblib
import pytest

from common.dataset.load import load
from common.files import ROOT
from common.metrics.report import report
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
def trained(monkeypatch):
    """The files of the runs that the last call of `train` trained in this process."""
    files, train_run = [], runs_module.train_run

    def recorded(run, *arguments, **settings):
        files.append(run.file)
        return train_run(run, *arguments, **settings)

    monkeypatch.setattr(runs_module, "train_run", recorded)
    return files


@pytest.fixture
def train(split, tmp_path, trained):
    """Train runs in tmp_path/models; return {file: result} in the order in which they end."""

    def train(*runs, **settings):
        trained.clear()
        settings = {"device": "cpu", "jobs": 1, "threads": 1} | settings
        pairs = train_all(runs, split, tmp_path / "models", **settings)
        return {run.file: result for run, result in pairs}

    return train


def run(name="tiny", seed=0, **changes):
    return Run(name, replace(TINY, **changes), seed)


def test_a_finished_run_is_not_trained_again(train, trained, tmp_path):
    first = train(run(), run(seed=1))
    assert list(first) == trained == ["tiny", "tiny-seed1"]
    again = train(run(), run(seed=1), run("other"))
    assert trained == ["other"]
    assert again["tiny"]["report"] == json.loads(json.dumps(first["tiny"]["report"]))
    path = tmp_path / "models/tiny.json"
    saved = json.loads(path.read_text())
    del saved["recipe"]["flip_average"]  # as if the field had been added after this run
    path.write_text(json.dumps(saved))
    train(run())
    assert trained == []
    train(run(flip_average=True))
    assert trained == ["tiny"]


@pytest.mark.parametrize(
    ("changes", "settings"),
    [({"momentum": 0.5}, {}), ({}, {"fresh": True}), ({}, {"deterministic": True}),
     ({}, {"threads": 2})],
)  # fmt: skip
def test_a_run_that_differs_is_trained(train, trained, monkeypatch, changes, settings):
    monkeypatch.setattr(runs_module, "make_deterministic", lambda: None)
    train(run())
    train(run(**changes), **settings)
    assert trained == ["tiny"]


@pytest.mark.parametrize("file", ["tiny.pt", "tiny.json"])
def test_a_run_with_a_lost_or_damaged_file_is_trained(train, trained, tmp_path, file):
    train(run())
    path = tmp_path / "models" / file
    path.unlink()
    if path.suffix == ".json":
        path.write_text("{")
    train(run())
    assert trained == ["tiny"]


def test_only_parallel_runs_are_sorted_the_longest_first(train, trained, monkeypatch):
    runs = [run("short"), run("long", epochs=2), run("copies", copies=1)]
    runs += [run("smote", resample="smote")]
    train(*runs)
    assert trained == ["short", "long", "copies", "smote"]
    sequential = joblib.Parallel(1, return_as="generator")
    monkeypatch.setattr(joblib, "Parallel", lambda *_, **__: sequential)
    train(*runs, jobs=2, fresh=True)
    assert trained == ["smote", "long", "copies", "short"]


def test_jobs_in_processes_give_the_same_weights(train, tmp_path):
    runs = [run(), run(seed=1), run("other", learning_rate=0.01)]
    contents = []
    for jobs in (1, 2):
        assert set(train(*runs, jobs=jobs, fresh=True)) == {"tiny", "tiny-seed1", "other"}
        contents.append([(tmp_path / f"models/{r.file}.pt").read_bytes() for r in runs])
    assert contents[0] == contents[1]


def test_a_diverged_run_is_marked_and_the_others_go_on(train, trained, tmp_path):
    train(run("wild"))
    results = train(run("wild", learning_rate=1e10), run())
    assert "not finite at step" in results["wild"]["diverged"]
    assert results["tiny"]["diverged"] is None
    assert not (tmp_path / "models/wild.pt").exists()
    saved = json.loads((tmp_path / "models/wild.json").read_text())
    assert saved["diverged"] == results["wild"]["diverged"]
    train(run("wild", learning_rate=1e10))
    assert trained == []


@pytest.mark.parametrize(
    "changes",
    [{}, {"seed": 1}, {"train_on_test": True}, {"flip_average": True},
     {"classifier": "cosine"}, {"network": "resnet9", "width": 4},
     {"post_hoc": "logit-adjustment"}, {"post_hoc": "tau-normalisation"}, {"post_hoc": "crt"}],
)  # fmt: skip
def test_the_files_of_a_run_agree_with_its_result(train, tmp_path, split, changes):
    special = run("special", **changes)
    result = train(special)[special.file]
    path = tmp_path / "models" / f"{special.file}.pt"
    checkpoint, saved = load_checkpoint(path), json.loads(path.with_suffix(".json").read_text())
    assert checkpoint.seed == saved["seed"] == special.seed
    assert saved["report"] == json.loads(json.dumps(result["report"]))
    predictions = predict(checkpoint.network, split.test.images).argmax(1)
    confusion = report(split.test.labels, predictions, split.classes).confusion
    assert confusion == result["report"]["confusion"]
    on_test = special.recipe.train_on_test
    assert checkpoint.trained_on_test == result["trained_on_test"] == on_test
    test_images = len(split.test.labels) if on_test else 0
    assert sum(result["examples"]) == len(split.train.labels) + test_images


def test_a_killed_command_started_again_ends_with_the_same_weights(in_process, tmp_path):
    command = "train.py baseline sampler --dry-run --data synthetic --threads 1 --output-dir"
    name, *arguments = command.split()
    with subprocess.Popen(
        [sys.executable, "-u", ROOT / name, *arguments, tmp_path / "killed"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        for line in process.stdout:
            if line.startswith("saved") and "baseline.pt" in line:
                break
        process.send_signal(signal.SIGKILL)
    path = tmp_path / "killed/models/baseline.pt"
    written = path.stat().st_mtime_ns
    for folder in ("killed", "whole"):
        assert "== sampler, seed 0 ==" in in_process(name, *arguments, tmp_path / folder).stdout
    for recipe in ("baseline", "sampler"):
        files = [tmp_path / f / "models" / f"{recipe}.pt" for f in ("killed", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert path.stat().st_mtime_ns == written  # the finished run was not trained again


def test_every_named_recipe_trains(train, tmp_path):
    for name, recipe in RECIPES.items():
        small = replace(recipe, epochs=1, batch_size=25, crt_epochs=1)
        assert train(Run(name, small, 0))[name]["diverged"] is None
