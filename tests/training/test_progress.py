"""The saved state: a run that was killed at any step ends with the weights of a whole run."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from conftest import EMPTY, random_part

from common.networks.build import build
from common.networks.tensor_file import read_tensors, write_tensors
from common.training import progress
from common.training.fit import fit
from common.training.progress import StateFile
from common.training.recipe import Recipe
from common.training.recipes import RECIPES

CPU = torch.device("cpu")
TRAIN = random_part((12, 6, 4))  # 22 images: the last batch of 8 holds six
VALIDATION = random_part((4, 4, 4), seed=1)
STEPS = 3


class KilledError(Exception):
    """Stands for the end of the process."""


class KilledStateFile(StateFile):
    """A state file whose process ends after `steps` steps, each of which was saved."""

    def __init__(self, path, identity, steps):
        super().__init__(path, identity)
        self.steps = steps

    def save_if_due(self, state):
        super().save_if_due(state)
        self.steps -= 1
        if self.steps == 0:
            raise KilledError


@pytest.fixture(autouse=True)
def save_every_step(monkeypatch):
    monkeypatch.setattr(progress, "SAVE_SECONDS", 0.0)


def train(recipe, state_file=None, validation=EMPTY):
    network = build(recipe.network, recipe.network_arguments(3), seed=3)
    history = fit(network, TRAIN, validation, recipe, seed=3, device=CPU, state_file=state_file)
    return network, history


def small(name, **changes):
    width = 4 if RECIPES[name].network == "resnet9" else None
    short = {"batch_size": 8, "epochs": 3, "width": width, "precision": "float32"}
    return replace(RECIPES[name], **short | changes)


CASES = {
    "original": (small("original"), EMPTY),
    "best": (small("best"), VALIDATION),
    "mixup": (small("mixup"), EMPTY),
    "robust": (small("robust"), EMPTY),
    "step-lr": (small("step-lr", step_epochs=1), EMPTY),
    "cosine": (small("original", schedule="cosine"), EMPTY),
    "adamw": (small("original", optimizer="adamw", augment=("flip", "crop")), EMPTY),
    "progressive": (small("progressive-sampler"), EMPTY),
    "sam": (small("best", sam=0.1, sam_from=0.3, sam_class_weighted=True), VALIDATION),
    "max-norm": (small("original", sam=0.1, max_norm=0.4, learning_rate=0.05), EMPTY),
    "patience": (small("original", patience=1, learning_rate=0.05), VALIDATION),
    "patience-ema": (small("original", patience=2, ema=0.5), VALIDATION),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_killed_at_any_step_goes_on_to_the_same_weights(tmp_path, name):
    recipe, validation = CASES[name]
    whole, wanted = train(recipe, validation=validation)
    path = tmp_path / "run.state"
    for killed_at in (1, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS):
        if killed_at > STEPS * len(wanted.loss):  # patience ended it earlier
            continue
        path.unlink(missing_ok=True)
        with pytest.raises(KilledError):
            train(recipe, KilledStateFile(path, "me", killed_at), validation)
        # The process is killed again, two steps later.
        twice = KilledStateFile(path, "me", 2)
        if killed_at + 2 <= STEPS * len(wanted.loss):
            with pytest.raises(KilledError):
                train(recipe, twice, validation)
        last = StateFile(path, "me")
        network, history = train(recipe, last, validation)
        assert last.seconds > 0
        assert asdict(history) == asdict(wanted)
        for key, value in network.state_dict().items():
            expected = whole.state_dict()[key]
            assert torch.equal(value, expected), (killed_at, key)
            assert value.stride() == expected.stride(), key  # the bytes of the file too


def test_saving_the_state_changes_nothing(tmp_path):
    whole, wanted = train(small("best"))
    saving, history = train(small("best"), StateFile(tmp_path / "run.state", "me"))
    assert asdict(history) == asdict(wanted)
    assert torch.equal(whole.head.weight, saving.head.weight)


def test_the_state_is_saved_only_after_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SAVE_SECONDS", 60.0)
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    saved, write = [], progress.write_tensors
    monkeypatch.setattr(
        progress, "write_tensors", lambda *given: (saved.append(clock[0]), write(*given))
    )
    step = torch.optim.SGD.step

    def slow_step(*given):
        clock[0] += 25.0
        return step(*given)

    monkeypatch.setattr(torch.optim.SGD, "step", slow_step)
    train(Recipe(batch_size=8, epochs=3), StateFile(tmp_path / "run.state", "me"))
    assert saved == [75.0, 150.0, 225.0]
    assert read_tensors(tmp_path / "run.state")["seconds"] == 225.0


@pytest.mark.parametrize("content", ["another run", "damaged", "no state"])
def test_a_state_of_another_run_or_a_damaged_one_is_not_used(tmp_path, content):
    recipe, path = small("original"), tmp_path / "run.state"
    whole, _ = train(recipe)
    with pytest.raises(KilledError):
        train(replace(recipe, learning_rate=0.1), KilledStateFile(path, "other", 4))
    if content == "damaged":
        path.write_bytes(path.read_bytes()[:-100])
    if content == "no state":
        write_tensors(path, [1, 2])
    state_file = StateFile(path, "other" if content == "damaged" else "me")
    network, _ = train(recipe, state_file)
    assert state_file.seconds == 0
    assert torch.equal(network.head.weight, whole.head.weight)


def test_a_state_that_cant_be_written_doesnt_end_the_run(tmp_path):
    (tmp_path / "folder").touch()
    whole, _ = train(small("original"))
    network, _ = train(small("original"), StateFile(tmp_path / "folder" / "run.state", "me"))
    assert torch.equal(network.head.weight, whole.head.weight)
