"""Worker processes: calls side by side, in processes that end with their parent."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from common.errors import InputError


def call_in_processes(
    function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], jobs: int
) -> Iterator[tuple[int, Any]]:
    """Call function(*a) for each a of `arguments`, `jobs` calls at a time.

    Yields the position in `arguments` and the result of each call as it ends. Calls begin in
    the order of `arguments`. If the caller stops early, or is killed, the workers end at once.
    Raises InputError if a worker is killed, and what a call raises.
    """
    before = set(multiprocessing.active_children())
    with _ending_signals_blocked():  # for Python's resource tracker, which starts here
        executor = ProcessPoolExecutor(
            min(jobs, len(arguments)), multiprocessing.get_context("spawn"), _prepare_worker
        )
    remaining, position_of = iter(enumerate(arguments)), {}

    def submit(count: int) -> None:
        for i, call in itertools.islice(remaining, count):
            # As bytes: PyTorch's own way of sending tensors to a process shares their memory.
            position_of[executor.submit(_call, pickle.dumps((function, call)))] = i

    try:
        with _ending_signals_blocked():
            submit(2 * jobs)  # as many wait as run, while the caller works with a result
        while position_of:
            done, _ = wait(position_of, return_when=FIRST_COMPLETED)
            for future in done:
                i = position_of.pop(future)
                with _ending_signals_blocked():
                    submit(1)
                yield i, pickle.loads(future.result())
    except BrokenProcessPool:
        raise InputError(
            f"--jobs {jobs}: a worker process was killed, perhaps for lack of memory; take"
            " fewer --jobs"
        ) from None
    finally:
        for process in set(multiprocessing.active_children()) - before:
            process.kill()
        executor.shutdown()


def _call(content: bytes) -> bytes:
    function, arguments = pickle.loads(content)
    return pickle.dumps(function(*arguments))


def _prepare_worker() -> None:
    """Let this worker process end when its parent does, even if the parent is killed."""
    # tqdm's own lock has a semaphore, which Python reports as leaked if the worker is killed.
    tqdm.set_lock(threading.RLock())

    def wait_for_parent() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()


@contextmanager
def _ending_signals_blocked() -> Iterator[None]:
    """Keep SIGINT, SIGTERM and SIGHUP waiting within the block.

    A process that is started in the block keeps them waiting for ever. A terminal sends Ctrl-C
    to the workers too, where it would end in a traceback; they end with their parent instead.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
