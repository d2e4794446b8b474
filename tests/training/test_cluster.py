"""Runs sent to a dask cluster that the README's own commands start."""

import gc
import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from distributed import Client

from common import files
from common.dataset.load import load
from common.dataset.split import LabelledImages
from common.dataset.stored_images import gather
from common.errors import InputError
from common.files import ROOT
from common.training import cluster as cluster_module
from common.training.recipe import Recipe
from common.training.runs import Run, train_all


class Cluster:
    """The processes of a scheduler and its workers, started in an empty folder."""

    def __init__(self, folder):
        readme = (ROOT / "README.md").read_text()
        self.scheduler_command, self.worker_command = (
            shlex.split(re.search(rf"^dask {kind}.*?(?=#|$)", readme, re.MULTILINE)[0])
            for kind in ("scheduler", "worker")
        )
        self.folder, self.processes = folder, []
        # Any free port, as other schedulers may run here.
        free = ["--port", "0", "--dashboard-address", "127.0.0.1:0"]
        self.scheduler = self.start(*self.scheduler_command, "--host", "127.0.0.1", *free)
        log = iter(self.scheduler.stderr.readline, "")
        self.address = next(
            line.split("at:")[1].strip() for line in log if "Scheduler at:" in line
        )

    def start(self, *command):
        # No PYTHONPATH: the cluster must not depend on what is set up here.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        program = Path(sys.executable).with_name(command[0])
        process = subprocess.Popen(
            [program, *command[1:]],
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=environment,
        )
        self.processes.append(process)
        return process

    def add_worker(self):
        command = [re.sub(r"tcp://.*", self.address, word) for word in self.worker_command]
        # One run at a time, so that the next one is under way when the first has ended.
        return self.start(*command, "--nthreads", "1", "--dashboard-address", "127.0.0.1:0")

    def children(self):
        """Return the processes that train runs, the newest last."""
        found = []
        for process in self.processes:
            for child in psutil.Process(process.pid).children(recursive=True):
                with suppress(psutil.Error):  # it has just ended
                    if "common.training.cluster" in child.cmdline():
                        found.append(child)
        return sorted(found, key=psutil.Process.create_time)

    def end(self):
        own = [psutil.Process(process.pid) for process in self.processes]
        for process in [*own, *(c for each in own for c in each.children(recursive=True))]:
            process.kill()
        for process in self.processes:
            process.communicate()


@pytest.fixture
def dask(tmp_path):
    """A scheduler without workers."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    started = Cluster(folder)
    yield started
    started.end()


@pytest.fixture
def train(tmp_path):
    """Train short runs in tmp_path/FOLDER; yield each with its result."""
    split = load("synthetic", dry_run=True, cache=tmp_path / "cache")

    def train(folder, *seeds, **settings):
        runs = [Run("tiny", Recipe(epochs=1, batch_size=20), seed) for seed in seeds]
        settings = {"device": "cpu", "jobs": 1, "threads": 1} | settings
        return train_all(runs, split, tmp_path / folder, **settings)

    return train


@pytest.fixture
def bars(monkeypatch):
    """How far each progress bar came, of how many."""
    shown = []

    class Bar:
        def __init__(self, *, total, desc, disable):
            assert disable is None  # shown on a terminal only
            shown.append([desc, 0, total])

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, runs):
            shown[-1][1] += runs

    monkeypatch.setattr(cluster_module, "tqdm", Bar)
    return shown


def wait_until(condition):
    """Wait, at most a minute, until the condition holds, and return its value."""
    for _ in range(600):
        if value := condition():
            return value
        psutil.wait_procs([psutil.Process()], timeout=0.1)
    pytest.fail("the condition never held")


def test_a_run_whose_worker_is_killed_ends_with_the_bytes_of_a_run_at_home(
    dask, train, bars, tmp_path
):
    for _ in range(2):
        dask.add_worker()
    ended = []
    for run, result in train("far", 0, 1, 2, cluster=dask.address):
        if not ended:  # two runs are left; the worker that was free has started another
            child = wait_until(dask.children)[-1]
            worker = child.parent()
            worker.kill()
            assert psutil.wait_procs([child, worker], timeout=30)[1] == []
        ended.append(run.seed)
        assert result["diverged"] is None
        assert result["processor"] == files.processor()
    assert sorted(ended) == [0, 1, 2]
    assert bars == [["Runs on the cluster", 3, 3]]
    list(train("near", 0, 1, 2))
    for name in ("tiny.pt", "tiny-seed1.pt", "tiny-seed2.pt"):
        far, near = (tmp_path / folder / name for folder in ("far", "near"))
        assert far.read_bytes() == near.read_bytes()
    written = far.stat().st_mtime_ns
    list(train("far", 0, 1, 2))  # at home it counts as finished
    assert far.stat().st_mtime_ns == written


def test_runs_end_with_the_command_that_sent_them(dask, train):
    dask.add_worker()
    training = train("stopped", 0, 1, cluster=dask.address)
    next(training)
    children = wait_until(dask.children)
    training.close()
    assert psutil.wait_procs(children, timeout=30)[1] == []


def test_a_scheduler_that_ends_is_noticed(dask, train, monkeypatch):
    monkeypatch.setattr(cluster_module, "ANSWER_SECONDS", 2)
    dask.add_worker()
    training = train("gone", 0, 1, cluster=dask.address)
    next(training)
    dask.scheduler.kill()
    with pytest.raises(InputError, match=f"--cluster {dask.address}: the scheduler is gone"):
        list(training)


def test_a_cluster_without_workers_is_refused(dask, train, monkeypatch):
    monkeypatch.setattr(cluster_module, "WORKERS_SECONDS", 1)
    with pytest.raises(InputError, match="the scheduler has no workers; start some with: dask"):
        list(train("none", 0, cluster=dask.address))


def test_other_versions_on_a_worker_are_refused(dask, train, monkeypatch):
    dask.add_worker()
    with Client(dask.address) as client:
        client.wait_for_workers(1, timeout=60)
    ours = files.versions()
    monkeypatch.setattr(files, "versions", lambda: ours | {"numpy": "1.0"})
    words = rf"worker .* has numpy {ours['numpy']}, this machine 1\.0; install the same"
    with pytest.raises(InputError, match=words):
        list(train("other", 0, cluster=dask.address))


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"network": "tiny_networks:small"}, "no code for --network tiny_networks:small"),
     ({"network": "torchvision:resnet18", "weights": "w.pt"}, "no file w.pt"),
     ({}, "--memory")],
)  # fmt: skip
def test_what_cant_go_to_a_worker_is_refused_before_any_work(tmp_path, changes, words):
    split = load("synthetic", dry_run=True, cache=tmp_path / "cache")
    if not changes:
        n, images = len(split.train.labels), [split.train.images.numpy()]
        stored = gather(images, n, 32, 0, tmp_path / "images")
        split = replace(split, train=LabelledImages(stored, split.train.labels))
    run = Run("own", Recipe(**changes), 0)
    settings = {"device": "cpu", "jobs": 1, "threads": 1, "cluster": "tcp://127.0.0.1:9"}
    with pytest.raises(
        InputError, match=f"^--cluster: .*{words}.*leave --cluster out"
    ) as caught:
        list(train_all([run], split, tmp_path / "models", **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nowhere", "udp://x", "tcp://[::1"])
def test_a_scheduler_that_does_not_answer_is_named(train, monkeypatch, address):
    # A client that found no scheduler, in the test before, is collected here: its finalizer
    # would wait for a lock, in the thread that the next client starts while it holds that lock.
    gc.collect()
    monkeypatch.setattr(cluster_module, "ANSWER_SECONDS", 1)
    with pytest.raises(InputError) as caught:
        list(train("none", 0, cluster=address))
    assert str(caught.value).startswith(f"--cluster {address}: no dask scheduler answers")
    assert "\n" not in str(caught.value)
