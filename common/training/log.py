"""The log of a training run: one row for each epoch, which can be read while the run trains."""

from __future__ import annotations

import csv
import shutil
import sys
from collections.abc import Iterable
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COLUMNS = (
    "epoch", "learning_rate", "loss", "validation_loss", "validation_g_mean", "seconds",
)  # fmt: skip
Row = dict[str, float | None]  # by column; None: not measured


def require_tensorboard() -> None:
    """Raise InputError unless the package `tensorboard` is installed."""
    if find_spec("tensorboard") is None:
        raise InputError("--tensorboard: needs TensorBoard; pip install tensorboard")


def remove_log(path: Path) -> None:
    """Remove the log of an earlier run whose CSV file is `path`, and its event files."""
    path.unlink(missing_ok=True)
    for file in _events(path).glob("events.out.tfevents.*"):
        file.unlink()


def copy_log(path: Path, other: Path) -> None:
    """Copy the log of a run, and its event files, for another run that shared its training.

    path, other: of the CSV files. If the first run has no log, the other one has none either.
    If the copy can't be written, one line on stderr says so.
    """
    try:
        remove_log(other)
        if path.exists():
            shutil.copyfile(path, other)
        if _events(path).exists():
            shutil.copytree(_events(path), _events(other), dirs_exist_ok=True)
    except OSError as error:
        _say_unwritten(other, error)


def _say_unwritten(path: Path, error: OSError) -> None:
    reason = error.strerror or error
    print(f"{path}: can't be written ({reason}); going on without it", file=sys.stderr)


def _events(path: Path) -> Path:
    return path.parent / "tensorboard" / path.stem


class TrainingLog:
    """The log of one run: a CSV file, and TensorBoard's event files if asked for.

    path: of the CSV file, models/NAME.csv. The event files lie in models/tensorboard/NAME. A
    log can be pickled before `start`. If it can't be written, one line on stderr says so and
    the run goes on without it.
    """

    def __init__(self, path: Path, tensorboard: bool = False) -> None:
        self.path, self.tensorboard = path, tensorboard
        self.writer: SummaryWriter | None = None
        self.failed = False

    def start(self, rows: Iterable[Row]) -> None:
        """Begin the files anew, with the rows that the state of a resumed run holds."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_log(self.path)
            self._write("w", dict(zip(COLUMNS, COLUMNS, strict=True)))
            if self.tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                self.writer = SummaryWriter(str(_events(self.path)))
        except OSError as error:
            self._give_up(error)
            with suppress(OSError):
                self.path.unlink(missing_ok=True)  # a part of the first line
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Add the row of an epoch that has ended."""
        if self.failed:
            return
        try:
            self._write("a", row)
            if self.writer is not None:
                for name in COLUMNS[1:]:
                    if row[name] is not None:
                        self.writer.add_scalar(name, row[name], row["epoch"])
                self.writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """End the event files; the CSV file is open only while a row is written."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def _write(self, mode: str, row: Row | dict[str, str]) -> None:
        # Appended to, not replaced, so that `tail -f` follows the file.
        with self.path.open(mode, newline="", encoding="utf-8") as file:
            csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(row)

    def _give_up(self, error: OSError) -> None:
        self.failed = True
        _say_unwritten(self.path, error)
