"""`train.py race` as a user runs it, with few of its remedies."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import is_one_line, numbers_of, saved_numbers
from PIL import Image

from common.training import runs as runs_module
from common.training.recipes import RACE, Remedy

FEW = ("none", "crt", "smote")
RUN = ("train.py", "race", "--dry-run", "--data", "synthetic", "--threads", 1, "--output-dir")
GRID = 4 * len(FEW)


def read(path):
    """Return the content of a result file."""
    return json.loads(path.read_text())


@pytest.fixture
def few_remedies():
    whole = dict(RACE)
    for name in whole:
        if name not in FEW:
            del RACE[name]
    yield
    RACE.clear()
    RACE.update(whole)  # in its order


@pytest.fixture
def trained(monkeypatch):
    """The files of the runs that are trained, and, in `stop_after`, how many may be."""

    class Trained(list):
        stop_after = None

    trained, train_together = Trained(), runs_module.train_together

    def recorded(runs, *arguments, **settings):
        if trained.stop_after is not None and len(trained) >= trained.stop_after:
            raise KeyboardInterrupt
        trained.extend(run.file for run in runs)
        return train_together(runs, *arguments, **settings)

    monkeypatch.setattr(runs_module, "train_together", recorded)
    return trained


def test_settings_are_chosen_on_validation_images_and_reported_on_test_images(
    few_remedies, in_process, tmp_path
):
    done = in_process(*RUN, tmp_path, "--reference", "smote")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert f"{GRID} runs on 75 train images" in done.stdout
    assert "Published" not in done.stdout
    shared = [line.split()[3] for line in done.stdout.splitlines() if " shared " in line]
    assert shared == [f"crt+learning-rate={rate}+crt-epochs=10" for rate in (0.1, 0.3)]
    folder = tmp_path / "models/race_3-classes"
    record = read(tmp_path / "figures/race_3-classes.json")
    assert list(record["remedies"]) == ["smote", "none", "crt"]
    for name, remedy in record["remedies"].items():
        scores = []
        for point in remedy["grid"]:
            own = f"{remedy['parameter'].replace('_', '-')}={point['value']:g}"
            run = read(
                folder / f"grid/{name}+learning-rate={point['learning_rate']:g}+{own}.json"
            )
            assert run["data"]["validation_counts"] == [15, 5, 5]
            assert run["data"]["test_counts"] == [0, 0, 0]
            assert "report" not in run
            confusion = np.array(run["validation"]["confusion"])
            scores.append(np.mean(np.diag(confusion) / confusion.sum(1)))
            assert point["confusion"] == confusion.tolist()
        assert remedy["chosen"] == int(np.argmax(scores))
        chosen = remedy["grid"][remedy["chosen"]]
        assert remedy["recipe"]["learning_rate"] == chosen["learning_rate"]
        assert remedy["recipe"][remedy["parameter"]] == chosen["value"]
        for seed, run in enumerate(remedy["runs"]):
            saved = read(folder / f"{name}{'-seed1' if seed else ''}.json")
            assert saved["recipe"] == remedy["recipe"]
            assert saved["data"]["train_counts"] == [60, 20, 20]
            assert run["confusion"] == saved["report"]["confusion"]
            assert run["processor"] == saved["processor"]
        if name != "none":
            weight_decay = max(record["weight_decay"], key=record["weight_decay"].get)
            assert remedy["recipe"]["weight_decay"] == float(weight_decay)
    none = [point["balanced_accuracy"] for point in record["remedies"]["none"]["grid"]]
    assert record["weight_decay"] == pytest.approx(
        {"0.0005": (none[0] + none[2]) / 2, "0.002": (none[1] + none[3]) / 2}
    )
    assert not list(folder.rglob("*.pt"))
    comparison = record["comparison"]
    assert (comparison["reference"], comparison["seeds"]) == ("smote", 2)
    means = {
        name: each["balanced accuracy"]["mean"]
        for name, each in comparison["summaries"].items()
    }
    for name, mean in means.items():
        runs = record["remedies"][name]["runs"]
        assert mean == pytest.approx(np.mean([run["balanced_accuracy"] for run in runs]))
    best_first = sorted(means, key=lambda name: -means[name])
    table = done.stdout.split("== The race")[1]
    assert [line.split()[0] for line in table.splitlines()[3:6]] == best_first
    assert numbers_of(done.stdout) <= saved_numbers(record)
    markdown = (tmp_path / "figures/race_3-classes.md").read_text()
    assert numbers_of(markdown) <= saved_numbers(record)
    assert markdown.splitlines()[2].startswith(f"| `{best_first[0]}`")
    with Image.open(tmp_path / "figures/race_3-classes.png") as image:
        assert np.asarray(image).std() > 10


def test_an_interrupted_race_goes_on_and_more_seeds_train_only_these(
    few_remedies, in_process, trained, tmp_path
):
    # In the grid, where the fifth training is that of two points of crt, then among the finals.
    for stop_after, ended in ((5, 6), (GRID + 2, GRID + 2)):
        trained.stop_after = stop_after
        done = in_process(*RUN, tmp_path, "--seeds", 1)
        assert done.returncode == 130
        assert is_one_line(done.stderr, "what was finished is saved")
        assert len(trained) == ended
    trained.stop_after = None
    assert in_process(*RUN, tmp_path, "--seeds", 1).returncode == 0
    assert len(trained) == len(set(trained)) == GRID + 3
    assert trained[-3:] == list(FEW)
    trained.clear()
    done = in_process(*RUN, tmp_path, "--seeds", 2)
    assert trained == [f"{name}-seed1" for name in FEW]
    assert done.stdout.count(" before ") == GRID + 3
    trained.clear()
    # Other test images: the choice stays, the networks are tested again.
    in_process(*RUN, tmp_path, "--seeds", 1, "--test-counts", 9, 9, 9)
    assert trained == list(FEW)


def test_a_remedy_that_the_images_do_not_allow_is_named(few_remedies, in_process, tmp_path):
    counts = ("--train-counts", 30, 20, 12, "--seeds", 1)
    done = in_process(*RUN, tmp_path, *counts)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("smote is left out: --resample smote: too few images") == 2
    record = read(tmp_path / "figures/race_3-classes.json")
    assert list(record["comparison"]["summaries"]) == ["none", "crt"]
    (sentence,) = record["not_compared"]
    assert sentence.startswith("smote is left out")
    assert sentence in (tmp_path / "figures/race_3-classes.md").read_text()
    done = in_process(*RUN, tmp_path, *counts, "--reference", "smote")
    assert done.returncode == 2
    assert is_one_line(done.stderr, "--reference smote", "give another reference")


def test_a_remedy_that_diverges_everywhere_is_named(few_remedies, in_process, tmp_path):
    recipe = replace(RACE["smote"].recipe, batch_size=4)
    RACE["smote"] = Remedy(recipe, "momentum", (1e5, 1e6))
    done = in_process(*RUN, tmp_path, "--seeds", 1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("/8 diverged ") == 4
    assert "smote is left out: it diverged at every point of its grid." in done.stdout
    record = read(tmp_path / "figures/race_3-classes.json")
    assert (record["remedies"]["smote"]["chosen"], record["remedies"]["smote"]["runs"]) == (
        None,
        [],
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["smote"], ["race smote", "by itself"]),
        (["--epochs", 3], ["--epochs", "the race sets the whole recipe"]),
        (["--no-frozen"], ["--frozen", "the race sets the whole recipe"]),
        (["--validation", 0.1], ["--validation 0.1", "leave it out"]),
        (["--reference", "best"], ["--reference best", "none, weights-inverse"]),
        (["--seed", 2**32 - 1], ["--seed 4294967295: 2 seeds"]),
        (["--train-counts", 9, 9, 1], ["race: ", "at least 4 of each class"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(in_process, tmp_path, arguments, words):
    done = in_process("train.py", "race", *arguments, *RUN[2:], tmp_path / "out")
    assert done.returncode == 2
    assert is_one_line(done.stderr, "train.py", *words), done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()


def test_all_test_images_and_five_seeds_are_the_default(in_process, monkeypatch, tmp_path):
    asked = []

    def load(_, **options):
        asked.append(options["test_counts"])
        raise KeyboardInterrupt

    monkeypatch.setattr("common.dataset.load.load", load)
    for given in ([], ["--test-counts", 1, 2, 3]):
        in_process("train.py", "race", *given, "--output-dir", tmp_path)
    assert asked == [["full"], [1, 2, 3]]
    done = in_process("train.py", "race", "--seed", 2**32 - 1, "--output-dir", tmp_path)
    assert is_one_line(done.stderr, "--seed 4294967295: 5 seeds")


def test_the_remedies_are_listed(in_process):
    done = in_process("train.py", "--list")
    recipes, race = done.stdout.split("\n\nThe race (train.py race): ")
    assert "\nbest " in recipes
    assert max(map(len, race.splitlines()[1:])) <= 80
    assert [name for name in RACE if f"\n{name} " not in race] == []
    assert "--loss vs --tau 1.25 --vs-gamma 0.05 or 0.15" in race
