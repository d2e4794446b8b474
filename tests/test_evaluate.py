"""evaluate.py as a user runs it: its report, its files, decisions, several checkpoints."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import is_one_line, numbers_of, saved_numbers
from PIL import Image
from sklearn.metrics import log_loss

from common.dataset.load import load
from common.metrics.decisions import least_cost, shift_prior
from common.metrics.probabilities import softmax
from common.networks.build import build
from common.networks.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from common.networks.prediction import predict
from common.reporting.evaluation_tables import caution, is_held_out

DRY_RUN = ("--dry-run", "--data", "synthetic", "--threads", 1)
CLASSES = ["car", "truck", "cat"]


def read(path):
    """Return the content of a result file."""
    return json.loads(path.read_text())


def read_rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def dry_split():
    return load("synthetic", dry_run=True)


@pytest.fixture
def checkpoints(tmp_path):
    """Save one.pt, two.pt and three.pt with other weights, in the current folder."""
    for seed, name in enumerate(("one", "two", "three")):
        network = build("simple-cnn", {"classes": 3}, seed)
        with torch.no_grad():  # so that the probabilities are not all near a third
            network.head.weight.mul_(30)
        save_checkpoint(
            tmp_path / f"{name}.pt", network, "simple-cnn", {"classes": 3}, classes=CLASSES,
            recipe={"sampler": "square-root"}, seed=seed, trained_on_test=False,
            data={"source": "a", "fingerprint": "b-c", "train_counts": [64, 16, 4]},
        )  # fmt: skip


def probabilities_of(path):
    logits = predict(load_checkpoint(Path(path)).network, dry_split().test.images)
    return softmax(logits.numpy())


def test_everything_is_printed_saved_and_drawn(in_process, checkpoints, tmp_path):
    done = in_process("evaluate.py", "one.pt", *DRY_RUN, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    result = read(tmp_path / "figures/evaluate_one.json")
    text = done.stdout.split("support\n")[1].rsplit("\nsaved", 1)[0]
    assert len(numbers_of(text)) > 40
    assert numbers_of(text) <= saved_numbers(result)
    for name in ("confusion", "calibration", "precision_recall", "errors"):
        assert f"saved figures/evaluate_one_{name}.png" in done.stdout
        with Image.open(tmp_path / f"figures/evaluate_one_{name}.png") as image:
            assert np.asarray(image).std() > 10
    assert "there are no validation images" in done.stdout


def test_a_number_has_one_interval(in_process, checkpoints, tmp_path):
    done = in_process("evaluate.py", "one.pt", *DRY_RUN, "--output-dir", tmp_path)
    (averages,) = re.findall(r"^weighted avg  \S+ \[.*?\]  (\S+ \[.*?\])", done.stdout, re.M)
    (accuracy,) = re.findall(r"^accuracy +(\d\S+ \[.*\])", done.stdout, re.M)
    assert averages == accuracy
    (macro,) = re.findall(r"^macro avg +\S+ \[.*?\]  (\S+ \[.*?\])", done.stdout, re.M)
    (balanced,) = re.findall(r"^balanced accuracy +(\S+ \[.*\])", done.stdout, re.M)
    assert macro == balanced


def test_the_table_of_predictions_is_that_of_the_network(in_process, checkpoints, tmp_path):
    in_process("evaluate.py", "one.pt", *DRY_RUN, "--output-dir", tmp_path)
    rows = read_rows(tmp_path / "figures/evaluate_one_predictions.csv")
    expected, labels = probabilities_of("one.pt"), dry_split().test.labels
    assert list(rows[0]) == [
        "file", "label", "prediction", "p(car)", "p(truck)", "p(cat)", "margin",
    ]  # fmt: skip
    assert len(rows) == len(labels)
    for i, row in enumerate(rows):
        found = [float(row[f"p({name})"]) for name in CLASSES]
        assert found == pytest.approx(expected[i], abs=1e-6)
        ranked = sorted(expected[i])
        assert float(row["margin"]) == pytest.approx(ranked[2] - ranked[1], abs=2e-6)
        assert row["prediction"] == CLASSES[expected[i].argmax()]
        assert row["label"] == CLASSES[labels[i]]
        assert row["file"] == f"test {i}"  # drawings are not files


def test_predictions_and_errors_name_the_files(in_process, checkpoints, tmp_path, image_folder):
    classes = ("--classes", "automobile", "truck", "cat")
    data = ("--data", image_folder, *classes, "--output-dir", tmp_path)
    done = in_process("evaluate.py", "one.pt", *data)
    assert done.returncode == 0, done.stderr
    rows = read_rows(tmp_path / "figures/evaluate_one_predictions.csv")
    folder = {"car": "automobile", "truck": "truck", "cat": "cat"}
    assert {row["file"] for row in rows} == {
        f"test/{name}/{i:04}.png" for name in folder.values() for i in range(4)
    }
    assert all(row["file"].split("/")[1] == folder[row["label"]] for row in rows)


def test_decisions_for_other_shares_and_costs(in_process, checkpoints, tmp_path):
    (tmp_path / "costs.csv").write_text("t,car,truck,cat\ncar,0,1,1\ntruck,2,0,1\ncat,9,9,0\n")
    done = in_process(
        "evaluate.py", "one.pt", *DRY_RUN, "--output-dir", tmp_path,
        "--prior", 1, 1, 2, "--cost", "costs.csv",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "car 0.250, truck 0.250, cat 0.500" in done.stdout
    # By its recipe, square-root sampling of 64, 16 and 4 images: 8 : 4 : 2.
    assert "car 0.571, truck 0.286, cat 0.143" in done.stdout
    costs = np.array([[0, 1, 1], [2, 0, 1], [9, 9, 0]])
    shifted = shift_prior(probabilities_of("one.pt"), [4 / 7, 2 / 7, 1 / 7], [0.25, 0.25, 0.5])
    decisions = least_cost(shifted, costs)
    rows = read_rows(tmp_path / "figures/evaluate_one_predictions.csv")
    assert [row["decision"] for row in rows] == [CLASSES[k] for k in decisions]
    result = read(tmp_path / "figures/evaluate_one.json")
    assert list(result["decisions"]) == ["as predicted", "for these shares", "least cost"]
    assert result["prior"] == [1, 1, 2]
    assert result["costs"] == costs.tolist()
    recalls = [
        float(np.mean(decisions[dry_split().test.labels.numpy() == k] == k)) for k in range(3)
    ]
    found = result["decisions"]["least cost"]["values"]
    assert found["recall"] == pytest.approx(recalls)
    assert found["accuracy"] == pytest.approx(np.dot(recalls, [0.25, 0.25, 0.5]))


def test_several_checkpoints_are_compared_on_the_same_images(in_process, checkpoints, tmp_path):
    done = in_process("evaluate.py", "one.pt", "two.pt", *DRY_RUN, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    table = done.stdout.split("== All on the 32 test images")[1]
    assert "Differences from one, paired over images" in table
    result = read(tmp_path / "figures/evaluate.json")["comparison"]
    labels = dry_split().test.labels.numpy()
    accuracies = [
        np.mean(probabilities_of(f"{n}.pt").argmax(1) == labels) for n in ("one", "two")
    ]
    found = result["summaries"]["two"]["accuracy"]
    assert found["difference"] == pytest.approx(accuracies[1] - accuracies[0])
    low, high = found["difference_interval"]
    assert f"two  {found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]" in table
    numbers = {number.lstrip("+-") for number in re.findall(r"[+-]\d\.\d{3}", table)}
    assert numbers <= {number.lstrip("-") for number in saved_numbers(result)}
    assert (tmp_path / "figures/evaluate_confusions.png").exists()
    # Of one network there is no such figure, and of many networks it would have no room.
    for i, names in enumerate((["one"], 5 * ["one"])):
        paths = []
        for j, name in enumerate(names):
            paths.append(tmp_path / f"{j}.pt")
            shutil.copy(tmp_path / f"{name}.pt", paths[-1])
        output = tmp_path / str(i)
        done = in_process("evaluate.py", *paths, *DRY_RUN, "--output-dir", output)
        assert done.returncode == 0, done.stderr
        assert not (output / "figures/evaluate_confusions.png").exists()


def test_a_checkpoint_of_any_name_keeps_its_result(in_process, checkpoints, tmp_path):
    (tmp_path / "two.pt").rename("comparison.pt")
    command = ("evaluate.py", "one.pt", "comparison.pt", *DRY_RUN, "--output-dir", tmp_path)
    assert in_process(*command).returncode == 0
    assert "report" in read(tmp_path / "figures/evaluate_comparison.json")
    assert "comparison" in read(tmp_path / "figures/evaluate.json")


def test_an_ensemble_averages_probabilities(in_process, checkpoints, tmp_path):
    (tmp_path / "two.pt").rename("ensemble.pt")  # whose name is taken then
    paths = ("one.pt", "ensemble.pt", "three.pt")
    done = in_process(
        "evaluate.py", *paths, "--ensemble", "--prior", 3, 2, 1, *DRY_RUN,
        "--output-dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "ensemble+: the mean probability of one, ensemble, three" in done.stdout
    rows = read_rows(tmp_path / "figures/evaluate_ensemble+_predictions.csv")
    members = [probabilities_of(path) for path in paths]
    found = [[float(row[f"p({name})"]) for name in CLASSES] for row in rows]
    assert np.array(found) == pytest.approx(np.mean(members, axis=0), abs=1e-6)
    shifted = [
        shift_prior(each, [4 / 7, 2 / 7, 1 / 7], [1 / 2, 1 / 3, 1 / 6]) for each in members
    ]
    decided = [CLASSES[k] for k in np.mean(shifted, axis=0).argmax(1)]
    assert [row["decision"] for row in rows] == decided
    comparison = read(tmp_path / "figures/evaluate.json")["comparison"]
    assert list(comparison["summaries"]) == ["one", "ensemble", "three", "ensemble+"]


def test_a_temperature_needs_images_that_were_held_out(in_process, tmp_path):
    common = (*DRY_RUN, "--output-dir", tmp_path)
    in_process("train.py", "original", *common, "--validation", 0.2)
    path = tmp_path / "models/original.pt"
    done = in_process("evaluate.py", path, *common, "--validation", 0.2)
    assert "Temperature T, fitted on 20 validation images" in done.stdout
    result = read(tmp_path / "figures/evaluate_original.json")
    fitted, split = result["temperature"], load("synthetic", dry_run=True, validation=0.2)
    network = load_checkpoint(path).network
    logits, labels = predict(network, split.test.images).numpy(), split.test.labels
    for t, found, title in (
        (1, result["probabilities"], "T = 1 "),
        (fitted["value"], fitted["probabilities"], f"T = {fitted['value']:.3f} "),
    ):
        expected = log_loss(labels, softmax(logits / t), labels=[0, 1, 2])
        assert found["log_loss"] == pytest.approx(expected)
        (row,) = [line for line in done.stdout.splitlines() if line.startswith(title)]
        assert f" {expected:.3f} [" in row
    for other in (["--validation", 0.3], ["--validation", 0.2, "--split-seed", 1]):
        done = in_process("evaluate.py", path, *common, *other)
        words = "not trained with these validation images held out"
        assert words in " ".join(done.stdout.split()), other
        assert read(tmp_path / "figures/evaluate_original.json")["temperature"] is None


def test_another_split_of_a_folder_is_no_held_out_test(tmp_path):
    split = replace(dry_split(), changes={"test_share": 0.2})
    data = split.record() | {"fingerprint": "other-one"}
    checkpoint = Checkpoint(torch.nn.Identity(), split.classes, data=data)
    assert "may be among\n its train images" in caution(checkpoint, split)
    assert caution(replace(checkpoint, data=split.record()), split) == ""
    elsewhere = replace(checkpoint, data=data | {"source": "another"})
    assert caution(elsewhere, split).startswith("(Trained on other images")
    assert caution(checkpoint, dry_split()).startswith("(Trained on other images")


def test_a_network_of_the_test_images_is_marked_among_others(in_process, checkpoints, tmp_path):
    saved = load_checkpoint(tmp_path / "two.pt")
    save_checkpoint(
        tmp_path / "two.pt", saved.network, "simple-cnn", {"classes": 3}, classes=CLASSES,
        recipe={}, seed=0, data=None, trained_on_test=True,
    )  # fmt: skip
    done = in_process("evaluate.py", "one.pt", "two.pt", *DRY_RUN, "--output-dir", tmp_path)
    assert done.returncode == 0, done.stderr
    together = done.stdout.split("== All on the 32 test images")[1]
    assert "two !" in together
    assert "!: trained on the test images too" in together
    assert "one !" not in together
    compared = read(tmp_path / "figures/evaluate.json")["comparison"]["summaries"]
    assert list(compared) == ["one", "two !"]
    assert "!: trained on the test images too" in (tmp_path / "figures/index.html").read_text()


def test_the_held_out_images_are_those_of_the_same_split_seed():
    split = load("synthetic", dry_run=True, validation=0.2)
    checkpoint = Checkpoint(torch.nn.Identity(), split.classes, data=split.record())
    assert is_held_out(checkpoint, split)
    assert not is_held_out(replace(checkpoint, trained_on_test=True), split)
    assert not is_held_out(replace(checkpoint, data=None), split)
    # The same images with another seed: others of them are held out.
    assert not is_held_out(checkpoint, replace(split, seed=1))
    assert not is_held_out(checkpoint, replace(split, fingerprint="another-one"))
    without = {"validation_counts": [0, 0, 0]}
    assert not is_held_out(replace(checkpoint, data=split.record() | without), split)


def test_many_classes_fit_the_screen(in_process, tmp_path):
    rng = np.random.default_rng(0)
    names = [f"the class with number {k}" for k in range(12)]
    for part, name in ((p, n) for p in ("train", "test") for n in names):
        folder = tmp_path / "photos" / part / name
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    counts = [150] * 3 + [50] * 8 + [19]
    save_checkpoint(
        tmp_path / "many.pt", build("resnet9", {"classes": 12, "width": 4}), "resnet9",
        {"classes": 12, "width": 4}, classes=names, recipe={}, seed=0, trained_on_test=False,
        data={"source": "a", "fingerprint": "b-c", "train_counts": counts},
    )  # fmt: skip
    data = ("--data", "photos", "--classes", *names, "--train-counts", "full")
    out = ("--test-counts", "full", "--output-dir", tmp_path)
    done = in_process("evaluate.py", "many.pt", *data, *out)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for words in ("many-shot (3 classes)", "medium-shot (8 classes)", "few-shot (1 classes)"):
        assert words in done.stdout
    assert "lowest (the class" in done.stdout
    listed = done.stdout.split("The largest confusions:\n")[1].split("\n\n")[0].splitlines()
    assert len(listed) == 1 + 10
    assert "Confusion matrix" not in done.stdout


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prior", "1", "2"], ["--prior: 2 shares for 3 classes"]),
        (["--prior", "1", "0", "2"], ["--prior", "'0' is not a number above 0"]),
        (["--ensemble"], ["--ensemble", "two or more"]),
        (["--cost", "none.csv"], ["none.csv: can't be read"]),
        (["--cost", "one.pt"], ["one.pt: not a CSV file"]),
        (["--cost", ""], ["--cost", "the value is empty"]),
        (["--cost", "none.csv", "--export", "o/one.onnx"], ["none.csv: can't be read"]),
    ],
)
def test_bad_input_is_one_line(in_process, checkpoints, tmp_path, options, words):
    done = in_process(
        "evaluate.py", "one.pt", *options, *DRY_RUN, "--output-dir", tmp_path / "o"
    )
    assert done.returncode == 2
    assert is_one_line(done.stderr, "evaluate.py", *words), done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "o").exists()


def test_a_recipe_of_another_version_can_still_be_evaluated(
    in_process, checkpoints, tmp_path, monkeypatch
):
    save_checkpoint(
        tmp_path / "later.pt", build("simple-cnn", {"classes": 3}), "simple-cnn",
        {"classes": 3}, classes=CLASSES, recipe={"sampler": "of 2030"}, seed=0,
        trained_on_test=False, data=None,
    )  # fmt: skip
    common = (*DRY_RUN, "--output-dir", tmp_path)
    assert in_process("evaluate.py", "later.pt", *common).returncode == 0
    # Also beside others it is refused before any network predicts.
    monkeypatch.setattr("common.reporting.evaluation.network_of", pytest.fail)
    done = in_process("evaluate.py", "one.pt", "later.pt", *common, "--prior", 1, 1, 1)
    assert done.returncode == 2
    assert is_one_line(done.stderr, "later.pt", "sampler 'of 2030'", "--prior can't be used")
