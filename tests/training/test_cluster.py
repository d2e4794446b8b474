"""Runs sent to a dask scheduler and two workers on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from distributed import Client

from common.dataset.load import load
from common.errors import InputError
from common.files import ROOT
from common.training import runs as runs_module
from common.training.recipe import Recipe
from common.training.runs import Run, train_all


@pytest.fixture
def cluster(tmp_path):
    """A scheduler's address and the processes of its two workers."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    processes = []

    def start(*command):
        process = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_" + command[0], *command[1:]],
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=environment,
        )
        processes.append(process)
        return process

    scheduler = start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    for line in scheduler.stderr:
        if "Scheduler at:" in line:
            address = line.split("Scheduler at:")[1].strip()
            break
    workers = [
        start("worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        for _ in range(2)
    ]
    with Client(address) as client:
        client.wait_for_workers(2, timeout=60)
    yield address, workers
    for process in processes:
        process.kill()
        process.wait()


def test_a_killed_worker_loses_no_result(cluster, tmp_path):
    address, workers = cluster
    split = load("synthetic", dry_run=True, cache=tmp_path / "cache")
    runs = [Run("tiny", Recipe(epochs=1, batch_size=20), s) for s in range(6)]
    ended = []
    for run, result in train_all(
        runs, split, tmp_path / "far", device="cpu", jobs=2, threads=1, cluster=address
    ):
        if not ended:
            workers[0].send_signal(signal.SIGKILL)
        ended.append(run)
        assert result["diverged"] is None
    assert sorted(run.seed for run in ended) == list(range(6))
    for _ in train_all(runs[:2], split, tmp_path / "near", device="cpu", jobs=1, threads=1):
        pass
    for file in ("tiny.pt", "tiny-seed1.pt"):
        assert (tmp_path / "far" / file).read_bytes() == (tmp_path / "near" / file).read_bytes()


def test_a_scheduler_that_does_not_answer_is_named(tmp_path, monkeypatch):
    split = load("synthetic", dry_run=True, cache=tmp_path / "cache")
    monkeypatch.setattr(runs_module, "CONNECT_SECONDS", 1)
    runs = [Run("tiny", Recipe(), 0)]
    address = "tcp://127.0.0.1:9"
    with pytest.raises(InputError, match=f"--cluster {address}: no dask scheduler") as caught:
        list(train_all(
            runs, split, tmp_path, device="cpu", jobs=1, threads=1, cluster=address
        ))  # fmt: skip
    assert "\n" not in str(caught.value)
