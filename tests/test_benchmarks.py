"""The benchmarks: the same losses as the reports' loop, and results of every section."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import EMPTY, is_one_line

from benchmarks import attacks, publish, reference, sections
from common.dataset.load import load
from common.dataset.split import LabelledImages
from common.files import ROOT
from common.networks.build import build
from common.training import fit as fit_module
from common.training.recipes import ORIGINAL, RESNET
from common.training.sampling import epoch_order

CPU = torch.device("cpu")
EPOCH = replace(ORIGINAL, epochs=1)


@pytest.fixture
def images(tmp_path):
    return load("synthetic", train_counts=[400, 60, 40], cache=tmp_path).train


def both_curves(monkeypatch, part, recipe) -> tuple[list, list]:
    """Return the loss of each step of one epoch, by fit() and by the reports' loop.

    Both start with the same weights, without dropout, whose random numbers differ, and take
    the examples in the same order. The loss of each step is recorded, because opposite errors
    would cancel in an epoch's mean.
    """
    no_dropout = {"dropout": 0.0} if recipe.network == "simple-cnn" else {}
    network = build(recipe.network, recipe.network_arguments(3) | no_dropout)
    curve, batch_loss = [], fit_module.losses.batch_loss

    def recorded(*arguments):
        loss = batch_loss(*arguments)
        curve.append(loss.item())
        return loss

    monkeypatch.setattr(fit_module.losses, "batch_loss", recorded)
    fit_module.fit(network, part, EMPTY, recipe, seed=0, device=CPU)
    order = epoch_order(part.labels, recipe, 0, 3, torch.Generator().manual_seed(0)).tolist()
    plain = reference.plain_network(recipe, 3, **no_dropout)
    batches = reference.loader(part, recipe, order=order)
    return curve, reference.train(plain, batches, recipe, CPU)


def test_500_steps_are_those_of_the_reports_loop(monkeypatch, images):
    part = LabelledImages(*(torch.cat([t] * 4) for t in images))
    ours, theirs = both_curves(monkeypatch, part, EPOCH)
    assert len(ours) == 500
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert sum(ours[-50:]) < 0.8 * sum(ours[:50])  # the loss falls


@pytest.mark.parametrize(
    ("recipe", "rel"),
    [
        (replace(EPOCH, class_weights="inverse"), 1e-4),
        (replace(EPOCH, learning_rate=0.01, batch_size=25), 1e-4),
        # At its own rate a new ResNet9 turns a difference of 1e-7 into 1e-2 within five steps.
        (replace(RESNET, epochs=1, augment=(), batch_size=50, learning_rate=0.002), 1e-3),
    ],
    ids=["weights", "larger batches", "resnet9"],
)
def test_other_recipes_are_those_of_the_reports_loop(monkeypatch, images, recipe, rel):
    ours, theirs = both_curves(monkeypatch, images, recipe)
    assert len(ours) == 500 // recipe.batch_size
    assert ours == pytest.approx(theirs, rel=rel)


def test_loader_draws_balanced_classes_and_transforms(images):
    recipe = replace(EPOCH, sampler="balanced", batch_size=500)
    [(x, labels)] = reference.loader(images, recipe)
    assert torch.bincount(labels).min() > 120
    assert -1 <= x.min() < -0.5
    assert 0.5 < x.max() <= 1
    [(x, _)] = reference.loader(
        images, replace(recipe, augment=("flip", "crop")), order=[0] * 500
    )
    assert len(x.flatten(1).unique(dim=0)) > 100  # of 2 * 9 * 9


def test_ratios_are_of_medians_and_within_repeats():
    rows = sections.compared("", {"ours": [2.0, 1.0, 4.0], "loop": [4.0, 8.0, 6.0]})["rows"]
    assert rows[0] == {
        "what": "ours",
        "time": "1.00",
        "spread": "0.50 to 2.00",
        "in turn": "1.00 to 1.00",
    }
    assert list(rows[1].values()) == ["loop", "3.00", "2.00 to 4.00", "1.50 to 8.00"]


def test_sides_take_turns():
    turns = []
    sides = {name: lambda name=name: turns.append(name) for name in "ab"}
    seconds = sections.alternate(sides, 2)
    assert turns == ["a", "b", "a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_sections_write_json_and_markdown(script, tmp_path):
    names = ["step", "resnet", "fgsm", "images", "profile"]  # those without processes
    command = ("benchmarks/run.py", *names, "--quick", "--output-dir", tmp_path / "out")
    path = tmp_path / "out/results.json"
    path.parent.mkdir()
    other = {"machine": ["Another CPU"], "data": {"source": "photographs"}, "sections": {}}
    path.write_text(json.dumps({"Another CPU": other}))
    done = script(*command)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert max(map(len, done.stdout.splitlines())) <= 80
    markdown = path.with_suffix(".md").read_text()
    results = json.loads(path.read_text())
    assert results.pop("Another CPU") == other  # each processor keeps its section
    assert "# Another CPU\n\nImages: photographs." in markdown
    [(processor, result)] = results.items()
    assert f"# {processor}\n" in markdown
    assert list(result["sections"]) == names
    for table in result["sections"].values():
        assert f"## {table['title']}" in markdown
        assert all(f"| {row['what']} " in markdown for row in table["rows"])
    shares = [int(row["share"].rstrip("%")) for row in result["sections"]["profile"]["rows"]]
    assert 95 <= sum(shares) <= 105
    assert shares[0] > 5  # the layers


def test_an_unknown_section_is_one_line(script):
    done = script("benchmarks/run.py", "steps", "--quick")
    assert done.returncode == 2
    assert is_one_line(done.stderr, "steps", "step, resnet")


SMALL = ("--dry-run", "--data", "synthetic", "--threads", 1, "--output-dir")


def test_candidates_are_judged_on_train_images_and_added_to_the_log(in_process, tmp_path):
    log = tmp_path / "benchmarks/best.md"
    log.parent.mkdir()
    log.write_text("# The choice\n\nIn words.\n\n")
    for folds in (2, 3):
        done = in_process("benchmarks/best.py", "best", "--folds", folds, *SMALL, tmp_path)
        assert done.returncode == 0, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 80
        text = log.read_text()
        assert text.startswith("# The choice\n\nIn words.\n\n<!--")
        assert text.count("<!--") == text.count("| `best` ") == 1
    [results] = json.loads(log.with_suffix(".json").read_text()).values()
    result = results["best"]
    predictions = [int(k) for k in result["predictions"].split()]
    assert len(predictions) == sum(results["data"]["train_counts"])
    confusion = result["report"]["confusion"]
    assert [sum(row) for row in confusion] == results["data"]["train_counts"]
    assert [sum(column) for column in zip(*confusion, strict=True)] == [
        predictions.count(k) for k in range(3)
    ]


def test_an_unknown_candidate_is_one_line(script):
    done = script("benchmarks/best.py", "later", "--dry-run")
    assert done.returncode == 2
    assert is_one_line(done.stderr, "later", "best, shorter")


def test_the_ablation_trains_best_without_each_part(in_process, tmp_path):
    done = in_process("benchmarks/ablation.py", "--seeds", 1, *SMALL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    result = json.loads((tmp_path / "benchmarks/ablation.json").read_text())
    names = list(result["comparison"]["summaries"])
    assert names[0] == result["comparison"]["reference"] == "best"
    for name in names[1:]:
        recipe, best = result["recipes"][name], result["recipes"]["best"]
        changed = [field for field in recipe if recipe[field] != best[field]]
        assert len(changed) == 1, name
        assert f"| `{name}` " in (tmp_path / "benchmarks/ablation.md").read_text()


def test_attacks_are_compared_on_the_same_images(in_process, tmp_path):
    pytest.importorskip("torchattacks", reason="compares with torchattacks")
    pytest.importorskip("foolbox", reason="compares with foolbox")
    network = ROOT / "models/best.pt"
    done = in_process("benchmarks/attacks.py", network, "--images", 7, *SMALL, tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    record = json.loads((tmp_path / "figures/attack_peers.json").read_text())
    tables = record["networks"]["best"]
    assert [row["epsilon"] for row in tables["pgd"]] == [f"{e}/255" for e in (1, 2, 4, 8)]
    for row in tables["pgd"]:
        assert list(row["left"]) == list(row["seconds"]) == ["ours", "torchattacks", "foolbox"]
        for left in row["left"].values():
            assert 7 * left == pytest.approx(round(7 * left))
        assert min(row["seconds"].values()) > 0
    for epsilon in ("2/255", "4/255", "8/255"):
        *each, total = (row for row in tables["ensemble"] if row["epsilon"] == epsilon)
        assert total["attack"] == "all"
        assert len(each) == 5
        # Of three classes torchattacks has no targeted APGD.
        without = [row["attack"] for row in each if "torchattacks" not in row["left"]]
        assert without == ["APGD, each target"]
        for library in ("ours", "torchattacks"):
            left = [row["left"].get(library, 1) for row in each]
            assert total["left"][library] <= min(left)
        seconds = sum(row["seconds"].get("torchattacks", 0) for row in each)
        assert total["seconds"]["torchattacks"] == pytest.approx(seconds)
    [noise] = tables["noise"]
    assert list(noise["fooled"]) == ["ours", "foolbox"]
    results = tmp_path / "figures"
    table = publish.peers(results, "attack_peers", "best").splitlines()
    assert len(table) == 2 + 4 + 3 * 6
    assert "| all " in table[-1]


@pytest.mark.parametrize(("classes", "second"), [(3, "apgd-dlr"), (4, "apgd-t")])
def test_autoattack_gets_the_budget_and_attacks_that_work(monkeypatch, classes, second):
    made = []

    class AutoAttack:  # in place of the authors', which no package index has
        def __init__(self, network, *, attacks_to_run, eps, **_):
            self.attacks, self.eps = attacks_to_run, eps
            for name in ("apgd", "apgd_targeted", "fab", "square"):
                setattr(self, name, SimpleNamespace())
            made.append(self)

        def run_standard_evaluation(self, x, y, bs):
            return x

    monkeypatch.setitem(sys.modules, "autoattack", SimpleNamespace(AutoAttack=AutoAttack))
    network = build(EPOCH.network, EPOCH.network_arguments(classes)).eval()
    x = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network(x).argmax(1)
    rows = list(attacks.auto_attack(network, x, y, y, dry_run=True))
    assert [row["epsilon"] for row in rows] == ["2/255", "4/255", "8/255"]
    assert [theirs.eps for theirs in made] == [2 / 255, 4 / 255, 8 / 255]
    for row, theirs in zip(rows, made, strict=True):
        assert row["left"]["auto-attack"] == 1  # it has changed nothing
        assert row["left"]["ours"] <= 1
        assert theirs.attacks == ["apgd-ce", second, "fab-t", "square"]
        for attack in (theirs.apgd, theirs.apgd_targeted, theirs.fab):
            assert (attack.n_iter, attack.n_restarts) == (attacks.DRY_STEPS, 1)
        for attack in (theirs.apgd_targeted, theirs.fab):
            assert attack.n_target_classes == classes - 1
        assert theirs.square.n_queries == attacks.DRY_STEPS


def test_attacks_that_are_timed_often_run_in_turns_and_the_fewest_seconds_count(monkeypatch):
    runs, seconds = [], iter([5, 2, 1, 7])
    monkeypatch.setattr(attacks, "timed", lambda run: (run(), next(seconds)))
    images = {"ours": torch.zeros(4, 1), "theirs": torch.ones(4, 1)}
    network = torch.nn.Linear(1, 2)
    torch.nn.init.eye_(network.weight[1:])  # class 1 if the image is 1
    torch.nn.init.zeros_(network.weight[:1])
    network.bias.data = torch.tensor([0.5, 0])

    def run(whose):
        runs.append(whose)
        return images[whose]

    by_whose = {whose: partial(run, whose) for whose in images}
    labels = torch.tensor([0, 0, 0, 1])
    row, found = attacks.compare("a", 4, network, labels, by_whose, times=2)
    assert runs == ["ours", "theirs", "ours", "theirs"]
    assert row == {
        "attack": "a", "epsilon": "4/255",
        "left": {"ours": 0.75, "theirs": 0.25}, "seconds": {"ours": 1, "theirs": 2},
    }  # fmt: skip
    assert found == images


@pytest.mark.parametrize(
    ("library", "remedy"),
    [("foolbox", "requirements-dev.txt"), ("autoattack", "github.com/fra31/auto-attack")],
)
def test_without_a_library_to_compare_with_there_is_one_line(
    in_process, monkeypatch, library, remedy
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name, *at: None if name == library else find(name, *at),
    )
    which = "--only", "pgd", "auto-attack"
    done = in_process("benchmarks/attacks.py", *which, "--dry-run", "--data", "synthetic")
    assert done.returncode == 2
    assert is_one_line(done.stderr, f"{library} is missing", remedy)
