"""The scripts as a user runs them: in a process of their own, with no network."""

from __future__ import annotations

import base64
import csv
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REAL_IMAGES, Parsed, is_one_line, numbers_of, saved_numbers
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from common.dataset.load import load
from common.files import ROOT
from common.networks.build import build
from common.networks.checkpoint import load_checkpoint, save_checkpoint
from common.networks.prediction import predict
from common.training import recipes
from common.training.recipe import Recipe

SCRIPTS = ("inspect_data.py", "evaluate.py", "train.py", "lr_sweep.py", "adversarial.py")
FIGURES = {
    "inspect_data.py": [
        f"inspect_data_{name}.png"
        for name in ("counts", "shares", "samples", "order", "statistics", "outliers")
    ],
    "evaluate.py": [
        f"evaluate_baseline_{name}.png"
        for name in ("confusion", "calibration", "precision_recall", "errors")
    ],
    "train.py": [f"train_original_{name}.png" for name in ("loss", "counts", "confusion")],
    "lr_sweep.py": [f"lr_sweep_original_{name}.png" for name in ("loss", "each", "validation")],
    "adversarial.py": [
        f"adversarial_best_{name}.png"
        for name in ("epsilon", "radius", "tradeoff", "fgsm", "noise", "universal")
    ],
}
RESULTS = {
    "inspect_data.py": "figures/inspect_data.json",
    "evaluate.py": "figures/evaluate_baseline.json",
    "train.py": "models/original.json",
    "lr_sweep.py": "figures/lr_sweep_original.json",
    "adversarial.py": "figures/adversarial_best.json",
}


DRY_RUN = ("--dry-run", "--data", "synthetic", "--threads", 1)


def read(path):
    """Return the content of a result file."""
    return json.loads(path.read_text())


@pytest.fixture
def two_checkpoints(tmp_path):
    """Save one.pt and two.pt, course checkpoints with other weights, in the current folder."""
    for name, seed in (("one", 1), ("two", 2)):
        network = build("simple-cnn", {"classes": 3}, seed)
        torch.save({"model_state_dict": network.state_dict()}, tmp_path / f"{name}.pt")


def test_labels_are_audited_and_the_users_decisions_trained_on(in_process, tmp_path):
    out = tmp_path / "out"
    usual = [*DRY_RUN, "--output-dir", out]
    shared = [*usual, "--label-noise", "cat:0.2", "truck:0.1"]
    audited = in_process("inspect_data.py", "--audit-labels", *shared)
    assert audited.returncode == 0, audited.stderr
    assert max(map(len, audited.stdout.splitlines())) <= 80
    assert "Wrong labels planted: 2 of truck, 4 of cat (seed 0)" in audited.stdout
    assert "Planted errors: 6" in audited.stdout
    numbers = read(out / "figures/inspect_data.json")
    assert numbers["audit"]["planted"]["all"]["planted"] == 6
    assert np.sum(numbers["audit"]["joint"]) == pytest.approx(1)
    assert len((out / "data/label_ranking.csv").read_text().splitlines()) == 1 + 100
    with Image.open(out / "figures/inspect_data_joint.png") as image:
        assert np.asarray(image).std() > 10

    page = (out / "figures/inspect_data.html").read_text()
    assert page.count('class="suspect"') == len(numbers["audit"]["suspects"])

    file = out / "data/label_suspects.csv"
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == len(numbers["audit"]["suspects"]) > 1
    rows[0]["accept"], rows[1]["accept"] = "yes", "drop"
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    trained = in_process("train.py", "original", *shared, "--label-fixes", file)
    assert trained.returncode == 0, trained.stderr
    assert "Label fixes: 1 relabelled, 1 dropped" in trained.stdout
    result = read(out / "models/original.json")
    assert sum(result["examples"]) == 99
    assert result["data"]["label_fixes"]["relabelled"] == 1
    checkpoint = load_checkpoint(out / "models/original.pt")
    assert checkpoint.data == result["data"]
    clean = in_process("train.py", "original", *usual, "--label-fixes", file)
    assert clean.returncode == 2
    assert is_one_line(clean.stderr, "line 2: made for other images or labels")


@pytest.mark.parametrize("name", SCRIPTS)
def test_dry_run(script, tmp_path, name):
    what = ["original"] if name == "train.py" else []
    done = script(name, *what, "--dry-run", "--threads", 1, "--output-dir", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert is_one_line(done.stderr, "GOING ON WITH SYNTHETIC IMAGES"), done.stderr
    assert "synthetic (drawings, not photographs)" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    for figure in FIGURES[name]:
        with Image.open(tmp_path / "out/figures" / figure) as image:
            assert min(image.size) > 300
            assert np.asarray(image).std() > 10  # something is drawn
    result = read(tmp_path / "out" / RESULTS[name])
    assert result["data"]["source"].startswith("synthetic")
    held_out = 10 if name == "lr_sweep.py" else 0
    assert sum(result["data"]["train_counts"]) == 100 - held_out
    assert {"command", "seed", "device", "processor", "versions", "seconds"} <= result.keys()
    # lr_sweep.py names its models in one line.
    folder = tmp_path / "out" / ("figures" if name == "lr_sweep.py" else "")
    printed = re.sub(r"saved out/\w+/", "saved ", done.stdout)
    page = tmp_path / "out/figures/index.html"
    assert all(f"saved {path.name}" in printed for path in folder.rglob("*.*") if path != page)
    assert done.stdout.endswith("\nPage: out/figures/index.html\n")
    shown = Parsed(page)
    assert "synthetic (drawings, not photographs)" in shown.text or name == "train.py"
    embedded = {image["src"].partition(",")[2] for image in shown.all("img")}
    figures = [(page.parent / figure).read_bytes() for figure in FIGURES[name]]
    assert {base64.b64encode(png).decode() for png in figures} <= embedded
    if name != "train.py":  # whose page needs a comparison for a table
        assert len(numbers_of(shown.text)) > 0
        assert numbers_of(shown.text) <= saved_numbers(result) | numbers_of(done.stdout)


def test_stage_1_ends_with_advice_whose_numbers_it_saves(in_process, tmp_path, image_folder):
    done = in_process(
        "inspect_data.py", "--data", image_folder, "--dry-run", "--output-dir", tmp_path,
        "--classes", "cat", "truck",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = done.stdout.split("== Advice ==\n")[1].split("Next:\n")[0]
    result = read(tmp_path / "figures/inspect_data.json")["advice"]
    assert len(numbers_of(text)) > 0
    assert numbers_of(text) <= saved_numbers(result)
    found = [(row["class"], row["images"]) for row in result["too_few_test_images"]]
    assert found == [("cat", 4), ("truck", 4)]
    command = done.stdout.split("Next:\n")[1].split("\n\n")[0].replace("\\\n", " ")
    python, *words = shlex.split(command)
    assert (python, words[:2]) == ("python", ["train.py", result["suited"][0][0]])
    assert words[2:] == [
        "--data", str(image_folder), "--classes", "cat", "truck", "--output-dir", str(tmp_path),
        "--dry-run",
    ]  # fmt: skip
    assert in_process(words[0], "original", *words[2:]).returncode == 0


def test_training_prints_and_saves_what_it_trained(in_process, tmp_path):
    done = in_process(
        "train.py", "original", "--dry-run", "--output-dir", tmp_path, "--seed", 3,
        "--validation", 0.2, "--batch-size", 10,
    )  # fmt: skip
    assert "Total: 80 examples\nexamples: car 48, truck 16, cat 16\n" in done.stdout
    assert "\n20 validation images: balanced accuracy 0." in done.stdout
    checkpoint = load_checkpoint(tmp_path / "models/original-seed3.pt")
    result = read(tmp_path / "models/original-seed3.json")
    assert json.loads(json.dumps(checkpoint.recipe)) == result["recipe"]
    assert (checkpoint.recipe["batch_size"], checkpoint.seed) == (10, 3)
    assert checkpoint.data == result["data"]
    assert result["examples"] == [48, 16, 16]
    assert len(result["history"]["validation_g_mean"]) == result["recipe"]["epochs"] == 2
    percent = f"{100 * result['report']['accuracy']:.2f} %"
    assert f"Accuracy of the network on the 32 test images: {percent}" in done.stdout

    # Stage 2 finds the same in the checkpoint alone.
    checkpoint = tmp_path / "models/original-seed3.pt"
    again = in_process("evaluate.py", checkpoint, "--dry-run", "--output-dir", tmp_path)
    evaluated = read(tmp_path / "figures/evaluate_original-seed3.json")
    assert evaluated["report"] == result["report"]
    assert evaluated["checkpoint"]["recipe"] == result["recipe"]
    assert "other images" not in again.stdout


def test_one_seed_gives_one_file_in_any_process(script, in_process, tmp_path):
    command = ("train.py", "original", *DRY_RUN, "--output-dir")
    script(*command, tmp_path / "a")
    for name, seed in (("b", 0), ("c", 1)):
        in_process(*command, tmp_path / name, "--seed", seed)
    a, b, c = (
        (tmp_path / name / "models" / f"{file}.pt").read_bytes()
        for name, file in (("a", "original"), ("b", "original"), ("c", "original-seed1"))
    )
    assert a == b
    assert a != c


def test_recipes_are_compared_in_one_table(in_process, tmp_path):
    names = ("original", "final-all-data", "wild")
    command = ("train.py", *names, *DRY_RUN, "--seeds", 2, "--output-dir", tmp_path)
    recipes.RECIPES["wild"] = Recipe(learning_rate=1e10)
    done = in_process(*command)
    again = in_process(*command)
    del recipes.RECIPES["wild"]
    table = done.stdout.split("== 32 test images, 2 seed(s) ==")[1]
    assert "wild-seed1: diverged, the loss is not finite at step" in table
    assert "final-all-data !" in table
    assert "P(best)" not in table  # no other recipe competes with original
    assert "!: trained on the test images too" in table
    assert "of 2 seeds" in table
    assert max(map(len, table.splitlines())) <= 80
    saved = read(tmp_path / "figures/train_comparison.json")
    accuracies = [
        read(tmp_path / f"models/{name}.json")["report"]["accuracy"]
        for name in ("original", "original-seed1")
    ]
    comparison = saved["comparison"]
    assert (comparison["reference"], comparison["seeds"]) == ("original", 2)
    assert list(comparison["summaries"]) == ["original", "final-all-data !"]
    assert comparison["tests"] == 0  # none of a recipe that is trained on the test images
    assert comparison["summaries"]["final-all-data !"]["G-mean"]["best"] is None
    mean = comparison["summaries"]["original"]["accuracy"]["mean"]
    assert mean == pytest.approx(sum(accuracies) / 2)
    assert set(saved["diverged"]) == {"wild", "wild-seed1"}
    assert "| `original` " in (tmp_path / "figures/train_comparison.md").read_text()
    assert again.stdout.count("(trained before, by: train.py original") == 6
    page = Parsed(tmp_path / "figures/index.html").text
    shown = page.split("Recipes compared, the best first")[1].split("4. Learning rates")[0]
    assert numbers_of(table) <= numbers_of(shown)
    assert "!: trained on the test images too" in shown


def test_a_recipe_that_is_trained_on_the_test_images_is_no_reference(in_process):
    names = ("original", "final-all-data")
    refused = in_process("train.py", *names, *DRY_RUN, "--reference", names[1])
    assert refused.returncode == 2
    assert refused.stderr.startswith("train.py: --reference final-all-data: trains on")


def test_recipes_are_compared_with_the_reference(in_process, tmp_path):
    arguments = ("train.py", "original", "sampler", "--reference", "sampler", *DRY_RUN)
    done = in_process(*arguments, "--output-dir", tmp_path)
    table = done.stdout.split("== 32 test images, 1 seed(s) ==")[1]
    rows = re.findall(r"^(original|sampler) ", table, re.MULTILINE)
    assert rows[:2] == ["sampler", "original"]
    assert "†: differs from sampler by more than" in table
    comparison = read(tmp_path / "figures/train_comparison.json")["comparison"]
    assert list(comparison["summaries"]) == ["sampler", "original"]
    assert comparison["reference"] == "sampler"


def test_early_stopping_holds_out_a_tenth_by_itself(in_process, tmp_path):
    common = (*DRY_RUN, "--output-dir", tmp_path)
    for options, held_out in (([], []), (["--patience", 1], [6, 2, 2])):
        in_process("train.py", "original", *common, *options)
        saved = read(tmp_path / "models/original.json")
        assert [n for n in saved["data"]["validation_counts"] if n] == held_out


def test_a_network_of_other_train_images_is_named(in_process, tmp_path):
    common = (*DRY_RUN, "--output-dir", tmp_path)
    in_process("train.py", "baseline", *common)
    for options, warned in (([], False), (["--test-counts", "9", "9", "9"], False),
                          (["--split-seed", "1"], True)):  # fmt: skip
        done = in_process("evaluate.py", tmp_path / "models/baseline.pt", *common, *options)
        assert ("Trained on other images" in done.stdout) == warned, options


def test_a_network_that_saw_the_test_images_is_named(in_process, tmp_path):
    network = build("simple-cnn", {"classes": 3})
    save_checkpoint(
        tmp_path / "all.pt", network, "simple-cnn", {"classes": 3},
        classes=["car", "truck", "cat"], recipe={}, seed=0, data=None, trained_on_test=True,
    )  # fmt: skip
    done = in_process("evaluate.py", "all.pt", "--dry-run", "--output-dir", tmp_path)
    assert "TRAINED ON THE TEST IMAGES" in done.stdout
    result = read(tmp_path / "figures/evaluate_all.json")
    assert result["checkpoint"]["trained_on_test"] is True


def test_a_network_trained_on_the_test_images_is_marked_among_attacked_ones(
    in_process, two_checkpoints, tmp_path
):
    arguments = {"classes": 3}
    save_checkpoint(
        tmp_path / "seen.pt", build("simple-cnn", arguments), "simple-cnn", arguments,
        classes=["car", "truck", "cat"], image_size=32, recipe={}, seed=0, data=None,
        trained_on_test=True,
    )  # fmt: skip
    done = in_process(
        "adversarial.py", "one.pt", "seen.pt", *DRY_RUN, "--output-dir", tmp_path / "a"
    )
    assert done.returncode == 0, done.stderr
    table = done.stdout.split("== All networks ==")[1].split("\n==")[0]
    compared, transferred = table.split("Transfer")
    assert compared.count("\nseen ! ") == 2  # accuracy and balanced accuracy
    assert transferred.count("seen !") == 2  # a row and a column
    assert "one !" not in table
    assert table.count("\n!: trained on the test images too") == 2
    page = Parsed(tmp_path / "a/figures/index.html").text
    assert "!: trained on the test images too" in page
    assert "Trained on these test images" in page
    assert "seen !, L-infinity" in page


def test_figures_of_an_earlier_attack_are_removed(in_process, two_checkpoints, tmp_path):
    command = ("adversarial.py", "one.pt", *DRY_RUN, "--output-dir", tmp_path / "a")
    in_process(*command[:2], "two.pt", *command[2:])
    figures = tmp_path / "a/figures"
    assert (figures / "adversarial_one_transfer.png").exists()
    in_process(*command)
    made = {path.name for path in figures.glob("adversarial_one_*.png")}
    assert not made & {f"adversarial_one_{kind}.png" for kind in ("networks", "transfer")}
    assert {"adversarial_one_radius.png", "adversarial_one_tradeoff.png"} <= made


def test_attacked_networks_are_compared(in_process, two_checkpoints, tmp_path):
    command = ("adversarial.py", "one.pt", "two.pt", *DRY_RUN, "--output-dir")
    done = in_process(*command, tmp_path / "a")
    again = in_process(*command, tmp_path / "b")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    table = done.stdout.split("== All networks ==")[1].split("==")[0]
    assert table.count("one ") == table.count("two ") + 1 == 4  # "two" ends a header
    for figure in ("networks", "transfer", "radius"):
        assert (tmp_path / f"a/figures/adversarial_one_{figure}.png").exists()
    result, same = (
        read(tmp_path / name / "figures/adversarial_one.json") for name in ("a", "b")
    )
    tables = done.stdout.split("==", 1)[1].rsplit(" s in all", 1)[0]
    assert len(numbers_of(tables)) > 10
    assert numbers_of(tables) <= saved_numbers(result)
    page = Parsed(tmp_path / "a/figures/index.html").text
    assert numbers_of(page) <= saved_numbers(result) | numbers_of(tables)
    in_tables = {f"{value:.3f}" for value in (
        result["curves"]["two"]["PGD"]["results"]["8"]["report"]["balanced_accuracy"],
        result["strength"]["two"]["linf"]["smallest_noise"]["cat"]["median"],
        result["universal"]["balanced"]["test"]["report"]["accuracy"],
    )}  # fmt: skip
    assert in_tables <= numbers_of(page)
    n = sum(result["data"]["test_counts"])
    assert (result["images"], result["positions"]) == (n, list(range(n)))
    assert f"Attacks: on all {n} test images\n" in done.stdout
    assert page.count(f"On {n} test images.") == 8  # by network, norm and metric
    for curve in result["curves"]["one"].values():
        for outcome in curve["results"].values():
            assert outcome["attacked"] >= outcome["flipped"]
    # At epsilon 0 an attack leaves the accuracy that stage 2 finds.
    in_process("evaluate.py", "one.pt", *DRY_RUN, "--output-dir", tmp_path)
    clean = read(tmp_path / "figures/evaluate_one.json")["report"]
    assert result["curves"]["one"]["PGD"]["results"]["0"]["report"] == clean
    assert result["universal"]["no noise"]["test"]["report"] == clean

    unlike = ("seconds", "command", "sha256")

    def timeless(value):
        if isinstance(value, dict):
            return {k: timeless(v) for k, v in value.items() if k not in unlike}
        return value

    assert timeless(result) == timeless(same)
    assert again.returncode == 0


def test_adversarial_images_are_saved_as_a_folder_of_images(in_process, tmp_path):
    """Each file is what its row says, for a program that reads the files alone."""
    folder, path = tmp_path / "images", ROOT / "models/best.pt"
    options = ("--ensemble-l2-epsilons", 1, "--save-images", folder, "--output-dir", tmp_path)
    done = in_process("adversarial.py", path, *DRY_RUN, *options, "--per-class", 9)
    assert done.returncode == 0, done.stderr
    test = load("synthetic", dry_run=True).test
    taken = [min(count, 9) for count in test.counts(3)]
    n, whole = sum(taken), len(test.labels)
    assert n < whole
    assert f"Attacks: on {n} of {whole} test images, at most 9 of each class" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    saved = read(tmp_path / "figures/adversarial_best.json")
    assert saved["images"] == len(saved["strength"]["best"]["linf"]["radii"]) == n
    assert test.select(torch.tensor(saved["positions"])).counts(3) == taken
    with (folder / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {
        file.relative_to(folder).as_posix() for file in folder.rglob("*.png")
    }
    result = read(tmp_path / "figures/adversarial_best.json")["strength"]["best"]
    network = load_checkpoint(path, torch.device("cpu")).network
    for norm, epsilon in (("linf", "4"), ("linf", "8"), ("l2", "1")):
        of_norm = [row for row in rows if (row["norm"], row["epsilon"]) == (norm, epsilon)]
        saved = result[norm]["ensemble"][epsilon]["in_8_bits"]
        assert len(of_norm) == result[norm]["attacked"] > 0
        assert sum(row["fools"] == "yes" for row in of_norm) == saved["fools"]
        for row in of_norm:
            assert row["file"].startswith(f"best-{norm}-{epsilon}/{row['label']}/")
            image = pil_to_tensor(Image.open(folder / row["file"]))
            position = int(Path(row["file"]).stem)
            assert position == int(row["image"])
            assert ("car", "truck", "cat")[test.labels[position]] == row["label"]
            changed = (image.float() - test.images[position].float()).flatten()
            size = changed.norm() / 255 if norm == "l2" else changed.abs().max()
            assert size <= float(epsilon) * (1 + 1e-4)
            k = int(predict(network, image[None]).argmax())
            assert ("car", "truck", "cat")[k] == row["prediction"]
            assert (row["prediction"] != row["label"]) == (row["fools"] == "yes")
    examples = read(tmp_path / "figures/adversarial_best.json")["examples"]
    sprite = pil_to_tensor(Image.open(tmp_path / "figures" / examples["sprite"]))
    pictures = sprite.unfold(1, 32, 32).unfold(2, 32, 32).permute(1, 2, 0, 3, 4)
    assert examples["epsilons"] == [0, 4, 8]
    assert len(pictures) == len(examples["images"]) > 3
    for row, image in zip(pictures, examples["images"], strict=True):
        assert image["predictions"][0][0] == image["label"]
        probabilities = predict(network, row.contiguous()).softmax(1)
        for p, (name, probability) in zip(probabilities, image["predictions"], strict=True):
            assert ("car", "truck", "cat")[p.argmax()] == name
            assert probability == pytest.approx(float(p.max()), abs=1e-4)
    stale = folder / "best-linf-8/car/99999.png"
    stale.write_bytes((folder / rows[0]["file"]).read_bytes())  # of an earlier run
    in_process("adversarial.py", path, *DRY_RUN, *options, "--per-class", 9)
    assert not stale.exists()
    assert all((folder / row["file"]).exists() for row in rows)
    two = ["car", "cat"]  # of the trucks one image is right, and a split needs two
    loaded = load(str(folder / "best-linf-8"), classes=two, test_share=0.3, cache=tmp_path)
    of_two = [
        row
        for row in rows
        if (row["norm"], row["epsilon"]) == ("linf", "8") and row["label"] in two
    ]
    assert len(loaded.train.labels) + len(loaded.test.labels) == len(of_two) > 10
    refused = in_process(
        "adversarial.py", path, *DRY_RUN, "--save-images", folder / "images.csv"
    )
    assert refused.returncode == 2
    assert refused.stderr.startswith("adversarial.py: --save-images: ")


def test_without_best_the_baseline_is_attacked(in_process, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    shutil.copy(ROOT / "models/baseline.pt", tmp_path / "models")
    for module in ("files", "options"):
        monkeypatch.setattr(f"common.{module}.ROOT", tmp_path)
    done = in_process("adversarial.py", *DRY_RUN, "--c", 0.1, "--target", "cat",
                      "--pairs", "car:cat", "--norm", "l2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no models/best.pt: attacking models/baseline.pt" in done.stdout
    figures = {path.name for path in (tmp_path / "dry-run/figures").iterdir()}
    assert "adversarial_baseline_noise.png" in figures
    assert "adversarial_baseline_tradeoff.png" not in figures
    result = read(tmp_path / "dry-run/figures/adversarial_baseline.json")
    assert result["noise"]["zeros start"]["c"] == 0.1


def test_a_network_that_is_never_right_is_named(in_process, monkeypatch):
    wrong = torch.tensor([0.0, 0.0, 0.0, 1.0])
    monkeypatch.setattr(
        "common.attacks.robustness.logits_of", lambda _, x: wrong.expand(len(x), 4)
    )
    done = in_process("adversarial.py", ROOT / "models/baseline.pt", *DRY_RUN)
    assert done.returncode == 2
    assert is_one_line(done.stderr, "baseline classifies none of the 32 test images correctly")


def test_an_audit_of_a_class_smaller_than_the_folds_is_one_line(in_process, tmp_path):
    counts = ("--train-counts", 9, 6, 3, "--test-counts", 1, 1, 1)
    done = in_process(
        "inspect_data.py", "--audit-labels", "--data", "synthetic", *counts, "--output-dir",
        tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert is_one_line(done.stderr, "--audit-labels: 4 folds", "of cat there are 3")
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.py", "orginal"], ["recipe 'orginal'", "try original"]),
        (["train.py", "--epochs", "0"], ["--epochs", "'0' is not a whole number"]),
        (["train.py", "--learning-rate", "nan"], ["--learning-rate", "number above 0"]),
        (["train.py", "--momentum", "1"], ["--momentum", "of at least 0 and below 1"]),
        (["train.py", "--width", "8"], ["--width 8", "resnet9"]),
        (["train.py", "--width", "100000"], ["--width", "at most 256"]),
        (["train.py", "--copies", "1000000000"], ["--copies", "at most 100"]),
        (["train.py", "--batch-size", "1000000000"], ["--batch-size", "at most 65536"]),
        (["train.py", "--learning-rate", "1e300"], ["--learning-rate", "at most 1e+30"]),
        (["train.py", "--weight-decay", "1e300"], ["--weight-decay", "at most 1000000"]),
        (["train.py", "--threads", "999999999999"], ["--threads", "at most 1024"]),
        (["train.py", "--seed", 2**64], ["--seed", "at most 4294967295"]),
        (["train.py", "--seed", 2**32 - 1, "--seeds", 5], ["--seed 4294967295: 5 seeds"]),
        (["train.py", "original", "sampler", "--reference", "smote"],
         ["--reference smote", "not one of the recipes, original, sampler"]),
        (["train.py", "--data", ""], ["--data", "the value is empty"]),
        (["train.py", "--label-fixes", "~nouser/x"], ["--label-fixes", "no such user"]),
        (["train.py", "--loss", "logit-adjusted", "--post-hoc", "logit-adjustment"],
         ["--post-hoc logit-adjustment", "twice"]),
        (["train.py", "--validation", "1"], ["--validation", "below 1"]),
        (["train.py", "--seed", "-1"], ["--seed", "whole number"]),
        (["train.py", "smote", "--data", "synthetic", "--train-counts", "50", "9", "4"],
         ["--resample smote", "cat: 4", "--neighbours 3"]),
        (["inspect_data.py", "--train-counts", "many"], ["--train-counts", "whole number"]),
        (["inspect_data.py", "--data", "nowhere"], ["--data nowhere", "synthetic"]),
        (["inspect_data.py", "--colour"], ["--colour", "--help"]),
        (["evaluate.py", "--label-noise", "cat"], ["'cat' is not CLASS:SHARE", "cat:0.2"]),
        (["evaluate.py", "--label-noise", "cat:2"], ["--label-noise", "below 1"]),
        (
            ["inspect_data.py", "--audit-labels", "--validation", "0.1"],
            ["--audit-labels", "leave out"],
        ),
        (["evaluate.py", "nothing.pt"], ["nothing.pt", "train.py makes one"]),
        (["adversarial.py", "--epsilons", "-1"], ["--epsilons", "at most 255"]),
        (["adversarial.py", "--epsilon", "256"], ["--epsilon", "at most 255"]),
        (["adversarial.py", "--l2-epsilons", "1001"], ["--l2-epsilons", "at most 1000"]),
        (["adversarial.py", "--epsilons", "4", "0", "4.0"], ["--epsilons: 4 is given twice"]),
        (["adversarial.py", "--ensemble-l2-epsilons", ".5", "0.5", *DRY_RUN],
         ["--ensemble-l2-epsilons: 0.5 is given twice"]),
        (["adversarial.py", "--pairs", "cat:cat", *DRY_RUN], ["cat:cat", "true class"]),
        (["adversarial.py", "--target", "dog", *DRY_RUN], ["--target dog", "car, truck, cat"]),
        (["adversarial.py", "nothing.pt"], ["nothing.pt", "train.py makes one"]),
        (["adversarial.py", ROOT / "models/baseline.pt", "--data", "synthetic",
          "--train-counts", "1", "1", "1", "--test-counts", "1", "1", "1", "--classes",
          "cat", "truck", "automobile"], ["baseline.pt", "cat, truck, car"]),
        (["evaluate.py", "--classes", "cat", "truck", "--data", "synthetic",
          "--train-counts", "1", "1", "--test-counts", "1", "1"],
         ["baseline.pt", "car, truck, cat", "cat, truck"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(in_process, tmp_path, arguments, words):
    done = in_process(*arguments, "--output-dir", tmp_path / "out")
    assert done.returncode == 2
    assert is_one_line(done.stderr, arguments[0], *words), done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_a_folder_from_the_environment_is_named_with_its_variable(in_process, monkeypatch):
    monkeypatch.setenv("CIFAR10_DIR", "nowhere")
    done = in_process("inspect_data.py")
    assert done.returncode == 2
    assert is_one_line(done.stderr, "nowhere: no such folder", "(from $CIFAR10_DIR)")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_is_named(in_process):
    done = in_process("inspect_data.py", "--device", "cuda", "--dry-run")
    assert done.returncode == 2
    assert is_one_line(done.stderr, "--device cuda", "--device auto")


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_a_default_for_every_option(in_process, name):
    done = in_process(name, "--help")
    options = re.split(r"\n  (?=-)", done.stdout.split("\noptions:")[1])[2:]  # after -h
    assert len(options) >= 15
    for option in options:
        assert re.search(r"\((default|original):|default:", " ".join(option.split())), option


def test_help_loads_nothing_heavy():
    for name in SCRIPTS:
        code = (
            f"import sys, runpy; sys.argv = ['{name}', '--help']\n"
            f"try: runpy.run_path(r'{ROOT / name}', run_name='__main__')\n"
            "except SystemExit: pass\n"
            "print({'torch', 'numpy', 'sklearn', 'matplotlib'} & set(sys.modules) or 'light')"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stdout.endswith("light\n"), name


@pytest.mark.parametrize(("name", "jobs"), [("SIGINT", 1), ("SIGTERM", 2)])
def test_an_interrupted_run_ends_in_one_line(tmp_path, name, jobs):
    """Ctrl-C or SIGTERM while training: the checkpoint of the finished recipe stays."""
    process = subprocess.Popen(
        [sys.executable, "-u", ROOT / "train.py", "baseline", "naive-100",
         "--data", "synthetic", "--train-counts", "60", "20", "20", "--test-counts", "12", "4",
         "4", "--threads", "1", "--jobs", str(jobs), "--output-dir", tmp_path],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell's background job ignores Ctrl-C, and so would this process after it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("saved") and "baseline_confusion" in line:
            break
    process.send_signal(getattr(signal, name))
    # Waits for the workers, too: they hold the other end of the pipe.
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    assert is_one_line(errors, "train.py: stopped", "what was finished is saved"), errors
    assert (tmp_path / "models/baseline.pt").exists()
    assert not (tmp_path / "models/naive-100.pt").exists()
    assert not [path for path in (tmp_path / "models").iterdir() if path.name[0] == "."]


def test_runs_that_share_a_training_take_one_place_among_the_cores(in_process, tmp_path):
    options = (*DRY_RUN[:3], "--threads", 2, "--output-dir", tmp_path)
    done = in_process("train.py", "resnet9", "original", "post-hoc", *options)
    assert "Runs: 3, 2 at a time, on" in done.stdout
    done = in_process("train.py", "original", "post-hoc", *options)
    assert "Runs: 2, 1 at a time, on" in done.stdout
    threads = [read(path)["threads"] for path in tmp_path.rglob("models/*.json")]
    assert threads == [1, 1, 1]


def test_baseline_gives_its_published_numbers(real_split, script, tmp_path):
    published = read(ROOT / "models/baseline.json")
    if published["data"]["fingerprint"] != real_split.fingerprint:
        pytest.skip("baseline.pt was made with the JPEG images, and CIFAR10_DIR holds others")
    done = script("evaluate.py", "--output-dir", tmp_path, CIFAR10_DIR=REAL_IMAGES)
    assert "Accuracy of the network on the 625 test images: 88.16 %" in done.stdout
    result = read(tmp_path / "figures/evaluate_baseline.json")
    assert result["report"]["confusion"] == published["report"]["confusion"]
    assert result["report"]["confusion"] == [[551, 0, 0], [51, 0, 0], [23, 0, 0]]
