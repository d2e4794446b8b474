"""Runs on a dask cluster, whose workers need the libraries of this project but not its code.

The code and the images go to the workers with the runs. A worker trains each run in a process
of its own, so that the run always has the code of the machine that sent it.
"""

from __future__ import annotations

import concurrent.futures as cf
import io
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from common import files
from common.errors import InputError
from common.networks import is_function

if TYPE_CHECKING:
    from distributed import Client

    from common.dataset.split import Split
    from common.training.recipe import Recipe
    from common.training.run import Outcomes, Run

ANSWER_SECONDS = 10  # a scheduler that takes longer to answer counts as gone
WORKERS_SECONDS = 15  # the time in which a worker that was killed is started again
POLL_SECONDS = 2
DASK = ("dask", "distributed", "cloudpickle")  # their versions must be the scheduler's too


def train_on_cluster(
    address: str, groups: Sequence[Sequence[Run]], split: Split, settings: dict[str, Any]
) -> Iterator[tuple[Sequence[Run], Outcomes]]:
    """Train groups of runs on the cluster of the dask scheduler at `address`.

    Yields each group, as it ends, with what `train_together` returns for it. settings: the
    other arguments of `train_together`. A group whose worker dies is trained again. If the
    caller stops early, or dies, the runs on the cluster end. Raises InputError if the cluster
    can't be used, and what a run raises.
    """
    checked: set[str] = set()
    with (
        _connect(address) as client,
        tqdm(total=sum(map(len, groups)), desc="Runs on the cluster", disable=None) as bar,
    ):
        _require_workers(client, address, checked)
        executor = client.get_executor(pure=False)
        # As the argument of a task, the archive is sent once, and survives any worker.
        archive = client.submit(bytes, make_archive(split), pure=False)
        task = make_task()
        group_of = {
            executor.submit(task, archive, pickle.dumps((group, settings))): group
            for group in groups
        }
        while group_of:
            done, _ = cf.wait(group_of, POLL_SECONDS, cf.FIRST_COMPLETED)
            _require_workers(client, address, checked)
            for future in done:
                group = group_of.pop(future)
                outcomes = _outcomes(future, group[0], address)
                bar.update(len(group))
                yield group, outcomes


def require_sendable(recipe: Recipe, split: Split) -> None:
    """Raise InputError for a recipe or images that can't go to the workers of a cluster."""
    from common.dataset.stored_images import StoredImages

    remedy = "leave --cluster out"
    if is_function(recipe.network):
        raise InputError(
            f"--cluster: its workers have no code for --network {recipe.network}; {remedy}"
        )
    if recipe.weights is not None:
        raise InputError(f"--cluster: its workers have no file {recipe.weights}; {remedy}")
    if isinstance(split.train.images, StoredImages):
        raise InputError(
            "--cluster: the images are larger than --memory and stay in a file, which is not"
            f" sent to its workers; give a larger --memory, or {remedy}"
        )


def _connect(address: str) -> Client:
    try:
        from distributed import Client
    except ImportError:
        raise InputError("--cluster: needs dask; pip install distributed") from None
    # What these say reaches the user as one line of ours, or is no concern of the user.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    warnings.filterwarnings("ignore", module=r"distributed\.")
    try:
        return Client(address, timeout=ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--cluster {address}: no dask scheduler answers ({reason}); start one there with:"
            " dask scheduler"
        ) from None


def _require_workers(client: Client, address: str, checked: set[str]) -> None:
    """Raise InputError unless there are workers, and all have the versions of this machine.

    checked: the workers whose versions are known to be right; new ones are added.
    """
    from distributed.exceptions import WorkerStartTimeoutError

    seconds = {"timeout": WORKERS_SECONDS, "callback_timeout": WORKERS_SECONDS + ANSWER_SECONDS}
    try:
        client.sync(client.wait_for_workers, 1, **seconds)
        if client.sync(client.nthreads, callback_timeout=ANSWER_SECONDS).keys() <= checked:
            return
        found = client.sync(
            client.get_versions, packages=files.LIBRARIES, callback_timeout=ANSWER_SECONDS
        )
    except WorkerStartTimeoutError:
        raise InputError(
            f"--cluster {address}: the scheduler has no workers; start some with: dask worker"
            f" {address}"
        ) from None
    except OSError as error:
        raise _gone(address, str(error)) from None
    here = files.versions() | {name: found["client"]["packages"][name] for name in DASK}
    places = {"scheduler": (found["scheduler"], ("python", *DASK))}
    places |= {
        f"worker {name}": (there, tuple(here)) for name, there in found["workers"].items()
    }
    for place, (there, names) in places.items():
        packages = there["packages"]
        # dask's version of Python is like 3.11.7.final.0
        packages |= {"python": ".".join(packages["python"].split(".")[:3])}
        for name in names:
            if packages[name] != here[name]:
                raise InputError(
                    f"--cluster {address}: {place} has {name} {packages[name]}, this machine"
                    f" {here[name]}; install the same version on both"
                )
    checked |= found["workers"].keys()


def _outcomes(future: cf.Future, run: Run, address: str) -> Outcomes:
    """Return what `train_together` returned in a child process, or raise what it raised.

    run: the one that errors name.
    """
    from distributed import KilledWorker

    try:
        outcomes = pickle.loads(future.result())
    except cf.CancelledError:
        raise _gone(address, "the connection was lost") from None
    except KilledWorker as error:
        raise InputError(
            f"--cluster {address}: {error.allowed_failures + 1} workers died while they trained"
            f" {run.file}, perhaps for lack of memory; see the log of the last,"
            f" {error.last_worker.address}"
        ) from None
    except Exception as error:  # of any kind: whatever kept a worker from training
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"--cluster {address}: {run.file} can't be trained ({reason}); see the log of the"
            " worker"
        ) from None
    if isinstance(outcomes, Exception):
        raise outcomes
    return outcomes


def _gone(address: str, reason: str) -> InputError:
    return InputError(
        f"--cluster {address}: the scheduler is gone ({reason}); start it again, and the same"
        " command does what is missing"
    )


def make_archive(split: Split) -> bytes:
    """Return a zip file of this project's code and of `split`."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for path in sorted((files.ROOT / "common").rglob("*.py")):
            archive.write(path, path.relative_to(files.ROOT))
        archive.writestr("split.pickle", pickle.dumps(split))
    return content.getvalue()


def make_task() -> Callable[[bytes, bytes], bytes]:
    """Return the function that trains a group of runs in a child process of a dask worker.

    It takes the archive and the pickled arguments, and returns the pickled outcomes. The child
    ends if the task is cancelled.
    """

    # A local function is sent by value, and this one uses only what any worker can import.
    def train_in_child(archive: bytes, order: bytes) -> bytes:
        from distributed import get_worker

        worker = get_worker()
        key = worker.get_current_task()
        with tempfile.TemporaryDirectory(dir=worker.local_directory) as name:
            folder = Path(name)
            with zipfile.ZipFile(io.BytesIO(archive)) as file:
                file.extractall(folder)
            (folder / "order.pickle").write_bytes(order)
            command = [sys.executable, "-m", "common.training.cluster"]
            with (
                (folder / "log.txt").open("wb") as log,
                subprocess.Popen(
                    command, cwd=folder, stdin=subprocess.PIPE, stdout=log, stderr=log
                ) as child,
            ):
                while child.poll() is None:
                    if worker.state.tasks[key].state == "cancelled":
                        child.kill()
                    try:
                        child.wait(1)
                    except subprocess.TimeoutExpired:
                        continue
            outcomes = folder / "outcomes.pickle"
            if not outcomes.exists():
                lines = (folder / "log.txt").read_text(errors="replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "")
                raise RuntimeError(f"process ended with code {child.returncode} {last}".strip())
            return outcomes.read_bytes()

    return train_in_child


def child_main() -> None:
    """Train the runs of order.pickle in the current folder; write outcomes.pickle.

    The outcomes are what `train_together` returns, or the exception that it raised.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        outcomes = _train_order()
    except Exception as error:
        if not isinstance(error, InputError):
            error.add_note(f"On a worker of the cluster:\n{traceback.format_exc()}")
        outcomes = error
    Path("outcomes.pickle").write_bytes(pickle.dumps(outcomes))


def _end_with_parent() -> None:
    # The worker never writes, and the system closes its end of the pipe however it ends.
    sys.stdin.buffer.read()
    os._exit(1)


def _train_order() -> Outcomes:
    import torch

    from common.training.run import train_together

    runs, settings = pickle.loads(Path("order.pickle").read_bytes())
    split = pickle.loads(Path("split.pickle").read_bytes())
    if not torch.get_device_module(settings["device"]).is_available():
        raise InputError(
            f"--device {settings['device']}: PyTorch finds none on a worker of the cluster;"
            " take --device cpu"
        )
    return train_together(runs, split, **settings)


if __name__ == "__main__":
    child_main()
