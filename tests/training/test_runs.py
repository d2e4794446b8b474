"""Runs: saved as they end, not trained again, and the same bytes in parallel."""

import itertools
import json
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torchvision.models import mobilenet_v3_small

from common.dataset.load import load
from common.dataset.split import LabelledImages
from common.errors import InputError
from common.files import ROOT, load_result, save_result, sha256
from common.metrics.report import report
from common.networks.checkpoint import load_checkpoint
from common.networks.prediction import predict
from common.training import fit as fit_module
from common.training import progress
from common.training import run as run_module
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
    files, train_together = [], runs_module.train_together

    def recorded(runs, *arguments, **settings):
        files.extend(run.file for run in runs)
        return train_together(runs, *arguments, **settings)

    monkeypatch.setattr(runs_module, "train_together", recorded)
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


def test_a_result_without_its_network_is_enough_only_for_the_race(train, trained, tmp_path):
    first = train(run(), results_only=True)["tiny"]
    checkpoint = tmp_path / "models/tiny.pt"
    assert not checkpoint.exists()
    again = train(run(), results_only=True)["tiny"]
    assert trained == []
    assert again["test_predictions"] == first["test_predictions"]
    train(run())
    assert trained == ["tiny"]
    assert checkpoint.exists()
    train(run(), results_only=True)  # with its network it is finished all the more
    assert trained == []
    assert checkpoint.exists()


@pytest.mark.parametrize("changes", [{}, {"post_hoc": "crt", "crt_epochs": 1}])
def test_a_run_whose_result_alone_counts_is_judged_only_at_its_end(train, split, changes):
    judged = train(run(**changes))["tiny"]
    result = train(run(**changes), results_only=True, fresh=True)["tiny"]
    assert len(judged["history"]["validation_loss"]) == TINY.epochs
    assert result["history"]["validation_loss"] == []
    assert result["history"]["loss"] == judged["history"]["loss"]
    assert result["validation"] == judged["validation"]
    assert result["test_predictions"] == judged["test_predictions"]


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
    [({"momentum": 0.5}, {}), ({}, {"fresh": True}), ({}, {"deterministic": True})],
)
def test_a_run_that_differs_is_trained(train, trained, monkeypatch, changes, settings):
    monkeypatch.setattr(run_module, "make_deterministic", lambda: None)
    train(run())
    train(run(**changes), **settings)
    assert trained == ["tiny"]


def test_threads_count_only_for_a_network_that_uses_them(train, trained, tmp_path):
    small, large = run(), run("large", network="resnet9", width=4)
    train(small, large)
    train(small, large, threads=2)
    assert trained == ["large"]
    for file, threads in (("tiny", 1), ("large", 2)):
        assert load_result(tmp_path / f"models/{file}.json")["threads"] == threads


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
    settings["fresh"] = False  # all are finished: nothing is left for the processes
    ended = train_all(runs, split, tmp_path / "models", jobs=2, **settings)
    assert [each for each, _ in ended] == runs


@pytest.mark.parametrize("results_only", [False, True])
def test_divergence_in_the_last_step_is_noticed_without_a_loss_after_it(
    train, split, results_only
):
    wild = run("wild", learning_rate=1e30, batch_size=len(split.train.labels))  # one step
    result = train(wild, results_only=results_only)["wild"]
    assert "not finite" in result["diverged"]
    assert "report" not in result


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
    # They share the training: its state stays until both are saved, the first run last.
    assert states[0] == {"tiny.csv", "tiny.state", "retrained.crt.state", "retrained.csv"}
    assert states[1] == states[0] | {"retrained.pt", "retrained.json"}
    left = {file.name for file in (tmp_path / "models").iterdir()}
    assert left == {
        f"{name}.{e}" for name in ("tiny", "retrained") for e in ("pt", "json", "csv")
    }


@pytest.mark.parametrize("changes", [{}, {"post_hoc": "crt"}])
@pytest.mark.parametrize("again", ["", "fresh", "other code", "other weights"])
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
    if again == "other weights":
        facts = {"weights_sha256": "other"}
        monkeypatch.setattr(runs_module.pretrained, "prepare", lambda *_: facts)
    train(run("killed", **epochs, **changes), fresh=again == "fresh")
    assert len(steps) == total - 1 + (total if again else 2)
    files = [tmp_path / f"models/{name}.pt" for name in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()


SHARING = [
    {},
    {"post_hoc": "logit-adjustment", "tau": 1.5},
    {"post_hoc": "tau-normalisation", "tau": 0.5},
    {"post_hoc": "crt", "crt_epochs": 2},
]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(
    "changes", [{}, {"patience": 1}, {"frozen": True, "augment": ("flip",)}, {"ema": 0.9}]
)
def test_runs_that_share_their_training_end_as_they_do_alone(
    train, trained, tmp_path, monkeypatch, changes, jobs
):
    weights = tmp_path / "weights.pt"
    if "frozen" in changes:
        torch.save(mobilenet_v3_small().state_dict(), weights)
        published = {"network": "torchvision:mobilenet_v3_small", "weights": str(weights)}
        changes = changes | published
    runs = [run(f"run{i}", epochs=3, **changes, **each) for i, each in enumerate(SHARING)]
    cache = {"cache": tmp_path / "cache", "tensorboard": True}
    alone = {file: result for each in runs for file, result in train(each, **cache).items()}
    files = sorted((tmp_path / "models").glob("*.pt"))
    before = {path.name: path.read_bytes() for path in files}
    fits, fit = [], run_module.fit
    monkeypatch.setattr(run_module, "fit", lambda *a, **k: fits.append(0) or fit(*a, **k))
    if jobs == 2:  # what `trained` has put in its place can't be sent to a process
        monkeypatch.setattr(runs_module, "train_together", run_module.train_together)
    together = train(*runs, run("other", seed=1), **cache, jobs=jobs, fresh=True)
    assert jobs == 2 or (len(fits) == 2 and trained == [*alone, "other-seed1"])
    assert {path.name: path.read_bytes() for path in files} == before
    for i, (file, result) in enumerate(alone.items()):
        assert result["trained_with"] is None
        assert together[file]["trained_with"] == ("run0" if i else None)
        for own in (result, together[file]):
            del own["seconds"], own["trained_with"]
            if "features" in own:
                del own["features"]["seconds"]
        assert together[file] == result
        rows = (tmp_path / f"models/{file}.csv").read_text()
        assert rows == (tmp_path / "models/run0.csv").read_text()
        assert len(list((tmp_path / f"models/tensorboard/{file}").iterdir())) == 1
    assert not list((tmp_path / "models").glob("*.state"))


def test_a_shared_training_goes_on_where_it_was_killed(train, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SAVE_SECONDS", 0.0)
    runs = [run(epochs=2), run("retrained", epochs=2, post_hoc="crt", crt_epochs=2)]
    train(*runs)
    files = [tmp_path / f"models/{each.file}.pt" for each in runs]
    whole = [path.read_bytes() for path in files]
    steps, batch_loss = [], fit_module.losses.batch_loss

    def interrupted(*given):
        steps.append(given)
        if len(steps) == 15:  # of 8 steps and, for crt, 8 more
            raise KeyboardInterrupt
        return batch_loss(*given)

    monkeypatch.setattr(fit_module.losses, "batch_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(*runs, fresh=True)
    for path in files:
        path.unlink()
    train(*runs)
    assert len(steps) == 15 + 2
    assert [path.read_bytes() for path in files] == whole


def test_a_diverged_training_is_that_of_all_runs_that_share_it(train):
    runs = [run("wild", learning_rate=1e10), run("c", learning_rate=1e10, post_hoc="crt")]
    for result in train(*runs).values():
        assert "not finite at step" in result["diverged"]


def test_every_named_recipe_trains(train, tmp_path):
    weights = tmp_path / "weights.pt"
    torch.save(mobilenet_v3_small().state_dict(), weights)
    for name, recipe in RECIPES.items():
        if recipe.pretrained:  # without a download
            assert recipe.network == "torchvision:mobilenet_v3_small"
            recipe = replace(recipe, pretrained=False, weights=str(weights))
        small = replace(recipe, epochs=1, batch_size=25, crt_epochs=1)
        result = train(Run(name, small, 0), cache=tmp_path / "cache")[name]
        assert result["diverged"] is None
        assert ("features" in result) == recipe.frozen


def test_each_run_has_a_log_which_a_run_trained_anew_begins_again(train, trained, tmp_path):
    log = tmp_path / "models/tiny.csv"
    train(run(epochs=3))
    assert [line.split(",")[0] for line in log.read_text().splitlines()[1:]] == ["1", "2", "3"]
    written = log.read_text()
    train(run(epochs=3))
    assert log.read_text() == written
    train(run(epochs=2), tensorboard=True)
    assert len(log.read_text().splitlines()) == 3
    events = tmp_path / "models/tensorboard/tiny"
    assert len(list(events.iterdir())) == 1
    train(run(epochs=1))  # TensorBoard must not show the run before
    assert list(events.iterdir()) == []
    train(run("wild", learning_rate=1e10, epochs=2))
    rows = (tmp_path / "models/wild.csv").read_text().splitlines()
    assert rows[1].split(",")[2] == "nan"
    # crt's own epochs are not in the log.
    train(run("retrained", post_hoc="crt"))
    assert len((tmp_path / "models/retrained.csv").read_text().splitlines()) == 2


def test_a_run_on_a_cluster_leaves_no_log_of_an_earlier_run(train, tmp_path, monkeypatch):
    train(run(), tensorboard=True)
    train_together = runs_module.train_together

    def train_on_cluster(_address, groups, split, settings):
        for group in groups:
            yield group, train_together(group, split, **settings)

    monkeypatch.setattr(runs_module, "train_on_cluster", train_on_cluster)
    train(run(), cluster="tcp://host:1", fresh=True)
    assert (tmp_path / "models/tiny.json").exists()
    assert not (tmp_path / "models/tiny.csv").exists()
    assert list((tmp_path / "models/tensorboard/tiny").iterdir()) == []


def test_a_result_of_an_earlier_version_names_no_image_size(train, trained, tmp_path, split):
    train(run())
    path = tmp_path / "models/tiny.json"
    saved = load_result(path)
    assert saved["data"].pop("image_size") == 32
    save_result(path, **saved)
    assert runs_module.describes(saved["data"], split)
    train(run())
    assert trained == []
    saved["data"]["image_size"] = 64
    save_result(path, **saved)
    assert not runs_module.describes(saved["data"], split)
    train(run())
    assert trained == ["tiny"]


def test_images_of_another_size_are_trained_on_and_named(tmp_path, split, trained):
    larger = resized(split, 48)
    settings = {"device": "cpu", "jobs": 1, "threads": 1}
    augment = ("flip", "crop", "cutout", "colour")
    runs = [run("cnn", augment=augment), run("net9", network="resnet9", width=4, copies=1)]
    results = dict(train_all(runs, larger, tmp_path, **settings))
    for each in runs:
        checkpoint = load_checkpoint(tmp_path / f"{each.file}.pt")
        assert checkpoint.image_size == 48
        predictions = predict(checkpoint.network, larger.test.images).argmax(1)
        found = " ".join(map(str, predictions.tolist()))
        assert results[each]["test_predictions"] == found
    trained.clear()
    list(train_all(runs, split, tmp_path, **settings))  # of 32 pixels
    assert trained == ["cnn", "net9"]
    assert load_checkpoint(tmp_path / "cnn.pt").image_size == 32


def resized(split, size):
    """Return the split with its images enlarged to size x size pixels."""

    def enlarged(part):
        images = F.interpolate(part.images, (size, size), mode="nearest")
        return LabelledImages(images, part.labels)

    parts = {name: enlarged(getattr(split, name)) for name in ("train", "validation", "test")}
    return replace(split, **parts)


def test_other_weights_are_another_run(train, trained, tmp_path):
    weights = tmp_path / "weights.pt"
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(mobilenet_v3_small().state_dict())
    torch.save(states[0], weights)
    changes = {"network": "torchvision:mobilenet_v3_small", "weights": str(weights)}
    tuned = run("tuned", learning_rate=1e-8, **changes)
    train(tuned)
    saved = load_result(tmp_path / "models/tuned.json")
    assert saved["weights_sha256"] == sha256(weights)
    name = "features.12.0.weight"
    trained_weights = load_checkpoint(tmp_path / "models/tuned.pt").network.state_dict()
    found = trained_weights[f"backbone.{name}"]
    torch.testing.assert_close(found, states[0][name], atol=1e-6, rtol=0)
    train(tuned)
    assert trained == []
    torch.save(states[1], weights)
    train(tuned)
    assert trained == ["tuned"]
    assert "weights_sha256" not in train(run())["tiny"]
    assert "weights_sha256" not in load_result(tmp_path / "models/tiny.json")


OWN = """
from torch import nn

def make(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, classes), nn.{last}())
"""


def test_a_network_of_the_users_own_trains_in_worker_processes(split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = tmp_path / "own_network_of_a_user.py"
    module.write_text(OWN.format(last="Identity"))
    name = "own_network_of_a_user:make"
    runs = [run("own", network=name), run("own", network=name, seed=1)]
    settings = {"device": "cpu", "jobs": 2, "threads": 1}
    results = dict(train_all(runs, split, tmp_path / "models", **settings))
    assert [result["diverged"] for result in results.values()] == [None, None]
    saved = load_result(tmp_path / "models/own.json")
    assert saved["network_sha256"] == sha256(module)
    checkpoint = load_checkpoint(tmp_path / "models/own.pt", network=name)
    predictions = predict(checkpoint.network, split.test.images).argmax(1).tolist()
    assert results[runs[0]]["test_predictions"] == " ".join(map(str, predictions))


def test_a_network_without_a_last_layer_to_change(split, train, tmp_path):
    own = run("own", network="tiny_networks:without_head", loss="logit-adjusted")
    assert train(own)["own"]["diverged"] is None
    for changes in ({"post_hoc": "crt"}, {"frozen": True}, {"classifier": "cosine"}):
        with pytest.raises(InputError, match=r"tiny_networks:without_head: .* linear layer"):
            train(Run("own", replace(own.recipe, **changes), 0))
