"""The state of a training run, saved from time to time: a killed run goes on from there."""

from __future__ import annotations

import copy
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from common.errors import InputError, OutputError
from common.networks.tensor_file import read_tensors, write_tensors
from common.training.log import Row

SAVE_SECONDS = 60.0  # between two saved states


@dataclass
class History:
    """What a training run measured after each epoch.

    loss: mean training loss. validation_loss: mean cross-entropy, and validation_g_mean:
    G-mean, both empty without validation images. best_epoch: with patience, the epoch (from 1)
    whose weights were kept. diverged_at: the first step (from 1) with a loss that is not
    finite, None if there was none; the last entry of `loss` is then the mean of the steps
    before it in its epoch.
    """

    loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_g_mean: list[float] = field(default_factory=list)
    best_epoch: int | None = None
    diverged_at: int | None = None


def make_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on `device`, seeded."""
    return torch.Generator(device).manual_seed(seed)


class Generators:
    """The random numbers of a training run: one generator for each use.

    order and mixing are drawn from once an epoch, augmentation and attack in each step. Dropout
    draws from PyTorch's global generator of `device`, which `state_dict` includes.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.device = device
        self.order = make_generator(seed)
        self.mixing = np.random.default_rng(seed)
        self.augmentation = make_generator(seed, device)
        self.attack = make_generator(seed, device)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Remember the generators of an epoch's draws, from which the epoch is drawn again."""
        self.epoch_start = {
            "order": self.order.get_state(),
            "mixing": self.mixing.bit_generator.state,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state at the start of the epoch, and within it that of each step."""
        on_cuda = self.device.type == "cuda"
        dropout = torch.cuda.get_rng_state(self.device) if on_cuda else torch.get_rng_state()
        return self.epoch_start | {
            "augmentation": self.augmentation.get_state(),
            "attack": self.attack.get_state(),
            "dropout": dropout,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved state: to the start of its epoch, and to its step."""
        self.order.set_state(state["order"])
        self.mixing.bit_generator.state = state["mixing"]
        self.augmentation.set_state(state["augmentation"])
        self.attack.set_state(state["attack"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["dropout"], self.device)
        else:
            torch.set_rng_state(state["dropout"])


@dataclass
class TrainingState:
    """All that the next step of a training run depends on, beside its images and recipe.

    scheduler: None where the learning rate is constant. average: the moving average of the
    weights, None before the first step and without one. best_weights: a state_dict of the
    network, with patience. epoch_losses: of the steps so far in this epoch, scalars.
    learning_rate: of the last step. rows: of the log, one for each epoch of `history`.
    """

    network: nn.Module
    optimizer: optim.Optimizer
    scheduler: LRScheduler | None
    generators: Generators
    average: nn.Module | None = None
    best_weights: dict[str, torch.Tensor] | None = None
    history: History = field(default_factory=History)
    epoch_losses: list[torch.Tensor] = field(default_factory=list)
    learning_rate: float = 0.0
    rows: list[Row] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler and self.scheduler.state_dict(),
            "generators": self.generators.state_dict(),
            "average": self.average and self.average.state_dict(),
            "best_weights": self.best_weights,
            "history": asdict(self.history),
            "epoch_losses": torch.stack(self.epoch_losses),
            "learning_rate": self.learning_rate,
            "rows": self.rows,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go back to a saved state, on the device of the network."""
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(saved["scheduler"])
        self.generators.load_state_dict(saved["generators"])
        if saved["average"] is not None:
            self.average = copy.deepcopy(self.network)
            self.average.load_state_dict(saved["average"])
        self.best_weights = saved["best_weights"]
        self.history = History(**saved["history"])
        self.epoch_losses = list(saved["epoch_losses"].to(self.generators.device))
        self.learning_rate = saved["learning_rate"]
        self.rows = saved["rows"]


class StateFile:
    """The file that holds a run's state while it trains.

    identity: a text that only the same run has; the state of another run is not loaded.
    seconds: how long the run had trained when the state was saved that it went on from, or 0.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path, self.identity = path, identity
        self.seconds = 0.0

    def load(self, state: TrainingState) -> None:
        """Go back to the saved state of this run, if there is one that is whole."""
        self.start = self.saved_at = time.monotonic()
        try:
            content = read_tensors(self.path)
        except InputError:
            return
        if isinstance(content, dict) and content.get("identity") == self.identity:
            state.load_state_dict(content["state"])
            self.seconds = content["seconds"]

    def save_if_due(self, state: TrainingState) -> None:
        """Save the state, unless that was done less than SAVE_SECONDS ago.

        If it can't be written the run goes on, and the earlier state stays.
        """
        if time.monotonic() - self.saved_at < SAVE_SECONDS:
            return
        seconds = self.seconds + time.monotonic() - self.start
        content = {"identity": self.identity, "seconds": seconds, "state": state.state_dict()}
        with suppress(OutputError):
            write_tensors(self.path, content)
        self.saved_at = time.monotonic()
