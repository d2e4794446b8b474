from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from common import dataset, experiment, models
from common.options import ROOT
from common.recipes import RECIPES, Recipe

TINY = Recipe(epochs=1, batch_size=20)


@pytest.fixture
def split(tmp_path):
    return dataset.load("synthetic", dry_run=True, validation=0.2, cache=tmp_path / "cache")


@pytest.fixture
def train(split, tmp_path):
    """Train recipes in tmp_path/models; gives {file: result} in the order of ending."""

    def train(*runs, **options):
        usual = {"device": "cpu", "jobs": 1, "threads": 1}
        pairs = experiment.train_all(runs, split, tmp_path / "models", **(usual | options))
        return {run.file: result for run, result in pairs}

    return train


def run(name="tiny", seed=0, **changes):
    return experiment.Run(name, replace(TINY, **changes), seed)


def count_trainings(monkeypatch):
    trained = []
    original = experiment.train
    monkeypatch.setattr(
        experiment,
        "train",
        lambda group, *a, **k: (
            trained.extend(run.file for run in group) or original(group, *a, **k)
        ),
    )
    return trained


def test_a_run_leaves_checkpoint_and_result(train, tmp_path, split):
    results = train(run(), run(seed=1))
    assert list(results) == ["tiny", "tiny-seed1"]
    for name, seed in (("tiny", 0), ("tiny-seed1", 1)):
        checkpoint = models.load_checkpoint(tmp_path / f"models/{name}.pt")
        saved = json.loads((tmp_path / f"models/{name}.json").read_text())
        assert checkpoint.seed == saved["seed"] == seed
        assert saved["report"] == json.loads(json.dumps(results[name]["report"]))
        predicted = models.predict(checkpoint.network, split.test.images).argmax(1)
        accuracy = (predicted == split.test.labels).double().mean()
        assert saved["report"]["accuracy"] == pytest.approx(accuracy.item())


def test_what_ended_is_not_trained_again(train, monkeypatch):
    first = train(run(), run(seed=1))
    trained = count_trainings(monkeypatch)
    again = train(run(), run(seed=1), run("other"))
    assert trained == ["other"]
    assert again["tiny"]["report"] == json.loads(json.dumps(first["tiny"]["report"]))


def test_seeds_of_one_recipe_are_trained_as_one_with_the_same_results(train, monkeypatch):
    together, sizes = experiment.training.fit_together, []
    monkeypatch.setattr(
        experiment.training,
        "fit_together",
        lambda networks, *a, **k: sizes.append(len(networks)) or together(networks, *a, **k),
    )
    runs = [run(seed=0), run(seed=1), run(seed=2), run("smote", 1, resample="smote")]
    results = train(*runs)
    assert sizes == [3, 1]
    for one in runs:
        (alone,) = train(one, fresh=True).values()
        expected = pytest.approx(alone["history"]["loss"], abs=1e-5)
        assert results[one.file]["history"]["loss"] == expected


def test_side_by_side_the_longest_go_first_and_one_at_a_time_in_the_order_given(train):
    short, long = run("short"), run("long", epochs=2)
    copies = run("copies", copies=1, momentum=0.5)
    assert list(train(short, long, copies)) == ["short", "long", "copies"]
    lengths = [experiment._length([one]) for one in (short, long, copies)]
    assert lengths == [1, 2, 2]
    started = []

    class Here:  # joblib's interface, without processes
        def __init__(self, *_, **__): ...

        def __call__(self, jobs):
            for function, arguments, _ in jobs:
                started.extend(one.name for one in arguments[0])
                yield function(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment.joblib, "Parallel", Here)
        train(short, long, copies, jobs=2, fresh=True)
    assert started == ["long", "copies", "short"]


@pytest.mark.parametrize(
    ("runs", "size", "expected"),
    [
        ("aaaaa", 5, ["aaaaa"]),
        ("aaaaa", 3, ["aaa", "aa"]),
        ("aabb", 9, ["aa", "bb"]),
        ("ab", 1, ["a", "b"]),
        ("ccaa", 9, ["c", "c", "aa"]),  # else the first would be kept only after the last
        ("", 1, []),
    ],
)
def test_groups_hold_one_recipe_each_and_what_trains_as_one(runs, size, expected):
    recipes = {"a": TINY, "b": replace(TINY, momentum=0.5), "c": replace(TINY, ema=0.5)}
    runs = [experiment.Run(name, recipes[name], 0) for name in runs]
    groups = experiment._groups(runs, size, torch.device("cpu"))
    assert ["".join(run.name for run in group) for group in groups] == expected


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
def test_what_is_not_the_same_run_is_trained(train, tmp_path, monkeypatch, change):
    train(run())
    trained = count_trainings(monkeypatch)
    if "lost" in change:
        (tmp_path / "models" / change.pop("lost")).unlink()
    if "damaged" in change:
        (tmp_path / "models" / change.pop("damaged")).write_text("{")
    monkeypatch.setattr(experiment.training, "make_deterministic", lambda: None)
    threads = torch.get_num_threads()
    train(experiment.Run("tiny", change.pop("recipe", TINY), 0), **change)
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
    assert models.load_checkpoint(tmp_path / "models/all.pt").trained_on_test
    assert results["all"]["trained_on_test"]


@pytest.mark.parametrize(
    "changes",
    [{"flip_average": True}, {"post_hoc": "logit-adjustment"}, {"classifier": "cosine"},
     {"post_hoc": "tau-normalisation"}, {"post_hoc": "crt"},
     {"network": "resnet9", "width": 4}],
)  # fmt: skip
def test_the_checkpoint_alone_predicts_what_was_reported(train, tmp_path, split, changes):
    results = train(run("special", **changes))
    checkpoint = models.load_checkpoint(tmp_path / "models/special.pt")
    predicted = models.predict(checkpoint.network, split.test.images).argmax(1)
    report = experiment.metrics.report(split.test.labels, predicted, split.classes)
    assert report.confusion == results["special"]["report"]["confusion"]
    plain = models.build("simple-cnn", {"classes": 3})
    if "post_hoc" in changes or "flip_average" in changes:
        assert not torch.equal(
            models.predict(plain, split.test.images),
            models.predict(checkpoint.network, split.test.images),
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
        assert train(experiment.Run(name, small, 0))[name]["diverged"] is None
