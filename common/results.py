"""Result files: every number a script prints, with what is needed to get it again."""

from __future__ import annotations

import csv
import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from common.dataset import Split
    from common.models import Checkpoint

LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "imbalanced-learn")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path to write to, which becomes `path` when the block ends without an error.

    A reader, or a run stopped half-way, so never meets a half-written file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield unfinished
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide the numbers to the last bit."""
    from common import kernels  # which needs `replacing`

    convolution = "kernels.c" if kernels.library() else "torch"
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "simple-cnn on cpu": convolution,
    }


def data_record(split: Split) -> dict[str, Any]:
    """Where the images came from, for result files and checkpoints."""
    return {
        "source": split.source,
        "fingerprint": split.fingerprint,
        "classes": list(split.classes),
        "split_seed": split.seed,
        "train_counts": split.train.counts(len(split.classes)),
        "validation_counts": split.validation.counts(len(split.classes)),
        "test_counts": split.test.counts(len(split.classes)),
        **split.changes,
    }


def checkpoint_record(path: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    """What a result file says of the checkpoint that was measured."""
    return {
        "path": str(path),
        "recipe": checkpoint.recipe,
        "seed": checkpoint.seed,
        "data": checkpoint.data,
        "trained_on_test": checkpoint.trained_on_test,
    }


def save_table(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Path:
    """Write rows as CSV to `path`, and return it."""
    with (
        replacing(path) as unfinished,
        unfinished.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def save_result(
    path: Path, split: Split, *, seed: int, device: str, seconds: float, **values: Any
) -> None:
    """Write `values` as JSON to `path`, with the command, data, seed, device and versions."""
    record = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "data": data_record(split),
        "seed": seed,
        "device": device,
        "versions": versions(),
        "seconds": round(seconds, 2),
    }
    with replacing(path) as unfinished:
        unfinished.write_text(json.dumps(record | values, indent=2, allow_nan=False) + "\n")
