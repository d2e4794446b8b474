"""Runs sent to a dask scheduler and two workers on this machine."""

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


@pytest.fixture
def train(tmp_path):
    """Train six short runs in tmp_path/FOLDER; yield each with its result."""
    split = load("synthetic", dry_run=True, cache=tmp_path / "cache")
    runs = [Run("tiny", Recipe(epochs=1, batch_size=20), seed) for seed in range(6)]
    return lambda folder, **settings: train_all(
        runs, split, tmp_path / folder, device="cpu", threads=1, **settings
    )


def test_a_killed_worker_loses_no_result(cluster, train, tmp_path):
    address, workers = cluster
    ended = []
    for run, result in train("far", jobs=2, cluster=address):
        if not ended:
            workers[0].send_signal(signal.SIGKILL)
        ended.append(run.seed)
        assert result["diverged"] is None
    assert sorted(ended) == list(range(6))
    list(train("near", jobs=1))
    for file in ("tiny.pt", "tiny-seed1.pt"):
        assert (tmp_path / "far" / file).read_bytes() == (tmp_path / "near" / file).read_bytes()


def test_a_scheduler_that_does_not_answer_is_named(train, monkeypatch):
    monkeypatch.setattr(runs_module, "CONNECT_SECONDS", 1)
    address = "tcp://127.0.0.1:9"
    with pytest.raises(InputError, match=f"--cluster {address}: no dask scheduler") as caught:
        list(train("none", jobs=1, cluster=address))
    assert "\n" not in str(caught.value)
