"""Scripts in forked processes that are killed at a chosen write, rename or moment."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import sys
import threading
from pathlib import Path

from common.files import ROOT

# Forked from a server that has imported these, a script starts at once.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        "torch", "matplotlib.pyplot", "sklearn.metrics", "sklearn.model_selection",
        "sklearn.linear_model", "scipy.optimize", "torchvision.datasets",
        "torchvision.transforms.v2", "cleanlab.rank", "PIL.JpegImagePlugin", "jinja2",
        "common.training.runs", "common.inspection.label_audit", "common.attacks.robustness",
    ]
)  # fmt: skip
WRITES = ("open", "os.rename", "os.remove")


def start(folder, name, *arguments, kill_at=None, save_seconds=60.0):
    """Start a script whose every file lies in `folder`; return its process.

    kill_at: the point of `points` at which the process kills itself with SIGKILL.
    """
    given = (folder, name, arguments, kill_at, save_seconds)
    process = processes.Process(target=run_script, args=given)
    process.start()
    return process


def points_file(folder):
    return folder.with_name(f"{folder.name}-points.txt")


def log(folder):
    """Return what the script that ran last in `folder` printed."""
    return folder.with_name(f"{folder.name}-log.txt").read_text()


def points(folder):
    """Return the points, in order, of the script that `start` ran last in `folder`.

    A point is a file that is about to be opened for writing, renamed or removed:
    (event, name, how often the process did this before).
    """
    lines = points_file(folder).read_text().splitlines()
    return [(event, name, lines[:i].count(line)) for i, line in enumerate(lines)
            for event, name in [line.split(" ", 1)]]  # fmt: skip


def run_script(folder: Path, name, arguments, kill_at, save_seconds) -> None:
    import torch
    from matplotlib.figure import Figure
    from tqdm import tqdm

    from common import files
    from common.dataset.load import load
    from common.training import progress

    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # one for processes would stay when this one is killed
    os.environ.pop("CIFAR10_DIR", None)
    os.chdir(folder)
    out = os.open(
        folder.with_name(f"{folder.name}-log.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    )
    os.dup2(out, 1)
    os.dup2(out, 2)
    files.ROOT = folder
    load.__kwdefaults__["cache"] = folder / "data"
    progress.SAVE_SECONDS = save_seconds
    # Drawing would take most of the time, and is no writing.
    Figure.savefig = lambda self, path, **_: Path(path).write_text(f"{len(self.axes)} axes")
    record = os.open(points_file(folder), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    seen = []

    def watch(event, args):
        if event not in WRITES:
            return
        if not isinstance(args[0], str | os.PathLike):  # a descriptor
            return
        path = os.path.abspath(args[0])
        reading = event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)
        if reading or not path.startswith(f"{folder}{os.sep}"):
            return
        name = os.path.relpath(path, folder).replace(f"-{os.getpid()}-", "-PID-")
        if event == "os.remove" and "-PID-" in name:  # its own temporary file, renamed before
            return
        point = event, name
        if (*point, seen.count(point)) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        seen.append(point)
        os.write(record, f"{' '.join(point)}\n".encode())

    sys.addaudithook(watch)
    sys.argv = [name, *map(str, arguments)]
    runpy.run_path(str(ROOT / name), run_name="__main__")
