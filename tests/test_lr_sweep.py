"""lr_sweep.py as a user runs it."""

from __future__ import annotations

import json
import re

import pytest
import torch
from conftest import is_one_line
from torchvision.models import mobilenet_v3_small

from common import files
from common.training import log


def test_a_sweep_shows_every_rate_and_is_not_trained_twice(in_process, tmp_path):
    out = tmp_path / "out"
    shared = ["--dry-run", "--output-dir", out, "--threads", "1", "--epochs", "1"]
    text = in_process(
        "lr_sweep.py", *shared, "--learning-rates", "0.01", "1e30", "1e-10"
    ).stdout
    table = text.splitlines()
    start = next(i for i, line in enumerate(table) if line.split()[:2] == ["rate", "first"])
    lines = table[start + 1 : start + 4]
    assert [line.split()[0] for line in lines] == ["1e-10", "0.01", "1e+30"]
    assert lines[0].endswith("too small, hardly moved")
    assert "diverges at step 2" in lines[2]
    assert all(len(line) <= 80 for line in text.splitlines() if "saved" not in line)
    saved = json.loads((out / "figures/lr_sweep_original.json").read_text())
    assert [entry["rate"] for entry in saved["rates"]] == [1e-10, 0.01, 1e30]
    assert saved["best_rate"] in (1e-10, 0.01)
    assert all("report" not in entry["verdict"] for entry in saved["rates"])
    for name in ("loss", "each", "validation"):
        assert (out / f"figures/lr_sweep_original_{name}.png").stat().st_size > 10_000
    times = {p.name: p.stat().st_mtime_ns for p in (out / "models").iterdir()}
    assert "original-lr0.01.pt" in times
    in_process("lr_sweep.py", *shared, "--learning-rates", "0.01", "1e30", "1e-10")
    assert times == {p.name: p.stat().st_mtime_ns for p in (out / "models").iterdir()}
    ranged = in_process("lr_sweep.py", *shared, "--range-test").stdout
    assert f"by validation G-mean: {saved['best_rate']:g}\n" in ranged
    assert (out / "figures/lr_sweep_original_range_test.png").stat().st_size > 10_000
    # The sweep was of other images.
    other = in_process("lr_sweep.py", *shared, "--range-test", "--split-seed", "1").stdout
    assert "To compare with a sweep, first run" in other
    changed = "sampler", "--range-test", "--batch-size", "8"
    other = in_process("lr_sweep.py", *changed, *shared).stdout
    [command] = re.findall(r"first run:\npython ((?:.+\\\n)*.+)", other)
    words = command.replace("\\\n", "").split()
    given = " ".join(words)
    assert given.startswith("lr_sweep.py sampler ")
    assert "--batch-size 8" in given
    assert f"--output-dir {out}" in given
    assert in_process(*words, "--learning-rates", "0.01").returncode == 0
    ranged = in_process(*words, "--range-test").stdout
    assert "by validation G-mean: 0.01\n" in ranged


def test_a_sweep_of_a_frozen_network_computes_its_features_once(
    in_process, tmp_path, monkeypatch
):
    monkeypatch.setattr(files, "ROOT", tmp_path)
    torch.save(mobilenet_v3_small().state_dict(), tmp_path / "w.pt")
    shared = [
        "linear-probe", "--no-pretrained", "--weights", tmp_path / "w.pt", "--dry-run",
        "--output-dir", tmp_path / "out", "--threads", "1", "--data", "synthetic",
        "--batch-size", "16",
    ]  # fmt: skip
    ended = in_process("lr_sweep.py", *shared, "--learning-rates", "0.001", "0.1")
    assert ended.returncode == 0, ended.stderr
    name = "linear-probe+pretrained=False+weights=w.pt+batch-size=16"
    saved = json.loads((tmp_path / f"out/figures/lr_sweep_{name}.json").read_text())
    assert [entry["features"]["dimension"] for entry in saved["rates"]] == [1024, 1024]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/features-*")}
    # Train and validation images, test images, and the mirror images of each.
    assert len(times) == 6
    ranged = in_process("lr_sweep.py", *shared, "--range-test")
    assert f"by validation G-mean: {saved['best_rate']:g}\n" in ranged.stdout
    assert times == {path: path.stat().st_mtime_ns for path in tmp_path.glob("data/features-*")}


@pytest.mark.parametrize("name", ["train.py", "lr_sweep.py"])
def test_tensorboard_is_looked_for_before_any_work(in_process, tmp_path, monkeypatch, name):
    arguments = ("--dry-run", "--output-dir", tmp_path / "out", "--tensorboard")
    ended = in_process(name, *arguments, "--cluster", "tcp://127.0.0.1:9")
    assert is_one_line(ended.stderr, "--tensorboard", "--cluster", "leave one out")
    monkeypatch.setattr(log, "find_spec", lambda _: None)
    ended = in_process(name, *arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert is_one_line(ended.stderr, "--tensorboard", "pip install tensorboard")
    assert not (tmp_path / "out/models").exists()


def test_each_rate_has_a_log_and_event_files(in_process, tmp_path):
    in_process(
        "lr_sweep.py", "--dry-run", "--output-dir", tmp_path, "--jobs", "1", "--tensorboard",
        "--learning-rates", "0.01", "0.1", "--epochs", "2", "--data", "synthetic",
    )  # fmt: skip
    for rate in ("0.01", "0.1"):
        lines = (tmp_path / f"models/original-lr{rate}.csv").read_text().splitlines()
        assert [line.split(",")[:2] for line in lines[1:]] == [["1", rate], ["2", rate]]
        assert len(list((tmp_path / f"models/tensorboard/original-lr{rate}").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--learning-rates", "0"], ["'0'", "above 0"]),
        (["--learning-rates", "-1"], ["--learning-rates"]),
        (["--learning-rates", "nan"], ["'nan'", "above 0"]),
        (["--learning-rates", "inf"], ["'inf'", "above 0"]),
        (["--learning-rates", "fast"], ["'fast'", "above 0"]),
        (["--learning-rates"], ["--learning-rates", "expected at least one"]),
        (["--learning-rates", "0.1", "1e-1"], ["0.1", "twice"]),
        (
            ["--range-test", "--learning-rates", "0.1"],
            ["--range-test: ", "--learning-rates does nothing"],
        ),
        (["--range-test", "--jobs", "2"], ["--range-test: ", "--jobs does nothing"]),
        (["--validation", "0"], ["--validation 0"]),
        (["origina"], ["origina", "original"]),
    ],
)
def test_bad_input_is_one_line(in_process, arguments, words):
    ended = in_process("lr_sweep.py", "--dry-run", *arguments)
    assert ended.returncode == 2
    assert is_one_line(ended.stderr, *words)
