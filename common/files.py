"""Files: the root folder, reading with care, atomic writing, tables and result records."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import json
import os
import platform
import shlex
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from common.errors import InputError, OutputError

ROOT = Path(__file__).resolve().parent.parent
MOST_TABLE_BYTES = 2**28  # of a CSV file: far more than a row for each of a million images
LIBRARIES = ("torch", "torchvision", "numpy", "scikit-learn", "imbalanced-learn")


def short_name(name: str) -> str:
    """Return `name`, or its beginning and a hash if it is too long for the names of files.

    A name has at most 255 bytes; up to half of them go to what the names of figures and of
    temporary files add, such as the machine's name.
    """
    whole = os.fsencode(name)
    if len(whole) <= 120:
        return name
    start = whole[:111].decode(errors="ignore")
    return f"{start}-{hashlib.sha256(whole).hexdigest()[:8]}"


def require_regular(path: Path) -> None:
    """Raise InputError unless `path` is a regular file, or a link to one.

    Opening a named pipe waits for its writer, and a device may never end.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise InputError(f"{path}: can't be read ({_reason(error)})") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: not a regular file; give the path of a file")


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path, and rename it to `path` when the block ends without an error.

    A reader never sees a partial file, an interrupted run leaves the earlier file as it was,
    and a file with the name `path` survives a power cut. The temporary file lies beside `path`,
    because a rename is atomic only within one file system; if its process is killed, the next
    process that writes to the folder removes it. Missing folders are created. Raises
    OutputError if the file can't be written.
    """
    temporary = path.with_name(f"{_prefix()}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        try:
            yield temporary
            # The content must be on the disk before the name is: after a power cut between the
            # two, the name would stand for an empty file.
            _sync(temporary)
            os.replace(temporary, path)
            if os.name == "posix":  # Windows opens no folders
                _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({_reason(error)})") from error


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of this machine's processes that are gone."""
    if os.name != "posix":  # on Windows os.kill(pid, 0) would send Ctrl-C
        return
    prefix = _prefix()
    for leftover in folder.glob(f"{glob.escape(prefix)}*"):
        pid = leftover.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not _is_running(int(pid)):
            leftover.unlink(missing_ok=True)


def _prefix() -> str:
    """Return how the temporary files of this machine begin; the process's number follows."""
    return f".{platform.node()}-"


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # signal 0 only asks whether the process is there
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it is there, but another user's
        return True
    return True


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: Exception) -> str:
    """Return the cause of an error without its path, which the message names already."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


@contextmanager
def output_folders(folders: Sequence[Path], option: str = "--output-dir") -> Iterator[None]:
    """Make the folders and try to write a file in each; then run the block.

    Folders that were missing before and are empty after the block are removed. Raises
    InputError, which names the option, if a file can't be written.
    """
    made = []
    try:
        for folder in folders:
            # The outermost first; not Path.exists(), which raises for a name that is too long.
            missing = [p for p in (folder, *folder.parents) if not os.path.exists(p)]
            made += reversed(missing)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # The file has no name, so that a process that is killed here leaves none.
                with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
                    file.write(b"\n")  # a full disk takes the file, but not its content
            except OSError as error:
                raise InputError(
                    f"{option}: {folder} can't be written ({_reason(error)}); give another"
                    " folder"
                ) from None
        yield
    finally:
        for folder in reversed(made):
            with suppress(OSError):
                folder.rmdir()


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


def read_table(path: Path, most_bytes: int = MOST_TABLE_BYTES) -> list[tuple[int, list[str]]]:
    """Return the number and the cells of each line of a CSV file that is not empty.

    The file is in UTF-8, with or without the byte order mark that a spreadsheet adds. Raises
    InputError for a file that is missing, no CSV file, or larger than `most_bytes`.
    """
    require_regular(path)
    try:
        if path.stat().st_size > most_bytes:
            raise InputError(f"{path}: larger than any such table ({most_bytes >> 20} MB)")
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        return [(reader.line_num, cells) for cells in reader if cells]
    except OSError as error:
        raise InputError(f"{path}: can't be read ({_reason(error)})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV file ({error}); save it as CSV in UTF-8") from None


def save_result(
    path: Path, *, data: dict[str, Any], seed: int, device: str, seconds: float, **values: Any
) -> Path:
    """Write a result record as JSON to `path`, and return `path`.

    The record holds the command, `data` (`Split.record()`, or what else says which images),
    seed, device and its name, library versions, duration and date, all of `values`, and last
    the SHA-256 of itself, by which `load_result` notices a change.
    """
    record = {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "data": data,
        "seed": seed,
        "device": device,
        "processor": processor(device),
        "versions": versions(),
        "seconds": round(seconds, 2),
        "date": time.strftime("%Y-%m-%d"),
    }
    record = json.loads(json.dumps(record | values, allow_nan=False))  # as it is read later
    record["sha256"] = _digest(record)
    return write_text(path, json.dumps(record, indent=2) + "\n")


def load_result(path: Path) -> dict[str, Any] | None:
    """Return the result record at `path`, None if there is none or it was changed."""
    try:
        require_regular(path)
        record = json.loads(path.read_bytes())
    except (InputError, OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    digest = record.pop("sha256", None)
    return record if digest == _digest(record) else None


def sha256(path: Path) -> str | None:
    """Return the SHA-256 of a file in hexadecimal, None if it can't be read."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (InputError, OSError):
        return None


def code_digest() -> str:
    """Return the SHA-256 of this project's code, in hexadecimal."""
    digest = hashlib.sha256()
    for path in sorted((ROOT / "common").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record).encode()).hexdigest()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries on which the last bits depend."""
    return {"python": platform.python_version()} | {name: version(name) for name in LIBRARIES}


def processor(device: str = "cpu") -> str:
    """Return the name of this machine's processor, or of its GPU if the device is one.

    The operating system names a processor; for MPS that is the name of the whole chip. Where
    one name stands for several generations, the instructions that PyTorch uses tell them apart:
    "AMD EPYC (AVX2)".
    """
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    instructions = torch.backends.cpu.get_cpu_capability()
    return name if instructions == "DEFAULT" else f"{name} ({instructions})"
