"""Nothing lost: scripts that are killed, and started again."""

import csv
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys

import killing
import psutil
import pytest

from common.files import ROOT

BASELINE = ROOT / "models/baseline.pt"
TRAIN = ("train.py", "original", "crt", "--batch-size", 12, "--crt-epochs", 1)
SCRIPTS = {
    "inspect_data": ("inspect_data.py",),
    "audit": ("inspect_data.py", "--audit-labels"),
    "evaluate": ("evaluate.py", BASELINE),
    "train": TRAIN,
    "lr_sweep": (
        "lr_sweep.py", "--batch-size", 12, "--learning-rates", 0.01, 0.1, "--jobs", 1
    ),
    "adversarial": ("adversarial.py", BASELINE),
}  # fmt: skip


def start(folder, script, kill_at=None):
    """Start a script in `folder`, where it saves a training's state at each step."""
    folder.mkdir(exist_ok=True)
    usual = (
        "--dry-run", "--data", "synthetic", "--train-counts", 12, 6, 6,
        "--test-counts", 4, 3, 3,
        "--threads", 1, "--output-dir", "out",
    )  # fmt: skip
    return killing.start(folder, *script, *usual, kill_at=kill_at, save_seconds=0.0)


def finished_files(folder):
    """Return the content of each file below `folder` but the caches; without times.

    The content of a run's log is a list of its rows.
    """
    contents = {}
    for path in sorted((folder / "out").rglob("*")):
        if path.is_file() and path.suffix != ".state" and not path.name.startswith("."):
            content = path.read_bytes()
            if path.suffix == ".json":
                content = timeless(json.loads(content))
            if path.suffix == ".csv" and path.parent.name == "models":
                rows = csv.DictReader(content.decode().splitlines())
                content = [timeless(row) for row in rows]
            contents[str(path.relative_to(folder))] = content
    return contents


# What differs from run to run: times, and how many steps are timed in two seconds.
UNLIKE = ("seconds", "seconds_per_image", "measured_steps", "sha256")


def timeless(value):
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in UNLIKE}
    return [timeless(each) for each in value] if isinstance(value, list) else value


def check_end(folder, process, undisturbed):
    """Check that the run ended as the undisturbed one did, and that nothing else is left."""
    process.join()
    assert process.exitcode == 0, killing.log(folder)
    assert finished_files(folder) == undisturbed
    left = [*folder.rglob(f".{platform.node()}-*"), *folder.rglob("*.state")]
    assert left == []


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_kills_at_each_write_rename_and_removal(tmp_path, script):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, script)
    process.join()
    assert process.exitcode == 0, killing.log(whole)
    undisturbed = finished_files(whole)
    check_end(whole, start(whole, script), undisturbed)  # a second run changes nothing
    shutil.rmtree(whole)
    process = start(whole, script)
    process.join()
    # Each process starts from what the one before left when it was killed.
    for point in killing.points(whole):
        process = start(folder, script, kill_at=point)
        process.join()
        if process.exitcode == 0:  # work that was finished before is not done again
            check_end(folder, process, undisturbed)
            shutil.rmtree(folder)
            process = start(folder, script, kill_at=point)
            process.join()
        assert process.exitcode == -signal.SIGKILL, point
        for name, content in finished_files(folder).items():
            whole_content = undisturbed[name]
            if isinstance(content, list):  # a log, which grows with the epochs
                whole_content = whole_content[: len(content)]
            assert content == whole_content, (point, name)
    check_end(folder, start(folder, script), undisturbed)


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_a_data_folder_that_cant_be_written_is_no_hindrance(tmp_path, script):
    folders = tmp_path / "usual", tmp_path / "without"
    for folder in folders:
        folder.mkdir()
    (folders[1] / "data").touch()  # not even root can write in a file
    for folder in folders:
        process = start(folder, script)
        process.join()
        assert process.exitcode == 0, killing.log(folder)
    line = f"{folders[1] / 'data'}: can't be written (File exists); going on without a cache\n"
    assert killing.log(folders[1]).count(line) == 1
    assert "can't be written" not in killing.log(folders[0])
    assert finished_files(folders[1]) == finished_files(folders[0])


def test_kills_at_random_moments(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    process = start(whole, TRAIN)
    started = psutil.Process(process.pid).create_time()
    process.join()
    seconds = max(path.stat().st_mtime for path in whole.rglob("*")) - started
    undisturbed = finished_files(whole)
    rng = random.Random(0)
    kills = 0
    while kills < 50:
        process = start(folder, TRAIN)
        process.join(rng.uniform(0, 0.6 * seconds))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it was faster
            check_end(folder, process, undisturbed)
            shutil.rmtree(folder)
        else:
            kills += 1
    check_end(folder, start(folder, TRAIN), undisturbed)


@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -9), ("SIGHUP", 129), ("SIGINT", 130)])
def test_parallel_runs_end_with_the_command(offline, tmp_path, name, code):
    command = [
        sys.executable, "-u", ROOT / "train.py", "original", "--epochs", "30", "--seeds", "3",
        "--jobs", "2", "--threads", "2", "--output-dir", tmp_path / "out",
        "--data", "synthetic", "--train-counts", "40", "20", "20",
        "--test-counts", "6", "4", "4",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        # A shell's background job ignores Ctrl-C, and so would this process after it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    for line in process.stdout:
        if line.startswith("saved") and line.endswith(".json\n"):
            break
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    # A terminal sends Ctrl-C, and the end of the session, to each process of the command.
    (os.kill if name == "SIGKILL" else os.killpg)(process.pid, signal.Signals[name])
    errors = process.communicate(timeout=60)[1]
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert process.returncode == code
    models = tmp_path / "out/models"
    finished = {path: path.read_bytes() for path in models.glob("[!.]*.pt")}
    results = len(list(models.glob("*.json")))  # a run's last file
    assert results
    if name != "SIGKILL":
        assert errors == "train.py: stopped; what was finished is saved\n"
        return
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert again.stdout.count("(trained before, by: train.py") == results
    assert {path: path.read_bytes() for path in finished} == finished
