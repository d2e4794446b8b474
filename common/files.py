"""Files that the project writes: the root folder, atomic writing, tables and result records."""

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
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "imbalanced-learn")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to `path` when the block ends without an error.

    A reader never sees a partial file, and an interrupted run leaves the earlier file as it
    was. The temporary file lies beside `path`, because a rename is atomic only within one
    file system. Missing folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` atomically, and return `path`."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def save_table(path: Path, rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> Path:
    """Write `rows` as CSV to `path`, and return `path`."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def save_result(
    path: Path, *, data: dict[str, Any], seed: int, device: str, seconds: float, **values: Any
) -> Path:
    """Write a result record as JSON to `path`, and return `path`.

    The record holds the command, `data` (`Split.record()`), seed, device, processor, library
    versions and duration, and all of `values`.
    """
    record = {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "data": data,
        "seed": seed,
        "device": device,
        "processor": processor(),
        "versions": versions(),
        "seconds": round(seconds, 2),
    }
    return write_text(path, json.dumps(record | values, indent=2, allow_nan=False) + "\n")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries on which the last bits depend."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def processor() -> str:
    """Return the name of this machine's processor, as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
