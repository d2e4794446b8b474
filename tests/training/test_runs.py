"""Runs: saved as they end, not trained again, and the same bytes in parallel."""

import itertools
import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

from common.dataset.load import load
from common.files import ROOT, load_result, save_result
from common.metrics.report import report
from common.networks.checkpoint import load_checkpoint
from common.networks.prediction import predict
from common.training import fit as fit_module
from common.training import progress
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
    saved = load_result(path)
    del saved["recipe"]["flip_average"]  # as if the field had been added after this run
    save_result(path, **saved)
    train(run())
    assert trained == []
    train(run(flip_average=True))
    assert trained == ["tiny"]


@pytest.mark.parametrize("changes", [{}, {"flip_average": True}, {"post_hoc": "crt"}])
def test_a_run_of_an_earlier_version_gets_the_predictions_of_its_checkpoint(
    train, trained, tmp_path, split, changes
):
    first = train(run(**changes))["tiny"]
    path = tmp_path / "models/tiny.json"
    saved = load_result(path)
    assert saved.pop("test_predictions") == first["test_predictions"]
    save_result(path, **saved)  # as if the predictions had not been saved
    again = train(run(**changes))["tiny"]
    assert trained == []
    assert again["test_predictions"] == first["test_predictions"]
    predictions = list(map(int, again["test_predictions"].split()))
    confusion = report(split.test.labels, predictions, split.classes).confusion
    assert confusion == again["report"]["confusion"]


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


@pytest.mark.parametrize("content", [None, b"", b"{", b"[" * 100_000, "half", "foreign", "bit"])
@pytest.mark.parametrize("file", ["tiny.pt", "tiny.json"])
def test_a_run_with_a_lost_or_changed_file_is_trained(train, trained, tmp_path, file, content):
    train(run(), run(seed=1))
    path = tmp_path / "models" / file
    whole = path.read_bytes()
    foreign = path.with_stem("tiny-seed1").read_bytes()
    middle = len(whole) // 2
    bit = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    content = {"half": whole[:middle], "foreign": foreign, "bit": bit}.get(content, content)
    path.unlink() if content is None else path.write_bytes(content)
    train(run())
    assert trained == ["tiny"]
    train(run())
    assert trained == []
    if path.suffix == ".pt":
        assert path.read_bytes() == whole


def test_only_parallel_runs_are_sorted_the_longest_first(train, trained, monkeypatch):
    runs = [run("short"), run("long", epochs=2), run("copies", copies=1)]
    runs += [run("smote", resample="smote")]
    train(*runs)
    assert trained == ["short", "long", "copies", "smote"]
    monkeypatch.setattr(
        runs_module,
        "call_in_processes",
        lambda function, calls, jobs: enumerate(itertools.starmap(function, calls)),
    )
    train(*runs, jobs=2, fresh=True)
    assert trained == ["smote", "long", "copies", "short"]


def test_jobs_in_processes_give_the_same_weights(split, tmp_path):
    runs = [run(), run(seed=1), run("other", learning_rate=0.01)]
    settings = {"device": "cpu", "threads": 1, "fresh": True}
    contents = []
    for jobs in (1, 2):
        ended = train_all(runs, split, tmp_path / "models", jobs=jobs, **settings)
        assert {each.file for each, _ in ended} == {"tiny", "tiny-seed1", "other"}
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


def test_the_state_of_a_run_is_gone_when_the_run_is_saved(train, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SAVE_SECONDS", 0.0)
    states, save_checkpoint = [], runs_module.save_checkpoint

    def recorded(path, **facts):
        states.append({file.name for file in path.parent.iterdir()})
        return save_checkpoint(path, **facts)

    monkeypatch.setattr(runs_module, "save_checkpoint", recorded)
    train(run(), run("retrained", post_hoc="crt"))
    assert states[0] == {"tiny.state"}
    assert states[1] == {"tiny.pt", "tiny.json", "retrained.state", "retrained.crt.state"}
    left = {file.name for file in (tmp_path / "models").iterdir()}
    assert left == {"tiny.pt", "tiny.json", "retrained.pt", "retrained.json"}


@pytest.mark.parametrize("changes", [{}, {"post_hoc": "crt"}])
@pytest.mark.parametrize("again", ["", "fresh", "other code"])
def test_an_interrupted_run_goes_on(train, tmp_path, monkeypatch, changes, again):
    monkeypatch.setattr(progress, "SAVE_SECONDS", 0.0)
    epochs = {"epochs": 2, "crt_epochs": 2}
    train(run("whole", **epochs, **changes))
    steps, batch_loss = [], fit_module.losses.batch_loss
    total = 16 if changes else 8  # batches of 20 of the 80 images

    def interrupted(*given):
        steps.append(given)
        if len(steps) == total - 1:
            raise KeyboardInterrupt
        return batch_loss(*given)

    monkeypatch.setattr(fit_module.losses, "batch_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(run("killed", **epochs, **changes))
    if again == "other code":
        monkeypatch.setattr(runs_module.files, "code_digest", lambda: "other")
    train(run("killed", **epochs, **changes), fresh=again == "fresh")
    assert len(steps) == total - 1 + (total if again else 2)
    files = [tmp_path / f"models/{name}.pt" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_every_named_recipe_trains(train, tmp_path):
    for name, recipe in RECIPES.items():
        small = replace(recipe, epochs=1, batch_size=25, crt_epochs=1)
        assert train(Run(name, small, 0))[name]["diverged"] is None
