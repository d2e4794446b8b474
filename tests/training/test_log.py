"""The log of a run: rows as epochs end, none repeated or missing after an interruption."""

from __future__ import annotations

import csv
import math
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import EMPTY, is_one_line, random_part
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import InputError
from common.networks.build import build
from common.training import fit as fit_module
from common.training import log as log_module
from common.training import progress
from common.training.fit import fit
from common.training.log import COLUMNS, TrainingLog, copy_log, require_tensorboard
from common.training.progress import StateFile
from common.training.recipe import Recipe

TRAIN = random_part((8, 4, 4))  # two steps of 8 an epoch
VALIDATION = random_part((3, 3, 3), seed=1)
RECIPE = Recipe(batch_size=8, epochs=4, learning_rate=0.05, schedule="cosine")


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock on which each reading takes a second."""
    now = [0.0]

    def monotonic():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", monotonic)
    monkeypatch.setattr(progress, "SAVE_SECONDS", 0.0)
    return now


def train(log, recipe=RECIPE, validation=VALIDATION, state_file=None, **arguments):
    network = build(recipe.network, recipe.network_arguments(3) | arguments, seed=0)
    device = torch.device("cpu")
    history = fit(
        network,
        TRAIN,
        validation,
        recipe,
        seed=0,
        device=device,
        log=log,
        state_file=state_file,
    )
    if log is not None:
        log.close()
    return network, history


def rows(path):
    """Return the rows of a CSV file as numbers, None where there is none."""
    with path.open(newline="") as file:
        lines = list(csv.reader(file))
    assert tuple(lines[0]) == COLUMNS
    return [
        {name: float(text) if text else None for name, text in zip(COLUMNS, line, strict=True)}
        for line in lines[1:]
    ]


def events(folder):
    """Return the numbers of TensorBoard's event files: {column: {epoch: value}}."""
    found = EventAccumulator(str(folder)).Reload()
    return {
        name: {event.step: event.value for event in found.Scalars(name)}
        for name in found.Tags()["scalars"]
    }


def without_seconds(logged):
    return [{name: row[name] for name in COLUMNS[:-1]} for row in logged]


def test_a_row_has_the_numbers_of_its_epoch(tmp_path):
    path = tmp_path / "models" / "run.csv"
    path.parent.mkdir()
    path.write_text("an earlier run\n")
    _, history = train(TrainingLog(path))
    logged = rows(path)
    assert [row["epoch"] for row in logged] == [1, 2, 3, 4]
    assert [row["loss"] for row in logged] == history.loss
    assert [row["validation_loss"] for row in logged] == history.validation_loss
    assert [row["validation_g_mean"] for row in logged] == history.validation_g_mean
    # Half a cosine over 8 steps; the last step of epoch k is the 2k-th.
    rates = [0.05 * (1 + math.cos(math.pi * (2 * k - 1) / 8)) / 2 for k in (1, 2, 3, 4)]
    assert [row["learning_rate"] for row in logged] == pytest.approx(rates)
    assert [row["seconds"] for row in logged] == [1, 2, 3, 4]  # one reading for each epoch
    assert not (path.parent / "tensorboard").exists()


def test_rows_are_in_the_file_as_soon_as_their_epoch_ends(tmp_path, monkeypatch):
    path, validate, seen = tmp_path / "run.csv", fit_module._validate, []
    file = []

    def look(*given):
        if not file:
            file.append(path.open())  # as `tail -f` does, before the first row
        seen.append(file[0].read().count("\n"))
        return validate(*given)

    monkeypatch.setattr(fit_module, "_validate", look)
    train(TrainingLog(path))
    assert seen == [1, 1, 1, 1]  # the header before the first epoch, then a row for each


@pytest.mark.parametrize("tensorboard", [False, True])
def test_logging_does_not_change_the_weights(tmp_path, tensorboard):
    log = TrainingLog(tmp_path / "run.csv", tensorboard)
    (with_log, history), (without, plain) = train(log), train(None)
    assert history == plain
    assert torch.equal(with_log.head.weight, without.head.weight)


def test_without_validation_images_its_columns_are_empty(tmp_path):
    train(TrainingLog(tmp_path / "run.csv", tensorboard=True), validation=EMPTY)
    assert all(row["validation_loss"] is None for row in rows(tmp_path / "run.csv"))
    names = {"learning_rate", "loss", "seconds"}
    assert events(tmp_path / "tensorboard/run").keys() == names


def test_event_files_have_the_numbers_of_the_csv_file(tmp_path):
    path = tmp_path / "run-lr0.05.csv"  # a name with a dot
    train(TrainingLog(path, tensorboard=True))
    found = events(tmp_path / "tensorboard" / "run-lr0.05")
    assert found.keys() == set(COLUMNS[1:])
    for name, by_epoch in found.items():
        expected = {row["epoch"]: row[name] for row in rows(path)}
        assert by_epoch == pytest.approx(expected, rel=1e-6), name


def test_an_epoch_is_in_the_event_files_while_the_run_goes_on(tmp_path):
    log = TrainingLog(tmp_path / "run.csv", tensorboard=True)
    log.start([])
    log.add(dict.fromkeys(COLUMNS, 0.5) | {"epoch": 1})
    assert events(tmp_path / "tensorboard/run")["loss"] == {1: 0.5}
    log.close()


def test_the_epoch_in_which_a_run_diverges_has_no_loss(tmp_path):
    recipe = replace(RECIPE, learning_rate=1e30, schedule="constant")
    _, history = train(TrainingLog(tmp_path / "run.csv"), recipe, dropout=0.0)
    assert history.diverged_at == 2
    (row,) = rows(tmp_path / "run.csv")
    assert math.isnan(row["loss"])
    assert row["validation_loss"] is None


class KilledError(Exception):
    """Stands for the end of the process."""


class KilledStateFile(StateFile):
    """A state file whose process ends after `steps` steps, before or after they are saved."""

    def __init__(self, path, steps, is_saved=True):
        super().__init__(path, "me")
        self.steps, self.is_saved = steps, is_saved

    def save_if_due(self, state):
        self.steps -= 1
        if self.steps or self.is_saved:
            super().save_if_due(state)
        if not self.steps:
            raise KilledError


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize("is_saved", [True, False])
def test_a_resumed_run_goes_on_after_the_epochs_that_its_state_holds(tmp_path, steps, is_saved):
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    train(TrainingLog(whole))
    state_file = KilledStateFile(tmp_path / "run.state", steps, is_saved)
    with pytest.raises(KilledError):
        train(TrainingLog(killed, tensorboard=True), state_file=state_file)
    assert without_seconds(rows(killed)) == without_seconds(rows(whole))[: (steps - 1) // 2]
    before = StateFile(tmp_path / "run.state", "me")
    train(TrainingLog(killed, tensorboard=True), state_file=before)
    logged = rows(killed)
    assert without_seconds(logged) == without_seconds(rows(whole))
    seconds = [row["seconds"] for row in logged]
    assert seconds == sorted(set(seconds))
    assert seconds[-1] > before.seconds  # those of the earlier part count
    found = events(tmp_path / "tensorboard/killed")
    for name in COLUMNS[1:]:
        assert found[name] == pytest.approx({r["epoch"]: r[name] for r in logged}, rel=1e-6)


@pytest.mark.parametrize("when", ["at the start", "later"])
def test_a_log_that_cant_be_written_doesnt_end_the_run(tmp_path, monkeypatch, capsys, when):
    path = tmp_path / "folder" / "run.csv"
    if when == "at the start":
        path.parent.touch()
    else:
        validate = fit_module._validate

        def remove(*given):
            shutil.rmtree(path.parent, ignore_errors=True)
            return validate(*given)

        monkeypatch.setattr(fit_module, "_validate", remove)
    network, history = train(TrainingLog(path))
    monkeypatch.undo()
    assert capsys.readouterr().err.count(f"{path}: can't be written (") == 1
    assert len(history.loss) == RECIPE.epochs
    assert torch.equal(network.head.weight, train(None)[0].head.weight)


def test_a_copy_for_a_run_that_shares_the_training_takes_the_place_of_an_earlier_log(
    tmp_path, capsys
):
    one, other = tmp_path / "one.csv", tmp_path / "other.csv"
    train(TrainingLog(one, tensorboard=True))
    train(TrainingLog(other, tensorboard=True))
    names = {path.name for path in (tmp_path / "tensorboard/one").iterdir()}
    copy_log(one, other)
    assert other.read_text() == one.read_text()
    assert {path.name for path in (tmp_path / "tensorboard/other").iterdir()} == names
    one.unlink()
    copy_log(one, other)
    assert not other.exists()
    other.mkdir()
    copy_log(one, other)
    assert is_one_line(capsys.readouterr().err, f"{other}: can't be written (")


def test_tensorboard_is_needed_only_where_asked_for(monkeypatch):
    require_tensorboard()
    monkeypatch.setattr(log_module, "find_spec", lambda _: None)
    with pytest.raises(InputError, match=r"--tensorboard.*pip install tensorboard"):
        require_tensorboard()
