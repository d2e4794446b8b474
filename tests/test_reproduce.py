"""`make reproduce`: how it goes on, and pages that say what the results' files say."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import is_one_line
from sklearn.metrics import balanced_accuracy_score

from benchmarks import publish, reproduce
from common.dataset.load import load
from common.errors import InputError
from common.files import ROOT, load_result
from common.metrics.report import from_confusion
from common.networks.checkpoint import load_checkpoint
from common.networks.prediction import predict

EVALUATE = "evaluate.py --data synthetic --threads 1"
CLASSES = ("car", "truck", "cat")
README = (ROOT / "benchmarks/templates/README.md").read_text(encoding="utf-8")


def run(folder, *stages, quick=True):
    """Do what `python benchmarks/reproduce.py STAGE ... --output-dir FOLDER` does."""
    given = {"stages": list(stages), "quick": quick, "output_dir": folder}
    reproduce.main(argparse.Namespace(**given))


def test_what_failed_is_done_again_and_what_ended_is_not(offline, monkeypatch, tmp_path, capfd):
    published = reproduce.figures(("evaluate_baseline.json", "one.json"))
    commands = [
        reproduce.Command("here", EVALUATE, published),
        reproduce.Command("here", f"{EVALUATE} ../again.pt"),
    ]
    monkeypatch.setattr(reproduce, "STAGES", {"one": reproduce.Stage("a stage", commands)})
    with pytest.raises(InputError, match=r"evaluate\.py ended with exit code 2"):
        run(tmp_path)
    out, err = capfd.readouterr()
    assert "again.pt" in err
    assert "(done before" not in out
    page = tmp_path / "figures/results.md"
    assert not page.exists()
    shutil.copy(ROOT / "models/baseline.pt", tmp_path / "again.pt")
    run(tmp_path)
    out = capfd.readouterr().out
    assert out.count("(done before") == 1
    assert out.count("saved figures/evaluate_again.json") == 1
    report = json.loads((tmp_path / "figures/results/one.json").read_text())["report"]
    assert report["confusion"] == [[20, 0, 0], [6, 0, 0], [6, 0, 0]]
    assert publish.MISSING in page.read_text()
    # By other code, and with other libraries, nothing is done yet.
    for name in ("code_digest", "versions"):
        monkeypatch.setattr(reproduce, name, lambda: "other")
        run(tmp_path)
        assert "(done before" not in capfd.readouterr().out


def test_of_other_images_nothing_is_done_yet(offline, monkeypatch, tmp_path, capfd):
    stage = reproduce.Stage("a stage", [reproduce.Command("here", EVALUATE)])
    monkeypatch.setattr(reproduce, "STAGES", {"one": stage})
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)  # to which the pages are written
    for script in ("evaluate.py", "common", "models"):
        (tmp_path / script).symlink_to(ROOT / script)
    for images, again in (("these", False), ("these", True), ("others", False)):
        monkeypatch.setattr(reproduce, "fingerprint_of_photographs", lambda it=images: it)
        run(tmp_path / "output", quick=False)
        assert ("(done before" in capfd.readouterr().out) is again


def test_pages_show_every_stage_that_ended(offline, monkeypatch, tmp_path):
    published = reproduce.figures(("evaluate_baseline.json", "evaluate_baseline.json"))
    lines = {"one": EVALUATE, "two": f"{EVALUATE} nowhere.pt"}
    stages = {
        name: reproduce.Stage("", [reproduce.Command("here", line, published)])
        for name, line in lines.items()
    }
    monkeypatch.setattr(reproduce, "STAGES", stages)
    with pytest.raises(InputError):
        run(tmp_path)
    page = (tmp_path / "figures/results.md").read_text()
    assert "recipe: accuracy 0.625 [" in page  # of 32 drawings, 20 of them cars


@pytest.mark.parametrize("there", [True, False])
def test_the_stage_of_a_library_that_no_index_has_is_left_out(monkeypatch, there):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *at: there if name == "autoattack" else find(name, *at),
    )
    left_out = set() if there else {"auto-attack"}
    assert reproduce.all_stages() == [n for n in reproduce.STAGES if n not in left_out]


def test_results_of_the_same_name_are_published_each_for_its_own_command(
    offline, monkeypatch, tmp_path
):
    stages = {
        name: reproduce.Stage("", [reproduce.Command("here", line, reproduce.figures(
            ("evaluate_baseline.json", f"{name}.json")))])
        for name, line in (("one", EVALUATE), ("two", f"{EVALUATE} --prior 1 2 3"))
    }  # fmt: skip
    monkeypatch.setattr(reproduce, "STAGES", stages)
    for _ in range(2):  # the second time nothing is run
        run(tmp_path)
        for name, prior in (("one", None), ("two", [1, 2, 3])):
            record = json.loads((tmp_path / f"figures/results/{name}.json").read_text())
            assert record["prior"] == prior


def test_drawings_are_no_results(offline, tmp_path, capfd):
    with pytest.raises(InputError, match="photographs of CIFAR-10 can't be had"):
        run(tmp_path / "output", "data", quick=False)
    assert not (tmp_path / "output").exists()


def test_an_unknown_stage_is_named(script):
    done = script("benchmarks/reproduce.py", "rase")
    assert done.returncode == 2
    assert is_one_line(done.stderr, "rase: no stage", "take data, best")
    stages = script("benchmarks/reproduce.py", "--list").stdout
    assert "race: a fair comparison" in stages
    assert "  three/ $ train.py race --seeds 5\n" in stages
    assert max(map(len, stages.splitlines())) <= 80


def test_the_pages_are_those_that_the_results_make():
    for path, text in publish.pages(ROOT).items():
        assert (ROOT / path).read_text(encoding="utf-8") == text, (
            f"{path} differs from what its template and figures/results/ make; run"
            " benchmarks/publish.py"
        )


def test_every_link_of_the_pages_leads_to_a_file():
    for path in publish.PAGES.values():
        page = ROOT / path
        links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
        assert len(links) > 5
        assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readmes_template_makes_a_short_page(tmp_path):
    for root in (ROOT, tmp_path):  # with the results that there are, and with none
        assert len(publish.render("README.md", root).splitlines()) <= 200


def test_every_figure_of_the_pages_is_published_by_a_stage():
    published = {
        path
        for stage in reproduce.STAGES.values()
        for command in stage.commands
        for _, path in command.published
    }
    for template in publish.TEMPLATES.iterdir():
        text = template.read_text(encoding="utf-8")
        shown = re.findall(r"results/([^)]+\.png)|figure\(\"([^\"]+)\"", text)
        assert len(shown) > 3
        assert {f"figures/results/{''.join(names)}" for names in shown} <= published


def test_numbers_are_those_of_their_files(tmp_path):
    """Numbers of each kind, in a page made of results with known values."""
    folder = tmp_path / "figures/results"
    folder.mkdir(parents=True)
    data = {"source": "photos", "test_counts": [5, 3, 2], "train_counts": [1000, 300, 34]}
    report = from_confusion([[4, 1, 0], [0, 3, 0], [1, 0, 1]], CLASSES).as_dict()
    summary = {"mean": 0.12345, "interval": [0.1, 0.2]}
    higher = {"mean": 0.5, "interval": [0.4, 0.6]}
    pair = {"first_part": "train", "second_part": "test"}
    (folder / "a.json").write_text(
        json.dumps(
            {
                "data": data,
                "report": report,
                "comparison": {"seeds": 5, "summaries": {
                    "low": {"G-mean": summary}, "high": {"G-mean": higher}}},
                "duplicates": [
                    pair | {"second_index": 3}, pair | {"second_index": 3},
                    pair | {"second_index": 4},
                    {"first_part": "test", "second_part": "test", "second_index": 5},
                ],
                "audit": {"planted": {"all": {"wrong": 0.25, "planted": 1089}}},
                "strength": {"net": {"linf": {
                    "ensemble": {"4": {"stages": {"one": {"report": None},
                                                  "last": {"report": report}}}},
                    "smallest_noise": {"car": {"median": 1.25, "interval": [1, 2]}},
                }}},
                "median": None,
                "command": "train.py a --output-dir .", "processor": "a processor",
                "date": "2026-11-29",
                "versions": {"torch": "2.14"},
            }
        )
    )  # fmt: skip
    attacked = [
        from_confusion(c, CLASSES).as_dict()
        for c in ([[5, 0, 0], [1, 2, 0], [0, 0, 2]], [[4, 0, 1], [0, 3, 0], [1, 0, 1]])
    ]
    (folder / "c.json").write_text(
        json.dumps({
            "data": data, "command": "adversarial.py", "processor": "p", "date": "today",
            "versions": {"torch": "2.14"},
            "images": 7,
            "curves": {name: {"PGD": {"results": {"4": {"report": r}}}}
                       for name, r in zip("xy", attacked, strict=True)},
            "strength": {name: {"linf": {"ensemble": {"4": {"stages": {"a": {"report": r}}}}}}
                         for name, r in zip("xy", reversed(attacked), strict=True)},
        })
    )  # fmt: skip
    balanced = f"{np.mean([4 / 5, 1, 1 / 2]):.3f}"
    low, high = report["intervals"]["balanced_accuracy"]
    expected = {
        ("value", "a", "report/accuracy"): "0.800",
        ("value", "a", "median"): "-",
        ("percent", "a", "report/accuracy"): "80.0%",
        ("score", "a", "balanced_accuracy"): f"{balanced} [{low:.3f}, {high:.3f}]",
        ("mean", "a", "low", "G-mean"): "0.123 [0.100, 0.200]",
        ("best_of", "a", "G-mean"): "`high` 0.500 [0.400, 0.600]",
        ("images", "a", "train"): "1,334",
        ("of_each_class", "e", "test"): "4",
        ("of_each_class", "a", "test"): "2 to 5",
        ("source", "a"): "photos",
        ("minutes", "e"): "16",
        ("count", "a", "audit/planted/all/planted"): "1,089",
        ("leaks", "a"): "2",
        ("audit", "a a", "all", "wrong"): "0.250",
        ("ensemble", "a", "net", 4): f"{balanced} [{low:.3f}, {high:.3f}]",
        ("radius", "a", "net", "car"): "1.2 [1.0, 2.0]",
        ("mean", "b", "low", "G-mean"): publish.MISSING,
        ("made", "a"): "*`train.py a`: 1,334 train images of photos, 5 seeds, PyTorch 2.14, a"
        " processor, 2026-11-29.*",
    }
    expected["made", "c"] = (
        "*`adversarial.py`: 7 test images of photos, 2 networks, PyTorch 2.14, p, today.*"
    )
    both = {"left": {"ours": 0.5, "theirs": 0.25}, "seconds": {"ours": 1.26, "theirs": 20}}
    ours = {"left": {"ours": 0}, "seconds": {"ours": 3}}
    rows = {
        "pgd": [{"attack": "PGD", "epsilon": "1/255"} | both],
        "ensemble": [{"attack": "Square", "epsilon": "2/255"} | ours],
    }
    both_at_once = {"attack": "all", "epsilon": "4/255"} | both
    networks = {"net": rows, "without": {"ensemble": rows["ensemble"]}}
    networks["whole"] = {"auto-attack": [both_at_once]}
    made = {"data": data, "command": "attacks.py", "processor": "p", "date": "today"}
    made |= {"versions": {"torch": "2.14"}, "images": 7}
    (folder / "d.json").write_text(json.dumps(made | {"networks": networks}))
    balanced_data = data | {"test_counts": [4, 4, 4]}
    of_one = made | {"networks": {"net": rows}, "data": balanced_data, "seconds": 966.3}
    (folder / "e.json").write_text(json.dumps(of_one))
    expected["made", "d"] = (
        "*`attacks.py`: 7 test images of photos, 3 networks, PyTorch 2.14, p, today.*"
    )
    expected["made", "e"] = expected["made", "d"].replace("3 networks", "1 network")
    expected["peers", "d", "without"] = (
        "| `without`, 7 images | epsilon | ours         |\n"
        "| ------------------- | ------- | ------------ |\n"
        "| Square              | 2/255   | 0.000, 3.0 s |"
    )
    expected["peers", "d", "net"] = (
        "| `net`, 7 images | epsilon | ours         | theirs        |\n"
        "| --------------- | ------- | ------------ | ------------- |\n"
        "| PGD             | 1/255   | 0.500, 1.3 s | 0.250, 20.0 s |\n"
        "| Square          | 2/255   | 0.000, 3.0 s |               |"
    )
    expected["peers", "d", "whole"] = (
        "| `whole`, 7 images | epsilon | ours         | theirs        |\n"
        "| ----------------- | ------- | ------------ | ------------- |\n"
        "| all               | 4/255   | 0.500, 1.3 s | 0.250, 20.0 s |"
    )
    of_seeds = {  # the same mean, of (5/5 + 2/3 + 2/2) / 3 and (4/5 + 3/3 + 1/2) / 3
        attack: publish.attacked_mean(folder, "c", attack, 4, "balanced accuracy")
        for attack in ("PGD", "ensemble")
    }
    assert of_seeds["PGD"] == of_seeds["ensemble"]
    mean, low, high = map(float, re.findall(r"[\d.]+", of_seeds["PGD"]))
    assert mean == pytest.approx(np.mean([8 / 9, 2.3 / 3]), abs=5e-4)
    assert 0 <= low < mean < high <= 1
    # Two seeds that differ tell little: Student's t with one degree of freedom is wide.
    assert (low, high) == (0, 1)
    cars = publish.attacked_mean(folder, "c", "PGD", 4, "recall of truck")
    assert cars.startswith(f"{np.mean([2 / 3, 1]):.3f} [")
    functions = {function.__name__: function for function in publish.FUNCTIONS}
    for (name, *arguments), text in expected.items():
        assert publish.or_missing(functions[name], folder, *arguments) == text
    table = publish.comparison(folder, "a", "G-mean").splitlines()
    assert [line.split()[1] for line in table[2:]] == ["`high`", "`low`"]
    with pytest.raises(KeyError):  # a misspelt place is no missing file
        publish.or_missing(publish.value, folder, "a", "report/acuracy")


@pytest.mark.parametrize("name", ["best", "robust", "four", "ten"])
def test_beside_autoattack_the_pages_claim_what_was_measured(name):
    """As many of the images left or one or two fewer, in less time."""
    record = load_result(ROOT / f"figures/results/auto-attack_{name}.json")
    (tables,) = record["networks"].values()
    assert [row["epsilon"] for row in tables["auto-attack"]] == ["2/255", "4/255", "8/255"]
    for row in tables["auto-attack"]:
        ours, theirs = (
            row["left"][whose] * record["images"] for whose in ("ours", "auto-attack")
        )
        assert 0 <= round(theirs - ours, 3) <= 2
        assert row["seconds"]["ours"] < row["seconds"]["auto-attack"]


def test_small_test_images_are_found_among_all(in_process, tmp_path):
    images = ("--data", "synthetic", "--train-counts", 60, 20, 20, "--output-dir", tmp_path)
    recipe = "original+epochs=1"
    small_test = ("benchmarks/small_test.py", recipe, *images)
    done = in_process(*small_test, "--seeds", 2)
    assert done.returncode == 2
    assert is_one_line(done.stderr, "original+epochs=1.json", "run train.py")
    train = ("train.py", "original", "--epochs", 1, "--learning-rate", 0.01, *images)
    assert in_process(*train, "--seeds", 2, "--test-counts", "full").returncode == 0
    recipe += "+learning-rate=0.01"
    done = in_process("benchmarks/small_test.py", recipe, *images, "--seeds", 2)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "figures/small_test.json").read_text())
    small = load("synthetic", train_counts=[60, 20, 20])
    full = load("synthetic", train_counts=[60, 20, 20], test_counts=["full"])
    for split, compared in ((small, record["comparison"]), (full, record["on_all"])):
        labels, accuracies = split.test.labels, []
        for seed in ("", "-seed1"):
            path = tmp_path / f"models/{recipe}{seed}.pt"
            predicted = predict(load_checkpoint(path, "cpu").network, split.test.images).argmax(
                1
            )
            accuracies.append(balanced_accuracy_score(labels, predicted))
        found = compared["summaries"][recipe]["balanced accuracy"]["mean"]
        assert found == pytest.approx(np.mean(accuracies))
        assert compared["seeds"] == 2
    assert record["data"]["test_counts"] == [551, 51, 23]
    assert "625 test images" in done.stdout


def test_make_run_says_once_that_there_is_no_network(offline, monkeypatch, tmp_path):
    make = [
        "make",
        "-n",
        "--no-print-directory",
        "-C",
        ROOT,
        "run",
        f"BIN={Path(sys.executable).parent}",
    ]
    done = subprocess.run(make, capture_output=True, text=True, check=True)
    commands = [line for line in done.stdout.splitlines() if ".py" in line]
    assert len(commands) == 5
    assert all(line.endswith(" --data synthetic") for line in commands)
    assert done.stderr.count("GOING ON WITH SYNTHETIC IMAGES") == 1
    assert done.stdout.splitlines()[-1] == f"echo file://{ROOT}/figures/index.html"
    monkeypatch.setenv("CIFAR10_DIR", str(tmp_path / "missing"))  # the first script says so
    done = subprocess.run(make, capture_output=True, text=True, check=True)
    assert "--data" not in done.stdout
    assert done.stderr == ""


def code_blocks(heading):
    """Return the Python blocks of a section of the README."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def project(tmp_path):
    """A copy of the project, to change."""
    folder = tmp_path / "project"
    shutil.copytree(ROOT / "common", folder / "common")
    (folder / "models").mkdir()
    shutil.copy(ROOT / "models/baseline.pt", folder / "models")
    for script in ("train.py", "adversarial.py"):
        shutil.copy(ROOT / script, folder)
    return folder


def insert(path, where, text):
    """Insert text before the first occurrence of `where` in a file."""
    content = path.read_text()
    assert where in content
    path.write_text(content.replace(where, text + where, 1))


def test_the_readmes_own_recipe_loss_attack_and_network_work(offline, project):
    recipe, loss, attack, network = code_blocks("Your own recipe, loss, attack, network")
    training = project / "common/training"
    insert(training / "recipes.py", '    "best": BEST,', recipe)
    function, title, branch = loss.split("\n\n")
    insert(training / "losses.py", "def make_loss", f"{function}\n\n\n")
    insert(training / "losses.py", '    "vs":', f"{title}\n")
    insert(training / "losses.py", '    if recipe.loss == "focal"', branch)
    insert(training / "recipe.py", '"focal", "ldam"', '"poly", ')
    function, row = attack.split("\n\n")
    table = project / "common/attacks/table.py"
    insert(table, "ITERATED =", f"{function}\n\n\n")
    insert(table, '    Attack("FGSM"', row)
    (project / "mine.py").write_text(network)
    shared = ["--dry-run", "--data", "synthetic", "--threads", "1"]
    for command, expected in {
        "train.py mine": "saved",
        "train.py original --loss poly": "saved",
        "train.py original --network mine:small": "saved",
        "adversarial.py": "random (uniform noise) on the",
    }.items():
        done = subprocess.run(
            [sys.executable, *command.split(), *shared],
            cwd=project, capture_output=True, text=True, env=os.environ, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
