"""Files that are no checkpoints: refused in one line, soon, with little memory, unexecuted."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import is_one_line
from hostile_fields import content, hostile_contents
from hostile_files import damaged_archives, hostile_pickles

from common.errors import InputError
from common.files import ROOT
from common.networks.build import build
from common.networks.checkpoint import load_checkpoint


def write_cases(folder: Path) -> dict[str, str]:
    """Write a file for each case, and return the reasons by the files' names."""
    folder.mkdir()
    reasons = {}
    files = damaged_archives() | hostile_pickles()
    for number, (name, (reason, made)) in enumerate((files | hostile_contents()).items()):
        path = folder / f"{number:03} {name.replace('/', '_')}.pt"
        reasons[path.name] = reason
        if isinstance(made, bytes) and name in files:
            path.write_bytes(made)
        else:
            torch.save(made, path)
    return reasons


def write_special_files(folder: Path) -> dict[str, str]:
    """Make what is no regular file, or none at all, and return the reasons by name."""
    os.mkfifo(folder / "pipe.pt")
    (folder / "folder.pt").mkdir()
    (folder / "to a folder.pt").symlink_to(folder)
    (folder / "zeros without end.pt").symlink_to("/dev/zero")
    (folder / "dangling.pt").symlink_to(folder / "nowhere")
    (folder / "loop.pt").symlink_to("loop.pt")
    with (folder / "terabyte.pt").open("wb") as file:
        file.truncate(2**40)
    irregular, missing = "not a regular file", "no such checkpoint"
    return {
        "pipe.pt": irregular,
        "folder.pt": irregular,
        "to a folder.pt": irregular,
        "zeros without end.pt": irregular,
        "dangling.pt": missing,
        "loop.pt": missing,
        "missing.pt": missing,
        "n" * 300 + ".pt": missing,
        "terabyte.pt": "larger than any checkpoint",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to measure the memory")
def test_every_hostile_file_is_refused_in_one_line_within_5_s_and_1_gb(tmp_path):
    folder = tmp_path / "cases"
    reasons = write_cases(folder) | write_special_files(folder)
    assert len(reasons) > 250
    child = Path(__file__).with_name("load_within_limits.py")
    done = subprocess.run(
        [sys.executable, child, ROOT, *(folder / name for name in reasons)],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    results = [json.loads(line) for line in done.stdout.splitlines()]
    ended_at = list(reasons)[len(results)] if len(results) < len(reasons) else None
    assert (done.returncode, ended_at) == (0, None), done.stderr
    wrong = [
        result
        for result in results
        if not (
            result["kind"] == "InputError"
            and is_one_line(result["text"] + "\n", result["name"], reasons[result["name"]])
            and "weights_only" not in result["text"]
            and result["text"].isprintable()
            and result["grown"] < 1e9
        )
    ]
    assert not wrong, "\n".join(map(str, wrong))
    assert not done.stderr
    assert list(tmp_path.iterdir()) == [folder]  # nothing was executed that made a file


def test_what_is_changed_in_the_cases_is_a_checkpoint(tmp_path):
    torch.save(content(), tmp_path / "one.pt")
    assert load_checkpoint(tmp_path / "one.pt").data["source"] == "synthetic"


def test_a_flipped_byte_is_refused_or_changes_nothing(tmp_path):
    arguments = {"classes": 3}
    weights = build("simple-cnn", arguments, seed=5).state_dict()
    saved = content(architecture="simple-cnn", arguments=arguments, weights=weights)
    file, path = io.BytesIO(), tmp_path / "flipped.pt"
    torch.save(saved, file)
    whole = file.getvalue()
    has_checksum = np.zeros(len(whole), dtype=bool)
    for record in zipfile.ZipFile(file).infolist():
        names = struct.unpack_from("<2H", whole, record.header_offset + 26)
        start = record.header_offset + 30 + sum(names)
        has_checksum[start : start + record.file_size] = True
    rng = np.random.default_rng(0)
    anywhere = rng.integers(len(whole), size=500)
    without_checksum = rng.choice(np.flatnonzero(~has_checksum), size=500)
    loaded = 0
    for position in [*anywhere, *without_checksum]:
        flipped = bytearray(whole)
        flipped[position] ^= rng.integers(1, 256)
        path.write_bytes(flipped)
        try:
            checkpoint = load_checkpoint(path)
        except InputError:
            continue
        loaded += 1
        assert not has_checksum[position]
        now = checkpoint.network.state_dict()
        assert all(torch.equal(now[name], value) for name, value in weights.items())
        facts = checkpoint.record(path) | {"classes": list(checkpoint.classes)}
        assert saved | facts == saved | {"path": str(path), "image_size": 32}
    assert 0 < loaded < 500


def test_a_file_that_is_cut_anywhere_is_refused(tmp_path):
    file, path = io.BytesIO(), tmp_path / "cut.pt"
    torch.save(content(), file)
    for length in np.random.default_rng(0).integers(len(file.getvalue()), size=200):
        path.write_bytes(file.getvalue()[:length])
        with pytest.raises(InputError):
            load_checkpoint(path)


def test_a_script_refuses_a_hostile_file_in_one_line(in_process, tmp_path):
    reason, made = hostile_pickles()["pickle, os.system"]
    (tmp_path / "hostile.pt").write_bytes(made)
    done = in_process("evaluate.py", "hostile.pt", "--dry-run")
    assert (done.returncode, done.stdout) == (2, "")
    assert is_one_line(done.stderr, "evaluate.py: hostile.pt:", reason)
