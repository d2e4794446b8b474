"""lr_sweep.py as a user runs it."""

from __future__ import annotations

import json

import pytest
from conftest import is_one_line


def test_a_sweep_shows_every_rate_and_is_not_trained_twice(in_process, tmp_path):
    out = tmp_path / "out"
    shared = ["--dry-run", "--output-dir", out, "--jobs", "1", "--epochs", "1"]
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
    other = in_process("lr_sweep.py", "sampler", *shared, "--range-test").stdout
    assert "first run: python lr_sweep.py sampler" in other


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
        (["--validation", "0"], ["--validation 0"]),
        (["origina"], ["origina", "original"]),
    ],
)
def test_bad_input_is_one_line(in_process, arguments, words):
    ended = in_process("lr_sweep.py", "--dry-run", *arguments)
    assert ended.returncode == 2
    assert is_one_line(ended.stderr, *words)
